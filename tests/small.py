"""What the stages start from, as small as it can be: ten chunks, a random language model and encoder."""

import pathlib

import jax.numpy as jnp
import numpy as np

from radit_jax.config import BertConfig, DecoderConfig, MeshConfig
from radit_jax.data.artifacts.corpus import CorpusData, write_corpus
from radit_jax.data.records import Chunk, Question
from radit_jax.models.bert import Bert
from radit_jax.models.decoder import DecoderLm
from radit_jax.retrieval.exact import ExactIndex
from radit_jax.retrieval.search import Encoder, Searcher
from radit_jax.runtime.distributed.mesh import make_mesh
from radit_jax.runtime.pretrained.model_io import Model, save_model
from radit_jax.runtime.pretrained.tokenizer_training import train_bpe, train_wordpiece
from radit_jax.runtime.storage.stage_folder import StageFolder
from radit_jax.runtime.storage.workdir import Workdir
from radit_jax.selfcheck.tiny_models import random_params

TOWERS = (
    ("Dray Tower", "Hob Crane", "Millford"),
    ("Elm Tower", "Ada Finch", "Ostley"),
    ("Fen Tower", "Bo Marsh", "Pirnow"),
    ("Gate Tower", "Cy Heron", "Quay"),
    ("Hill Tower", "Di Rook", "Rusk"),
    ("Iron Tower", "Ed Swift", "Selby"),
    ("Jay Tower", "Flo Wren", "Tarn"),
    ("Kings Tower", "Gil Teal", "Upton"),
)
FACTS = tuple(f"{name} was built by {builder} and stands in {town}." for name, builder, town in TOWERS)
LONG, SHORT = 8, 9  # the rows of a chunk that does not fit a row of 64 tokens, and of one without halves
CHUNKS = (
    *(Chunk(f"c{row}", TOWERS[row][0], text) for row, text in enumerate(FACTS)),
    Chunk("long", "Towers", " ".join(FACTS)),
    Chunk("short", "Gone", "."),
)


def _question(row: int, *answers: str, gold: bool = True) -> Question:
    name, builder, _ = TOWERS[row]
    gold_chunks = (f"c{row}",) if gold else ()
    return Question(f"q{row}", f"Who built {name}?", answers or (builder,), gold_chunks, group=name)


QUESTIONS = {
    "train": [_question(0, "Hob Crane", "Crane"), *map(_question, (1, 2)), _question(3, gold=False)],
    "dev": [_question(4), _question(5)],
    "test": [_question(6), _question(7)],
}
CORPUS = CorpusData(
    CHUNKS, QUESTIONS, documents=["A tower."], encoder_groups=[[("a?", "A."), ("b?", "B.")], [("c?", "C.")]]
)


def language_model() -> Model:
    tokenizer = train_bpe([chunk.passage for chunk in CHUNKS] + ["Background: Q: Who built\nA:"] * 3, 420)
    config = DecoderConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=16,
        num_layers=1,
        num_heads=2,
        num_kv_heads=2,
        head_size=8,
        ffn_size=32,
    )
    module = DecoderLm(config)
    return Model(module, random_params(module, jnp.zeros((1, 4), jnp.int32)), tokenizer)


def encoder() -> Model:
    tokenizer = train_wordpiece([chunk.passage for chunk in CHUNKS], 200)
    tokenizer.hf.model_max_length = 48
    config = BertConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=16,
        num_layers=1,
        num_heads=2,
        ffn_size=32,
        max_length=64,
        pooling="mean",
        normalize=True,
    )
    module, tokens = Bert(config), jnp.zeros((1, 4), jnp.int32)
    return Model(module, random_params(module, tokens, tokens == 0), tokenizer)


def searcher() -> Searcher:
    """Both towers have the same parameters: a chunk's own text finds it."""
    tower = Encoder(encoder(), make_mesh(MeshConfig()))
    return Searcher(tower, ExactIndex(tower.embed([chunk.passage for chunk in CHUNKS])))


def finished_stages(path: pathlib.Path, lm: Model, searcher: Searcher) -> dict[str, StageFolder]:
    """The folders of corpus, base, embed and index by the names that stages have for these inputs."""
    workdir = Workdir(path)
    names = {"corpus": "corpus", "lm": "base", "retriever": "base", "embeddings": "embed", "index": "index"}
    folders = {name: workdir.folder(stage, name) for name, stage in names.items()}
    write_corpus(folders["corpus"], CORPUS)
    for folder, name, model in (
        ("lm", "lm", lm),
        ("retriever", "query_encoder", searcher.encoder.model),
        ("retriever", "chunk_encoder", searcher.encoder.model),
    ):
        save_model(folders[folder].path / name, model)
        folders[folder].commit(name)
    folders["embeddings"].write_array("embeddings-00000-of-00001.npy", searcher.embeddings[np.arange(10)])
    searcher.index.save(folders["index"])
    folders["corpus"].finish(format="kilt")  # the towers' ids are those of KILT's pages
    for folder in folders.values():
        if not folder.complete:
            folder.finish()
    return folders
