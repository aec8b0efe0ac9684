"""A file of scores gives back what was written, and says with file and line what cannot be a score."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from small import CHUNKS, QUESTIONS

from radit_jax.data.artifacts import scores_file
from radit_jax.data.artifacts.corpus import Corpus
from radit_jax.data.artifacts.lsr_scores import Scores
from radit_jax.data.artifacts.retrieved import Retrieved
from radit_jax.data.artifacts.scores_file import import_scores, read_scores, score_records
from radit_jax.data.batches.examples import question_example

EXAMPLES = [question_example(question, question.answers[0]) for question in QUESTIONS["train"]]
ROWS = np.array([[0, 1, 2], [1, 3, -1], [2, 8, 0], [3, 0, 5]])
LINE = {
    "id": "q0",
    "query": "Who built Dray Tower?",
    "answer": " Hob Crane",
    "chunk_ids": ["c1", "c0"],
    "answer_log_probs": [-2.0, -4.0],
    "no_chunk_log_prob": -9,
    "answer_token_count": 2,
    "scorer": "elsewhere",
}


@pytest.fixture(scope="module")
def chunks(inputs):
    return Corpus(inputs["corpus"]).chunks


def retrieved(rows=ROWS, examples=EXAMPLES):
    rows = np.array(rows)
    return Retrieved(examples[: len(rows)], rows, np.arange(rows.size, dtype=np.float32).reshape(rows.shape))


def scores_of(found, seed=0):
    rng = np.random.default_rng(seed)
    shape = found.chunk_rows.shape
    return Scores(
        chunk_rows=found.chunk_rows,
        retrieval_scores=found.retrieval_scores,
        answer_log_probs=-rng.exponential(20, shape).astype(np.float32),
        no_chunk_log_probs=-rng.exponential(20, shape[0]).astype(np.float32),
        answer_token_counts=rng.integers(1, 9, shape[0]),
        token_counts=rng.integers(9, 64, shape).astype(np.int32),
        truncated=rng.random(shape) < 0.5,
    )


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def file(tmp_path):
    """Writes lines, and names the file."""
    return lambda *lines: write(tmp_path / "scores.jsonl", lines)


def test_a_line_has_flagembeddings_columns_and_the_sums_in_their_order(chunks):
    scores = Scores(
        chunk_rows=ROWS[:1],
        retrieval_scores=np.zeros((1, 3), np.float32),
        answer_log_probs=np.array([[-4.1, -2.0, -8.0]], np.float32),
        no_chunk_log_probs=np.array([-0.3], np.float32),
        answer_token_counts=np.array([2]),
        token_counts=np.array([[30, 31, 64]]),
        truncated=np.array([[False, False, True]]),
    )
    exponents = np.array([[-8.0, -4.0, -16.0]], np.float32)
    (record,) = score_records(retrieved(ROWS[:1]), scores, exponents, chunks, "llama-65b")
    assert record == {
        "id": "q0",
        "query": "Who built Dray Tower?",
        "pos": [CHUNKS[1].passage],
        "neg": [CHUNKS[0].passage, CHUNKS[2].passage],
        "pos_scores": [-4.0],
        "neg_scores": [-8.0, -16.0],
        "lm_prompt": "Q: Who built Dray Tower?\nA:",
        "answer": " Hob Crane",
        "chunk_ids": ["c1", "c0", "c2"],
        "answer_log_probs": [-2.0, -4.1, -8.0],
        "no_chunk_log_prob": -0.3,
        "answer_token_count": 2,
        "token_counts": [31, 30, 64],
        "truncated": [False, False, True],
        "scorer": "llama-65b",
    }


def test_what_was_written_comes_back_bit_by_bit_whatever_the_order_and_the_block(
    chunks, tmp_path, monkeypatch
):
    monkeypatch.setattr(scores_file, "LINES_AT_ONCE", 3)
    found = retrieved()
    scores = scores_of(found)
    records = list(score_records(found, scores, scores.answer_log_probs, chunks, "a"))
    path = write(tmp_path / "scores.jsonl", records[::-1])
    again, facts = import_scores(path, found, chunks)
    real = ROWS >= 0
    for name, wanted in asdict(scores).items():
        values = getattr(again, name)
        assert values.dtype == wanted.dtype
        mask = real if wanted.shape == ROWS.shape else np.ones(len(ROWS), bool)
        np.testing.assert_array_equal(values[mask], wanted[mask])
    assert facts == {"scorer": "a", "examples_not_used": 0, "chunks_not_used": 0}


def test_the_digits_of_a_float32_give_it_back():
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 50_000, dtype=np.uint32).view(np.float32)
    values = bits[np.isfinite(bits)]
    texts = [json.dumps(scores_file._shortest(value)) for value in values]
    assert json.dumps(scores_file._shortest(np.float32(-0.1))) == "-0.1"
    np.testing.assert_array_equal(np.array([json.loads(text) for text in texts], np.float32), values)


def test_an_example_with_a_weight_has_one_line_which_serves_all_its_copies(chunks, tmp_path):
    found = retrieved(ROWS[[0, 1, 0]], [EXAMPLES[0], EXAMPLES[1], EXAMPLES[0]])
    scores = scores_of(found)
    records = list(score_records(found, scores, scores.answer_log_probs, chunks, "a"))
    assert sorted(record["id"] for record in records) == ["q0", "q1"]
    again, _ = import_scores(write(tmp_path / "scores.jsonl", records), found, chunks)
    np.testing.assert_array_equal(again.answer_log_probs[0], again.answer_log_probs[2])


def test_what_the_run_does_not_need_is_counted_and_the_optional_fields_may_lack(chunks, file):
    other = {**LINE, "id": "elsewhere"}
    path = file(LINE | {"chunk_ids": ["c1", "c7", "c0"], "answer_log_probs": [-2, -3, -4.5]}, other)
    scores, facts = import_scores(path, retrieved([[0, 1]]), chunks)
    assert facts == {"scorer": "elsewhere", "examples_not_used": 1, "chunks_not_used": 1}
    assert scores.answer_log_probs.tolist() == [[-4.5, -2.0]]
    assert scores.no_chunk_log_probs.tolist() == [-9.0]
    assert scores.retrieval_scores.tolist() == [[0.0, 1.0]]  # of this run
    assert not scores.token_counts.any()
    assert not scores.truncated.any()


def test_missing_scores_are_counted_and_the_first_are_named(chunks, file):
    path = file(LINE, LINE | {"id": "q1", "query": EXAMPLES[1].query, "answer": " somebody else"})
    with pytest.raises(ValueError) as error:
        import_scores(path, retrieved([[0, 1, 5], [1, 2, 3], [2, 3, 4]]), chunks)
    assert str(error.value) == (
        f"{path}: expected the scores of all examples under their candidates, got no line of 2 of 3 "
        "(first 'q1', 'q2') and no score of 1 candidates (first 'c5 of q0'). Take a file of the same data, "
        "retriever and retrieve.num_chunks: an example is known by id, query and answer."
    )


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"answer_log_probs": [-2.0, float("nan")]}, "finite and at most 0, got nan"),
        ({"answer_log_probs": [-2.0, float("-inf")]}, "finite and at most 0, got -inf"),
        ({"answer_log_probs": [-2.0, -1e39]}, "finite and at most 0, got -1e"),
        ({"answer_log_probs": [0.25, -2.0]}, "finite and at most 0, got 0.25"),
        ({"no_chunk_log_prob": 1e-3}, "finite and at most 0, got 0.001"),
        ({"no_chunk_log_prob": None}, "expected a number in 'no_chunk_log_prob', got null"),
        ({"answer_log_probs": [-2.0, "-4"]}, "expected a number in 'answer_log_probs', got '-4'"),
        ({"answer_log_probs": [-2.0, True]}, "expected a number in 'answer_log_probs', got true"),
        ({"answer_log_probs": [-2.0]}, "an entry for each of the 2 chunks of 'chunk_ids', got "),
        ({"answer_log_probs": -2.0}, "expected a list in 'answer_log_probs'"),
        ({"chunk_ids": ["c1", "c1"]}, "expected each chunk once in 'chunk_ids'"),
        ({"chunk_ids": "c1"}, "expected field 'chunk_ids' to be a list of ids"),
        ({"id": " "}, "expected field 'id' to be an id"),
        ({"query": 3}, "expected field 'query' to be a string, got 3"),
        ({"scorer": None}, "expected field 'scorer' to be a string, got null"),
        ({"answer_token_count": 2.0}, "expected numbers of tokens, got 2.0"),
        ({"answer_token_count": 0}, "expected an answer of a token at least, got 0"),
        ({"token_counts": [3, -1]}, "expected numbers of tokens, got -1"),
        ({"truncated": [True, 0]}, "expected true or false in 'truncated'"),
    ],
)
def test_what_cannot_be_a_score_is_refused_with_file_and_line(file, changed, message):
    path = file(LINE, {**LINE, "id": "q1", **changed})
    with pytest.raises(ValueError, match=message) as error:
        list(read_scores(path))
    assert str(error.value).startswith(f"{path} line 2: expected ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [*LINE])
def test_a_line_without_a_field_is_refused(file, name):
    with pytest.raises(ValueError, match=rf"scores\.jsonl line 1: expected .*{name}"):
        list(read_scores(file({field: value for field, value in LINE.items() if field != name})))


def test_an_example_on_two_lines_is_refused_with_both(file):
    path = file(LINE, {**LINE, "id": "q1"}, {**LINE, "answer_log_probs": [-1, -1]})
    with pytest.raises(ValueError, match=r"line 3: .* got 'q0' again, which is in .*line 1 too"):
        list(read_scores(path))


def test_a_file_without_a_line_is_refused(file):
    with pytest.raises(ValueError, match=r"scores\.jsonl: expected a line for each example, got none"):
        list(read_scores(file()))


def test_one_id_with_two_answers_is_two_examples(chunks, file):
    other = replace(EXAMPLES[0], answer=" Crane")
    path = file(LINE, {**LINE, "answer": " Crane", "answer_log_probs": [-1.0, -3.0]})
    scores, _ = import_scores(path, retrieved([[0, 1], [0, 1]], [EXAMPLES[0], other]), chunks)
    assert scores.answer_log_probs.tolist() == [[-4.0, -2.0], [-3.0, -1.0]]
