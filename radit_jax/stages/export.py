"""export: the tuned models where others find them, `export/{lm,query_encoder,chunk_encoder}/`.

Beside the models lie the corpus, its embeddings and the index, so that questions can be answered from the
export alone.
"""
