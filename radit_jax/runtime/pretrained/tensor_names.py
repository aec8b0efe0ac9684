"""Hugging Face's names of tensors, each with our path of the parameter: one table for each network.

`{}` is the number of a layer.
"""

from collections.abc import Mapping

Table = tuple[tuple[str, str], ...]

# Of all families: a network that lacks a path lacks its tensors.
DECODER: Table = (
    ("model.embed_tokens.weight", "model/embed_tokens/embedding"),
    ("model.layers.{}.input_layernorm.weight", "model/layers/input_layernorm/weight"),
    ("model.layers.{}.self_attn.q_proj.weight", "model/layers/self_attn/q_proj/kernel"),
    ("model.layers.{}.self_attn.k_proj.weight", "model/layers/self_attn/k_proj/kernel"),
    ("model.layers.{}.self_attn.v_proj.weight", "model/layers/self_attn/v_proj/kernel"),
    ("model.layers.{}.self_attn.o_proj.weight", "model/layers/self_attn/o_proj/kernel"),
    ("model.layers.{}.self_attn.q_proj.bias", "model/layers/self_attn/q_proj/bias"),
    ("model.layers.{}.self_attn.k_proj.bias", "model/layers/self_attn/k_proj/bias"),
    ("model.layers.{}.self_attn.v_proj.bias", "model/layers/self_attn/v_proj/bias"),
    ("model.layers.{}.self_attn.q_norm.weight", "model/layers/self_attn/q_norm/weight"),
    ("model.layers.{}.self_attn.k_norm.weight", "model/layers/self_attn/k_norm/weight"),
    ("model.layers.{}.post_attention_layernorm.weight", "model/layers/post_attention_layernorm/weight"),
    ("model.layers.{}.pre_feedforward_layernorm.weight", "model/layers/pre_feedforward_layernorm/weight"),
    ("model.layers.{}.post_feedforward_layernorm.weight", "model/layers/post_feedforward_layernorm/weight"),
    ("model.layers.{}.mlp.gate_proj.weight", "model/layers/mlp/gate_proj/kernel"),
    ("model.layers.{}.mlp.up_proj.weight", "model/layers/mlp/up_proj/kernel"),
    ("model.layers.{}.mlp.down_proj.weight", "model/layers/mlp/down_proj/kernel"),
    ("model.norm.weight", "model/norm/weight"),
    ("lm_head.weight", "lm_head/kernel"),  # absent when tied
)


def _lora_table() -> Table:
    """PEFT's names of adapters, for the kernels that have one."""
    table = []
    for name, path in DECODER:
        if path.endswith("_proj/kernel"):
            theirs = f"base_model.model.{name.removesuffix('weight')}"
            ours = path.removesuffix("kernel")
            table.append((f"{theirs}lora_A.weight", f"{ours}lora_a"))
            table.append((f"{theirs}lora_B.weight", f"{ours}lora_b"))
    return tuple(table)


LORA = _lora_table()
DECODER_IGNORED = r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"
# A model of text and images has its text's decoder under one of these prefixes, and these parts besides.
NESTED_PREFIXES = {"language_model.": "", "model.language_model.": "model."}
IMAGE_PARTS = r"(model\.)?(vision_tower|multi_modal_projector)\..*"

BERT: Table = (
    ("embeddings.word_embeddings.weight", "embeddings/word_embeddings/embedding"),
    ("embeddings.position_embeddings.weight", "embeddings/position_embeddings/embedding"),
    ("embeddings.token_type_embeddings.weight", "embeddings/token_type_embeddings/embedding"),
    ("embeddings.LayerNorm.weight", "embeddings/LayerNorm/scale"),
    ("embeddings.LayerNorm.bias", "embeddings/LayerNorm/bias"),
    ("encoder.layer.{}.attention.self.query.weight", "encoder/layer/attention/self/query/kernel"),
    ("encoder.layer.{}.attention.self.query.bias", "encoder/layer/attention/self/query/bias"),
    ("encoder.layer.{}.attention.self.key.weight", "encoder/layer/attention/self/key/kernel"),
    ("encoder.layer.{}.attention.self.key.bias", "encoder/layer/attention/self/key/bias"),
    ("encoder.layer.{}.attention.self.value.weight", "encoder/layer/attention/self/value/kernel"),
    ("encoder.layer.{}.attention.self.value.bias", "encoder/layer/attention/self/value/bias"),
    ("encoder.layer.{}.attention.output.dense.weight", "encoder/layer/attention/output/dense/kernel"),
    ("encoder.layer.{}.attention.output.dense.bias", "encoder/layer/attention/output/dense/bias"),
    ("encoder.layer.{}.attention.output.LayerNorm.weight", "encoder/layer/attention/output/LayerNorm/scale"),
    ("encoder.layer.{}.attention.output.LayerNorm.bias", "encoder/layer/attention/output/LayerNorm/bias"),
    ("encoder.layer.{}.intermediate.dense.weight", "encoder/layer/intermediate/dense/kernel"),
    ("encoder.layer.{}.intermediate.dense.bias", "encoder/layer/intermediate/dense/bias"),
    ("encoder.layer.{}.output.dense.weight", "encoder/layer/output/dense/kernel"),
    ("encoder.layer.{}.output.dense.bias", "encoder/layer/output/dense/bias"),
    ("encoder.layer.{}.output.LayerNorm.weight", "encoder/layer/output/LayerNorm/scale"),
    ("encoder.layer.{}.output.LayerNorm.bias", "encoder/layer/output/LayerNorm/bias"),
)
# MPNet's names, where they are others than BERT's.
MPNET_NAMES = {
    "attention.self.query": "attention.attn.q",
    "attention.self.key": "attention.attn.k",
    "attention.self.value": "attention.attn.v",
    "attention.output.dense": "attention.attn.o",
    "attention.output.LayerNorm": "attention.LayerNorm",
}


# DistilBERT's likewise.
DISTILBERT_NAMES = {
    "encoder.layer": "transformer.layer",
    "attention.self.query": "attention.q_lin",
    "attention.self.key": "attention.k_lin",
    "attention.self.value": "attention.v_lin",
    "attention.output.dense": "attention.out_lin",
    "attention.output.LayerNorm": "sa_layer_norm",
    "intermediate.dense": "ffn.lin1",
    "output.dense": "ffn.lin2",
    "output.LayerNorm": "output_layer_norm",
}


def _renamed(names: Mapping[str, str]) -> Table:
    """BERT's table by the names of a relative; those that stand first in `names` are replaced first."""
    table = []
    for name, path in BERT:
        for berts, relatives in names.items():
            name = name.replace(berts, relatives)
        table.append((name, path))
    return tuple(table)


MPNET: Table = (
    ("encoder.relative_attention_bias.weight", "encoder/relative_attention_bias/embedding"),
    *_renamed(MPNET_NAMES),
)
DISTILBERT = _renamed(DISTILBERT_NAMES)
# The pooler serves BERT's next-sentence task, `cls` its two pre-training tasks, and `lm_head` and `vocab_…`
# that of its relatives. The position ids are a constant that old versions saved.
BERT_IGNORED = r"pooler\..*|embeddings\.position_ids|cls\..*|lm_head\..*|vocab_\w+\..*"
BERT_ROOT = "embeddings.word_embeddings.weight"  # what precedes it is the prefix of all of a BERT's names
OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}  # of TensorFlow
