"""`config.json` in Hugging Face's form and in our own, read and written by one table for each network.

A decoder's in Hugging Face's form is in `decoder_config.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Literal, TypeVar

from etils import epath

from radit_jax.config import (
    TRAITS,
    BertConfig,
    DecoderConfig,
    EncoderConfig,
    LastTokenConfig,
    RopeScaling,
    layers_of,
)
from radit_jax.runtime.pretrained.decoder_config import (
    MODEL_TYPES,
    OWN_DECODER_FIELDS,
    OWN_ROPE_FIELDS,
    ROPE_FIELDS,
    checked_decoder,
    rope_kind,
)
from radit_jax.runtime.pretrained.fields import (
    REMEDY,
    REQUIRED,
    SIZE,
    Field,
    as_json,
    check_fixed,
    read_fields,
    shown_value,
)
from radit_jax.runtime.pretrained.gguf_config import gguf_config
from radit_jax.runtime.pretrained.gguf_file import is_gguf, settings_file
from radit_jax.runtime.storage.files import as_object, read_json

AnyEncoder = TypeVar("AnyEncoder", bound=EncoderConfig)
Network = Literal["decoder", "bert"]
# The encoders' families, and the classes of transformers that their checkpoints name.
ENCODERS = {
    "bert": "BertModel",
    "roberta": "RobertaModel",
    "xlm-roberta": "XLMRobertaModel",
    "mpnet": "MPNetModel",
    "distilbert": "DistilBertModel",
}
# Our networks, and the model types that each computes. DPR's encoders are BERTs with other names.
NETWORKS: dict[Network, tuple[str, ...]] = {"decoder": MODEL_TYPES, "bert": (*ENCODERS, "dpr")}
TITLES = {"decoder": "a decoder", "bert": "a BERT"}
REMEDY_OF_OURS = "Name a folder that the export stage wrote (export/lm, ...), or write it again."

ALWAYS_SAID = ("num_kv_heads", "head_size")  # required in our own form, optional in Hugging Face's
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
# Tables: a field's name in Hugging Face's form, and our setting with its kind, range and default.
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
# Of BERT's relatives, whose first two positions are those of padding.
RELATIVE_FIELDS = BERT_FIELDS | {"max_position_embeddings": Field("max_length", int, 3, 1 << 24, 512)}
DISTILBERT_FIELDS = {
    "vocab_size": Field("vocab_size", int, *SIZE),
    "dim": Field("hidden_size", int, *SIZE),
    "n_layers": Field("num_layers", int, 1, 10_000),
    "n_heads": Field("num_heads", int, *SIZE),
    "hidden_dim": Field("ffn_size", int, *SIZE),
    "max_position_embeddings": Field("max_length", int, 1, 1 << 24, 512),
}
# In our own form only: a BERT's family, and how an encoder's vectors are made.
FAMILY_FIELD = {"family": Field("family", str, default="bert")}
VECTOR_FIELDS = {
    "pooling": Field("pooling", str, default="cls"),
    "normalize": Field("normalize", bool, default=False),
    "default_prompt": Field("default_prompt", str, default=""),
    "truncate_dim": Field("truncate_dim", int, *SIZE, None),
}


def read_config(folder: epath.PathLike) -> dict[str, Any]:
    """The fields of the folder's `config.json`, or those that a GGUF file says of the same network."""
    if is_gguf(folder):
        return gguf_config(folder)
    path = epath.Path(folder) / "config.json"
    if not path.exists():
        raise ValueError(f"{folder}: expected a config.json, got none. Name a folder with a checkpoint.")
    return read_json(path, REMEDY)


def network_of(values: Mapping[str, Any], where: str, expected: str = "") -> Network:
    """Which network a `config.json` describes; `expected` is the one that it has to be."""
    named = values.get("model_type")
    network = None
    for candidate, model_types in NETWORKS.items():
        if named in model_types:
            network = candidate
    check_network(network, shown_value(named), where, expected)
    assert network is not None
    return network


def check_network(network: Network | None, shown: str, where: str, expected: str = "") -> None:
    """Refuse a network that is none of ours, or not the expected one; `shown` is what names it."""
    candidates = NETWORKS.items()
    if expected in NETWORKS:  # an encoder may be either
        candidates = [(name, types) for name, types in candidates if name == expected]
    if network in [name for name, _ in candidates]:
        return
    titles = []
    for name, model_types in candidates:
        titles.append(f"{TITLES[name]} (model_type {_alternatives(model_types)})")
    raise ValueError(
        f"{where}: expected {' or '.join(titles)}, got model_type {shown}. Name a checkpoint of that network."
    )


def _alternatives(names: Sequence[str]) -> str:
    """The names as a sentence lists them.

    >>> _alternatives(["llama", "mistral", "qwen2"])
    'llama, mistral or qwen2'
    """
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


# ---- BERT ----


def bert_config(values: Mapping[str, Any], folder: str, **vectors: Any) -> BertConfig:
    """The settings in a BERT's `config.json`; `vectors` are the fields that say how its vectors are made."""
    where = f"{folder}/config.json"
    network_of({"model_type": "bert"} | dict(values), where, "bert")
    check_fixed(
        values, where, hidden_act="gelu", position_embedding_type="absolute", quantization_config=None
    )
    # Options of DPR that none of its own encoders uses.
    check_fixed(values, where, projection_dim=0, is_decoder=False)
    # MPNet has as many, whatever its config says.
    check_fixed(values, where, relative_attention_num_buckets=32)
    check_fixed(values, where, activation="gelu")  # as DistilBERT calls it
    family = values.get("model_type")
    if family in (None, "dpr"):
        family = "bert"
    table = _fields_of(family)
    if table is RELATIVE_FIELDS:
        check_fixed(values, where, pad_token_id=1)  # positions are counted from the one after it
    config = BertConfig(**read_fields(values, table, where, REMEDY), **vectors, family=family)
    config = replace(config, max_length=config.max_length - config.first_position)
    return _check_bert(config, where)


def _fields_of(family: str) -> Mapping[str, Field]:
    """The table of a family's `config.json`."""
    return {"bert": BERT_FIELDS, "distilbert": DISTILBERT_FIELDS}.get(family, RELATIVE_FIELDS)


def bert_json(config: BertConfig, dtype: str) -> dict[str, Any]:
    """The `config.json` of a BERT encoder, which has no pooler."""
    sizes = as_json(config, _fields_of(config.family))
    sizes["max_position_embeddings"] += config.first_position
    return {
        "architectures": [ENCODERS[config.family]],
        "model_type": config.family,
        **sizes,
        "hidden_act": "gelu",
        "position_embedding_type": "absolute",
        "torch_dtype": dtype,
    }


def _check_bert(config: BertConfig, where: str) -> BertConfig:
    """`config`, or ValueError where its numbers contradict each other."""
    # Each head has an equal part of the width.
    if config.hidden_size % config.num_heads:
        raise ValueError(
            f"{where}: expected hidden_size to be a multiple of num_attention_heads, got "
            f"{config.hidden_size} and {config.num_heads}. {REMEDY}"
        )
    return checked_width(config, where)


def checked_width(config: AnyEncoder, where: str) -> AnyEncoder:
    """`config`, or ValueError where its vectors would be wider than the network."""
    width = layers_of(config).hidden_size
    if (config.truncate_dim or 1) > width:
        raise ValueError(
            f"{where}: expected truncate_dim of at most hidden_size {width}, got {config.truncate_dim}. "
            f"{REMEDY}"
        )
    return config


# ---- special ids ----


def read_declared(folder: epath.PathLike) -> dict[str, Any]:
    """What a checkpoint says of its special ids, which an export repeats unchanged.

    `config` has the ids in config.json; `generation` is the whole generation_config.json, if there is one.
    """
    folder = epath.Path(folder)
    values = read_config(folder)
    ids = {name: value for name, value in values.items() if name in TOKEN_IDS}
    path = folder / "generation_config.json"
    generation = read_json(path, REMEDY) if path.exists() else {}
    # They are used here, too, as the ids that end an answer.
    _check_ids(ids, settings_file(folder), REMEDY)
    _check_ids(generation, str(path), REMEDY)
    return {"config": ids, "generation": generation}


def own_declared(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What `read_declared` returned for the original, from our own `config.json`; empty where it has none."""
    declared = as_object(values.get("declared", {}), f"{where}: declared", REMEDY_OF_OURS)
    for part in ("config", "generation"):
        place = f"{where}: declared {part}"
        ids = as_object(declared.get(part, {}), place, REMEDY_OF_OURS)
        _check_ids(ids, place, REMEDY_OF_OURS)
    return declared


def declared_ids(declared: Mapping[str, Any], name: str) -> list[int]:
    """The ids of a special token (bos, eos or pad) in the result of `read_declared`."""
    for part in ("generation", "config"):
        numbers = _as_list(declared.get(part, {}).get(f"{name}_token_id"))
        if numbers is not None:
            # −1 says that there is none.
            return [number for number in numbers if number >= 0]
    return []


def _as_list(value: Any) -> list[Any] | None:
    """An id, or a list of ids, as a list; None where there is no value."""
    if value is None or isinstance(value, list):
        return value
    return [value]


def _check_ids(values: Mapping[str, Any], where: str, remedy: str) -> None:
    for name in TOKEN_IDS:
        value = values.get(name)
        numbers = _as_list(value) or []
        if not all(type(number) is int for number in numbers):
            raise ValueError(
                f"{where}: expected {name} to be an id or a list of ids, got {shown_value(value)}. {remedy}"
            )


# ---- our own form ----


def own_json(config: DecoderConfig | EncoderConfig) -> dict[str, Any]:
    """Our own `config.json`: the network, and its settings by our names."""
    network = type(config).__name__.removesuffix("Config")
    return {"module": network, "config": asdict(config)}


def own_config(values: Mapping[str, Any], where: str) -> DecoderConfig | EncoderConfig:
    """The settings in our own `config.json`, which `own_json` made."""
    network = values.get("module")
    if network == "Llama":  # as release 0.1 called a decoder
        network = "Decoder"
    # Its module says which network it is.
    for name, read in {"Decoder": _own_decoder, "Bert": _own_bert, "LastToken": _own_last_token}.items():
        if network == name:
            return read(as_object(values.get("config"), f"{where}: config", REMEDY_OF_OURS), where)
    raise ValueError(
        f"{where}: expected module Decoder, Bert or LastToken, got {shown_value(network)}. {REMEDY_OF_OURS}"
    )


def _own_decoder(settings: Mapping[str, Any], where: str) -> DecoderConfig:
    fields = _by_our_names(settings, OWN_DECODER_FIELDS, {"rope_scaling"}, where)
    _check_choices(fields, where, family=tuple(TRAITS))
    scaling = settings.get("rope_scaling")
    if scaling is not None:
        values = as_object(scaling, f"{where}: rope_scaling", REMEDY_OF_OURS)
        kind = values.get("kind", "llama3")
        table = OWN_ROPE_FIELDS | ROPE_FIELDS[rope_kind(kind, where)]
        fields["rope_scaling"] = RopeScaling(**_by_our_names(values, table, set(), where))
    return checked_decoder(DecoderConfig(**fields), where)


def _own_bert(settings: Mapping[str, Any], where: str) -> BertConfig:
    fields = _by_our_names(settings, BERT_FIELDS | VECTOR_FIELDS | FAMILY_FIELD, {"prompts"}, where)
    _check_choices(fields, where, pooling=("cls", "mean"), family=tuple(ENCODERS))
    return _check_bert(BertConfig(**fields, prompts=_own_prompts(settings, where)), where)


def _own_last_token(settings: Mapping[str, Any], where: str) -> LastTokenConfig:
    fields = _by_our_names(settings, VECTOR_FIELDS, {"prompts", "decoder"}, where)
    _check_choices(fields, where, pooling=("last",))
    # The decoder's own settings are an object among them.
    shape = as_object(settings.get("decoder"), f"{where}: decoder", REMEDY_OF_OURS)
    decoder = _own_decoder(shape, f"{where}: decoder")
    return checked_width(LastTokenConfig(decoder, **fields, prompts=_own_prompts(settings, where)), where)


def _by_our_names(
    settings: Mapping[str, Any],
    table: Mapping[str, Field],
    others: set[str],
    where: str,
) -> dict[str, Any]:
    """The settings in `table` from our own form, where `others` are allowed besides."""
    own_table = {}
    for field in table.values():
        is_required = field.ours in ALWAYS_SAID
        own_table[field.ours] = field._replace(default=REQUIRED) if is_required else field
    # A name that is not ours may be a misspelt one.
    unknown = sorted(settings.keys() - own_table.keys() - others)
    if unknown:
        raise ValueError(
            f"{where}: expected settings of its network, got {shown_value(unknown[0])}. {REMEDY_OF_OURS}"
        )
    return read_fields(settings, own_table, where, REMEDY_OF_OURS)


def _check_choices(fields: Mapping[str, Any], where: str, **choices: Sequence[str]) -> None:
    for name, known in choices.items():
        value = fields[name]
        if value in known:
            continue
        expected = _alternatives(known)
        got = shown_value(value)
        raise ValueError(f"{where}: expected {name} {expected}, got {got}. {REMEDY_OF_OURS}")


def _own_prompts(settings: Mapping[str, Any], where: str) -> tuple[tuple[str, str], ...]:
    pairs = settings.get("prompts") or []
    is_right = isinstance(pairs, list) and all(map(_is_pair_of_texts, pairs))
    if not is_right:
        raise ValueError(
            f"{where}: expected prompts as pairs of texts, got {shown_value(pairs)}. {REMEDY_OF_OURS}"
        )
    return tuple((name, text) for name, text in pairs)


def _is_pair_of_texts(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != 2:
        return False
    return all(isinstance(text, str) for text in value)
