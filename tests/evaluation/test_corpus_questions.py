"""The evaluation's figures: means, gains and likelihoods by hand."""

from dataclasses import replace

import numpy as np
import pytest
from exact import assert_stored

from radit_jax.config import EvaluateConfig
from radit_jax.data.artifacts.corpus import Corpus
from radit_jax.data.records import Question
from radit_jax.evaluation.corpus_questions import CorpusQuestionEval, SystemInputs
from radit_jax.lm.answering import Answer
from radit_jax.lm.scoring import NO_CHUNK
from radit_jax.runtime.storage.workdir import Workdir

FOUR = [
    Question("q6", "Who built Jay Tower?", ("Flo Wren",), ("c6",), group="jay"),
    Question("q7", "Who built Kings Tower?", ("Gil Teal",), ("c7",), group="kings"),
    Question("yes", "Is it a tower?", ("yes",), ("c1",), group="elm"),
    Question("lost", "Where is Quay?", ("Cy Heron",), (), group="gate"),
]


@pytest.fixture
def evaluation(inputs, tmp_path):
    def make(questions=FOUR, **changed):
        settings = EvaluateConfig(chunks_per_answer=2, bootstrap_samples=200, **changed)
        output, corpus = Workdir(tmp_path).folder("evaluate", "e"), Corpus(inputs["corpus"])
        return CorpusQuestionEval(output, corpus, questions, settings, seed=0, models={})

    return make


def results_of(*exact_matches):
    return [{"exact_match": value, "f1": value / 2} for value in exact_matches]


def test_the_answers_likelihood_is_mixed_over_the_chunks_and_divided_by_its_tokens(evaluation):
    two = evaluation(FOUR[:2])
    probabilities = {(0, 4): 0.5, (0, 6): 0.1, (1, NO_CHUNK): 0.3, (1, 4): 0.4, (1, 7): 0.8}
    two.output.write_arrays(
        "base_lm-pairs.npz",
        pairs=np.array(list(probabilities)),
        answer_log_probs=np.log(np.array(list(probabilities.values()), np.float32)),
        answer_token_counts=np.array([2, 4]),
    )
    weights = np.log(np.array([[0.75, 0.25], [0.1, 0.9]], np.float32))
    system = SystemInputs("base_lm", np.array([[4, 6], [7, 4]]), weights)
    expected = [-np.log(0.75 * 0.5 + 0.25 * 0.1) / 2, -np.log(0.1 * 0.8 + 0.9 * 0.4) / 4]
    assert_stored(two._answer_nll(system, [system]), expected)


def test_every_pair_of_a_language_model_is_scored_once_for_all_its_systems(evaluation, lm):
    asked = []

    class Scorer:
        model = lm

        def score(self, examples, pairs, chunks, bar):
            asked.extend(map(tuple, pairs.tolist()))
            return Scored(np.zeros(len(pairs), np.float32))

    class Scored:
        def __init__(self, answer_log_probs):
            self.answer_log_probs = answer_log_probs

    two = evaluation(FOUR[:2])
    two.models["base_lm"] = Scorer()
    flat = np.zeros((2, 2), np.float32)
    systems = [
        SystemInputs("base_lm", np.array([[4, 6], [7, 4]]), flat),
        SystemInputs("base_lm", np.array([[6, 4], [NO_CHUNK, 4]]), flat),
        SystemInputs("lm_ft_lm", np.array([[9, 9], [9, 9]]), flat),
    ]
    for system in systems[:2]:
        two._answer_nll(system, systems)
    assert sorted(asked) == [(0, 4), (0, 6), (1, NO_CHUNK), (1, 4), (1, 7)]
    counts = two.output.read_arrays("base_lm-pairs.npz")["answer_token_counts"]
    assert counts.tolist() == [len(lm.tokenizer.encode(" " + answer)) for answer in ("Flo Wren", "Gil Teal")]


def test_a_figure_is_the_mean_over_questions(evaluation):
    figures = evaluation().figures(results_of(1.0, 0.0, 0.0, 0.0), ("exact_match", "f1"))
    assert figures["exact_match"]["value"] == 0.25
    assert figures["f1"]["value"] == 0.125
    assert figures["exact_match"]["low"] == 0.0 < 0.25 < figures["exact_match"]["high"]


def test_a_gain_is_after_minus_before_on_the_same_questions(evaluation):
    before, after = results_of(0.0, 1.0, 0.0, 0.0), results_of(1.0, 1.0, 0.0, 0.0)
    assert evaluation().gain(after, before)["value"] == 0.25
    assert evaluation().gain(before, after)["value"] == -0.25
    # Unpaired, two systems that agree on every question would differ by chance.
    assert evaluation().gain(after, after) == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_questions_of_a_group_are_drawn_together(evaluation):
    same = [Question(q.id, q.question, q.answers, q.gold_chunks, group="one") for q in FOUR]
    assert evaluation(same).figures(results_of(1.0, 0.0, 0.0, 0.0), ("exact_match",))["exact_match"] == {
        "value": 0.25,
        "low": None,
        "high": None,
    }


def test_questions_whose_data_name_no_group_are_drawn_apart(evaluation):
    apart = evaluation([replace(question, group="") for question in FOUR])
    figure = apart.figures(results_of(1.0, 0.0, 0.0, 0.0), ("exact_match",))["exact_match"]
    assert (figure["low"], figure["value"], figure["high"]) == (0.0, 0.25, 0.75)
    gain = apart.gain(results_of(1.0, 0.0, 0.0, 0.0), results_of(0.0, 0.0, 0.0, 0.0))
    assert gain["low"] < gain["value"] < gain["high"]


def test_gold_recall_counts_known_gold_and_answer_recall_leaves_yes_and_no_out(evaluation):
    rows = np.zeros((4, 10), int) + 9  # a chunk that holds nothing
    rows[0, 0] = 6  # gold, and holds the answer
    rows[1, 4] = 8  # holds the answer, but is not its gold chunk
    rows[2, 0] = 1  # the gold chunk of the question that is answered by yes
    rows[3, 1] = 3  # holds the answer of the question without a gold chunk
    found = {name: figure["value"] for name, figure in evaluation().retrieval_figures(rows).items()}
    assert found == pytest.approx(
        {
            "gold_recall@1": 2 / 3,
            "gold_recall@5": 2 / 3,
            "gold_recall@10": 2 / 3,
            "answer_recall@1": 1 / 3,
            "answer_recall@5": 1.0,
            "answer_recall@10": 1.0,
            "mrr": (1 + 1 / 5 + 1 / 2) / 3,
        }
    )


def test_the_best_answer_is_the_one_that_is_scored():
    question = Question("q", "Who?", ("the Seine", "River Seine"))
    result = CorpusQuestionEval._question_result(
        question, [Answer("Seine.", 0.5), Answer("Loire", 0.2)], 0.25
    )
    assert (result["exact_match"], result["f1"], result["answer_nll"]) == (1.0, 1.0, 0.25)
    assert result["answers"][1] == {"answer": "Loire", "probability": 0.2}
    loire = CorpusQuestionEval._question_result(question, [Answer("Loire", 0.5), Answer("Seine", 0.2)], 0.25)
    assert loire["exact_match"] == 0.0
