"""LoRA adapters of every family, read by peft onto transformers' own network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from exact import assert_exact, in_float64, torch_in_float64
from hf_decoders import apply, decoder_in_float64, random_decoder

from radit_jax.config import LoraConfig
from radit_jax.models.decoder import DecoderLm
from radit_jax.models.lora import adapted, init_adapters
from radit_jax.runtime.pretrained.hf_export import export_peft
from radit_jax.runtime.pretrained.hf_weights import load_decoder

pytestmark = pytest.mark.usefixtures("float64")
TOKENS = np.arange(1, 24)[None]  # longer than the window of 7


@pytest.mark.filterwarnings("ignore")  # of peft and what it imports
@pytest.mark.parametrize("variant", ["mistral_v01", "qwen2", "gemma2", "olmo2"])
def test_adapters_in_peft_have_our_logits_in_every_family(variant, tmp_path):
    peft = pytest.importorskip("peft")
    random_decoder(variant).save_pretrained(tmp_path / "base")
    config, params = load_decoder(tmp_path / "base")
    lora = LoraConfig(rank=3, alpha=5.0)

    # B is 0 in new adapters; drawn ones change the logits.
    rng = np.random.default_rng(0)
    adapters = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.2, leaf.shape), jnp.float32),
        init_adapters(params, lora, jax.random.key(0)),
    )
    assert export_peft(tmp_path / "adapter", adapters, lora, base="org/base") == 0

    module = DecoderLm(config, dtype=jnp.float64)
    params, adapters = in_float64((params, adapters))
    untuned = apply((module, params), TOKENS)
    logits = apply((module, adapted(params, adapters, lora)), TOKENS)
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", attn_implementation="eager")
    theirs = peft.PeftModel.from_pretrained(decoder_in_float64(base), str(tmp_path / "adapter")).double()
    with torch_in_float64():
        assert_exact(logits, theirs(torch.tensor(TOKENS)).logits.numpy())
    assert np.abs(untuned - logits).max() > 0.1
