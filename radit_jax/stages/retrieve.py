"""retrieve: the examples of D_L and D_R, each with its top-k chunks under the untuned retriever.

LM-ft and R-ft each retrieve once, offline. An example cut from the corpus never retrieves its own chunk. An
example too long for a row of the stage that reads it, which never cuts a question or an answer, is left out.
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
from radit_jax.data.sequences import LmTokenizer, fits
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
    max_length: int,
    seed: int,
    mesh: MeshConfig,
) -> dict[str, Any]:
    """D_L with k̃ chunks: questions to be answered with their first answer, and halves of chunks."""
    corpus, tokenizer = Corpus(inputs["corpus"]), load_tokenizer(inputs["lm"].check("lm") / "tokenizer")
    searcher, facts = Searcher.load(inputs, mesh), {}
    for split in ("train", "dev"):
        asked = corpus.questions(split)
        questions, tasks = _tasks(asked, lambda question: question.answers[0], tokenizer, max_length)
        texts, skipped = _text_examples(
            corpus,
            len(tasks),
            text_fraction if split == "train" else 0.0,
            lambda chunk: _if_fits(lm_text_example(chunk, tokenizer), tokenizer, max_length),
            seed,
        )
        rows, scores = _search(searcher, corpus, [*tasks, *texts], chunks_per_example)
        if force_gold:
            rows[: len(tasks)] = with_gold(rows[: len(tasks)], questions, corpus.rows)
        if split == "train":
            read = np.random.default_rng([seed, 4]).random(len(tasks)) < reading_fraction
            rows[: len(tasks)] = with_gold_alone(rows[: len(tasks)], questions, corpus.rows, read)
        facts[split] = {"questions_too_long": len(asked) - len(tasks), "chunks_skipped": skipped}
        facts[split] |= _save(output, split, corpus, questions, tasks, texts, rows, scores)
    return facts["train"]


def run_r_ft(
    inputs: Mapping[str, StageFolder],
    output: StageFolder,
    *,
    num_chunks: int,
    text_fraction: float,
    text_tokens: int,
    max_length: int,
    seed: int,
    mesh: MeshConfig,
) -> dict[str, Any]:
    """D_R with k chunks: questions with their shortest answer, and first and last tokens of chunks."""
    corpus, tokenizer = Corpus(inputs["corpus"]), load_tokenizer(inputs["lm"].check("lm") / "tokenizer")
    asked = corpus.questions("train")
    questions, tasks = _tasks(asked, lambda question: min(question.answers, key=len), tokenizer, max_length)
    texts, skipped = _text_examples(
        corpus,
        len(tasks),
        text_fraction,
        lambda chunk: _if_fits(r_text_example(chunk, tokenizer, text_tokens), tokenizer, max_length),
        seed,
    )
    rows, scores = _search(Searcher.load(inputs, mesh), corpus, [*tasks, *texts], num_chunks)
    facts = {"questions_too_long": len(asked) - len(tasks), "chunks_skipped": skipped}
    return facts | _save(output, "train", corpus, questions, tasks, texts, rows, scores)


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


def _tasks(
    questions: Sequence[Question], answer: Callable[[Question], str], tokenizer: LmTokenizer, max_length: int
) -> tuple[list[Question], list[Example]]:
    """The questions that fit, and each one's example with the `answer` to learn."""
    examples = [
        _if_fits(question_example(question, answer(question)), tokenizer, max_length)
        for question in questions
    ]
    kept = [question for question, example in zip(questions, examples, strict=True) if example]
    if questions and not kept:
        raise ValueError(
            f"retrieve: each of the {len(questions)} questions is longer, with its answer, than the "
            f"{max_length} tokens of a row; raise the sequence_length of the stage that reads them"
        )
    return kept, [example for example in examples if example]


def _if_fits(example: Example | None, tokenizer: LmTokenizer, max_length: int) -> Example | None:
    return example if example and fits(tokenizer, example, max_length) else None


def _text_examples(
    corpus: Corpus, num_tasks: int, fraction: float, make: Callable[[Chunk], Example | None], seed: int
) -> tuple[list[Example], int]:
    """So many examples from drawn chunks that they are `fraction` of all, and how many chunks gave none."""
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
) -> dict[str, Any]:
    holds_answer = np.zeros(rows.shape, dtype=bool)
    holds_answer[: len(tasks)] = corpus.holds_answer(questions, rows[: len(tasks)])
    Retrieved([*tasks, *texts], rows, scores, holds_answer).save(output, split)
    return {"questions": len(tasks), "text_examples": len(texts)}
