import pytest

from radit_jax.text.card import UNKNOWN, Origin, measured, model_card
from radit_jax.text.results_table import results_table


def figure(value):
    return {"value": value, "low": value - 0.1, "high": value + 0.1}


RESULTS = {
    "num_questions": 300,
    "systems": {
        "base": {"exact_match": figure(0.25), "f1": figure(0.5)},
        "radit": {"exact_match": figure(0.75)},
    },
}


def test_the_measured_table_has_every_figure_with_its_interval():
    assert measured(RESULTS).splitlines() == [
        "| (300 questions) | exact_match | f1 |",
        "| --- | --- | --- |",
        "| base | 0.250 [0.150, 0.350] | 0.500 [0.400, 0.600] |",
        "| radit | 0.750 [0.650, 0.850] |  |",
    ]


def test_a_figure_of_no_question_and_one_without_an_interval_are_said_so():
    none = {"value": None, "low": None, "high": None}
    systems = {"base": {"f1": none, "exact_match": none | {"value": 0.5}}}
    assert measured({"num_questions": 2, "systems": systems}).endswith("| base | – | 0.500 [one group] |")


@pytest.mark.parametrize(
    "results", [{}, {"systems": {"base": 1.5}}, {"tasks": {"nq": None}}, RESULTS["systems"]]
)
def test_results_of_another_form_are_one_error(results):
    for show in (measured, results_table):
        with pytest.raises(
            ValueError, match=r"^results.json: expected the figures that evaluate writes, got "
        ):
            show(results)


def test_several_tasks_have_a_table_each():
    text = measured({"tasks": {"nq": RESULTS, "fever": RESULTS | {"num_questions": 7}}})
    assert "| nq (300 questions) |" in text and "| fever (7 questions) |" in text


def test_a_card_says_what_each_licence_asks():
    origins = [
        Origin("language model", "meta-llama/Llama-3.2-1B", "llama3.2", "its page on the hub"),
        Origin("query encoder", "facebook/dragon-plus-query-encoder", "cc-by-nc-4.0", "its page on the hub"),
        Origin("language model", "package:gemma", "gemma", "its metadata"),
        Origin("data", "data/wiki", ""),
    ]
    text = model_card(origins, None)
    gemma = next(line for line in text.splitlines() if "package:gemma" in line)
    assert "gemma (by its metadata)" in gemma and "subject to the Gemma Terms of Use" in gemma
    assert text.startswith("---\nlicense: llama3.2\n")
    assert "**Built with Llama.**" in text
    dragon = next(line for line in text.splitlines() if "dragon-plus" in line)
    assert "cc-by-nc-4.0 (by its page on the hub)" in dragon and "Not for commercial use." in dragon
    assert f"| data | wiki | {UNKNOWN} |" in text  # without the folders of the machine
    assert "Nothing was measured" in text


def test_what_others_wrote_of_a_licence_is_quoted():
    evil = "mit <script>x</script> [a](http://b) `c` | d"
    text = model_card([Origin("data", "d", evil, "the page of ![x](y)")], None)
    line = next(line for line in text.splitlines() if "<script>" in line)
    assert "| `mit <script>x</script> [a](http://b) 'c' \\| d` (by `the page of ![x](y)`) |" in line


def test_only_what_was_made_of_llama_says_so():
    assert "Built with Llama" not in model_card([Origin("language model", "scratch", "none")], RESULTS)
    licence_file = Origin(
        "language model", "x", "meta llama 3 community license agreement", "its licence file"
    )
    assert "**Built with Llama.**" in model_card([licence_file], None)


@pytest.mark.parametrize(
    ("origin", "shown"),
    [
        (Origin("language model", "/home/me/llama", ""), "llama"),
        (Origin("corpus", "data/wiki/", ""), "wiki"),
        (Origin("language model", "package:gemma/model", "gemma"), "package:gemma/model"),
        (Origin("query encoder", "a/b@main", "mit", "its README.md", "a/b"), "a/b@main"),
        (Origin("query encoder", "a/b", "mit", "its page on the hub"), "a/b"),  # of an earlier version
    ],
)
def test_a_card_names_no_folder_of_the_machine(origin, shown):
    assert origin.public_name == shown
