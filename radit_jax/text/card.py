"""The model card of an export: what was measured, what it was made of, and what those licences ask."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from radit_jax.text.results_table import asked_of, reading_results
from radit_jax.text.statistics import with_interval

UNKNOWN = "unknown: look it up before you publish"

# What a licence asks of who passes on a model that was made of the work. The first key counts that begins
# a word of the licence's name.
ASKS = {
    "llama": (
        "Show “Built with Llama” where you show or offer the model, pass its licence on with the files, and "
        "look there how the name of a model made of it must begin."
    ),
    "cc-by-nc": "Not for commercial use. Name its authors, and say that it was changed.",
    "cc-by": "Name its authors, and say that it was changed.",
    "apache": "Pass its licence on, and say that it was changed.",
    "mit": "Pass its licence on.",
    "none": "Nothing.",
}


class Origin(NamedTuple):
    """Something that a model was made of."""

    role: str  # "language model", "query encoder", "chunk encoder", "data"
    name: str
    licence: str  # its short name in lower case; empty: not found
    source: str = ""  # where the licence was found


def model_card(origins: Sequence[Origin], results: Mapping[str, Any] | None) -> str:
    """Markdown with the hub's metadata at the head; `results` is `results.json`, None where not measured."""
    built = ["**Built with Llama.**"] if any("llama" in origin.licence for origin in origins) else []
    parts = [
        "---\nlicense: other\ntags: [retrieval-augmented-generation, radit_jax]\n---",
        "# RA-DIT",
        "A language model and a dual encoder that were tuned for each other by retrieval-augmented dual "
        "instruction tuning (arXiv 2310.01352), with radit_jax.",
        *built,
        "## Measured",
        measured(results) if results else "Nothing was measured before this export.",
        "## Made of",
        _origins(origins),
        "The strictest of these licences binds what was made of them.",
    ]
    return "\n\n".join(parts) + "\n"


def measured(results: Mapping[str, Any]) -> str:
    """The systems' figures with their 95 % intervals, a Markdown table per task."""
    with reading_results():
        tasks = results.get("tasks") or {"": results}
        return "\n\n".join(_task(name, task) for name, task in tasks.items())


def _task(name: str, task: Mapping[str, Any]) -> str:
    metrics = list(dict.fromkeys(metric for figures in task["systems"].values() for metric in figures))
    head = [f"{name} ({task['num_questions']} questions)".strip(), *metrics]
    rows = [
        [system, *(with_interval(figures[metric]) if metric in figures else "" for metric in metrics)]
        for system, figures in task["systems"].items()
    ]
    asked = asked_of(task)
    return _table([head, *rows]) + (f"\n\nQuestions of {name}: {asked}." if asked else "")


def _origins(origins: Sequence[Origin]) -> str:
    rows = [[o.role, o.name, _licence(o), _asks(o.licence)] for o in origins]
    return _table([["as", "what", "licence", "which asks"], *rows])


def _licence(origin: Origin) -> str:
    if not origin.source:  # our own words
        return origin.licence or UNKNOWN
    return f"{_quoted(origin.licence)} (by {_quoted(origin.source)})"


def _quoted(text: str) -> str:
    """A text of others as it is, whatever Markdown or HTML it may hold; a plain one without quotes."""
    return text if re.fullmatch(r"[\w .,()+/-]*", text) else "`" + text.replace("`", "'") + "`"


def _asks(licence: str) -> str:
    return next((asks for name, asks in ASKS.items() if re.search(rf"\b{name}", licence)), "Read it.")


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])
