"""Exact search on eight simulated devices against numpy's, which its own tests hold to the definition."""

import jax
import numpy as np
import pytest
from test_index import assert_same, clustered, near

from radit_jax.config import MeshConfig
from radit_jax.retrieval import products as products_module
from radit_jax.retrieval.exact import ExactIndex
from radit_jax.retrieval.products import DeviceProducts, search_devices
from radit_jax.runtime.distributed.mesh import make_mesh


@pytest.fixture(scope="module")
def embeddings() -> np.ndarray:
    return clustered(1001, 16)  # which eight do not divide


@pytest.fixture(scope="module")
def queries(embeddings) -> np.ndarray:
    return near(embeddings, 20, seed=1)


def test_embeddings_are_cut_over_all_devices(embeddings):
    placed = DeviceProducts(ExactIndex(embeddings).embeddings, range(1001), jax.devices())._resident
    assert placed is not None and len(placed.sharding.device_set) == 8
    assert {shard.data.shape for shard in placed.addressable_shards} == {(126, 16)}


@pytest.mark.parametrize("most", [10_000, 40])  # rows a device: all stay there, or four turns
@pytest.mark.parametrize("k", [1, 10, 1000])
def test_devices_find_what_numpy_finds(embeddings, queries, monkeypatch, most, k):
    monkeypatch.setattr(products_module, "_MAX_ROWS", most)
    exclude = np.arange(20) * 50
    exclude[::2] = -1
    host, devices = ExactIndex(embeddings), ExactIndex(embeddings, jax.devices())
    assert_same(devices.search(queries, k), host.search(queries, k))
    assert_same(devices.search(queries, k, exclude), host.search(queries, k, exclude))


def test_queries_are_taken_in_blocks(embeddings, queries, monkeypatch):
    monkeypatch.setattr(products_module, "_QUERY_BLOCK", 8)
    found = ExactIndex(embeddings, jax.devices()).search(queries, 5)
    assert_same(found, ExactIndex(embeddings).search(queries, 5))


def test_more_equal_products_than_devices_give_are_told_apart_by_row(embeddings, queries):
    repeated = np.concatenate([embeddings[:100]] * 40)
    found = ExactIndex(repeated, jax.devices()).search(queries, 12)
    assert_same(found, ExactIndex(repeated).search(queries, 12))
    assert (found.scores[:, 0] == found.scores[:, 11]).all()


def test_products_that_rounding_turns_around_are_put_in_order():
    rng = np.random.default_rng(5)
    vectors = (1 + 1e-7 * rng.normal(size=(400, 64))).astype(np.float32)  # of almost equal products
    queries = rng.normal(size=(8, 64)).astype(np.float32)
    found = ExactIndex(vectors, jax.devices()).search(queries, 10)
    assert_same(found, ExactIndex(vectors).search(queries, 10))


def test_a_corpus_smaller_than_the_number_of_devices_is_searched_too():
    vectors = clustered(60, 8)[:5]
    found = ExactIndex(vectors, jax.devices()).search(vectors, 3)
    assert_same(found, ExactIndex(vectors).search(vectors, 3))


def test_devices_serve_a_large_corpus_where_there_are_several_or_an_accelerator():
    several = make_mesh(MeshConfig())
    assert search_devices(several, 20_000) == tuple(several.local_devices)
    assert search_devices(several, 19_999) == ()
    assert search_devices(make_mesh(MeshConfig(), jax.devices()[:1]), 10**6) == ()
