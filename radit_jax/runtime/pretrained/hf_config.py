"""`config.json`: Hugging Face's form of it and our own, read through one table for each network."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal

from etils import epath

from radit_jax.config import BertConfig, LlamaConfig, RopeScaling
from radit_jax.runtime.pretrained.fields import REQUIRED, Field, read_fields, shown_value
from radit_jax.runtime.storage.files import as_object, read_json

Pooling = Literal["cls", "mean"]
BERTS = ("bert", "dpr")  # the model types whose network is BERT's: DPR's encoders are BERTs by other names
REMEDY = "Fetch the checkpoint again, or use another."
REMEDY_OF_OURS = "Name a folder that the export stage wrote (export/lm, ...), or write it again."

ALWAYS_SAID = ("num_kv_heads", "head_size")  # by our own config.json; Hugging Face's may leave them out
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
SIZE = (1, 1 << 24)  # of a vocabulary or a width
LLAMA_FIELDS = {
    "vocab_size": Field("vocab_size", int, *SIZE),
    "hidden_size": Field("hidden_size", int, *SIZE),
    "num_hidden_layers": Field("num_layers", int, 1, 10_000),
    "num_attention_heads": Field("num_heads", int, *SIZE),
    "num_key_value_heads": Field("num_kv_heads", int, *SIZE, None),  # as many as heads
    "head_dim": Field("head_size", int, *SIZE, None),  # the width by the heads
    "intermediate_size": Field("ffn_size", int, *SIZE),
    "max_position_embeddings": Field("max_length", int, 1, 1 << 30, 2048),
    "rms_norm_eps": Field("rms_norm_eps", float, 0, 1, 1e-6),
    "tie_word_embeddings": Field("tie_embeddings", bool, default=False),
}
THETA = {"rope_theta": Field("rope_theta", float, 1, 1e15, 10_000.0)}
ROPE_FIELDS = {
    "factor": Field("factor", float, 1e-3, 1e6),
    "low_freq_factor": Field("low_freq_factor", float, 0, 1e6),
    "high_freq_factor": Field("high_freq_factor", float, 0, 1e6),
    "original_max_position_embeddings": Field("original_max_length", int, 1, 1 << 30),
}
BERT_FIELDS = {
    "vocab_size": Field("vocab_size", int, *SIZE),
    "hidden_size": Field("hidden_size", int, *SIZE),
    "num_hidden_layers": Field("num_layers", int, 1, 10_000),
    "num_attention_heads": Field("num_heads", int, *SIZE),
    "intermediate_size": Field("ffn_size", int, *SIZE),
    "max_position_embeddings": Field("max_length", int, 1, 1 << 24, 512),
    "type_vocab_size": Field("type_vocab_size", int, 1, 1 << 16, 2),
    "layer_norm_eps": Field("layer_norm_eps", float, 0, 1, 1e-12),
}
VECTOR_FIELDS = {  # which a BERT's own config.json lacks and ours has
    "pooling": Field("pooling", str, default="cls"),
    "normalize": Field("normalize", bool, default=False),
    "default_prompt": Field("default_prompt", str, default=""),
    "truncate_dim": Field("truncate_dim", int, *SIZE, None),
}


def read_config(folder: epath.PathLike) -> dict[str, Any]:
    """The fields of the folder's `config.json`."""
    path = epath.Path(folder) / "config.json"
    if not path.exists():
        raise ValueError(
            f"{folder}: expected a config.json, got none. Name a folder with a checkpoint in Hugging Face's "
            "form."
        )
    return read_json(path, REMEDY)


def model_type(values: Mapping[str, Any], where: str, expected: str = "") -> Literal["llama", "bert"]:
    """Which network a `config.json` describes; `expected` is the one, llama or bert, that it has to be."""
    named = values.get("model_type")
    found = "bert" if named in BERTS else named
    titles = {"llama": "a LLaMA (model_type llama)", "bert": "a BERT (model_type bert or dpr)"}
    if found not in ([expected] if expected else titles):
        wanted = titles[expected] if expected else " or ".join(titles.values())
        raise ValueError(
            f"{where}: expected {wanted}, got model_type {shown_value(named)}. "
            "Name a checkpoint of that network."
        )
    return "llama" if found == "llama" else "bert"


# ---- LLaMA ----


def llama_config(values: Mapping[str, Any], folder: str) -> LlamaConfig:
    """A LLaMA's `config.json`, in its old forms (RoPE at the top, fields absent) and the newest."""
    where = f"{folder}/config.json"
    model_type({"model_type": "llama"} | dict(values), where, "llama")
    _demand(values, where, hidden_act="silu", attention_bias=False, mlp_bias=False, quantization_config=None)
    # The newest form nests θ with the scaling; a file that was converted may have both.
    rope = {**_object(values, "rope_scaling", where), **_object(values, "rope_parameters", where)}
    sizes = read_fields(values, LLAMA_FIELDS, where, REMEDY)
    theta = read_fields({"rope_theta": values.get("rope_theta")} | rope, THETA, where, REMEDY)
    sizes["num_kv_heads"] = sizes["num_kv_heads"] or sizes["num_heads"]
    sizes["head_size"] = sizes["head_size"] or sizes["hidden_size"] // sizes["num_heads"]
    config = LlamaConfig(**sizes, **theta, rope_scaling=_rope_scaling(rope, where))
    return _check_llama(config, where)


def llama_json(config: LlamaConfig, dtype: str) -> dict[str, Any]:
    """The `config.json` of a LLaMA, with RoPE at the top, as old and new readers take it."""
    scaling = config.rope_scaling
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **_as_json(config, LLAMA_FIELDS | THETA),
        "rope_scaling": scaling and {"rope_type": "llama3", **_as_json(scaling, ROPE_FIELDS)},
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": dtype,
    }


def _rope_scaling(rope: Mapping[str, Any], where: str) -> RopeScaling | None:
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return None
    if kind != "llama3":
        raise ValueError(
            f"{where}: expected rope type default or llama3, got {shown_value(kind)}. Use such a checkpoint."
        )
    return RopeScaling(**read_fields(rope, ROPE_FIELDS, f"{where}: RoPE of type llama3", REMEDY))


def _check_llama(config: LlamaConfig, where: str) -> LlamaConfig:
    if config.num_heads % config.num_kv_heads or config.head_size % 2 or config.head_size == 0:
        raise ValueError(
            f"{where}: expected heads of an even size, in groups for each key's head, got {config.num_heads} "
            f"heads of size {config.head_size} for {config.num_kv_heads} of keys. {REMEDY}"
        )
    scaling = config.rope_scaling
    if scaling is not None and scaling.high_freq_factor <= scaling.low_freq_factor:
        raise ValueError(
            f"{where}: expected high_freq_factor above low_freq_factor, got {scaling.high_freq_factor} and "
            f"{scaling.low_freq_factor}. {REMEDY}"
        )
    return config


# ---- BERT ----


def bert_config(values: Mapping[str, Any], folder: str, **vectors: Any) -> BertConfig:
    """A BERT's `config.json`; `vectors` are the fields of `BertConfig` that say how its vectors are made."""
    where = f"{folder}/config.json"
    model_type({"model_type": "bert"} | dict(values), where, "bert")
    _demand(values, where, hidden_act="gelu", position_embedding_type="absolute", quantization_config=None)
    _demand(values, where, projection_dim=0, is_decoder=False)  # DPR's, which none of its own encoders has
    config = BertConfig(**read_fields(values, BERT_FIELDS, where, REMEDY), **vectors)
    return _check_bert(config, where)


def bert_json(config: BertConfig, dtype: str) -> dict[str, Any]:
    """The `config.json` of a BERT encoder, which has no pooler."""
    return {
        "architectures": ["BertModel"],
        "model_type": "bert",
        **_as_json(config, BERT_FIELDS),
        "hidden_act": "gelu",
        "position_embedding_type": "absolute",
        "torch_dtype": dtype,
    }


def _check_bert(config: BertConfig, where: str) -> BertConfig:
    if config.hidden_size % config.num_heads:
        raise ValueError(
            f"{where}: expected hidden_size to be a multiple of num_attention_heads, got "
            f"{config.hidden_size} and {config.num_heads}. {REMEDY}"
        )
    if (config.truncate_dim or 1) > config.hidden_size:
        raise ValueError(
            f"{where}: expected truncate_dim of at most hidden_size {config.hidden_size}, got "
            f"{config.truncate_dim}. {REMEDY}"
        )
    return config


# ---- what stands beside the network ----


def read_declared(folder: epath.PathLike) -> dict[str, Any]:
    """What a checkpoint says of its special ids, to be exported as it came.

    `config` has the ids in config.json, `generation` the whole generation_config.json, where there is one.
    """
    folder = epath.Path(folder)
    ids = {name: value for name, value in read_config(folder).items() if name in TOKEN_IDS}
    path = folder / "generation_config.json"
    generation = read_json(path, REMEDY) if path.exists() else {}
    _check_ids(ids, f"{folder}/config.json", REMEDY)
    _check_ids(generation, str(path), REMEDY)
    return {"config": ids, "generation": generation}


def own_declared(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What `read_declared` found, as our own `config.json` keeps it; empty where nothing was found."""
    declared = as_object(values.get("declared", {}), f"{where}: declared", REMEDY_OF_OURS)
    for part in ("config", "generation"):
        inside = as_object(declared.get(part, {}), f"{where}: declared {part}", REMEDY_OF_OURS)
        _check_ids(inside, f"{where}: declared {part}", REMEDY_OF_OURS)
    return declared


def declared_ids(declared: Mapping[str, Any], name: str) -> list[int]:
    """The ids of a special token (bos, eos or pad) by what `read_declared` found; −1 is none."""
    for part in ("generation", "config"):
        value = declared.get(part, {}).get(f"{name}_token_id")
        if value is not None:
            return [number for number in (value if isinstance(value, list) else [value]) if number >= 0]
    return []


def _check_ids(values: Mapping[str, Any], where: str, remedy: str) -> None:
    for name in TOKEN_IDS:
        value = values.get(name)
        numbers = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(number, int) and not isinstance(number, bool) for number in numbers):
            raise ValueError(
                f"{where}: expected {name} to be an id or a list of ids, got {shown_value(value)}. {remedy}"
            )


# ---- ours ----


def own_json(config: LlamaConfig | BertConfig) -> dict[str, Any]:
    """Our own `config.json`: the network and its settings by our names."""
    return {"module": type(config).__name__.removesuffix("Config"), "config": asdict(config)}


def own_config(values: Mapping[str, Any], where: str) -> LlamaConfig | BertConfig:
    """The settings in our own `config.json`, which `own_json` made."""
    named = values.get("module")
    if named not in ("Llama", "Bert"):
        raise ValueError(
            f"{where}: expected module Llama or Bert, got {shown_value(named)}. {REMEDY_OF_OURS}"
        )
    settings = as_object(values.get("config"), f"{where}: config", REMEDY_OF_OURS)
    if named == "Llama":
        fields = _by_our_names(settings, LLAMA_FIELDS | THETA, {"rope_scaling"}, where)
        if (scaling := settings.get("rope_scaling")) is not None:
            inner = as_object(scaling, f"{where}: rope_scaling", REMEDY_OF_OURS)
            fields["rope_scaling"] = RopeScaling(**_by_our_names(inner, ROPE_FIELDS, set(), where))
        return _check_llama(LlamaConfig(**fields), where)
    fields = _by_our_names(settings, BERT_FIELDS | VECTOR_FIELDS, {"prompts"}, where)
    if fields["pooling"] not in ("cls", "mean"):
        raise ValueError(
            f"{where}: expected pooling cls or mean, got {shown_value(fields['pooling'])}. {REMEDY_OF_OURS}"
        )
    return _check_bert(BertConfig(**fields, prompts=_own_prompts(settings, where)), where)


def _by_our_names(
    settings: Mapping[str, Any], table: Mapping[str, Field], others: set[str], where: str
) -> dict[str, Any]:
    own = {
        field.ours: field._replace(default=REQUIRED) if field.ours in ALWAYS_SAID else field
        for field in table.values()
    }
    if strange := sorted(settings.keys() - own.keys() - others):
        raise ValueError(
            f"{where}: expected settings of its network, got {shown_value(strange[0])}. {REMEDY_OF_OURS}"
        )
    return read_fields(settings, own, where, REMEDY_OF_OURS)


def _own_prompts(settings: Mapping[str, Any], where: str) -> tuple[tuple[str, str], ...]:
    pairs = settings.get("prompts") or []
    right = isinstance(pairs, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)
        for pair in pairs
    )
    if not right:
        raise ValueError(
            f"{where}: expected prompts as pairs of texts, got {shown_value(pairs)}. {REMEDY_OF_OURS}"
        )
    return tuple((name, text) for name, text in pairs)


# ---- fields ----


def _as_json(config: Any, table: Mapping[str, Field]) -> dict[str, Any]:
    return {name: getattr(config, field.ours) for name, field in table.items()}


def _object(values: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    return {} if values.get(name) is None else as_object(values[name], f"{where}: {name}", REMEDY)


def _demand(values: Mapping[str, Any], where: str, **expected: Any) -> None:
    """An error where the config has a field that says that this is another network than ours."""
    for name, value in expected.items():
        if values.get(name, value) != value:
            raise ValueError(
                f"{where}: expected {name} {shown_value(value)}, got {shown_value(values[name])}. "
                "Use such a checkpoint."
            )
