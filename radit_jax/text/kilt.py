"""KILT's predictions with provenance, and its scores: R-precision, and metrics that count only where it is 1.

A question's gold provenance is a list of sets of Wikipedia pages, each of which supports an answer by itself.
"""

from collections.abc import Callable, Sequence
from typing import Any

from radit_jax.text.metrics import exact_match, f1, rouge_l, strict_accuracy

# Metrics of an answer against the gold answers, by KILT's names for them.
Metric = Callable[[str, Sequence[str]], float]
METRICS: dict[str, Metric] = {
    "accuracy": strict_accuracy,
    "em": exact_match,
    "f1": f1,
    "rougel": rouge_l,
}

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
    provenance = [{"wikipedia_id": page} for page in dict.fromkeys(pages)]
    output = {"answer": answer, "provenance": provenance}
    return {"id": question_id, "output": [output]}


def r_precision(pages: Sequence[str], gold: Sequence[Sequence[str]]) -> float:
    """The share of a gold set's R pages that are among the first R retrieved pages; the best over the sets.

    `pages` are those of the retrieved chunks, best chunk first; a page counts at its first place only.

    >>> r_precision(["a", "a", "b", "c"], [["a", "c"], ["d"]])
    0.5
    """
    # Several chunks may be from one page.
    ranked = list(dict.fromkeys(page.strip() for page in pages))
    best = 0.0
    for gold_set in gold:
        gold_pages = set(gold_set)
        size = len(gold_pages)
        if size:
            hits = gold_pages.intersection(ranked[:size])
            best = max(best, len(hits) / size)
    return best


def kilt_scores(
    answer: str,
    answers: Sequence[str],
    pages: Sequence[str],
    gold: Sequence[Sequence[str]],
) -> dict[str, float]:
    """A question's `accuracy`, `em`, `f1`, `rougel`, `Rprec`; the `KILT-…` of each is 0 unless Rprec is 1."""
    downstream = {name: metric(answer, answers) for name, metric in METRICS.items()}
    precision = r_precision(pages, gold)
    is_supported = precision == 1  # all the pages of a gold set are ranked first
    kilt = {f"KILT-{name}": score * is_supported for name, score in downstream.items()}
    return {**downstream, "Rprec": precision, **kilt}
