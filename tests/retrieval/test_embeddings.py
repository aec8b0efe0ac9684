import numpy as np
import pytest

from radit_jax.retrieval.embeddings import Embeddings, as_embeddings
from radit_jax.runtime.storage.stage_folder import StageFolder

WHOLE = np.arange(20, dtype=np.float32).reshape(10, 2)


@pytest.fixture
def embeddings() -> Embeddings:
    return Embeddings([WHOLE[:4], WHOLE[4:5], WHOLE[5:]])


def test_parts_have_the_length_and_shape_of_the_whole(embeddings):
    assert len(embeddings) == 10 and embeddings.shape == (10, 2)


@pytest.mark.parametrize("rows", [[], [3], [9, 0, 4, 4, 5], [[7, 3], [-1, -10]]])
def test_rows_are_gathered_as_from_one_array(embeddings, rows):
    rows = np.array(rows, np.int32)
    np.testing.assert_array_equal(embeddings[rows], WHOLE[rows])


@pytest.mark.parametrize("row", [10, -11])
def test_a_row_beyond_the_corpus_is_an_error(embeddings, row):
    with pytest.raises(IndexError, match="of 10 embeddings"):
        embeddings[np.array([0, row])]


def test_blocks_are_views_of_the_parts_in_order(embeddings):
    blocks = list(embeddings.blocks(range(2, 9), 3))
    assert [(start, len(block)) for start, block in blocks] == [(2, 2), (4, 1), (5, 3), (8, 1)]
    for start, block in blocks:
        np.testing.assert_array_equal(block, WHOLE[start : start + len(block)])
        assert np.shares_memory(block, WHOLE)


@pytest.mark.parametrize(("rows", "copied"), [(range(5, 9), False), (range(3, 6), True), (range(4, 4), True)])
def test_consecutive_rows_are_copied_only_across_parts(embeddings, rows, copied):
    taken = embeddings.take(rows)
    np.testing.assert_array_equal(taken, WHOLE[rows.start : rows.stop])
    assert np.shares_memory(taken, WHOLE) is not copied


def test_a_copy_can_be_made_in_a_file(embeddings, tmp_path):
    taken = embeddings.take(range(3, 6), tmp_path / "rows.npy")
    assert isinstance(taken, np.memmap)
    np.testing.assert_array_equal(np.load(tmp_path / "rows.npy"), WHOLE[3:6])
    embeddings.take(range(5, 9), tmp_path / "none.npy")
    assert not (tmp_path / "none.npy").exists()


def test_the_shards_of_the_embed_stage_stay_mapped(tmp_path):
    folder = StageFolder(tmp_path / "embed" / "0123456789ab")
    for number, part in enumerate(np.array_split(WHOLE, 3)):
        folder.write_array(f"embeddings-0000{number}-of-00003.npy", part)
    folder.finish()
    embeddings = Embeddings.load(folder)
    assert all(isinstance(part, np.memmap) for part in embeddings._parts)
    np.testing.assert_array_equal(embeddings[np.arange(10)], WHOLE)


def test_one_array_is_one_part(embeddings):
    assert as_embeddings(embeddings) is embeddings
    assert np.shares_memory(as_embeddings(WHOLE).take(range(10)), WHOLE)


@pytest.mark.parametrize("shapes", [[], [(3,)], [(3, 2), (3, 4)], [(3, 2, 1)]])
def test_shards_that_are_no_vectors_of_one_width_are_refused(tmp_path, shapes):
    folder = StageFolder(tmp_path / "embed" / ("a" * 12))
    for number, shape in enumerate(shapes):
        folder.write_array(f"embeddings-{number:05d}-of-{len(shapes):05d}.npy", np.zeros(shape, np.float32))
    folder.finish()
    with pytest.raises(ValueError, match="expected shards of vectors of one width, got"):
        Embeddings.load(folder)
