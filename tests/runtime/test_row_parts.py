"""Which rows a part of a file has, and that parts give back the whole."""

import numpy as np
import pytest

from radit_jax.data.artifacts.lsr_scores import Scores
from radit_jax.data.artifacts.retrieved import Retrieved
from radit_jax.data.records import Example
from radit_jax.runtime import row_parts
from radit_jax.runtime.row_parts import parts_of, read_each, stored_parts
from radit_jax.runtime.storage.stage_folder import StageFolder

EXAMPLES = [Example(f"e{number}", "q", "p", "a") for number in range(5)]
ROWS = np.arange(10).reshape(5, 2)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(row_parts, "ROWS_PER_PART", 2)
    return StageFolder(tmp_path / "retrieve" / ("a" * 12))


def test_few_rows_are_one_file_and_more_of_them_are_parts(folder):
    assert parts_of("train.jsonl", 2) == {"train.jsonl": range(2)}
    assert parts_of("train.jsonl", 0) == {"train.jsonl": range(0)}
    assert parts_of("train.jsonl", 3) == {
        "train-00000-of-00002.jsonl": range(2),
        "train-00001-of-00002.jsonl": range(2, 3),
    }


def test_examples_in_parts_are_read_as_they_were_and_as_an_earlier_versions_file(folder):
    Retrieved(EXAMPLES, ROWS, ROWS / 4).save(folder, "train")
    # Shards of the search have names of their own.
    folder.write("train-tasks-00000-of-00001.npz", b"")
    folder.finish()
    names = [f"train-{number:05d}-of-00003.npz" for number in range(3)]
    assert stored_parts(folder, "train.npz") == names
    assert list(read_each(folder, names)) == [folder.read(name) for name in names]
    found = Retrieved.load(folder, "train")
    assert found.examples == EXAMPLES
    np.testing.assert_array_equal(found.chunk_rows, ROWS)
    np.testing.assert_array_equal(found.retrieval_scores, ROWS / 4)

    # One file with all rows.
    earlier = StageFolder(folder.home.parent / ("b" * 12))
    earlier.write_arrays("train.npz", chunk_rows=ROWS, retrieval_scores=ROWS / 4)
    earlier.write("train.jsonl", b"".join(read_each(folder, stored_parts(folder, "train.jsonl"))))
    earlier.finish()
    assert Retrieved.load(earlier, "train").examples == EXAMPLES


def test_a_part_that_is_gone_and_a_file_that_was_never_written_are_errors(folder):
    Retrieved(EXAMPLES, ROWS, ROWS / 4).save(folder, "train")
    folder.finish()
    with pytest.raises(ValueError, match="expected a whole file 'scores.npz', got none"):
        Scores.load(folder)
    (folder.path / "train-00001-of-00003.jsonl").unlink()
    with pytest.raises(ValueError, match=r"train-00001-of-00003\.jsonl: expected the \d+ bytes"):
        Retrieved.load(StageFolder(folder.home), "train")
