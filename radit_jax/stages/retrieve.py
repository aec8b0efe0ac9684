"""retrieve: the examples of D_L and D_R, each with its top-k chunks under the untuned retriever.

LM-ft and R-ft each retrieve once, offline. An example cut from the corpus never retrieves its own chunk. An
example too long for a row of the stage that reads it, which never cuts a question or an answer, is left out.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from radit_jax.config import MeshConfig
from radit_jax.data.corpus import Corpus
from radit_jax.data.examples import lm_text_example, question_example, r_text_example
from radit_jax.data.finetuning.mixture import share_count
from radit_jax.data.records import Chunk, Example, Question
from radit_jax.data.retrieved import Retrieved
from radit_jax.data.sequences import LmTokenizer, fits
from radit_jax.retrieval.search import Searcher
from radit_jax.runtime.store import StageFolder
from radit_jax.runtime.tokenizers import load_tokenizer

CHUNKS_AT_ONCE = 1024  # that are in memory while examples are cut from them


def run_lm_ft(
    inputs: Mapping[str, StageFolder],
    output: StageFolder,
    *,
    chunks_per_example: int,
    text_fraction: float,
    reading_fraction: float,
    force_gold: bool,
    retrieved_background: bool,
    max_length: int,
    seed: int,
    mesh: MeshConfig,
) -> dict[str, Any]:
    """D_L with k̃ chunks: tasks with their first answer, and halves of chunks.

    An example that brings its own Background retrieves nothing.
    """
    corpus, tokenizer = Corpus(inputs["corpus"]), load_tokenizer(inputs["lm"].check("lm") / "tokenizer")
    searcher, facts = Searcher.load(inputs, mesh), {}
    for split in ("train", "dev"):
        asked = _asked(corpus, "lm_ft", split, lambda question: question.answers[0])
        questions, tasks = _fitting(asked, tokenizer, max_length)
        texts, sources, skipped = _text_examples(
            corpus,
            share_count(len(tasks), text_fraction) if split == "train" else 0,
            lambda chunk: _if_fits(lm_text_example(chunk, tokenizer), tokenizer, max_length),
            seed,
        )
        if not retrieved_background:
            tasks, texts = _without_chunks(tasks), _without_chunks(texts)
        rows, scores = _search(searcher, [*tasks, *texts], [-1] * len(tasks) + sources, chunks_per_example)
        if force_gold:
            rows[: len(tasks)] = with_gold(rows[: len(tasks)], questions, corpus.rows)
        if split == "train" and reading_fraction:
            read = np.random.default_rng([seed, 4]).random(len(tasks)) < reading_fraction
            rows[: len(tasks)] = with_gold_alone(rows[: len(tasks)], questions, corpus.rows, read)
        facts[split] = {"questions_too_long": len(asked) - len(tasks), "chunks_skipped": skipped}
        facts[split] |= _save(output, split, tasks, texts, rows, scores)
    return facts["train"]


def run_r_ft(
    inputs: Mapping[str, StageFolder],
    output: StageFolder,
    *,
    num_chunks: int,
    text_fraction: float,
    text_tokens: int,
    num_examples: int,
    max_length: int,
    seed: int,
    mesh: MeshConfig,
) -> dict[str, Any]:
    """D_R with k chunks: tasks with their shortest answer, and first and last tokens of chunks.

    Drawn examples have their development part too, by which R-ft's checkpoint is chosen.
    """
    corpus, tokenizer = Corpus(inputs["corpus"]), load_tokenizer(inputs["lm"].check("lm") / "tokenizer")
    searcher, facts = Searcher.load(inputs, mesh), {}
    for split in ("train", "dev") if corpus.examples("r_ft", "dev") is not None else ("train",):
        asked = _asked(corpus, "r_ft", split, lambda question: min(question.answers, key=len))
        num_texts = 0
        if split == "train" and num_examples:
            num_texts = round(num_examples * text_fraction)
            asked = asked[: num_examples - num_texts]
        questions, tasks = _fitting(asked, tokenizer, max_length)
        if split == "train" and not num_examples:
            num_texts = share_count(len(tasks), text_fraction)
        texts, sources, skipped = _text_examples(
            corpus,
            num_texts,
            lambda chunk: _if_fits(r_text_example(chunk, tokenizer, text_tokens), tokenizer, max_length),
            seed,
        )
        rows, scores = _search(searcher, [*tasks, *texts], [-1] * len(tasks) + sources, num_chunks)
        facts[split] = {"questions_too_long": len(asked) - len(tasks), "chunks_skipped": skipped}
        facts[split] |= _save(output, split, tasks, texts, rows, scores)
    return facts["train"]


def with_gold(
    rows: Int[np.ndarray, "E K"], questions: Sequence[Question], row_of: Mapping[str, int]
) -> Int[np.ndarray, "E K"]:
    """`rows` with a gold chunk in the last place of each question that has one but did not retrieve it."""
    rows = rows.copy()
    for number, question in enumerate(questions):
        gold = [row_of[chunk] for chunk in question.gold_chunks]
        if gold and not set(gold) & set(rows[number].tolist()):
            rows[number, -1] = gold[0]
    return rows


def with_gold_alone(
    rows: Int[np.ndarray, "E K"],
    questions: Sequence[Question],
    row_of: Mapping[str, int],
    read: Bool[np.ndarray, " E"],
) -> Int[np.ndarray, "E K"]:
    """`rows` with nothing but a gold chunk for the questions to `read` that have one; −1 is no chunk.

    So the paper treats reading comprehension: the gold context is the Background, and nothing is retrieved.
    """
    rows = rows.copy()
    for number in np.flatnonzero(read).tolist():
        if gold := questions[number].gold_chunks:
            rows[number] = [row_of[gold[0]], *[-1] * (rows.shape[1] - 1)]
    return rows


def _asked(
    corpus: Corpus, mixture: str, split: str, answer: Callable[[Question], str]
) -> list[tuple[Question, Example]]:
    """The examples that were drawn for a mixture; else each question with its `answer`."""
    drawn = corpus.examples(mixture, split)
    if drawn is not None:
        return drawn
    return [(question, question_example(question, answer(question))) for question in corpus.questions(split)]


def _fitting(
    asked: Sequence[tuple[Question, Example]], tokenizer: LmTokenizer, max_length: int
) -> tuple[list[Question], list[Example]]:
    """The questions whose examples fit, and these."""
    kept = [(question, example) for question, example in asked if _if_fits(example, tokenizer, max_length)]
    if asked and not kept:
        raise ValueError(
            f"retrieve: each of the {len(asked)} questions is longer, with its answer, than the "
            f"{max_length} tokens of a row; raise the sequence_length of the stage that reads them"
        )
    return [question for question, _ in kept], [example for _, example in kept]


def _without_chunks(examples: Sequence[Example]) -> list[Example]:
    """The examples with no Background where they have not their own."""
    return [replace(e, background="") if e.background is None else e for e in examples]


def _if_fits(example: Example | None, tokenizer: LmTokenizer, max_length: int) -> Example | None:
    return example if example and fits(tokenizer, example, max_length) else None


def _text_examples(
    corpus: Corpus, wanted: int, make: Callable[[Chunk], Example | None], seed: int
) -> tuple[list[Example], list[int], int]:
    """`wanted` examples from drawn chunks, their chunks' rows, and how many chunks gave none."""
    order = np.random.default_rng([seed, 1]).permutation(len(corpus.chunks))
    examples: list[Example] = []
    sources: list[int] = []
    skipped = 0
    for start in range(0, len(order) if wanted else 0, CHUNKS_AT_ONCE):
        rows = order[start : start + CHUNKS_AT_ONCE].tolist()
        for row, chunk in zip(rows, corpus.chunks.take(rows), strict=True):
            example = make(chunk)
            if example is None:
                skipped += 1
                continue
            examples.append(example)
            sources.append(row)
            if len(examples) == wanted:
                return examples, sources, skipped
    return examples, sources, skipped


def _search(
    searcher: Searcher, examples: Sequence[Example], sources: Sequence[int], k: int
) -> tuple[Int[np.ndarray, "E K"], Float[np.ndarray, "E K"]]:
    """Each example's chunks without its source, −1 where it has a Background of its own, and their scores."""
    rows, scores = np.full((len(examples), k), -1), np.zeros((len(examples), k), np.float32)
    asking = [number for number, example in enumerate(examples) if example.background is None]
    if asking:
        queries = [examples[number].query for number in asking]
        rows[asking], scores[asking] = searcher.search(queries, k, exclude=np.array(sources)[asking])
    return rows, scores


def _save(
    output: StageFolder,
    split: str,
    tasks: Sequence[Example],
    texts: Sequence[Example],
    rows: Int[np.ndarray, "E K"],
    scores: Float[np.ndarray, "E K"],
) -> dict[str, Any]:
    Retrieved([*tasks, *texts], rows, scores).save(output, split)
    return {"questions": len(tasks), "text_examples": len(texts)}
