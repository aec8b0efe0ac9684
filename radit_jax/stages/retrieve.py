"""retrieve: the examples of D_L and D_R, each with its top-k chunks under the untuned retriever.

LM-ft and R-ft each retrieve once, offline. An example cut from the corpus never retrieves its own chunk, nor
one with the same text or with twelve words in a row of what the example is to continue with. An example too
long for a row of the stage that reads it, which never cuts a question or an answer, is left out.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from radit_jax.config import MeshConfig
from radit_jax.data.artifacts.corpus import Corpus
from radit_jax.data.artifacts.retrieved import Retrieved
from radit_jax.data.batches.examples import lm_text_example, question_example, r_text_example
from radit_jax.data.batches.prefix_trees import LmTokenizer, fits
from radit_jax.data.finetuning.mixture import share_count
from radit_jax.data.records import Chunk, Example, Question
from radit_jax.retrieval.candidates import search_examples
from radit_jax.retrieval.search import Searcher
from radit_jax.runtime.pretrained.model_io import load_own_tokenizer
from radit_jax.runtime.storage.stage_folder import StageFolder

CHUNKS_AT_ONCE = 1024  # that are in memory while examples are cut from them


def run_lm_ft(
    inputs: Mapping[str, StageFolder],
    output: StageFolder,
    *,
    chunks_per_example: int,
    corpus_text_fraction: float,
    gold_context_fraction: float,
    force_gold: bool,
    retrieved_background: bool,
    max_length: int,
    seed: int,
    mesh: MeshConfig,
) -> dict[str, Any]:
    """D_L with k̃ chunks: tasks with their first answer, and halves of chunks.

    An example that brings its own Background retrieves nothing.
    """
    corpus, tokenizer = Corpus(inputs["corpus"]), load_own_tokenizer(inputs["lm"].verified_path("lm"))
    searcher, facts = Searcher.load(inputs, mesh), {}
    per_chunks = chunks_per_example if retrieved_background else 1  # instances of one example
    for split in ("train", "dev"):
        asked = _asked(corpus, "lm_ft", split, lambda question: question.answers[0])
        questions, tasks = _fitting(asked, tokenizer, max_length)
        read = np.zeros(len(tasks), bool)
        if split == "train" and gold_context_fraction:
            drawn = np.random.default_rng([seed, 4]).random(len(tasks)) < gold_context_fraction
            read = drawn & np.array([bool(question.gold_chunks) for question in questions], bool)
        # Shares are of instances: of an example under its own Background there is one.
        alone = read | np.array([example.background is not None for example in tasks], bool)
        instances = int(np.where(alone, 1, per_chunks).sum())
        wanted = share_count(instances, corpus_text_fraction) / per_chunks if split == "train" else 0
        texts = _text_examples(
            corpus,
            round(wanted),
            lambda chunk: _if_fits(lm_text_example(chunk, tokenizer), tokenizer, max_length),
            seed,
        )
        if not retrieved_background:
            tasks, texts = _without_chunks(tasks), texts._replace(examples=_without_chunks(texts.examples))
        found, num_copies = _search(searcher, corpus, tasks, texts, chunks_per_example)
        rows = found.chunk_rows
        if force_gold:
            rows[: len(tasks)] = with_gold(rows[: len(tasks)], questions, corpus.rows)
        if read.any():
            rows[: len(tasks)] = with_gold_alone(rows[: len(tasks)], questions, corpus.rows, read)
        found.save(output, split)
        facts[split] = _facts(len(asked), len(tasks), texts, found, num_copies)
        if split == "train":
            num_texts = len(texts.examples) * per_chunks
            facts[split]["text_share"] = round(num_texts / max(1, instances + num_texts), 4)
            _warn("lm_ft", "instances", corpus_text_fraction, facts[split])
    return facts["train"]


def run_r_ft(
    inputs: Mapping[str, StageFolder],
    output: StageFolder,
    *,
    num_chunks: int,
    corpus_text_fraction: float,
    text_tokens: int,
    num_examples: int,
    max_length: int,
    seed: int,
    mesh: MeshConfig,
) -> dict[str, Any]:
    """D_R with k chunks: tasks with their shortest answer, and first and last tokens of chunks.

    Drawn examples have their development part too, by which R-ft's checkpoint is chosen.
    """
    corpus, tokenizer = Corpus(inputs["corpus"]), load_own_tokenizer(inputs["lm"].verified_path("lm"))
    searcher, facts = Searcher.load(inputs, mesh), {}
    for split in ("train", "dev") if corpus.examples("r_ft", "dev") is not None else ("train",):
        asked = _asked(corpus, "r_ft", split, lambda question: min(question.answers, key=len))
        num_texts = 0
        if split == "train" and num_examples:
            num_texts = round(num_examples * corpus_text_fraction)
            asked = asked[: num_examples - num_texts]
        questions, tasks = _fitting(asked, tokenizer, max_length)
        if split == "train" and not num_examples:
            num_texts = share_count(len(tasks), corpus_text_fraction)
        texts = _text_examples(
            corpus,
            num_texts,
            lambda chunk: _if_fits(r_text_example(chunk, tokenizer, text_tokens), tokenizer, max_length),
            seed,
        )
        found, num_copies = _search(searcher, corpus, tasks, texts, num_chunks)
        found.save(output, split)
        facts[split] = _facts(len(asked), len(tasks), texts, found, num_copies)
        if split == "train":
            facts[split]["text_share"] = round(len(texts.examples) / max(1, len(found.examples)), 4)
            _warn("r_ft", "examples", corpus_text_fraction, facts[split])
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


class _Texts(NamedTuple):
    """Examples cut from the corpus, and what became of the chunks that were drawn for them."""

    examples: list[Example]
    sources: list[int]  # the rows of their chunks
    num_asked: int
    num_skipped: int  # chunks that gave none


def _text_examples(corpus: Corpus, wanted: int, make: Callable[[Chunk], Example | None], seed: int) -> _Texts:
    """At most `wanted` examples from drawn chunks."""
    order = np.random.default_rng([seed, 1]).permutation(len(corpus.chunks))
    made = _Texts([], [], wanted, 0)
    for start in range(0, len(order) if wanted else 0, CHUNKS_AT_ONCE):
        rows = order[start : start + CHUNKS_AT_ONCE].tolist()
        for row, chunk in zip(rows, corpus.chunks.take(rows), strict=True):
            example = make(chunk)
            if example is None:
                made = made._replace(num_skipped=made.num_skipped + 1)
                continue
            made.examples.append(example)
            made.sources.append(row)
            if len(made.examples) == wanted:
                return made
    return made


def _search(
    searcher: Searcher, corpus: Corpus, tasks: Sequence[Example], texts: _Texts, k: int
) -> tuple[Retrieved, int]:
    """The examples with their chunks, and how many candidates were left out as copies."""
    examples = [*tasks, *texts.examples]
    sources = np.array([-1] * len(tasks) + texts.sources, np.int64)
    rows, scores, num_copies = search_examples(searcher, corpus.chunks, examples, sources, k)
    return Retrieved(examples, rows, scores), num_copies


def _facts(
    num_asked: int, num_tasks: int, texts: _Texts, found: Retrieved, num_copies: int
) -> dict[str, Any]:
    """What the manifest says of a split."""
    retrieving = [
        n for n, example in enumerate(found.examples) if n >= num_tasks and example.background is None
    ]
    short = (found.chunk_rows[np.array(retrieving, int)] < 0).any(axis=1)
    return {
        "questions": num_tasks,
        "questions_too_long": num_asked - num_tasks,
        "text_examples": len(texts.examples),
        "text_examples_asked": texts.num_asked,
        "chunks_skipped": texts.num_skipped,
        "copies_excluded": num_copies,
        "texts_short_of_chunks": int(short.sum()),
    }


def _warn(section: str, unit: str, fraction: float, facts: Mapping[str, Any]) -> None:
    """Say where the corpus has fewer text examples than were asked for."""
    made, asked = facts["text_examples"], facts["text_examples_asked"]
    if made < asked:
        print(
            f"   warning: {section}.corpus_text_fraction {fraction} asks for {asked:,} text examples, the "
            f"corpus gives {made:,}: they are {facts['text_share']:.1%} of the {unit}, each as often as any "
            f"other. Add passages, or set a smaller {section}.corpus_text_fraction.",
            flush=True,
        )
