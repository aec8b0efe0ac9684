"""The questions and passages of a report as compressed blocks that lie in the page.

Each store is a list that is cut into blocks. A block is JSON, compressed with gzip, in base64, so nothing in
it can end a tag. A passage is stored once, however many questions retrieved it. The page unpacks the index
when it opens, and a block of questions or passages when one of them is looked at.
"""

import base64
import dataclasses
import gzip
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from radit_jax.report.run_records import QuestionRecord, RankedChunk, RunData, SystemAnswer
from radit_jax.text.printable import shown_answer

SIZES = {"questions": 32, "passages": 128}  # entries of a block
_DECIMALS = 5  # of probabilities; log-probabilities have fewer


@dataclasses.dataclass(frozen=True)
class QuestionBlocks:
    """The blocks by name, in order, and the questions that are in them."""

    blocks: Sequence[tuple[str, str]]
    questions: Sequence[QuestionRecord]

    @property
    def num_bytes(self) -> int:
        """Of all blocks in the page."""
        return sum(len(text) for _, text in self.blocks)


def pack_questions(run: RunData, max_bytes: int) -> QuestionBlocks:
    """All questions that a page of `max_bytes` has room for: all, or as many as fit, evenly drawn."""
    # How much is left after compression is known only afterwards.
    questions = list(run.questions)
    packed = _pack(questions, run)
    while packed.num_bytes > max_bytes and len(questions) > 1:
        # A little fewer than the share that fits, since shared passages go last.
        share = 0.95 * max_bytes / packed.num_bytes
        count = max(1, int(share * len(questions)))
        questions = evenly(questions, count)
        packed = _pack(questions, run)
    return packed


def evenly(questions: Sequence[QuestionRecord], count: int) -> list[QuestionRecord]:
    """`count` of the questions in their order, at equal distances."""
    distance = len(questions) / count
    return [questions[int(place * distance)] for place in range(count)]


def _pack(questions: Sequence[QuestionRecord], run: RunData) -> QuestionBlocks:
    if not questions:
        return QuestionBlocks([], [])
    # 1) Passages get numbers in the order in which questions name them.
    numbers: dict[str, int] = {}
    entries = []
    for question in questions:
        for chunks in question.chunks.values():
            for chunk in chunks:
                numbers.setdefault(chunk.id, len(numbers))
        entries.append(_question_entry(question, numbers))
    passages = []
    for chunk_id in numbers:
        passage = run.passages.get(chunk_id)
        passages.append([passage.title, passage.text] if passage else [chunk_id, ""])

    # 2) The index is one block: it is searched as a whole.
    index = [_index_entry(question) for question in questions]
    blocks = [("index", _compressed(index))]
    blocks += _blocks("questions", entries)
    blocks += _blocks("passages", passages)
    return QuestionBlocks(blocks, questions)


def _blocks(
    store: str,
    entries: Sequence[Any],
) -> list[tuple[str, str]]:
    size = SIZES[store]
    blocks = []
    for number, start in enumerate(
        range(
            0,
            len(entries),
            size,
        )
    ):
        blocks.append((f"{store}-{number}", _compressed(entries[start : start + size])))
    return blocks


def _compressed(value: Any) -> str:
    text = json.dumps(
        value,
        ensure_ascii=False,
        separators=(",", ":"),
        allow_nan=False,
    )
    # Half of a surrogate pair, which JSON may hold, has no UTF-8.
    data = text.encode("utf-8", "replace")
    return base64.b64encode(
        gzip.compress(
            data,
            9,
            mtime=0,
        )
    ).decode()


# ---- entries ----


def _index_entry(question: QuestionRecord) -> dict[str, Any]:
    """What the list shows and the search reads."""
    # Of tasks the retriever may be measured without answers.
    radit = question.systems.get("radit")
    return {
        "id": question.id,
        "task": question.task,
        "question": question.question,
        "category": question.category,
        "gold_retrieved": question.gold_retrieved,
        "answer": shown_answer(radit.text) if radit else "",
        "gold": list(question.gold),
    }


def _question_entry(
    question: QuestionRecord,
    numbers: Mapping[str, int],
) -> dict[str, Any]:
    """What is shown of a chosen question."""
    # Rankings by retriever, answers by system.
    chunks = {}
    for retriever, ranked in question.chunks.items():
        chunks[retriever] = [_chunk_entry(chunk, numbers) for chunk in ranked]
    systems = {name: _system_entry(system) for name, system in question.systems.items()}
    return {"gold": list(question.gold), "chunks": chunks, "systems": systems}


def _chunk_entry(
    chunk: RankedChunk,
    numbers: Mapping[str, int],
) -> dict[str, Any]:
    log_probs = {
        lm: _rounded(
            value,
            3,
        )
        for lm, value in chunk.answer_log_probs.items()
    }
    return {
        "passage": numbers[chunk.id],
        "retrieval_prob": _rounded(chunk.retrieval_prob),
        "lsr_prob": _rounded(chunk.lsr_prob),
        "answer_log_probs": log_probs,
        "holds_answer": chunk.holds_answer,
        "is_gold": chunk.is_gold,
        "title_spans": list(chunk.title_spans),
        "text_spans": list(chunk.text_spans),
    }


def _system_entry(system: SystemAnswer) -> dict[str, Any]:
    candidates = []
    for candidate in system.candidates:
        candidates.append(
            {
                "text": shown_answer(candidate.text),
                "probability": _rounded(candidate.probability),
                "log_probs": [_rounded(value, 3) for value in candidate.log_probs],
            }
        )
    return {
        "text": shown_answer(system.text),
        "score": _rounded(system.score),
        "is_cut": bool(system.is_cut),
        "candidates": candidates,
    }


def _rounded(value: float | int | None, decimals: int = _DECIMALS) -> float | None:
    """Fewer digits, which compress better. JSON has neither −∞ nor NaN."""
    if value is None or math.isnan(value):
        return None
    return round(max(float(value), -1e4), decimals)
