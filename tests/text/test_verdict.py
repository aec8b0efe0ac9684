import pytest

from radit_jax.config import OptimizerConfig, RFtConfig
from radit_jax.text.verdict import (
    changed_answers,
    learnt_nothing,
    signal_in_words,
    verdict,
    what_may_help,
)


def figure(value, low, high):
    return {"value": value, "low": low, "high": high}


def results(gain, retrieval_gain):
    systems = ("closed_book", "base", "lm_ft", "r_ft", "radit")
    right = figure(0.7467, 0.7051, 0.7856)
    first = figure(0.604, 0.55, 0.65)
    return {
        "num_questions": 450,
        "systems": {name: {"exact_match": right} for name in systems},
        "gains": {"radit-base": gain},
        "retrieval": {"r_ft": {"answer_recall@1": first}},
        "retrieval_gains": {"answer_recall@1": retrieval_gain},
    }


def line(gold, radit, base):
    return {"gold": [gold], "systems": {"radit": radit, "base": base}}


PREDICTIONS = [
    line("Emma", "Emma", "Persuasion"),
    line("Emma", "the Emma", "Persuasion"),
    line("Emma", "Persuasion", "Emma"),
    line("Emma", "Emma", "Emma"),
    line("Emma", "Persuasion", "Sanditon"),
]
CLEAR = figure(0.376, 0.33, 0.42)
NOTHING = figure(0.0, -0.02, 0.02)


def test_a_verdict_says_the_share_the_gain_and_how_many_got_worse():
    assert verdict(results(CLEAR, CLEAR), PREDICTIONS) == (
        "RA-DIT answers 74.7 % of 450 questions [70.5, 78.6], 37.6 points [33.0, 42.0] over the base LM and "
        "retriever; 2 got better, 1 got worse. The tuned retriever puts a chunk that holds an answer first "
        "for 60.4 % of the questions [55.0, 65.0], 37.6 points [33.0, 42.0] over the base retriever."
    )


def test_a_gain_that_may_be_none_is_said_to_be_that():
    text = verdict(results(NOTHING, CLEAR))
    assert "0.0 points [-2.0, 2.0] over the base LM and retriever, which these questions cannot tell" in text
    assert "got worse" not in text  # without predictions nobody knows


def test_an_answer_is_right_as_exact_match_judges_it():
    assert changed_answers(PREDICTIONS) == (2, 1)
    assert changed_answers(PREDICTIONS, after="base", before="radit") == (1, 2)


@pytest.mark.parametrize(
    "best_steps, beginning",
    [
        ({"lm_ft": 0, "r_ft": 0}, "This run learnt nothing: LM-ft and R-ft both kept"),
        ({"lm_ft": 100, "r_ft": 0}, "R-ft learnt nothing: "),
        ({"lm_ft": 0}, "LM-ft learnt nothing: "),
        ({"lm_ft": 100, "r_ft": 50}, "RA-DIT answers"),
        ({}, "RA-DIT answers"),
    ],
)
def test_a_run_that_learnt_nothing_says_so_first(best_steps, beginning):
    assert verdict(results(NOTHING, NOTHING), (), best_steps).startswith(beginning)
    assert bool(learnt_nothing(best_steps)) == ("nothing" in beginning)


def test_a_retriever_that_cannot_be_surpassed_is_said_to_be_that():
    untuned = {"lm_ft": 8, "r_ft": 0}
    assert learnt_nothing(untuned, 1.0).endswith(
        " The untuned retriever puts a right chunk first for every development question, so these cannot "
        "show a gain of R-ft."
    )
    assert "every development question" not in learnt_nothing(untuned, 0.99) + learnt_nothing(untuned)
    assert learnt_nothing({"lm_ft": 0, "r_ft": 20}, 1.0).count(".") == 1


OPTIMIZER = OptimizerConfig(steps=1, peak_lr=1e-5, warmup_steps=0)


@pytest.mark.parametrize(
    ("best_steps", "dev_mrr", "settings", "wanted"),
    [
        (
            {"lm_ft": 8, "r_ft": 0},
            0.5,
            {},
            "bring more questions; try labels that prefer some chunks (r_ft.lm_score=mean_log_prob, "
            "r_ft.tau=0.25); lower r_ft.optimizer.peak_lr",
        ),
        (
            {"lm_ft": 0, "r_ft": 0},
            0.5,
            {"lm_score": "mean_log_prob", "tau": 0.25},
            "bring more questions; lower lm_ft.optimizer.peak_lr and r_ft.optimizer.peak_lr",
        ),
        (
            {"lm_ft": 8, "r_ft": 0},
            0.5,
            {"lm_score": "mean_log_prob", "tau": 1.0},
            "bring more questions; try labels that prefer some chunks (r_ft.tau=0.25); lower "
            "r_ft.optimizer.peak_lr",
        ),
        (
            {"lm_ft": 8, "r_ft": 0},
            1.0,
            {},
            "bring more questions, and harder ones to choose R-ft's checkpoint by",
        ),
        ({"lm_ft": 0, "r_ft": 20}, 1.0, {}, "bring more questions; lower lm_ft.optimizer.peak_lr"),
    ],
)
def test_advice_names_nothing_that_is_set_nor_what_is_not_at_fault(best_steps, dev_mrr, settings, wanted):
    r_ft = RFtConfig(optimizer=OPTIMIZER, **settings)
    assert "; ".join(what_may_help(best_steps, dev_mrr, r_ft)) == wanted


def test_systems_that_do_not_answer_are_said_not_to():
    weak = results(CLEAR, CLEAR)
    for system in weak["systems"].values():
        system["exact_match"] = figure(0.002, 0.0, 0.004)
    assert "No system answers more than one question in a hundred" in verdict(weak)


def test_retrievers_alone_have_a_verdict_on_retrieval():
    alone = results(CLEAR, CLEAR) | {"systems": {}, "num_questions": 0}
    assert verdict(alone).startswith("The tuned retriever puts a chunk")


def test_tasks_have_a_verdict_on_their_average():
    task = {"systems": {"radit": {}}, "num_questions": 1200}
    hidden = {"systems": {}, "num_questions": 7}
    average = {"systems": {"radit": {"mean": figure(0.45, 0.4, 0.5)}}, "gains": {"radit-base": CLEAR}}
    tasks = {"tasks": {"nq": task, "fever": task, "hidden": hidden}, "average": average}
    assert verdict(tasks) == (
        "RA-DIT scores 45.0 [40.0, 50.0] on average over 2 tasks of 2,400 questions, 37.6 points "
        "[33.0, 42.0] over the base LM and retriever."
    )


def test_results_of_another_form_are_one_error():
    with pytest.raises(ValueError, match=r"^results.json: expected the figures that evaluate writes"):
        verdict({"systems": {"radit": 1.5}})


def signal(**figures):
    usual = {
        "flat_targets": 0.1,
        "effective_chunks": 3.21,
        "mixed_examples": 204,
        "mixed_lm_first": 0.6,
        "mixed_retriever_first": 0.25,
    }
    return signal_in_words(usual | figures)


def test_the_labels_signal_is_said_in_words():
    assert signal() == (
        "A label spreads over 3.2 chunks on average. Of 204 questions with useful and useless chunks, the "
        "language model puts a useful one first for 60.0 %, the untuned retriever for 25.0 %: there is "
        "something to learn."
    )
    assert signal(mixed_lm_first=0.2).endswith("the retriever has little to learn from it.")
    assert signal(flat_targets=1.0).startswith("The labels say little: 100 % of them are flat")
    assert signal(mixed_lm_first=None) == "A label spreads over 3.2 chunks on average."
    assert signal(flat_targets=None).startswith("The labels say nothing")
