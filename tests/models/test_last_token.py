import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from exact import assert_exact, in_float64, torch_in_float64, torch_model_in_float64

from radit_jax.config import DecoderConfig, LastTokenConfig
from radit_jax.data.batches.packing import pack_texts
from radit_jax.models.bert import encode, encode_packed
from radit_jax.models.flops import encoder_flops
from radit_jax.models.last_token import LastTokenEncoder
from radit_jax.runtime.pretrained.hf_weights import load_last_token

pytestmark = pytest.mark.usefixtures("float64")
LENGTHS = np.array([12, 5, 1])
MASK = np.arange(12) < LENGTHS[:, None]
TOKENS = np.random.default_rng(0).integers(0, 67, MASK.shape).astype(np.int32)
SHAPE = {"vocab_size": 67, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4} | {
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "attn_implementation": "eager",
}


@pytest.fixture(scope="module", params=["Qwen3", "Llama"])
def theirs(request):
    model = getattr(transformers, f"{request.param}Model")
    torch.manual_seed(0)
    return model(model.config_class(**SHAPE)).eval()


@pytest.fixture(scope="module")
def encoder(theirs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("decoder")
    theirs.save_pretrained(folder)
    config, params = load_last_token(folder, normalize=True)
    return LastTokenEncoder(config, dtype=jnp.float64), in_float64(params)


def test_a_vector_is_the_state_that_transformers_has_at_the_last_token(theirs, encoder):
    with torch_in_float64():
        model = torch_model_in_float64(theirs)
        output = model(torch.tensor(TOKENS).long(), attention_mask=torch.tensor(MASK).long())
    last = output.last_hidden_state.numpy()[np.arange(3), LENGTHS - 1]
    found = jax.jit(encode, static_argnums=0)(*encoder, TOKENS, MASK)
    assert_exact(found, last / np.linalg.norm(last, axis=-1, keepdims=True))


def test_padding_changes_no_vector(encoder):
    embed = jax.jit(encode, static_argnums=0)
    wider = np.pad(MASK, [(0, 0), (0, 4)])
    padded = embed(*encoder, np.pad(TOKENS, [(0, 0), (0, 4)], constant_values=7), wider)
    assert_exact(padded, embed(*encoder, TOKENS, MASK))


def test_texts_that_share_rows_have_the_vectors_and_gradients_of_a_row_each(encoder):
    module, params = encoder
    ids = [row[:length].tolist() for row, length in zip(TOKENS, LENGTHS, strict=True)]
    packed = pack_texts(ids, row_length=15, num_rows=2)
    towards = np.random.default_rng(1).normal(size=(3, 32))

    def total(params, form):
        vectors = form(params)
        return (vectors * towards).sum(), vectors

    forms = (
        lambda params: encode(module, params, jnp.asarray(TOKENS), jnp.asarray(MASK)),
        lambda params: encode_packed(module, params, jax.tree.map(jnp.asarray, packed), 3),
    )
    (wanted, alone), (found, together) = (
        jax.jit(jax.grad(total, has_aux=True), static_argnums=1)(params, form) for form in forms
    )
    assert_exact(together, alone)
    assert_exact(found, wanted)


def test_a_text_that_is_not_there_has_the_zero_vector_and_a_row_of_padding_finite_numbers(encoder):
    module, params = encoder
    packed = pack_texts([[3, 4]], row_length=4, num_rows=2)
    vectors = jax.jit(encode_packed, static_argnums=(0, 3))(module, params, packed, 2)
    np.testing.assert_array_equal(vectors[1], 0.0)
    nothing = jax.jit(encode, static_argnums=0)(module, params, TOKENS[:1], MASK[:1] & False)
    assert jnp.isfinite(nothing).all()


def test_operations_are_those_of_a_decoders_forward_pass():
    shape = DecoderConfig(9, 4, 3, num_heads=2, num_kv_heads=1, head_size=6, ffn_size=5)
    # A token's multiply-adds in a layer: q and o of 4 × 12, k and v of 4 × 6, three of 4 × 5. It sees
    # (1 + 2) / 2 tokens on average, each with 12 for its score and 12 for its value.
    per_token = 2 * 48 + 2 * 24 + 3 * 20 + 1.5 * 24
    expected = 2 * 7 * 2 * 3 * per_token
    assert encoder_flops(LastTokenConfig(shape), rows=7, length=2) == expected
