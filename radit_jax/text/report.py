"""The ablation table that a run ends with."""

from collections.abc import Mapping
from typing import Any

SYSTEMS = {
    "closed_book": "base LM, no chunks",
    "base": "base LM + base retriever",
    "lm_ft": "LM-ft + base retriever",
    "r_ft": "base LM + R-ft",
    "radit": "RA-DIT: LM-ft + R-ft",
}
RETRIEVERS = {"base": "base retriever", "r_ft": "R-ft"}
CONTEXTS = {
    "gold": "a gold chunk",
    "retrieved": "the top chunk",
    "random": "a random chunk",
    "none": "no chunk",
}

Interval = Mapping[str, float]


def ablation_table(results: Mapping[str, Any]) -> str:
    """`results.json` as aligned text: each figure with the low and high end of its 95 % interval."""
    systems = [
        [title, *(_cell(results["systems"][name][metric]) for metric in ("exact_match", "f1", "answer_nll"))]
        for name, title in SYSTEMS.items()
    ]
    gains = [[name.replace("-", " − "), _cell(gain)] for name, gain in results["gains"].items()]
    metrics = ("gold_recall@1", "gold_recall@10", "answer_recall@1", "answer_recall@10", "mrr")
    retrieval = [
        [title, *(_cell(results["retrieval"][name][metric]) for metric in metrics)]
        for name, title in RETRIEVERS.items()
    ]
    context = [
        [
            title,
            *(
                _cell(results["context"][lm][name][metric])
                for lm in ("base_lm", "lm_ft_lm")
                for metric in ("exact_match", "answer_nll")
            ),
        ]
        for name, title in CONTEXTS.items()
    ]
    return "\n\n".join(
        [
            _table(
                [f"{results['num_questions']} questions", "exact match", "F1", "NLL per answer token"],
                systems,
            ),
            _table(["gain in exact match", "points of 1"], gains),
            _table(["retrieval", *(metric.replace("_", " ") for metric in metrics)], retrieval),
            _table(["given", "base LM: EM", "NLL", "LM-ft: EM", "NLL"], context),
        ]
    )


def _cell(figure: Interval) -> str:
    if figure["value"] is None:  # no question was judged by it
        return "–"
    return f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"


def _table(head: list[str], rows: list[list[str]]) -> str:
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [head, *rows]
    ]
    return "\n".join([lines[0], "  ".join("─" * width for width in widths), *lines[1:]])
