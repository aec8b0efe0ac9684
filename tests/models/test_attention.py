import jax.numpy as jnp
import numpy as np
import pytest

from radit_jax.models.attention import attend, attention_mask, context_mask


def ids(*values: int) -> jnp.ndarray:
    return jnp.array([values], jnp.int32)


def test_a_packed_row_of_trees_has_this_mask():
    """A trunk with two branches, a plain sequence, and padding: the row that the packing module draws."""
    segments = ids(1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 0, 0)
    branches = ids(0, 0, 1, 1, 2, 2, 2, 1, 1, 1, 0, 0)
    expected = [
        [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ]
    np.testing.assert_array_equal(attention_mask(segments, branches)[0].astype(int), expected)


def test_one_sequence_has_the_causal_mask():
    expected = [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    np.testing.assert_array_equal(attention_mask(ids(1, 1, 1), ids(0, 0, 0))[0].astype(int), expected)


def test_what_comes_before_is_seen_by_segment_and_branch():
    """The cache holds two prompt tokens, a token of branch 1, padding, and a token of another segment."""
    seen = context_mask(ids(1, 1, 1, 0), ids(0, 1, 2, 0), ids(1, 1, 1, 0, 2), ids(0, 0, 1, 0, 0))
    expected = [[1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]]
    np.testing.assert_array_equal(seen[0].astype(int), expected)


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
def test_attention_is_the_softmax_weighted_mean_of_the_values_that_are_seen(num_kv_heads):
    rng = np.random.default_rng(0)
    q = rng.normal(size=(2, 3, 4, 6))
    k, v = rng.normal(size=(2, 2, 5, num_kv_heads, 6))
    mask = rng.random((2, 3, 5)) < 0.7
    mask[:, :, 0] = True
    out = attend(*(jnp.asarray(x, jnp.float32) for x in (q, k, v)), jnp.asarray(mask))
    for b, t, n in np.ndindex(2, 3, 4):
        seen, head = mask[b, t], n // (4 // num_kv_heads)
        weights = np.exp(k[b, seen, head] @ q[b, t, n] / np.sqrt(6))
        expected = weights @ v[b, seen, head] / weights.sum()
        np.testing.assert_allclose(out[b, t, n], expected, atol=1e-5)


def test_a_query_that_sees_nothing_gives_finite_numbers():
    x = jnp.ones((1, 2, 1, 4))
    assert jnp.isfinite(attend(x, x, x, jnp.zeros((1, 2, 2), bool))).all()
