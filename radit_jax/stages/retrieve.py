"""retrieve: the examples of D_L and D_R, each with its top-k chunks under the untuned retriever.

LM-ft and R-ft each retrieve once, offline. An example cut from the corpus never retrieves its own chunk.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from radit_jax.config import MeshConfig
from radit_jax.data.corpus import Corpus
from radit_jax.data.examples import lm_text_example, question_example, r_text_example
from radit_jax.data.records import Chunk, Example, Question
from radit_jax.data.retrieved import Retrieved
from radit_jax.retrieval.search import Searcher
from radit_jax.runtime.store import StageFolder
from radit_jax.runtime.tokenizers import load_tokenizer


def run_lm_ft(
    inputs: Mapping[str, StageFolder],
    output: StageFolder,
    *,
    chunks_per_example: int,
    text_fraction: float,
    reading_fraction: float,
    force_gold: bool,
    seed: int,
    mesh: MeshConfig,
) -> dict[str, Any]:
    """D_L with k̃ chunks: questions to be answered with their first answer, and halves of chunks."""
    corpus, tokenizer = Corpus(inputs["corpus"]), load_tokenizer(inputs["lm"].check("lm") / "tokenizer")
    searcher, facts = Searcher.load(inputs, mesh), {}
    for split in ("train", "dev"):
        questions = corpus.questions(split)
        tasks = [question_example(question, question.answers[0]) for question in questions]
        texts, skipped = _text_examples(
            corpus,
            len(tasks),
            text_fraction if split == "train" else 0.0,
            lambda chunk: lm_text_example(chunk, tokenizer),
            seed,
        )
        rows, scores = _search(searcher, corpus, [*tasks, *texts], chunks_per_example)
        if force_gold:
            rows[: len(tasks)] = with_gold(rows[: len(tasks)], questions, corpus.rows)
        if split == "train":
            read = np.random.default_rng([seed, 4]).random(len(tasks)) < reading_fraction
            rows[: len(tasks)] = with_gold_alone(rows[: len(tasks)], questions, corpus.rows, read)
        facts[split] = _save(output, split, corpus, questions, tasks, texts, rows, scores, skipped)
    return facts["train"]


def run_r_ft(
    inputs: Mapping[str, StageFolder],
    output: StageFolder,
    *,
    num_chunks: int,
    text_fraction: float,
    text_tokens: int,
    seed: int,
    mesh: MeshConfig,
) -> dict[str, Any]:
    """D_R with k chunks: questions with their shortest answer, and first and last tokens of chunks."""
    corpus, tokenizer = Corpus(inputs["corpus"]), load_tokenizer(inputs["lm"].check("lm") / "tokenizer")
    questions = corpus.questions("train")
    tasks = [question_example(question, min(question.answers, key=len)) for question in questions]
    texts, skipped = _text_examples(
        corpus, len(tasks), text_fraction, lambda chunk: r_text_example(chunk, tokenizer, text_tokens), seed
    )
    rows, scores = _search(Searcher.load(inputs, mesh), corpus, [*tasks, *texts], num_chunks)
    return _save(output, "train", corpus, questions, tasks, texts, rows, scores, skipped)


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


def _text_examples(
    corpus: Corpus, num_tasks: int, fraction: float, make: Callable[[Chunk], Example | None], seed: int
) -> tuple[list[Example], int]:
    """So many examples from drawn chunks that they are `fraction` of all; too short chunks are counted."""
    wanted = min(round(num_tasks * fraction / (1 - fraction)), len(corpus.chunks))
    order = np.random.default_rng([seed, 1]).permutation(len(corpus.chunks))
    examples: list[Example] = []
    skipped = 0
    for chunk in corpus.chunks.take(order):
        if len(examples) == wanted:
            break
        example = make(chunk)
        if example is None:
            skipped += 1
        else:
            examples.append(example)
    return examples, skipped


def _search(
    searcher: Searcher, corpus: Corpus, examples: Sequence[Example], k: int
) -> tuple[Int[np.ndarray, "E K"], Float[np.ndarray, "E K"]]:
    sources = np.array([corpus.rows.get(example.source_chunk, -1) for example in examples])
    return searcher.search([example.query for example in examples], k, exclude=sources)


def _save(
    output: StageFolder,
    split: str,
    corpus: Corpus,
    questions: Sequence[Question],
    tasks: Sequence[Example],
    texts: Sequence[Example],
    rows: Int[np.ndarray, "E K"],
    scores: Float[np.ndarray, "E K"],
    skipped: int,
) -> dict[str, Any]:
    holds_answer = np.zeros(rows.shape, dtype=bool)
    holds_answer[: len(tasks)] = corpus.holds_answer(questions, rows[: len(tasks)])
    Retrieved([*tasks, *texts], rows, scores, holds_answer).save(output, split)
    return {"questions": len(tasks), "text_examples": len(texts), "chunks_too_short": skipped}
