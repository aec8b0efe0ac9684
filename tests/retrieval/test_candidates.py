"""Examples get their chunks in shards that processes have between them."""

import json

import numpy as np
import pytest
from small import CHUNKS, QUESTIONS
from two_processes import run_two

from radit_jax.data.artifacts.chunks import Chunks
from radit_jax.data.batches.examples import question_example
from radit_jax.data.records import Example
from radit_jax.retrieval import candidates
from radit_jax.retrieval.candidates import ExampleSearch
from radit_jax.runtime.storage.workdir import Workdir

# Three questions, one with a Background of its own, and three texts: shards of two, one; two and one.
EXAMPLES = [
    *(question_example(question, question.answers[0]) for question in QUESTIONS["train"][:3]),
    Example("own", "Who?", "Q: Who?\nA:", " Hob", background="Hob Crane."),
    *(Example(f"t{row}", CHUNKS[row].text, CHUNKS[row].text, " end") for row in (4, 5, 6)),
]
SOURCES = np.array([-1, -1, -1, -1, 4, 5, 6])
FILES = [f"train-{kind}-{number:05d}-of-00002.npz" for kind in ("tasks", "texts") for number in range(2)]
PROGRAM = """
import json, sys
from radit_jax.runtime.distributed import processes, topology
corpus, retriever, embeddings, index, home, port, number = sys.argv[1:]
processes.join_processes(topology.find_topology("127.0.0.1:" + port, 2, int(number)))
sys.path.append("tests/retrieval")
sys.path.append("tests")
from test_candidates import EXAMPLES, SOURCES
from radit_jax.config import MeshConfig
from radit_jax.data.artifacts.chunks import Chunks
from radit_jax.retrieval import candidates
from radit_jax.retrieval.search import Searcher
from radit_jax.runtime.pretrained.tokenizers import Tokenizer
from radit_jax.runtime.storage.stage_folder import StageFolder

candidates.EXAMPLES_PER_SHARD = 2
tokenised, written = [], []
encode_all, write = Tokenizer.encode_all, StageFolder._write

def counted(self, texts, *rest):
    tokenised.append(len(texts))
    return encode_all(self, texts, *rest)

def noted(self, name, data):
    written.append(name)
    write(self, name, data)

Tokenizer.encode_all, StageFolder._write = counted, noted
paths = {"retriever": retriever, "embeddings": embeddings, "index": index}
inputs = {name: StageFolder(path) for name, path in paths.items()}
searcher = Searcher.load(inputs, MeshConfig(), copies=True)
search = candidates.ExampleSearch(
    searcher, Chunks(StageFolder(corpus)), StageFolder(home), "train", EXAMPLES, SOURCES, 3
)
search.make()
everywhere = searcher.search([example.query for example in EXAMPLES], 3)
print(json.dumps({"tokenised": tokenised, "written": written, "rows": everywhere[0].tolist()}))
processes.shutdown()
"""


@pytest.fixture
def search(inputs, searcher, tmp_path, monkeypatch):
    monkeypatch.setattr(candidates, "EXAMPLES_PER_SHARD", 2)

    def into(name):
        folder = Workdir(tmp_path).folder("retrieve", name)
        return ExampleSearch(searcher, Chunks(inputs["corpus"]), folder, "train", EXAMPLES, SOURCES, 3)

    return into


def test_each_example_gets_its_best_chunks_and_a_text_not_its_own(search, searcher):
    made = search("all")
    made.make()
    rows, scores, num_copies = made.read()
    found = searcher.search([example.query for example in EXAMPLES], 4)
    np.testing.assert_array_equal(rows[:3], found[0][:3, :3])
    assert rows[3].tolist() == [-1, -1, -1] and scores[3].tolist() == [0, 0, 0]
    for number, own in ((4, 4), (5, 5), (6, 6)):
        others = [row for row in found[0][number].tolist() if row != own]
        assert rows[number].tolist() == others[:3]
    assert num_copies == 0


def test_a_run_that_goes_on_searches_for_the_missing_examples_alone(search, monkeypatch):
    whole, again = search("whole"), search("again")
    whole.make()
    again.folder.write(FILES[0], whole.folder.read(FILES[0]))
    asked = []
    search_own = type(again.searcher).search_own

    def counted(self, queries, *rest):
        asked.append(len(queries))
        return search_own(self, queries, *rest)

    monkeypatch.setattr(type(again.searcher), "search_own", counted)
    again.make()
    assert asked == [1, 2, 1]
    for one, other in zip(whole.read(), again.read(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_two_processes_search_for_examples_of_their_own_and_find_what_one_finds(inputs, search, tmp_path):
    one = search("one")
    one.make()
    together = search("together")
    paths = [str(inputs[name].home) for name in ("corpus", "retriever", "embeddings", "index")]
    printed = run_two(PROGRAM, [*paths, str(together.folder.home)])
    said = [json.loads(text.splitlines()[-1]) for text in printed]
    # Two and one of the questions, two and one of the texts; and of all seven the first three and the others.
    assert [process["tokenised"] for process in said] == [[2, 2, 3], [1, 1, 4]]
    assert [process["written"] for process in said] == [FILES[::2], FILES[1::2]]
    assert said[0]["rows"] == said[1]["rows"]
    for found, wanted in zip(together.read(), one.read(), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
