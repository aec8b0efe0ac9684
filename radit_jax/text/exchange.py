"""Runs and labels in the forms that other programs read: TREC's, and FlagEmbedding's."""

import re
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import quote


def trec_run(
    question: str,
    chunks: Iterable[str],
    scores: Iterable[float],
    tag: str,
) -> str:
    r"""A question's chunks, best first, as lines of a TREC run: `question Q0 chunk rank score tag`.

    >>> trec_run("q1", ["c7", "c 2"], [1.5, 0.25], "r_ft")
    'q1 Q0 c7 1 1.5 r_ft\nq1 Q0 c%202 2 0.25 r_ft\n'
    """
    lines = []
    scored_chunks = zip(chunks, scores, strict=True)
    for rank, (chunk, score) in enumerate(scored_chunks, start=1):
        # Nine significant digits tell any two float32 apart.
        fields = (
            trec_id(question),
            "Q0",  # unused by all programs that read runs
            trec_id(chunk),
            str(rank),
            f"{float(score):.9g}",
            tag,
        )
        lines.append(" ".join(fields) + "\n")
    return "".join(lines)


def trec_qrels(question: str, chunks: Iterable[str]) -> str:
    r"""The chunks that hold a question's answer as lines of TREC's relevance judgements.

    >>> trec_qrels("q1", ["c7"])
    'q1 0 c7 1\n'
    """
    # The second field is unused, the last is the grade: relevant or not.
    query = trec_id(question)
    return "".join(f"{query} 0 {trec_id(chunk)} 1\n" for chunk in chunks)


def trec_id(name: str) -> str:
    """An id without white space, which separates TREC's fields: it and `%` are escaped as in a URL.

    >>> trec_id("New York#3")
    'New%20York#3'
    """
    return re.sub(r"[\s%]", lambda match: quote(match[0]), name)


def flag_embedding(
    query: str,
    passages: Sequence[str],
    scores: Sequence[float],
) -> dict[str, Any]:
    """A query with a teacher's scores: the passage with the highest as `pos`, the others as `neg`.

    FlagEmbedding trains towards the softmax of the scores. Of Eq. 4's scores divided by τ that is p_LSR.

    >>> flag_embedding("q", ["a", "b"], [-2.0, -1.0])
    {'query': 'q', 'pos': ['b'], 'neg': ['a'], 'pos_scores': [-1.0], 'neg_scores': [-2.0]}
    """
    # The sort is stable: passages with equal scores keep their order.
    ranked = sorted(zip(scores, passages, strict=True), key=lambda pair: -pair[0])
    ranked_scores = [float(score) for score, _ in ranked]
    ranked_passages = [passage for _, passage in ranked]
    return {
        "query": query,
        "pos": ranked_passages[:1],
        "neg": ranked_passages[1:],
        "pos_scores": ranked_scores[:1],
        "neg_scores": ranked_scores[1:],
    }
