"""A decoder's `config.json` in Hugging Face's form: one table of fields, and what each family adds to it.

What a `config.json` leaves out has the default that transformers gives it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from radit_jax.config import DecoderConfig, Family, RopeScaling, shape_error
from radit_jax.runtime.pretrained.fields import (
    REMEDY,
    SIZE,
    Field,
    as_json,
    check_fixed,
    object_in,
    read_fields,
    shown_value,
)
from radit_jax.runtime.pretrained.gguf_file import settings_file

POSITIONS = (1, 1 << 30)
# Tables: a field's name in Hugging Face's form, and our setting with its kind, range and default.
DECODER_FIELDS = {
    "vocab_size": Field("vocab_size", int, *SIZE),
    "hidden_size": Field("hidden_size", int, *SIZE),
    "num_hidden_layers": Field("num_layers", int, 1, 10_000),
    "num_attention_heads": Field("num_heads", int, *SIZE),
    "num_key_value_heads": Field("num_kv_heads", int, *SIZE, None),  # None: one for each head
    "head_dim": Field("head_size", int, *SIZE, None),  # None: the width divided by the heads
    "intermediate_size": Field("ffn_size", int, *SIZE),
    "max_position_embeddings": Field("max_length", int, *POSITIONS, 2048),
    "rms_norm_eps": Field("rms_norm_eps", float, 0, 1, 1e-6),
    "tie_word_embeddings": Field("tie_embeddings", bool, default=False),
}
THETA = {"rope_theta": Field("rope_theta", float, 1, 1e15, 10_000.0)}
LOCAL_THETA = {"rope_local_base_freq": Field("local_rope_theta", float, 1, 1e15, 10_000.0)}
WINDOW = {"sliding_window": Field("window", int, *POSITIONS, None)}  # None: every layer sees all positions
QWEN_WINDOW = {  # which of Qwen's layers have it
    "use_sliding_window": Field("is_on", bool, default=False),
    "max_window_layers": Field("num_global", int, 0, 10_000, 28),
}
PATTERN = {"sliding_window_pattern": Field("global_every", int, 0, 10_000, 0)}
SCORES = {
    "query_pre_attn_scalar": Field("query_divisor", int, *SIZE),
    "attn_logit_softcapping": Field("score_cap", float, 1e-6, 1e9, None),
    "final_logit_softcapping": Field("logit_cap", float, 1e-6, 1e9, None),
}
_FACTOR = {"factor": Field("factor", float, 1e-3, 1e6)}
ROPE_FIELDS = {  # of scaled RoPE, by its type
    "linear": _FACTOR,
    "llama3": _FACTOR
    | {
        "low_freq_factor": Field("low_freq_factor", float, 0, 1e6),
        "high_freq_factor": Field("high_freq_factor", float, 0, 1e6),
        "original_max_position_embeddings": Field("original_max_length", int, *POSITIONS),
    },
}

# In our own form: all settings but the scaling of RoPE. A model of release 0.1 is a LLaMA, with llama3.
_FAMILY = {"family": Field("family", str, default="llama")}
_OWN_LOCAL_THETA = {"local_rope_theta": LOCAL_THETA["rope_local_base_freq"]._replace(default=None)}
_OWN_SCORES = {field.ours: field._replace(default=None) for field in SCORES.values()}
OWN_DECODER_FIELDS = DECODER_FIELDS | THETA | WINDOW | PATTERN | _FAMILY | _OWN_LOCAL_THETA | _OWN_SCORES
OWN_ROPE_FIELDS = ROPE_FIELDS["llama3"] | {"kind": Field("kind", str, default="llama3")}


class FamilyForm(NamedTuple):
    """What the `config.json` of a family has beyond the fields that all decoders share."""

    model_type: str
    architecture: str  # transformers' class
    fixed: Mapping[str, Any]  # fields, and the one value that our network computes
    defaults: Mapping[str, Any] = {}  # where they differ from the tables' own
    fields: Mapping[str, Field] = {}  # further ones


_LLAMA_FIXED = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
_GEMMA_FIXED = {
    "hidden_activation": "gelu_pytorch_tanh",
    "attention_bias": False,
    "use_bidirectional_attention": False,
}
_GEMMA_DEFAULTS = {
    "hidden_size": 2304,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "intermediate_size": 9216,
    "tie_word_embeddings": True,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}
FORMS: dict[Family, FamilyForm] = {
    "llama": FamilyForm("llama", "LlamaForCausalLM", _LLAMA_FIXED),
    "mistral": FamilyForm(
        "mistral",
        "MistralForCausalLM",
        {"hidden_act": "silu"},
        {"num_key_value_heads": 8, "max_position_embeddings": 131_072, "sliding_window": 4096},
        WINDOW,
    ),
    "qwen2": FamilyForm(
        "qwen2",
        "Qwen2ForCausalLM",
        {"hidden_act": "silu"},
        {"num_key_value_heads": 32, "max_position_embeddings": 32_768, "sliding_window": 4096},
        WINDOW,
    ),
    "qwen3": FamilyForm(
        "qwen3",
        "Qwen3ForCausalLM",
        {"hidden_act": "silu", "attention_bias": False},
        {
            "num_key_value_heads": 32,
            "head_dim": 128,
            "max_position_embeddings": 32_768,
            "sliding_window": 4096,
        },
        WINDOW,
    ),
    "gemma2": FamilyForm(
        "gemma2",
        "Gemma2ForCausalLM",
        _GEMMA_FIXED,
        _GEMMA_DEFAULTS
        | {
            "vocab_size": 256_000,
            "max_position_embeddings": 8192,
            "sliding_window_pattern": 2,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
        WINDOW | PATTERN | SCORES,
    ),
    "gemma3": FamilyForm(
        "gemma3_text",
        "Gemma3ForCausalLM",
        _GEMMA_FIXED,
        _GEMMA_DEFAULTS
        | {
            "vocab_size": 262_208,
            "max_position_embeddings": 131_072,
            "rope_theta": 1_000_000.0,
            "sliding_window_pattern": 6,
        },
        WINDOW | PATTERN | SCORES | LOCAL_THETA,
    ),
    "olmo2": FamilyForm(
        "olmo2",
        "Olmo2ForCausalLM",
        {"hidden_act": "silu", "attention_bias": False},
        {"rms_norm_eps": 1e-5},
    ),
}
FAMILIES: dict[str, Family] = {form.model_type: family for family, form in FORMS.items()}
NESTED = {"gemma3": "gemma3_text"}  # models of text and images: the model type of their text's decoder
MODEL_TYPES = (*FAMILIES, *NESTED)


# ---- read ----


def decoder_config(values: Mapping[str, Any], folder: str) -> DecoderConfig:
    """The settings in a decoder's `config.json`, in old forms (RoPE at the top, fields absent) or the new.

    `folder` holds it, or is the GGUF file that `values` are of.

    Raises ValueError for a model type that is no decoder, and for a field that asks for what the network
    does not compute.
    """
    where = settings_file(folder)
    values = _text_values(values, where)
    family = _family_of(values, where)
    form = FORMS[family]
    check_fixed(values, where, **form.fixed, quantization_config=None)
    values = {**form.defaults, **values}

    # 1) Sizes; some follow from others where they are absent.
    sizes = read_fields(values, {**DECODER_FIELDS, **form.fields}, where, REMEDY)
    num_heads = sizes["num_heads"]
    sizes["num_kv_heads"] = sizes["num_kv_heads"] or num_heads
    sizes["head_size"] = sizes["head_size"] or sizes["hidden_size"] // num_heads

    # 2) RoPE.
    rope, local_rope = _rope_values(values, where)
    sizes |= read_fields(rope, THETA, where, REMEDY)
    if form.fields.keys() & LOCAL_THETA:
        sizes |= read_fields(local_rope, LOCAL_THETA, where, REMEDY)
    config = DecoderConfig(**sizes, family=family, rope_scaling=_rope_scaling(rope, where))

    # 3) Which layers are local.
    return checked_decoder(_with_local_layers(config, values, where), where)


def _family_of(values: Mapping[str, Any], where: str) -> Family:
    """The family; without a model type it is LLaMA's, as in its first conversions."""
    named = values.get("model_type", "llama")
    for model_type, family in FAMILIES.items():
        if named == model_type:
            return family
    raise ValueError(
        f"{where}: expected model_type to be one of {', '.join(MODEL_TYPES)}, got {shown_value(named)}. Name "
        "a checkpoint of such a network."
    )


def _text_values(values: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """The fields of the text's decoder, which models of text and images have in an object of their own."""
    for model_type, of_text in NESTED.items():
        if values.get("model_type") == model_type:
            return {**object_in(values, "text_config", where), "model_type": of_text}
    return values


def _rope_values(values: Mapping[str, Any], where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields of RoPE in global layers, θ among them, and in local ones."""
    rope = {"rope_theta": values.get("rope_theta")}
    local = {"rope_local_base_freq": values.get("rope_local_base_freq")}
    # The newest form has θ inside with the scaling; a converted file may have both.
    rope |= object_in(values, "rope_scaling", where)
    newest = object_in(values, "rope_parameters", where)
    # It may have an object for each kind of layers.
    if "full_attention" in newest or "sliding_attention" in newest:
        place = f"{where}: rope_parameters"
        of_local = object_in(newest, "sliding_attention", place)
        check_fixed(of_local, f"{place}: sliding_attention", rope_type="default")
        local["rope_local_base_freq"] = of_local.get("rope_theta", local["rope_local_base_freq"])
        newest = object_in(newest, "full_attention", place)
    return rope | newest, local


def _rope_scaling(rope: Mapping[str, Any], where: str) -> RopeScaling | None:
    """How RoPE is scaled; None where it is not."""
    # Its name in the newest form, and in older ones.
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return None
    kind = rope_kind(kind, where)
    fields = read_fields(rope, ROPE_FIELDS[kind], f"{where}: RoPE of type {kind}", REMEDY)
    return RopeScaling(**fields, kind=kind)


def rope_kind(kind: Any, where: str) -> Literal["llama3", "linear"]:
    """`kind`, or ValueError where it is a scaling that is not computed here."""
    for known in ("llama3", "linear"):
        if kind == known:
            return known
    raise ValueError(
        f"{where}: expected rope type default, linear or llama3, got {shown_value(kind)}. Use such a "
        "checkpoint."
    )


def _with_local_layers(config: DecoderConfig, values: Mapping[str, Any], where: str) -> DecoderConfig:
    """`config` with the window and the pattern of its layers; without a window where no layer is local."""
    is_qwen = config.family in ("qwen2", "qwen3")
    of_qwen = read_fields(values, QWEN_WINDOW, where, REMEDY)
    is_off = is_qwen and not of_qwen["is_on"]
    if config.window is None or is_off:
        return replace(config, window=None, global_every=0)
    # 1) A list names the kind of every layer.
    layer_types = values.get("layer_types")
    if layer_types is not None:
        return _by_layer_types(config, layer_types, where)
    # 2) Qwen's layers are global up to a number of layers.
    if is_qwen:
        kinds = ["full_attention"] * min(of_qwen["num_global"], config.num_layers)
        kinds += ["sliding_attention"] * (config.num_layers - len(kinds))
        return _by_layer_types(config, kinds, f"{where}: max_window_layers")
    # 3) Others have a pattern, or local layers only.
    has_global = 0 < config.global_every <= config.num_layers
    return config if has_global else replace(config, global_every=0)


def _by_layer_types(config: DecoderConfig, layer_types: Any, where: str) -> DecoderConfig:
    """`config` with layers that are local where the list says `sliding_attention`."""
    kinds = layer_types if isinstance(layer_types, list) else []
    every = 0
    if "full_attention" in kinds:
        every = kinds.index("full_attention") + 1
    if kinds == ["full_attention"] * config.num_layers:
        return replace(config, window=None, global_every=0)
    with_pattern = replace(config, global_every=every)
    # The pattern has to give the whole list.
    if kinds != _layer_types(with_pattern):
        raise ValueError(
            f"{where}: expected layer_types of {config.num_layers} layers, sliding_attention with every "
            f"n-th full_attention, got {shown_value(layer_types)}. Use such a checkpoint."
        )
    return with_pattern


def checked_decoder(config: DecoderConfig, where: str) -> DecoderConfig:
    """`config`, or ValueError where its numbers contradict each other."""
    if error := shape_error(config):
        raise ValueError(f"{where}: {error}. {REMEDY}")
    return config


# ---- write ----


def decoder_json(config: DecoderConfig, dtype: str) -> dict[str, Any]:
    """The `config.json` of a decoder's family, with RoPE at the top, as old and new readers take it."""
    form = FORMS[config.family]
    scaling = config.rope_scaling
    scaling_json = None
    if scaling is not None:
        scaling_json = {"rope_type": scaling.kind, **as_json(scaling, ROPE_FIELDS[scaling.kind])}
    # The fixed fields tell readers of many variants which one this is.
    values = {
        "architectures": [form.architecture],
        "model_type": form.model_type,
        **as_json(config, DECODER_FIELDS | THETA),
        "rope_scaling": scaling_json,
        **as_json(config, form.fields),
        **form.fixed,
        "torch_dtype": dtype,
    }
    if config.window is not None and config.family != "mistral":
        values["layer_types"] = _layer_types(config)
    if config.family in ("qwen2", "qwen3"):
        values["use_sliding_window"] = config.window is not None
    return values


def _layer_types(config: DecoderConfig) -> Sequence[str]:
    return ["sliding_attention" if is_local else "full_attention" for is_local in config.is_local]
