"""The card of a whole export: its measured figures, what it was made of, and what those licences ask.

`model_cards.py` has the cards of its models.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from radit_jax.text.results_table import asked_of, reading_results
from radit_jax.text.statistics import with_interval

UNKNOWN = "unknown: look it up before you publish"

# What a licence asks of a person who passes on a model that was made of the work. The first key with which
# a word of the licence's name begins is the one that counts.
ASKS = {
    "llama": (
        "Show “Built with Llama” where you show or offer the model, pass its licence on with the files, and "
        "look there how the name of a model made of it must begin."
    ),
    "gemma": (
        "Pass Gemma's terms and the uses that they forbid (ai.google.dev/gemma/terms) on with the files, say "
        "that they were changed, and add a file Notice: “Gemma is provided under and subject to the Gemma "
        "Terms of Use found at ai.google.dev/gemma/terms”."
    ),
    "cc-by-nc": "Not for commercial use. Name its authors, and say that it was changed.",
    "cc-by": "Name its authors, and say that it was changed.",
    "apache": "Pass its licence on, and say that it was changed.",
    "mit": "Pass its licence on.",
    "none": "Nothing.",
}

# Licences that the hub's metadata name by these ids.
_HUB_LICENCES = (
    r"apache-2\.0|mit|bsd-3-clause|cc0-1\.0|cc-by(-nc)?(-sa|-nd)?-[34]\.0|llama(2|3(\.[1-3])?|4)|gemma"
)


class Origin(NamedTuple):
    """Something that a model was made of."""

    role: str  # "language model", "query encoder", "chunk encoder", "labels", "data"
    name: str
    licence: str  # its short name in lower case; empty where none was found
    source: str = ""  # where the licence was found; empty for this program's own words
    hub_id: str = ""  # its repository on the hub; empty where it has none, or an earlier version did not say

    @property
    def public_name(self) -> str:
        """Its name without folders of the machine that read it."""
        if self.hub_id or self.name.startswith("package:") or self.source.endswith("on the hub"):
            return self.name
        return self.name.rstrip("/").rpartition("/")[2]


def model_card(
    origins: Sequence[Origin],
    results: Mapping[str, Any] | None,
) -> str:
    """Markdown with the hub's metadata first; `results` is `results.json`, None if nothing was measured."""
    sections = [
        f"---\n{_metadata(origins)}\n---",
        "# RA-DIT",
        "A language model and a dual encoder that were tuned for each other by retrieval-augmented dual "
        "instruction tuning (arXiv 2310.01352), with radit_jax.",
        *built_with(origins),
        "## Measured",
        measured(results) if results else "Nothing was measured before this export.",
        "## Made of",
        origins_table(origins),
        "The strictest of these licences binds what was made of them.",
    ]
    return "\n\n".join(sections) + "\n"


def measured(results: Mapping[str, Any]) -> str:
    """The systems' figures with their 95 % intervals, a Markdown table per task."""
    with reading_results():
        # The results on the corpus' questions have the form of one task without a name.
        tasks = results.get("tasks") or {"": results}
        tables = [_task_table(name, task) for name, task in tasks.items()]
        return "\n\n".join(tables)


def _task_table(name: str, task: Mapping[str, Any]) -> str:
    """A row for each system, a column for each metric that any system has, and which questions were asked."""
    systems = task["systems"]
    if not systems:
        return "The retrievers alone were measured: see `results.json`."
    metrics = list(dict.fromkeys(itertools.chain.from_iterable(systems.values())))
    title = f"{name} ({task['num_questions']} questions)".strip()
    rows = [[title, *metrics]]
    for system, figures in systems.items():
        cells = [with_interval(figures[metric]) if metric in figures else "" for metric in metrics]
        rows.append([system, *cells])

    table = _markdown_table(rows)
    asked = asked_of(task)
    return f"{table}\n\nQuestions of {name}: {asked}." if asked else table


def built_with(origins: Sequence[Origin]) -> list[str]:
    """The line that Llama's licence asks for wherever a model made of it is shown; none for others."""
    is_built_with_llama = any("llama" in origin.licence for origin in origins)
    return ["**Built with Llama.**"] if is_built_with_llama else []


def licence_of(origins: Sequence[Origin]) -> tuple[str, str]:
    """The hub's id of a licence, and where the id is "other" a name: the first that an origin states.

    >>> licence_of([Origin("data", "a world", "none"), Origin("encoder", "a/b", "mit")])
    ('mit', '')
    >>> licence_of([Origin("encoder", "a/b", "Some Terms 1.0")])
    ('other', 'some-terms-1.0')
    """
    stated = [origin.licence for origin in origins if origin.licence not in ("", "none")]
    if not stated:
        return "other", "unknown"
    if re.fullmatch(_HUB_LICENCES, stated[0]):
        return stated[0], ""
    return "other", re.sub(r"[^a-z0-9.]+", "-", stated[0].lower()).strip("-")


def _metadata(origins: Sequence[Origin]) -> str:
    from huggingface_hub import ModelCardData

    licence, name = licence_of(origins)
    tags = ["ra-dit", "retrieval-augmented-generation", "radit_jax"]
    return ModelCardData(license=licence, license_name=name or None, tags=tags).to_yaml()


def origins_table(origins: Sequence[Origin]) -> str:
    """What a model was made of, with each one's licence and what that asks."""
    rows = [["as", "what", "licence", "which asks"]]
    for origin in origins:
        rows.append([origin.role, origin.public_name, _licence(origin), asks_of_licence(origin.licence)])
    return _markdown_table(rows)


def _licence(origin: Origin) -> str:
    if not origin.source:
        return origin.licence or UNKNOWN
    return f"{_quoted(origin.licence)} (by {_quoted(origin.source)})"


def _quoted(text: str) -> str:
    """Text that others wrote, as code, so that Markdown and HTML in it do nothing; plain text as it is."""
    if re.fullmatch(r"[\w .,()+/-]*", text):
        return text
    without_backticks = text.replace("`", "'")
    return f"`{without_backticks}`"


def asks_of_licence(licence: str) -> str:
    """What a licence asks of a person who passes on what was made under it; `licence` is in lower case."""
    for name, asks in ASKS.items():
        if re.search(rf"\b{name}", licence):
            return asks
    return "Read it."


def _markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose first row is the head."""
    # A bar ends a cell, so a bar in a cell is escaped.
    lines = []
    for row in rows:
        cells = [cell.replace("|", "\\|") for cell in row]
        lines.append(f"| {' | '.join(cells)} |")
    rule = "|" + " --- |" * len(rows[0])
    return "\n".join([lines[0], rule, *lines[1:]])
