"""Embeddings depend on their texts alone, and a search is over all chunks but the excluded one."""

import threading

import jax
import numpy as np
import pytest
from exact import assert_stored
from small import CHUNKS

from radit_jax.runtime.pretrained.model_io import load_model

pytestmark = pytest.mark.usefixtures("float64")
PASSAGES = [chunk.passage for chunk in CHUNKS]  # from one word to more than fit the encoder


@pytest.fixture(scope="module")
def alone(searcher64):
    """Each text embedded in a batch of its own, but for padding."""
    with jax.enable_x64(True):
        return np.concatenate([searcher64.encoder.embed([text], batch_size=8) for text in PASSAGES])


@pytest.mark.parametrize("order", [range(10), range(9, -1, -1), (5, 9, 8, 5, 0)])
def test_an_embedding_depends_on_no_other_text(searcher64, alone, order):
    together = searcher64.encoder.embed([PASSAGES[row] for row in order], batch_size=8)
    assert_stored(together, alone[list(order)])


def test_different_texts_have_different_embeddings(alone):
    distances = np.abs(alone[:, None] - alone[None]).max(axis=-1)
    assert distances[~np.eye(len(alone), dtype=bool)].min() > 1e-3


def test_a_batch_holds_texts_of_like_length(searcher64, monkeypatch):
    widths = []
    pad = type(searcher64.encoder.model.tokenizer).pad

    def spy(tokenizer, ids, **options):
        widths.append(max(map(len, ids)) - min(map(len, ids)))
        return pad(tokenizer, ids, **options)

    monkeypatch.setattr(type(searcher64.encoder.model.tokenizer), "pad", spy)
    searcher64.encoder.embed(["a", PASSAGES[8]] * 8, batch_size=8)
    assert widths == [0, 0]


def test_parts_are_embedded_as_they_would_be_alone_and_empty_ones_are_empty(searcher64):
    parts = [PASSAGES[:1], [], PASSAGES[1:4], PASSAGES[4:]]
    found = list(searcher64.encoder.embed_each(parts, batch_size=2))
    assert [len(embeddings) for embeddings in found] == [1, 0, 3, 6]
    for embeddings, part in zip(found, parts, strict=True):
        np.testing.assert_array_equal(embeddings, searcher64.encoder.embed(part, batch_size=2))


def test_the_next_part_is_read_while_one_is_embedded(searcher64, monkeypatch):
    read, wanted = [], threading.Event()
    pad = type(searcher64.encoder.model.tokenizer).pad

    def parts():
        for number in range(3):
            read.append(number)
            if number == 1:
                wanted.set()
            yield PASSAGES[:4]

    def patient(tokenizer, ids, **options):
        assert wanted.wait(timeout=30), "the second part is not read before the first is tokenised and padded"
        return pad(tokenizer, ids, **options)

    monkeypatch.setattr(type(searcher64.encoder.model.tokenizer), "pad", patient)
    assert len(list(searcher64.encoder.embed_each(parts()))) == 3 and read == [0, 1, 2]


def test_an_error_in_a_part_reaches_who_asked_for_it(searcher64):
    def parts():
        yield PASSAGES
        raise OSError("no such shard")

    with pytest.raises(OSError, match="no such shard"):
        list(searcher64.encoder.embed_each(parts()))


def test_a_chunks_own_text_finds_it_with_the_dot_product_as_score(searcher64):
    rows, scores = searcher64.search(PASSAGES, 3)
    assert rows[:, 0].tolist() == list(range(10))
    products = searcher64.encoder.embed(PASSAGES) @ searcher64.embeddings[np.arange(10)].T.astype(np.float64)
    assert_stored(scores, np.take_along_axis(products, rows, axis=1))


def test_an_excluded_chunk_is_left_out_and_the_others_move_up(searcher64):
    whole, _ = searcher64.search(PASSAGES, 4)
    exclude = np.arange(10)
    exclude[3] = -1
    rows, _ = searcher64.search(PASSAGES, 3, exclude)
    np.testing.assert_array_equal(np.delete(rows, 3, axis=0), np.delete(whole[:, 1:], 3, axis=0))
    np.testing.assert_array_equal(rows[3], whole[3, :3])


def test_the_scores_of_given_chunks_are_those_of_the_search(searcher64):
    rows, scores = searcher64.search(PASSAGES, 10)
    assert_stored(searcher64.score(PASSAGES, rows), scores)


def test_other_query_parameters_search_the_same_chunks_in_another_order(searcher64):
    params = jax.tree.map(lambda leaf: -leaf, searcher64.encoder.model.params)
    tuned = searcher64.with_params(params)
    assert tuned.embeddings is searcher64.embeddings
    assert tuned.search(PASSAGES, 10)[0].tolist() != searcher64.search(PASSAGES, 10)[0].tolist()


def test_parameters_from_a_file_are_spread_over_the_mesh_that_texts_are_on(inputs, searcher):
    stored = load_model(inputs["retriever"].path / "query_encoder").params  # on the first device
    rows, _ = searcher.with_params(stored).search(PASSAGES, 3)
    np.testing.assert_array_equal(rows, searcher.search(PASSAGES, 3)[0])
