import pytest

from radit_jax.text.results_table import CONTEXT_TITLES, METRIC_TITLES, SYSTEM_TITLES, results_table

FIGURE = {"value": 0.999, "low": 0.125, "high": 0.9991}
NLL = {"value": 10.25, "low": 9.5, "high": 11.125}
SYSTEM = {"exact_match": FIGURE, "f1": FIGURE, "answer_nll": NLL}
LOSS = {"value": -0.1, "low": -0.2, "high": 0.05}
RESULTS = {
    "num_questions": 12_345,
    "skipped_too_long": 7,
    "systems": dict.fromkeys(SYSTEM_TITLES, SYSTEM),
    "gains": {"lm_ft-base": LOSS, "radit-base": LOSS},
    "retrieval": {name: dict.fromkeys(METRIC_TITLES, FIGURE) for name in ("base", "r_ft")},
    "retrieval_gains": dict.fromkeys(METRIC_TITLES, LOSS),
    "context": {lm: dict.fromkeys(CONTEXT_TITLES, SYSTEM) for lm in ("base_lm", "lm_ft_lm")},
    "few_shot": {
        "systems": dict.fromkeys(CONTEXT_TITLES, SYSTEM),
        "gains": dict.fromkeys(CONTEXT_TITLES, LOSS),
        "examples": [1, 2, 3],
        "num_questions": 300,
    },
}


def of_tasks():
    own = {"systems": dict.fromkeys(SYSTEM_TITLES, {"exact_match": FIGURE})}
    gains = dict.fromkeys(("lm_ft-base", "r_ft-base", "radit-lm_ft", "radit-base"), LOSS)
    task = own | {"gains": gains, "num_questions": 10_895}
    average = {"systems": dict.fromkeys(SYSTEM_TITLES, {"mean": FIGURE}), "gains": gains}
    return {"tasks": {"hotpotqa": task, "nq": task}, "average": average}


@pytest.mark.parametrize("results", [RESULTS, of_tasks()])
def test_every_line_fits_eighty_columns(results):
    lines = results_table(results).splitlines()
    assert max(map(len, lines)) <= 80


def test_a_system_has_shares_in_percent_and_nats_in_three_digits():
    lines = results_table(RESULTS).splitlines()
    assert lines[0] == "answers, 12345 questions, 7 too long left out"
    cells = ["base LM, base retriever", "99.9 [12.5, 99.9]", "99.9 [12.5, 99.9]", "10.2 [9.50, 11.1]"]
    assert "  ".join(cells) in lines


def test_gains_are_named_by_what_was_trained():
    lines = results_table(RESULTS).splitlines()
    row = next(line for line in lines if line.startswith("RA-DIT − base"))
    assert row.split("  ")[-1].strip() == "-10.0 [-20.0, 5.0]"


def test_results_without_retrievals_gains_have_no_column_of_them():
    older = {name: value for name, value in RESULTS.items() if name != "retrieval_gains"}
    assert "R-ft − base  " not in results_table(older)
