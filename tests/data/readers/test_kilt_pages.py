"""Whose pages a corpus' chunks are of, and where nothing tells."""

import pytest

from radit_jax.data.readers.kilt_pages import find_pages
from radit_jax.data.records import Chunk

CHUNKS = [Chunk("736#12", "Emma: Plot", "She errs."), Chunk("8", "Persuasion", "A novel.")]


def test_a_corpus_in_kilts_form_has_its_ids():
    page_of = find_pages({"format": "kilt"})
    assert page_of is not None
    assert list(map(page_of, CHUNKS)) == ["736", "8"]


@pytest.mark.parametrize("manifest", [{"format": "atlas"}, {"format": "dpr"}, {"format": ""}, {}])
def test_numbers_of_another_corpus_are_no_pages(manifest):
    assert find_pages(manifest) is None


def test_a_table_of_titles_tells_the_pages_of_any_corpus(tmp_path):
    (tmp_path / "titles.tsv").write_text("Emma\t11\nMansfield Park\t12\n")
    page_of = find_pages({"format": "atlas"}, tmp_path / "titles.tsv")
    assert page_of is not None
    assert list(map(page_of, CHUNKS)) == ["11", ""]
    with pytest.raises(ValueError, match="evaluate.kilt_titles: expected a table .* got no file"):
        find_pages({"format": "kilt"}, tmp_path / "none.tsv")
