"""`details.jsonl`: what a small evaluation keeps gives back the figures that it was kept of."""

import json
from dataclasses import replace

import numpy as np
import pytest

from radit_jax.config import EvaluateConfig, MeshConfig, ScoreConfig
from radit_jax.data.artifacts.corpus import Corpus
from radit_jax.data.eval_tasks.task import Choice, EvalExample
from radit_jax.evaluation.corpus_questions import CorpusQuestionEval
from radit_jax.evaluation.details import (
    answer_from_json,
    answer_to_json,
    chosen_detail,
    rounded,
    task_detail_lines,
)
from radit_jax.evaluation.multiple_choice import ChoiceResult
from radit_jax.evaluation.systems import LMS, RETRIEVERS, SYSTEMS, RetrievedChunks
from radit_jax.lm.answering import Answer
from radit_jax.lm.scoring import PairScorer
from radit_jax.runtime.distributed.mesh import make_mesh
from radit_jax.runtime.storage.workdir import Workdir

ROUNDING = 1e-4  # of log-probabilities
ROWS = {"base": [[6, 4, 1], [4, 1, 7]], "r_ft": [[6, 9, 2], [7, 4, 1]]}
WEIGHTS = {"base": [0.5, 0.3, 0.2], "r_ft": [0.8, 0.1, 0.1]}


def retrieved(name):
    rows = np.array([[*row, 3] for row in ROWS[name]])  # ranked deeper than answers are mixed over
    weights = np.log(np.array([WEIGHTS[name]] * 2, np.float32))
    return RetrievedChunks(rows, weights)


@pytest.fixture(scope="module")
def evaluation(inputs, lm, tmp_path_factory):
    """Two questions, answered by the same language model in both roles."""
    settings = EvaluateConfig(
        chunks_per_answer=3, max_new_tokens=3, bootstrap_samples=50, sequence_length=64
    ).answering()
    corpus = Corpus(inputs["corpus"])
    score = ScoreConfig(batch_size=8, sequence_length=64)
    scorer = PairScorer(lm, make_mesh(MeshConfig(), rows=8), score)
    output = Workdir(tmp_path_factory.mktemp("details")).folder("evaluate", "e")
    questions = corpus.questions("test")
    made = CorpusQuestionEval(output, corpus, questions, settings, 0, dict.fromkeys(LMS, scorer))
    # Recall is of ten chunks: here, of the four that are ranked and six others.
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("radit_jax.evaluation.figures.CUTOFFS", (1, 3))
        made.run({name: retrieved(name) for name in RETRIEVERS})
    return made


@pytest.fixture(scope="module")
def lines(evaluation):
    return evaluation.output.read_jsonl("details.jsonl")


def test_each_question_has_its_chunks_with_their_weights(evaluation, lines):
    assert [line["id"] for line in lines] == [question.id for question in evaluation.questions]
    for number, line in enumerate(lines):
        for name in RETRIEVERS:
            assert line["rows"][name] == ROWS[name][number]
            assert np.exp(line["log_p_R"][name]) == pytest.approx(WEIGHTS[name], rel=ROUNDING)


def test_the_candidates_mixed_by_p_r_give_their_probabilities(lines):
    for line in lines:
        for name, system in SYSTEMS.items():
            weights = [1.0] if system.retriever is None else WEIGHTS[system.retriever]
            for candidate in line["candidates"][name]:
                mixed = np.array(weights) @ np.exp(candidate["log_probs"])
                assert candidate["probability"] == pytest.approx(mixed, rel=ROUNDING)


def test_the_gold_answers_mixed_by_p_r_have_the_likelihood_of_the_results(evaluation, lines):
    for name, system in SYSTEMS.items():
        if system.retriever is None:
            continue
        for line, result in zip(lines, evaluation.output.read_jsonl(f"{name}.jsonl"), strict=True):
            log_probs = line["answer_log_probs"][system.lm][system.retriever]
            mixed = np.log(WEIGHTS[system.retriever] @ np.exp(log_probs))
            nll = -mixed / line["answer_tokens"][system.lm]
            assert nll == pytest.approx(result["answer_nll"], abs=ROUNDING)


def test_the_candidates_are_the_predictions(evaluation, lines):
    predictions = evaluation.output.read_jsonl("predictions.jsonl")
    for line, prediction in zip(lines, predictions, strict=True):
        for candidate, answer in zip(line["candidates"]["radit"], prediction["answers"], strict=True):
            assert candidate["text"] == answer["answer"]
            assert candidate["probability"] == pytest.approx(answer["probability"], rel=1e-5)
        assert {name: candidates[0]["text"] for name, candidates in line["candidates"].items()} == prediction[
            "systems"
        ]
        assert set(line["cut"]) == set(SYSTEMS)


def test_answers_of_an_earlier_version_are_read_without_what_it_did_not_keep(evaluation, tmp_path):
    half = CorpusQuestionEval(
        Workdir(tmp_path).folder("evaluate", "e"),
        evaluation.corpus,
        evaluation.ranked,
        evaluation.settings,
        0,
        evaluation.models,
    )
    [file] = evaluation._answer_shards("radit", evaluation.system_inputs(all_retrieved())["radit"])
    old = []
    for line in evaluation.output.read_jsonl(file):
        old.append({"place": line["place"], "answers": [stored[:2] for stored in line["answers"]]})
    half.output.write_jsonl(file, old)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("radit_jax.evaluation.figures.CUTOFFS", (1, 3))
        half.run(all_retrieved())
    for name in ("results.json", "predictions.jsonl"):
        assert half.output.read(name) == evaluation.output.read(name)
    for line in half.output.read_jsonl("details.jsonl"):
        assert "radit" not in line["cut"] and "r_ft" in line["cut"]
        assert all("log_probs" not in candidate for candidate in line["candidates"]["radit"])
        assert all("log_probs" in candidate for candidate in line["candidates"]["r_ft"])


def all_retrieved():
    return {name: retrieved(name) for name in RETRIEVERS}


def test_an_answer_is_stored_with_four_decimals():
    stored = answer_to_json(Answer("Seine", 0.123456789, (-0.123456, -20.00004), False))
    assert stored == ["Seine", 0.123456789, [-0.1235, -20.0], False]
    assert answer_from_json(json.loads(json.dumps(stored))) == Answer(
        "Seine", 0.123456789, (-0.1235, -20.0), False
    )
    assert answer_from_json(["Seine", 0.5]) == Answer("Seine", 0.5)
    assert rounded(np.float32([-1.23456])) == [-1.2346]


def test_a_choice_keeps_the_choices_best_first_and_the_right_ones_likelihood(lm):
    choices = tuple(Choice(text, "Who?", f" {text}") for text in ("Ada Finch", "Bo Marsh"))
    item = EvalExample("q", "Who?", choices=choices, label=0)
    by_chunk = np.log(np.float32([[0.2, 0.5], [0.1, 0.7]]))
    mixed = np.log(np.float32([0.15, 0.6]))
    detail = chosen_detail(item, ChoiceResult(1, mixed, mixed, by_chunk), lm.tokenizer)
    first, second = detail["candidates"]
    assert (first["text"], second["text"]) == ("Bo Marsh", "Ada Finch")
    assert np.exp(second["log_probs"]) == pytest.approx([0.2, 0.1], rel=ROUNDING)
    assert second["probability"] == pytest.approx(0.15)
    assert detail["answer_log_probs"] == second["log_probs"]
    assert detail["answer_tokens"] == len(lm.tokenizer.encode(" Ada Finch"))
    hidden = chosen_detail(replace(item, label=-1), ChoiceResult(1, mixed, mixed, by_chunk), lm.tokenizer)
    assert "answer_log_probs" not in hidden


def test_a_tasks_line_joins_its_systems_by_retriever_and_language_model():
    def detail(row, text, **more):
        chunks = {"rows": [row], "log_p_R": [0.0]}
        return [{"candidates": [{"text": text, "probability": 1.0}], "cut": False, **chunks, **more}]

    likelihood = {"answer_log_probs": [-1.5], "answer_tokens": 2}
    closed = [{"candidates": [], "cut": None}]
    by_system = {
        "closed_book": closed,
        "base": detail(4, "a", **likelihood),
        "radit": detail(7, "b", **likelihood),
        "r_ft": (),
    }
    [line] = task_detail_lines(["q"], by_system)
    assert line["rows"] == {"base": [4], "r_ft": [7]}
    assert line["answer_log_probs"] == {"base_lm": {"base": [-1.5]}, "lm_ft_lm": {"r_ft": [-1.5]}}
    assert line["answer_tokens"] == {"base_lm": 2, "lm_ft_lm": 2}
    assert line["cut"] == {"base": False, "radit": False}
    assert set(line["candidates"]) == {"closed_book", "base", "radit"}
