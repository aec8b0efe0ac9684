"""Examples that are cut from the corpus, whose chunks processes read between them."""

import pytest
from shares import in_three_shares
from small import CHUNKS

from radit_jax.data.artifacts.chunks import Chunks
from radit_jax.data.batches import corpus_examples
from radit_jax.data.batches.corpus_examples import cut_examples
from radit_jax.data.records import Chunk, Example
from radit_jax.runtime.distributed import processes


def cut(chunk: Chunk) -> Example | None:
    """Every chunk but c1 and c4 gives an example."""
    if chunk.id in ("c1", "c4"):
        return None
    return Example(f"{chunk.id}-text", chunk.text, chunk.text, " end", source_chunk=chunk.id, background=None)


@pytest.fixture
def read(monkeypatch):
    """The rows that are read, by call."""
    calls = []
    take = Chunks.take

    def noted(self, rows):
        rows = list(rows)
        calls.append(rows)
        return take(self, rows)

    monkeypatch.setattr(Chunks, "take", noted)
    return calls


@pytest.mark.parametrize("num_asked", [0, 3, 8, 50])
@pytest.mark.parametrize("at_once", [2, 1024])
def test_three_processes_cut_what_one_cuts_and_each_chunk_is_read_once(
    inputs, monkeypatch, read, num_asked, at_once
):
    monkeypatch.setattr(corpus_examples, "CHUNKS_AT_ONCE", at_once)
    chunks = Chunks(inputs["corpus"])
    one = cut_examples(chunks, num_asked, cut, seed=0)
    rows_of_one = sorted(sum(read, []))
    assert len(one.examples) == len(one.sources) == min(num_asked, len(CHUNKS) - 2)
    for example, row in zip(one.examples, one.sources, strict=True):
        assert example.source_chunk == CHUNKS[row].id
    read.clear()
    monkeypatch.setattr(processes, "in_shares", in_three_shares)
    assert cut_examples(chunks, num_asked, cut, seed=0) == one
    assert sorted(sum(read, [])) == rows_of_one
    assert max(map(len, read), default=0) <= -(-at_once // 3)


def test_chunks_that_give_nothing_are_counted_up_to_the_last_example(inputs):
    all_cut = cut_examples(Chunks(inputs["corpus"]), 50, cut, seed=0)
    assert all_cut.num_skipped == 2
    without_last = cut_examples(Chunks(inputs["corpus"]), 1, cut, seed=0)
    assert without_last.num_skipped <= 2 and without_last.examples == all_cut.examples[:1]


def test_few_examples_read_few_chunks(inputs, read, monkeypatch):
    monkeypatch.setattr(corpus_examples, "SPARE_CHUNKS", 1)
    cut_examples(Chunks(inputs["corpus"]), 2, lambda chunk: Example("a", "", "", ""), seed=0)
    assert [len(rows) for rows in read] == [3]
