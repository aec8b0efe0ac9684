"""LSR scores as a file: what `export.lsr_scores` writes, and `score.language_model=FILE.jsonl` reads.

A line is a JSON object with an example's scores; the lines may be in any order, the file compressed:

    id                  the example's, as in the run that reads the file
    query, answer       of the example, by which scores of other data are known
    chunk_ids           the chunks that were scored, each once
    answer_log_probs    of each chunk: log p_LM(y|c∘x) in nats, summed over the answer's tokens, without a
                        terminator
    no_chunk_log_prob   the same without a chunk
    answer_token_count  how many tokens the sums are over, in the scorer's tokeniser
    scorer              the language model that gave the scores

The next two are optional and say, of each chunk, how the scorer read it; only diagnostics use them:

    token_counts        tokens of chunk, prompt and answer
    truncated           whether the chunk was cut to fit

An export has more fields, which are ignored on the way in. `lm_prompt` is x, for those who score elsewhere.
`pos`, `neg`, `pos_scores` and `neg_scores` are FlagEmbedding's: the passages of `chunk_ids` in their order,
and Eq. 4's exponents.

A log-probability is a float32, written with the fewest digits that give it back.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Float

from radit_jax.data.artifacts.chunks import Chunks
from radit_jax.data.artifacts.lsr_scores import Scores
from radit_jax.data.artifacts.retrieved import Retrieved
from radit_jax.data.readers.lines import JsonObject, demand, json_objects, quoted
from radit_jax.data.records import Chunk, Example
from radit_jax.text.exchange import flag_embedding

LINES_AT_ONCE = 1000  # whose examples' chunks are in memory together
SHOWN = 3  # of what is missing, in an error
LOWEST = float(np.finfo(np.float32).min)
MOST_TOKENS = 2**31 - 1

Key = tuple[str, str, str]  # an example's id, query and answer: a dataset may repeat ids


# ---- out ----


def score_records(
    retrieved: Retrieved, scores: Scores, exponents: Float[np.ndarray, "E K"], chunks: Chunks, scorer: str
) -> Iterator[dict[str, Any]]:
    """The line of each distinct example; `exponents` are those of Eq. 4, `scorer` names the language model.

    Some examples' passages are in memory at a time.
    """
    # An example with a weight is among the examples several times.
    number_of = {_key(example): number for number, example in enumerate(retrieved.examples)}
    numbers = sorted(number_of.values())
    for start in range(0, len(numbers), LINES_AT_ONCE):
        block = numbers[start : start + LINES_AT_ONCE]
        chunk_at = chunks.by_row(scores.chunk_rows[block])
        for number in block:
            yield _record(retrieved.examples[number], number, scores, exponents[number], chunk_at, scorer)


def _record(
    example: Example,
    number: int,
    scores: Scores,
    exponents: Float[np.ndarray, " K"],
    chunk_at: Mapping[int, Chunk],
    scorer: str,
) -> dict[str, Any]:
    # Best first, as FlagEmbedding has them: then one order serves ids, scores and passages.
    rows = scores.chunk_rows[number]
    best_first = np.argsort(-exponents, kind="stable")
    places = best_first[rows[best_first] >= 0]
    ranked = [chunk_at[row] for row in rows[places].tolist()]
    passages = [chunk.passage for chunk in ranked]
    return {
        "id": example.id,
        **flag_embedding(example.query, passages, exponents[places].tolist()),
        "lm_prompt": example.prompt,
        "answer": example.answer,
        "chunk_ids": [chunk.id for chunk in ranked],
        "answer_log_probs": [_shortest(value) for value in scores.answer_log_probs[number, places]],
        "no_chunk_log_prob": _shortest(scores.no_chunk_log_probs[number]),
        "answer_token_count": int(scores.answer_token_counts[number]),
        "token_counts": scores.token_counts[number, places].tolist(),
        "truncated": scores.truncated[number, places].tolist(),
        "scorer": scorer,
    }


def _shortest(value: Any) -> float:
    """The number with the fewest digits that rounds to a float32: 0.1, not 0.10000000149011612."""
    return float(str(np.float32(value)))


# ---- in ----


class ScoredExample(NamedTuple):
    """A line: an example's answer under its chunks and under none, in nats."""

    where: str  # file and line, for errors
    key: Key
    chunk_ids: Sequence[str]
    answer_log_probs: Sequence[float]
    no_chunk_log_prob: float
    answer_token_count: int
    token_counts: Sequence[int]  # zeros where the file does not say
    truncated: Sequence[bool]  # False where the file does not say
    scorer: str


def read_scores(path: epath.PathLike) -> Iterator[ScoredExample]:
    """The lines of a file of scores; ValueError with file and line for what cannot be a score."""
    place_of: dict[Key, str] = {}
    for where, line in json_objects(epath.Path(path)):
        scored = _scored_example(line, where)
        if scored.key in place_of:
            raise ValueError(
                f"{where}: expected one line for each example, got {quoted(scored.key[0])} again, which is "
                f"in {place_of[scored.key]} too. Leave one out."
            )
        place_of[scored.key] = where
        yield scored
    if not place_of:
        raise ValueError(f"{path}: expected a line for each example, got none. Write the scores again.")


def _scored_example(line: JsonObject, where: str) -> ScoredExample:
    fields = {"id": "an id", "query": "a string", "answer": "a string", "chunk_ids": "a list of ids"}
    demand(line, fields | {"scorer": "a string"}, where)
    chunk_ids = [str(chunk_id) for chunk_id in line["chunk_ids"]]
    if len(set(chunk_ids)) < len(chunk_ids):
        raise ValueError(
            f"{where}: expected each chunk once in 'chunk_ids', got {quoted(chunk_ids)}. Score a chunk once."
        )
    # 1) The scores.
    log_probs = _of_chunks(line, "answer_log_probs", len(chunk_ids), where)
    for log_prob in (*log_probs, _number(line, "no_chunk_log_prob", where)):
        if not LOWEST <= log_prob <= 0:
            raise ValueError(
                f"{where}: expected log-probabilities that are finite and at most 0, got {log_prob}. Write "
                "sums in nats."
            )
    # 2) What they are over.
    counts = [0] * len(chunk_ids)
    if "token_counts" in line:
        counts = _of_chunks(line, "token_counts", len(chunk_ids), where)
    answer_token_count = _number(line, "answer_token_count", where)
    for count in (answer_token_count, *counts):
        if not (type(count) is int and 0 <= count <= MOST_TOKENS):
            raise ValueError(f"{where}: expected numbers of tokens, got {count}. Write whole numbers.")
    if not answer_token_count:
        raise ValueError(f"{where}: expected an answer of a token at least, got 0. Leave the example out.")
    return ScoredExample(
        where,
        (str(line["id"]), line["query"], line["answer"]),
        chunk_ids,
        log_probs,
        line["no_chunk_log_prob"],
        answer_token_count,
        counts,
        _flags(line, len(chunk_ids), where),
        line["scorer"],
    )


def _number(line: JsonObject, name: str, where: str) -> Any:
    return _numbers([line.get(name)], name, where)[0]


def _of_chunks(line: JsonObject, name: str, count: int, where: str) -> Sequence[Any]:
    """A number for each chunk."""
    return _numbers(_list_of_chunks(line, name, count, where), name, where)


def _list_of_chunks(line: JsonObject, name: str, count: int, where: str) -> list[Any]:
    values = line.get(name)
    if not isinstance(values, list) or len(values) != count:
        raise ValueError(
            f"{where}: expected a list in {name!r} with an entry for each of the {count} chunks of "
            f"'chunk_ids', got {quoted(values)}. Write one for each."
        )
    return values


def _numbers(values: list[Any], name: str, where: str) -> list[Any]:
    for value in values:
        # True and False are ints to Python.
        if type(value) not in (int, float):
            raise ValueError(f"{where}: expected a number in {name!r}, got {quoted(value)}. Write one there.")
    return values


def _flags(line: JsonObject, count: int, where: str) -> Sequence[bool]:
    """Whether each chunk was cut."""
    if "truncated" not in line:
        return [False] * count
    flags = _list_of_chunks(line, "truncated", count, where)
    if not all(isinstance(flag, bool) for flag in flags):
        raise ValueError(f"{where}: expected true or false in 'truncated', got {quoted(flags)}.")
    return flags


@dataclass
class _Filling:
    """Scores of a run's examples, as lines fill them."""

    retrieved: Retrieved

    def __post_init__(self) -> None:
        rows = self.retrieved.chunk_rows
        num_examples = len(rows)
        self.scores = Scores(
            chunk_rows=rows,
            retrieval_scores=self.retrieved.retrieval_scores,
            answer_log_probs=np.zeros(rows.shape, np.float32),
            no_chunk_log_probs=np.zeros(num_examples, np.float32),
            answer_token_counts=np.zeros(num_examples, np.int64),
            token_counts=np.zeros(rows.shape, np.int32),
            truncated=np.zeros(rows.shape, bool),
        )
        self.is_scored = rows < 0  # where there is no chunk, nothing is missing
        self.has_line = np.zeros(num_examples, bool)

    def put(self, number: int, line: ScoredExample, chunk_at: Mapping[int, Chunk]) -> int:
        """Take what `line` says of the chunks of example `number`; how many other chunks it has."""
        scores = self.scores
        place_in_line = {chunk_id: place for place, chunk_id in enumerate(line.chunk_ids)}
        for place, row in enumerate(scores.chunk_rows[number].tolist()):
            source = place_in_line.pop(chunk_at[row].id, None) if row >= 0 else None
            if source is not None:
                scores.answer_log_probs[number, place] = line.answer_log_probs[source]
                scores.token_counts[number, place] = line.token_counts[source]
                scores.truncated[number, place] = line.truncated[source]
                self.is_scored[number, place] = True
        scores.no_chunk_log_probs[number] = line.no_chunk_log_prob
        scores.answer_token_counts[number] = line.answer_token_count
        self.has_line[number] = True
        return len(place_in_line)


def import_scores(
    path: epath.PathLike, retrieved: Retrieved, chunks: Chunks
) -> tuple[Scores, dict[str, Any]]:
    """The scores that a file has of the examples and their candidates, and what else it has, counted.

    Raises ValueError where it lacks the score of an example under one of its candidates.
    """
    # 1) Take the lines of this run's examples, and count the others.
    filling = _Filling(retrieved)
    numbers_of: dict[Key, list[int]] = {}
    for number, example in enumerate(retrieved.examples):
        numbers_of.setdefault(_key(example), []).append(number)
    scorers: dict[str, None] = {}  # a dict without values is a set that keeps its order
    counts = {"examples_not_used": 0, "chunks_not_used": 0}
    lines = read_scores(path)
    while block := list(itertools.islice(lines, LINES_AT_ONCE)):
        pairs = _pairs(block, numbers_of)
        numbers = [number for number, _ in pairs]
        chunk_at = chunks.by_row(retrieved.chunk_rows[numbers])
        for number, line in pairs:
            scorers[line.scorer] = None
            counts["chunks_not_used"] += filling.put(number, line, chunk_at)
        counts["examples_not_used"] += sum(line.key not in numbers_of for line in block)

    # 2) Nothing may be missing.
    if not filling.is_scored.all() or not filling.has_line.all():
        raise ValueError(f"{path}: {_missing(filling, chunks)}")
    return filling.scores, {"scorer": ", ".join(scorers), **counts}


def _pairs(
    block: Sequence[ScoredExample], numbers_of: Mapping[Key, Sequence[int]]
) -> list[tuple[int, ScoredExample]]:
    """Each of the run's examples that a line of the block scores, with its line."""
    pairs = []
    for line in block:
        for number in numbers_of.get(line.key, ()):
            pairs.append((number, line))
    return pairs


def _missing(filling: _Filling, chunks: Chunks) -> str:
    """What an error says of the scores that are missing: counts, and the first ids."""
    examples = filling.retrieved.examples
    without_line = np.flatnonzero(~filling.has_line).tolist()
    is_missing = ~filling.is_scored & filling.has_line[:, None]
    numbers, places = np.nonzero(is_missing)
    parts = []
    if without_line:
        ids = [examples[number].id for number in without_line[:SHOWN]]
        parts.append(f"no line of {len(without_line):,} of {len(examples):,} ({_first(ids)})")
    if len(numbers):
        rows = filling.scores.chunk_rows[numbers[:SHOWN], places[:SHOWN]]
        ids = []
        for number, chunk in zip(numbers.tolist(), chunks.take(rows), strict=False):
            ids.append(f"{chunk.id} of {examples[number].id}")
        parts.append(f"no score of {len(numbers):,} candidates ({_first(ids)})")
    return (
        f"expected the scores of all examples under their candidates, got {' and '.join(parts)}. Take a file "
        "of the same data, retriever and retrieve.num_chunks: an example is known by id, query and answer."
    )


def _first(ids: Sequence[str]) -> str:
    """The first ids of what is missing, for an error."""
    return "first " + ", ".join(map(quoted, ids))


# ---- both ways ----


def _key(example: Example) -> Key:
    return example.id, example.query, example.answer
