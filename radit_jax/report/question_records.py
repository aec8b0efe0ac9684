"""Questions with their chunks before and after R-ft, as the page's browser shows them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from radit_jax.data.artifacts.chunks import CHUNKS, Chunks
from radit_jax.data.records import Chunk
from radit_jax.report.asked_questions import AskedQuestion
from radit_jax.report.run_records import Passage, QuestionRecord, RankedChunk
from radit_jax.runtime.storage.stage_folder import StageFolder
from radit_jax.text.metrics import answer_spans, contains_answer, is_yes_no

RIGHT = 0.5  # an answer is right from this score on, whatever the metric
_MEASURED = 50  # questions by whose passages the size of one is known
MAX_DOWNLOAD = 1 << 30  # bytes of a corpus in a bucket that are fetched to show its passages


class LsrSettings(NamedTuple):
    """How R-ft makes p_LSR of likelihoods, Eq. 4, and whose likelihoods the report takes."""

    lm: str  # `base_lm` or `lm_ft_lm`
    form: Any
    tau: float


class Found(NamedTuple):
    """What stands in one place of a question's ranking."""

    chunk: Chunk
    retrieval_prob: float | None
    lsr_prob: float | None
    answer_log_probs: Mapping[str, float]


Rankings = Mapping[str, Sequence[Found]]  # by retriever


# ---- passages ----


def open_passages(
    folder: StageFolder | None,
    in_bucket: bool,
) -> Chunks | None:
    """The corpus' passages; None where they are not there, or too large to fetch."""
    if folder is None:
        return None
    record = folder.manifest["files"].get(CHUNKS)
    if record is None:
        return None
    is_too_large = in_bucket and record["size"] > MAX_DOWNLOAD
    return None if is_too_large else Chunks(folder)


def retrieved_rows(asked: Iterable[AskedQuestion]) -> Int[np.ndarray, " N"]:
    """The rows of all passages that questions have, by their details, each once."""
    rows: set[int] = set()
    for question in asked:
        rows |= question.rows
    return np.array(sorted(rows), np.int64)


def passage_bytes(
    passages: Chunks | None,
    asked: Sequence[AskedQuestion],
) -> int:
    """The size of a passage, by those of a few questions."""
    rows = retrieved_rows(asked[:_MEASURED])
    if passages is None or not len(rows):
        return 0
    sizes = [len(chunk.passage.encode()) for chunk in passages.take(rows)]
    return sum(sizes) // len(sizes)


def own_questions(
    folder: StageFolder | None,
    split: str,
) -> list[dict[str, Any]]:
    """The corpus' own questions of a split, as it keeps them; a split of tasks alone has none."""
    name = f"questions-{split}.jsonl"
    if folder is None or not folder.has(name):
        return []
    return folder.read_jsonl(name)


def gold_chunks(questions: Sequence[Mapping[str, Any]]) -> dict[str, Sequence[str]]:
    """The ids of the gold chunks of the corpus' own questions, by question."""
    by_question = {}
    for line in questions:
        by_question[line["id"]] = line.get("gold_chunks", ())
    return by_question


# ---- rankings ----


def rankings(
    asked: Sequence[AskedQuestion],
    chunk_at: Mapping[int, Chunk],
    lsr: LsrSettings | None,
) -> list[Rankings]:
    """What each retriever found for each question.

    Without details, or without the passages, only what predictions say of R-ft's chunks is known.
    """
    lsr_probs = _lsr_probs(asked, lsr) if lsr is not None else {}
    ranked = []
    for number, question in enumerate(asked):
        found: dict[str, list[Found]] = {}
        if chunk_at:
            for name, rows in question.detail.get("rows", {}).items():
                of_retriever = lsr_probs.get((number, name))
                found[name] = _found(question.detail, name, rows, chunk_at, of_retriever)
        ranked.append(found or {"r_ft": _predicted(question.prediction)})
    return ranked


def _found(
    detail: Mapping[str, Any],
    retriever: str,
    rows: Sequence[int],
    chunk_at: Mapping[int, Chunk],
    lsr_probs: Sequence[float] | None,
) -> list[Found]:
    """A retriever's chunks for a question, by its details."""
    weights = np.exp(detail["log_p_R"][retriever]).tolist()
    found = []
    for place, row in enumerate(rows):
        log_probs = {}
        for lm, by_retriever in detail["answer_log_probs"].items():
            if retriever in by_retriever:
                log_probs[lm] = by_retriever[retriever][place]
        lsr_prob = lsr_probs[place] if lsr_probs is not None else None
        found.append(Found(chunk_at[row], weights[place], lsr_prob, log_probs))
    return found


def _predicted(prediction: Mapping[str, Any]) -> list[Found]:
    """R-ft's chunks for a question, by its predictions; a task's have ids alone, and nothing is shown."""
    found = []
    for chunk in prediction.get("chunks", ()):
        if isinstance(chunk, dict):
            record = Chunk(chunk["id"], chunk["title"], chunk["text"])
            found.append(Found(record, chunk["p_R"], None, {}))
    return found


def _lsr_probs(
    asked: Sequence[AskedQuestion],
    lsr: LsrSettings,
) -> dict[tuple[int, str], list[float]]:
    """p_LSR of every (question, retriever) whose likelihoods are known, Eq. 4."""
    # 1) A row for each question and retriever.
    keys: list[tuple[int, str]] = []
    log_probs: list[list[float]] = []
    counts: list[int] = []
    for number, question in enumerate(asked):
        by_lm = question.detail.get("answer_log_probs", {})
        for name, of_retriever in by_lm.get(lsr.lm, {}).items():
            keys.append((number, name))
            log_probs.append(of_retriever)
            count = question.detail["answer_tokens"][lsr.lm]
            counts.append(count)
    if not keys:
        return {}

    # 2) One call for all: shorter rows have a mask.
    width = max(map(len, log_probs))
    padded = np.zeros((len(keys), width), np.float32)
    mask = np.zeros(padded.shape, bool)
    for row, values in enumerate(log_probs):
        num_chunks = len(values)
        padded[row, :num_chunks] = values
        mask[row, :num_chunks] = True
    probs = _lsr_prob(padded, np.array(counts), mask, lsr)

    # 3) Back to rows of their own lengths.
    by_key = {}
    for row, key in enumerate(keys):
        num_chunks = len(log_probs[row])
        by_key[key] = probs[row, :num_chunks].tolist()
    return by_key


def _lsr_prob(
    log_probs: Any,
    counts: Any,
    mask: Any,
    lsr: LsrSettings,
) -> np.ndarray:
    """Eq. 4 of whole arrays."""
    import jax.numpy as jnp  # a report without details needs no jax

    from radit_jax.method.losses import lsr_log_prob

    arrays = map(jnp.asarray, (log_probs, counts, mask))
    return np.exp(np.asarray(lsr_log_prob(*arrays, form=lsr.form, tau=lsr.tau)))


# ---- records ----


def question_records(
    asked: Sequence[AskedQuestion],
    ranked: Sequence[Rankings],
    gold: Mapping[str, Sequence[str]],
) -> list[QuestionRecord]:
    """The questions as the page shows them; `gold` has gold chunks by question, where they are known."""
    records = []
    for question, found in zip(asked, ranked, strict=True):
        prediction = question.prediction
        gold_ids = gold.get(prediction["id"], ()) if not question.task else ()
        chunks = {}
        for name, of_retriever in found.items():
            chunks[name] = [_ranked_chunk(one, prediction["gold"], gold_ids) for one in of_retriever]
        record = QuestionRecord(
            id=prediction["id"],
            task=question.task,
            question=question.text,
            gold=prediction["gold"],
            group=prediction.get("group", ""),
            category=_category(question.scores),
            gold_retrieved=_gold_retrieved(chunks.get("r_ft", ()), prediction["gold"], gold_ids),
            chunks=chunks,
            systems=question.answers(),
            answer_tokens=question.detail.get("answer_tokens", {}),
            has_gold_chunk=bool(gold_ids),
        )
        records.append(record)
    return records


def _ranked_chunk(
    found: Found,
    answers: Sequence[str],
    gold_ids: Sequence[str],
) -> RankedChunk:
    """A chunk with where the answers are in it; yes and no are nowhere."""
    chunk = found.chunk
    searched = [] if is_yes_no(answers) else answers
    return RankedChunk(
        chunk.id,
        found.retrieval_prob,
        found.lsr_prob,
        found.answer_log_probs,
        contains_answer(chunk.passage, searched),
        chunk.id in gold_ids,
        answer_spans(chunk.title, searched),
        answer_spans(chunk.text, searched),
    )


def _category(scores: Mapping[str, float]) -> str:
    """Whether RA-DIT gained or lost the question against the base system; a key of CATEGORIES."""
    if not scores:
        return "unknown"
    was_right, is_right = scores["base"] >= RIGHT, scores["radit"] >= RIGHT
    if was_right == is_right:
        return "right" if is_right else "wrong"
    return "gained" if is_right else "lost"


def _gold_retrieved(
    chunks: Sequence[RankedChunk],
    answers: Sequence[str],
    gold_ids: Sequence[str],
) -> bool | None:
    """Whether a gold chunk is among R-ft's or, where none is known, one that holds an answer."""
    if not chunks or not answers:
        return None
    if gold_ids:
        return any(chunk.is_gold for chunk in chunks)
    return None if is_yes_no(answers) else any(chunk.holds_answer for chunk in chunks)


def shown_passages(ranked: Sequence[Rankings]) -> dict[str, Passage]:
    """Every passage that some question has, by the chunk's id."""
    passages = {}
    for rankings_of_question in ranked:
        for found in rankings_of_question.values():
            for one in found:
                passages[one.chunk.id] = Passage(one.chunk.title, one.chunk.text)
    return passages
