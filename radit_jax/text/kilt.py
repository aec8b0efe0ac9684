"""KILT's predictions with provenance, its labels for FEVER, and its R-precision.

A question's gold provenance is a list of sets of Wikipedia pages, each of which supports an answer by itself.
"""

from collections.abc import Sequence
from typing import Any

# The words that the language model is asked for, and FEVER's labels.
FEVER_LABELS = {"true": "SUPPORTS", "false": "REFUTES"}


def fever_label(generated: str) -> str:
    """FEVER's label for a generated `true` or `false`; anything else stays as it is, and is wrong.

    >>> fever_label(" True."), fever_label("maybe")
    ('SUPPORTS', 'maybe')
    """
    stripped = generated.strip()
    word = stripped.rstrip(".").lower()
    return FEVER_LABELS.get(word, stripped)


def prediction(
    question_id: str,
    answer: str,
    pages: Sequence[str],
) -> dict[str, Any]:
    """A line of KILT's prediction file: one answer with its pages, the most relevant first, each once."""
    # Several chunks may be from one page; the leaderboard wants distinct pages.
    provenance = [{"wikipedia_id": page} for page in dict.fromkeys(pages)]
    output = {"answer": answer, "provenance": provenance}
    return {"id": question_id, "output": [output]}


def r_precision(pages: Sequence[str], gold: Sequence[Sequence[str]]) -> float:
    """The share of a gold set's R pages that are among the first R retrieved pages; the best over the sets.

    `pages` are those of the retrieved chunks, best chunk first; a page counts at its first place only.

    >>> r_precision(["a", "a", "b", "c"], [["a", "c"], ["d"]])
    0.5
    """
    # A page's first place counts.
    ranked = list(dict.fromkeys(page.strip() for page in pages))
    best = 0.0
    for gold_set in gold:
        gold_pages = set(gold_set)
        size = len(gold_pages)
        if size:
            hits = gold_pages.intersection(ranked[:size])
            best = max(best, len(hits) / size)
    return best
