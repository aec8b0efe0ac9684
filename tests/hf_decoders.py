"""Random decoders of transformers, one of each family and of each form that its config may have."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import torch
import transformers
from exact import in_float64, torch_model_in_float64

from radit_jax.models.decoder import DecoderLm
from radit_jax.runtime.pretrained.hf_weights import load_decoder

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,  # so that attention and positions matter
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "attn_implementation": "eager",
}
WINDOW = 7
LAYERS = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
GEMMA = {"head_dim": 12, "query_pre_attn_scalar": 20, "sliding_window": WINDOW}
LINEAR = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e4},
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
}
VARIANTS = {
    "mistral": (transformers.MistralConfig, {"sliding_window": None}),
    "mistral_v01": (transformers.MistralConfig, {"sliding_window": WINDOW}),
    "qwen2": (transformers.Qwen2Config, {"tie_word_embeddings": True}),
    "qwen2_windowed": (
        transformers.Qwen2Config,
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 0},
    ),
    "qwen3": (transformers.Qwen3Config, {"head_dim": 12}),
    "gemma2": (
        transformers.Gemma2Config,
        GEMMA | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    ),
    "gemma3": (transformers.Gemma3TextConfig, GEMMA | {"layer_types": LAYERS}),
    "gemma3_scaled": (
        transformers.Gemma3TextConfig,
        GEMMA | {"layer_types": LAYERS, "rope_parameters": LINEAR},
    ),
    "olmo2": (transformers.Olmo2Config, {}),
}


def random_decoder(variant: str, **changes: Any) -> Any:
    """The torch model of a variant, with all of its parameters drawn."""
    config_class, own = VARIANTS[variant]
    torch.manual_seed(0)
    theirs = transformers.AutoModelForCausalLM.from_config(config_class(**SIZES | own | changes)).eval()
    draw_vectors(theirs)
    return theirs


def draw_vectors(model: Any) -> None:
    """Move norms and biases, which start at 1 and 0, where a network that left them out would be right."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))


def decoder_in_float64(theirs: Any) -> Any:
    """The torch model in float64, to be called in `torch_in_float64`."""
    theirs = torch_model_in_float64(theirs)
    embeddings = theirs.get_input_embeddings()
    if hasattr(embeddings, "embed_scale"):  # which it rounds to float32
        embeddings.embed_scale = torch.tensor(embeddings.embedding_dim**0.5, dtype=torch.float64)
    return theirs


def decoder_pair(variant: str, folder: Path) -> tuple[Any, DecoderLm, Any]:
    """The torch model of a variant, and ours with its parameters, read from `folder`; all in float64."""
    theirs = random_decoder(variant)
    theirs.save_pretrained(folder)
    config, params = load_decoder(folder)
    return decoder_in_float64(theirs), DecoderLm(config, dtype=jnp.float64), in_float64(params)


_apply = jax.jit(
    lambda module, params, inputs, method: module.apply({"params": params}, **inputs, method=method),
    static_argnums=(0, 3),
)


def apply(model, tokens, method="__call__", **inputs):
    """A method of the network on its parameters; `model` is (module, params)."""
    inputs = jax.tree.map(jnp.asarray, {"tokens": tokens} | inputs)
    return _apply(*model, inputs, method)
