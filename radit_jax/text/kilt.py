"""KILT's predictions with provenance, and its scores: R-precision, and metrics that count only where it is 1.

A question's gold provenance is a list of sets of Wikipedia pages, each of which supports an answer by itself.
"""

from collections.abc import Callable, Sequence
from typing import Any

from radit_jax.text.metrics import exact_match, f1, rouge_l, strict_accuracy

Metric = Callable[[str, Sequence[str]], float]
METRICS: dict[str, Metric] = {"accuracy": strict_accuracy, "em": exact_match, "f1": f1, "rougel": rouge_l}

FEVER_LABELS = {"true": "SUPPORTS", "false": "REFUTES"}


def fever_label(generated: str) -> str:
    """FEVER's label for a generated `true` or `false`; anything else stays as it is, and is wrong.

    >>> fever_label(" True."), fever_label("maybe")
    ('SUPPORTS', 'maybe')
    """
    return FEVER_LABELS.get(generated.strip().rstrip(".").lower(), generated.strip())


def prediction(question_id: str, answer: str, pages: Sequence[str]) -> dict[str, Any]:
    """A line of KILT's prediction file: one answer, with its pages, the most relevant first, each once."""
    provenance = [{"wikipedia_id": page} for page in dict.fromkeys(pages)]
    return {"id": question_id, "output": [{"answer": answer, "provenance": provenance}]}


def r_precision(pages: Sequence[str], gold: Sequence[Sequence[str]]) -> float:
    """The share of a gold set's R pages among the first R retrieved; the best over the sets.

    `pages` are those of the retrieved chunks, in their order, in which a page counts once.

    >>> r_precision(["a", "a", "b", "c"], [["a", "c"], ["d"]])
    0.5
    """
    ranked = list(dict.fromkeys(page.strip() for page in pages))
    shares = (len(set(pages) & set(ranked[: len(pages)])) / len(pages) for pages in map(set, gold) if pages)
    return max(shares, default=0.0)


def kilt_scores(
    answer: str, answers: Sequence[str], pages: Sequence[str], gold: Sequence[Sequence[str]]
) -> dict[str, float]:
    """A question's `accuracy`, `em`, `f1`, `rougel`, `Rprec`; the `KILT-…` of each is 0 unless Rprec is 1."""
    plain = {name: metric(answer, answers) for name, metric in METRICS.items()}
    precision = r_precision(pages, gold)
    kilt = {f"KILT-{name}": score * (precision == 1) for name, score in plain.items()}
    return {**plain, "Rprec": precision, **kilt}
