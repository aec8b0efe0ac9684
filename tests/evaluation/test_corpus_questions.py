"""The evaluation's figures: means, gains and likelihoods by hand."""

from dataclasses import replace

import numpy as np
import pytest
from exact import assert_stored

from radit_jax.config import EvaluateConfig
from radit_jax.data.artifacts.corpus import Corpus
from radit_jax.data.records import Question
from radit_jax.evaluation.corpus_questions import CorpusQuestionEval
from radit_jax.evaluation.few_shot_base import KINDS, FewShotBase
from radit_jax.evaluation.figures import QuestionFigures, ranking_figures
from radit_jax.evaluation.predictions import question_result
from radit_jax.evaluation.systems import SystemInputs
from radit_jax.lm.answering import Answer
from radit_jax.lm.scoring import NO_CHUNK, PairScores
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
        own = False

        def score_each(self, parts, examples, chunks, bar):
            for pairs in parts:
                asked.extend(map(tuple, pairs.tolist()))
                yield PairScores.empty(len(pairs))

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
    figures = evaluation().figures.means(results_of(1.0, 0.0, 0.0, 0.0), ("exact_match", "f1"))
    assert figures["exact_match"]["value"] == 0.25
    assert figures["f1"]["value"] == 0.125
    # Wilson's interval of one right answer of four.
    assert figures["exact_match"]["low"] == pytest.approx(0.0456, abs=1e-4)
    assert figures["exact_match"]["high"] == pytest.approx(0.6994, abs=1e-4)


def test_a_gain_is_after_minus_before_on_the_same_questions(evaluation):
    before, after = results_of(0.0, 1.0, 0.0, 0.0), results_of(1.0, 1.0, 0.0, 0.0)
    assert evaluation().figures.gain(after, before, "exact_match")["value"] == 0.25
    assert evaluation().figures.gain(before, after, "exact_match")["value"] == -0.25
    # Four questions on which two systems agree leave room for a difference, either way alike.
    same = evaluation().figures.gain(after, after, "exact_match")
    assert same["value"] == 0.0 and same["high"] == -same["low"] == pytest.approx(0.462, abs=1e-3)


def test_questions_of_a_group_are_drawn_together(evaluation):
    same = [Question(q.id, q.question, q.answers, q.gold_chunks, group="one") for q in FOUR]
    assert evaluation(same).figures.means(results_of(1.0, 0.0, 0.0, 0.0), ("exact_match",))[
        "exact_match"
    ] == {
        "value": 0.25,
        "low": None,
        "high": None,
    }


def test_questions_whose_data_name_no_group_are_drawn_apart(evaluation):
    apart = evaluation([replace(question, group="") for question in FOUR])
    figure = apart.figures.means(results_of(1.0, 0.0, 0.0, 0.0), ("exact_match",))["exact_match"]
    assert (figure["low"], figure["value"], figure["high"]) == pytest.approx((0.0456, 0.25, 0.6994), abs=1e-4)
    gain = apart.figures.gain(results_of(1.0, 0.0, 0.0, 0.0), results_of(0.0, 0.0, 0.0, 0.0), "exact_match")
    assert gain["low"] < gain["value"] < gain["high"]


def test_gold_recall_counts_known_gold_and_answer_recall_leaves_yes_and_no_out(evaluation):
    rows = np.zeros((4, 10), int) + 9  # a chunk that holds nothing
    rows[0, 0] = 6  # gold, and holds the answer
    rows[1, 4] = 8  # holds the answer, but is not its gold chunk
    rows[2, 0] = 1  # the gold chunk of the question that is answered by yes
    rows[3, 1] = 3  # holds the answer of the question without a gold chunk
    other = np.zeros((4, 10), int) + 9
    other[1, 0] = 7  # gold, and holds the answer
    four = QuestionFigures(FOUR, samples=200, seed=0)
    figures = ranking_figures(evaluation().corpus, four, {"base": rows, "r_ft": other})
    gains = {name: figure["value"] for name, figure in figures["retrieval_gains"].items()}
    assert gains["gold_recall@1"] == pytest.approx(-1 / 3) and gains["answer_recall@1"] == 0.0
    found = {name: figure["value"] for name, figure in figures["retrieval"]["base"].items()}
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
    result = question_result(question, [Answer("Seine.", 0.5), Answer("Loire", 0.2)])
    assert (result["exact_match"], result["f1"]) == (1.0, 1.0)


def test_retrievers_are_measured_on_all_questions_and_some_are_answered(evaluation):
    some = evaluation(answered_questions=2)
    assert len(some.ranked) == 4 and len(some.questions) == 2
    assert [FOUR[place] for place in some.places] == some.questions
    assert evaluation(answered_questions=9).questions == FOUR


def test_systems_that_would_answer_alike_are_told_apart_from_others():
    rows, flat = np.array([[4], [7]]), np.zeros((2, 1), np.float32)
    system = SystemInputs("base_lm", rows, flat)
    assert system.equals(SystemInputs("base_lm", rows.copy(), flat.copy()))
    assert not system.equals(SystemInputs("lm_ft_lm", rows, flat))
    assert not system.equals(SystemInputs("base_lm", rows[::-1], flat))
    assert not system.equals(SystemInputs("base_lm", rows, flat - 1))


def test_a_killed_run_answers_only_the_shards_that_it_has_not_stored(evaluation, monkeypatch, lm):
    """Four questions in shards of two: the second shard of a killed run is answered by the next."""
    from types import SimpleNamespace

    from radit_jax.evaluation import corpus_questions

    asked = []

    def generate(model, prompts, retrieval, settings, *, shots, bar):
        asked.append(prompts)
        if len(asked) == 2:
            raise KeyboardInterrupt
        bar.advance(len(prompts))
        return [[Answer(prompt, 0.5)] for prompt in prompts], {"shots_dropped": 0}

    monkeypatch.setattr(corpus_questions, "generate_answers", generate)
    monkeypatch.setattr(corpus_questions, "ANSWERS_PER_SHARD", 2)
    four = evaluation()
    four.models["base_lm"] = SimpleNamespace(model=lm, own=False)
    system = SystemInputs("base_lm", np.array([[4], [7], [4], [7]]), np.zeros((4, 1), np.float32))
    with pytest.raises(KeyboardInterrupt):
        four._answers("base", system)
    answers = four._answers("base", system)
    assert [pair[0].text for pair in answers] == [f"Q: {question.question}\nA:" for question in FOUR]
    assert asked[2] == asked[1] and len(asked) == 3


def test_the_base_lm_after_examples_is_compared_with_lm_ft_on_the_same_questions(evaluation, monkeypatch, lm):
    from types import SimpleNamespace

    from radit_jax.evaluation import corpus_questions

    def generate(model, prompts, retrieval, settings, *, shots, bar):
        """The base LM knows who built Jay Tower, and nothing else."""
        assert [shot.prompt for shot in shots[0]] == ["Q: Who built Kings Tower?\nA:"]
        texts = ["Flo Wren" if "Jay Tower" in prompt else "no" for prompt in prompts]
        return [[Answer(text, 0.5)] for text in texts], {}

    monkeypatch.setattr(corpus_questions, "generate_answers", generate)
    rows = {"none": np.array([NO_CHUNK]), "retrieved": np.array([4]), "gold": np.array([7])}
    one_shot = FewShotBase([FOUR[1]], rows)
    evaluated = evaluation(shots=1, shot_questions=3, sequence_length=400)
    evaluated.models["base_lm"] = SimpleNamespace(model=lm, own=False)
    inputs, after = {}, {}
    for kind in KINDS:
        rows = np.full((4, 1), NO_CHUNK)
        inputs[f"base_lm-{kind}"] = SystemInputs("base_lm", rows, np.zeros((4, 1), np.float32))
        after[f"lm_ft_lm-{kind}"] = results_of(1.0, 1.0, 0.0, 1.0)
    figures = evaluated._few_shot_figures(one_shot, inputs, after)
    assert figures["num_questions"] == 3
    assert figures["systems"]["retrieved"]["exact_match"]["value"] == pytest.approx(1 / 3)
    assert figures["gains"]["retrieved"]["value"] == pytest.approx(2 / 3 - 1 / 3)
    assert set(figures["shots_dropped"].values()) == {0}
    # No row has room for an example.
    narrow = evaluation(shots=1, shot_questions=3, sequence_length=40, max_new_tokens=2)
    narrow.models["base_lm"] = SimpleNamespace(model=lm, own=False)
    system = inputs["base_lm-gold"].first(3)
    assert narrow._num_dropped(system, one_shot.shots("gold", narrow.corpus)) == 3
