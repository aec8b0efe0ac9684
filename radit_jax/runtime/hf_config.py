"""`config.json` in Hugging Face's form, and how sentence-transformers says what an encoder's vectors are."""

import json
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from etils import epath

from radit_jax.config import BertConfig, LlamaConfig, RopeScaling

Pooling = Literal["cls", "mean"]
_ST = "sentence_transformers.models"  # its classes are called this in a modules.json of any age


class Vectors(NamedTuple):
    """How an encoder's vectors are made, by its sentence-transformers layout."""

    pooling: Pooling
    normalize: bool
    max_length: int | None  # tokens; None: not said


def read_config(folder: epath.PathLike) -> dict[str, Any]:
    """The fields of the folder's `config.json`."""
    path = epath.Path(folder) / "config.json"
    if not path.exists():
        raise ValueError(f"{folder}: no config.json; name a folder with a checkpoint in Hugging Face's form")
    return _read_json(path)


# ---- LLaMA ----


def llama_config(values: Mapping[str, Any], where: str) -> LlamaConfig:
    """A LLaMA's `config.json`, in its old forms (RoPE at the top, fields absent) and the newest."""
    _demand(values, where, model_type="llama", hidden_act="silu", attention_bias=False, mlp_bias=False)
    # The newest form nests θ with the scaling; a file that was converted may have both.
    rope = {**(values.get("rope_scaling") or {}), **(values.get("rope_parameters") or {})}
    heads, size = _get(values, "num_attention_heads", where), _get(values, "hidden_size", where)
    return LlamaConfig(
        vocab_size=_get(values, "vocab_size", where),
        hidden_size=size,
        num_layers=_get(values, "num_hidden_layers", where),
        num_heads=heads,
        num_kv_heads=values.get("num_key_value_heads") or heads,
        head_size=values.get("head_dim") or size // heads,
        ffn_size=_get(values, "intermediate_size", where),
        max_length=values.get("max_position_embeddings", 2048),
        rms_norm_eps=values.get("rms_norm_eps", 1e-6),
        rope_theta=float(rope.get("rope_theta") or values.get("rope_theta") or 10_000.0),
        rope_scaling=_rope_scaling(rope, where),
        tie_embeddings=values.get("tie_word_embeddings", False),
    )


def llama_json(config: LlamaConfig, dtype: str) -> dict[str, Any]:
    """The `config.json` of a LLaMA, with RoPE at the top, as old and new readers take it."""
    scaling = config.rope_scaling
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_size,
        "intermediate_size": config.ffn_size,
        "max_position_embeddings": config.max_length,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": None if scaling is None else _rope_json(scaling),
        "tie_word_embeddings": config.tie_embeddings,
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
            f"{where}/config.json: rope type is {kind!r}, needed is default or llama3; use such a checkpoint"
        )
    return RopeScaling(
        factor=rope["factor"],
        low_freq_factor=rope["low_freq_factor"],
        high_freq_factor=rope["high_freq_factor"],
        original_max_length=rope["original_max_position_embeddings"],
    )


def _rope_json(scaling: RopeScaling) -> dict[str, Any]:
    return {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_max_length,
    }


# ---- BERT ----


def bert_config(values: Mapping[str, Any], pooling: Pooling, normalize: bool, where: str) -> BertConfig:
    """A BERT's `config.json`, with how its vectors are made."""
    _demand(values, where, model_type="bert", hidden_act="gelu", position_embedding_type="absolute")
    return BertConfig(
        vocab_size=_get(values, "vocab_size", where),
        hidden_size=_get(values, "hidden_size", where),
        num_layers=_get(values, "num_hidden_layers", where),
        num_heads=_get(values, "num_attention_heads", where),
        ffn_size=_get(values, "intermediate_size", where),
        max_length=values.get("max_position_embeddings", 512),
        type_vocab_size=values.get("type_vocab_size", 2),
        layer_norm_eps=values.get("layer_norm_eps", 1e-12),
        pooling=pooling,
        normalize=normalize,
    )


def bert_json(config: BertConfig, dtype: str) -> dict[str, Any]:
    """The `config.json` of a BERT encoder, which has no pooler."""
    return {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.ffn_size,
        "max_position_embeddings": config.max_length,
        "type_vocab_size": config.type_vocab_size,
        "layer_norm_eps": config.layer_norm_eps,
        "hidden_act": "gelu",
        "position_embedding_type": "absolute",
        "torch_dtype": dtype,
    }


# ---- sentence-transformers ----


def read_vectors(folder: epath.PathLike) -> Vectors | None:
    """What the folder's `modules.json` says of an encoder's vectors; None where it has none."""
    folder = epath.Path(folder)
    if not (folder / "modules.json").exists():
        return None
    pooling, normalize, max_length = "cls", False, None
    for module in _read_json(folder / "modules.json"):
        kind, place = module["type"].rpartition(".")[2], folder / module["path"]
        if kind == "Transformer":
            settings = place / "sentence_bert_config.json"
            max_length = _read_json(settings).get("max_seq_length") if settings.exists() else None
        elif kind == "Pooling":
            pooling = _read_pooling(place / "config.json")
        elif kind == "Normalize":
            normalize = True
        else:
            raise ValueError(
                f"{folder}/modules.json: a module {kind} came, needed are Transformer, Pooling and Normalize "
                "only; use such an encoder"
            )
    return Vectors(pooling, normalize, max_length)


def transformer_folder(folder: epath.PathLike) -> epath.Path:
    """Where a checkpoint's network and tokeniser lie: old sentence-transformers have them a folder deeper."""
    folder = epath.Path(folder)
    deeper = folder / "0_Transformer"
    return deeper if not (folder / "config.json").exists() and deeper.exists() else folder


def write_vectors(folder: epath.PathLike, config: BertConfig, max_length: int) -> None:
    """Make a folder with a BERT in Hugging Face's form one that sentence-transformers loads as well.

    `max_length` is the number of tokens at which it cuts texts.
    """
    folder = epath.Path(folder)
    kinds = ["Transformer", "Pooling"] + ["Normalize"] * config.normalize
    paths = ["", *(f"{number}_{kind}" for number, kind in enumerate(kinds) if number)]
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"{_ST}.{kind}"}
        for number, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    pooling = {
        "word_embedding_dimension": config.hidden_size,
        "pooling_mode_cls_token": config.pooling == "cls",
        "pooling_mode_mean_tokens": config.pooling == "mean",
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
    }
    similarity = {"similarity_fn_name": "cosine" if config.normalize else "dot", "prompts": {}}
    for path in paths:
        (folder / path).mkdir(parents=True, exist_ok=True)
    _write_json(folder / "modules.json", modules)
    _write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})
    _write_json(folder / "config_sentence_transformers.json", similarity)
    _write_json(folder / "1_Pooling/config.json", pooling)


def _read_pooling(path: epath.Path) -> Pooling:
    values = _read_json(path)
    chosen = [values["pooling_mode"]] if "pooling_mode" in values else []  # the newest form
    chosen += [name.removeprefix("pooling_mode_") for name, value in values.items() if value is True]
    match [
        mode.removesuffix("_token").removesuffix("_tokens") for mode in chosen if mode != "include_prompt"
    ]:
        case ["cls"]:
            return "cls"
        case ["mean"]:
            return "mean"
    raise ValueError(f"{path}: pooling by {chosen} came, needed is cls or mean; use such an encoder")


# ---- fields ----


def _read_json(path: epath.Path) -> Any:
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: no JSON came ({error.msg}), JSON is needed; fetch it again") from None


def _write_json(path: epath.Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def _get(values: Mapping[str, Any], name: str, where: str) -> Any:
    if name not in values:
        raise ValueError(f"{where}/config.json: no {name!r}; get the checkpoint's own config.json")
    return values[name]


def _demand(values: Mapping[str, Any], where: str, **needed: Any) -> None:
    """An error where the config has a field that says that this is another network than ours."""
    for name, value in needed.items():
        if values.get(name, value) != value:
            raise ValueError(
                f"{where}/config.json: {name} is {values[name]!r}, needed is {value!r}; use such a checkpoint"
            )
