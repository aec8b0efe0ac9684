"""retrieve: the examples of D_L and D_R, each with its top-k chunks under the untuned retriever.

LM-ft and R-ft each retrieve once, before they train. An example cut from the corpus never retrieves its own
chunk, a chunk with the same text, or one that shares twelve words in a row with the example's answer. The
stage that reads an example never cuts a question or an answer, so an example too long for its rows is left
out.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from radit_jax.config import MeshConfig
from radit_jax.data.artifacts.corpus import Corpus
from radit_jax.data.artifacts.retrieved import Retrieved
from radit_jax.data.batches.corpus_examples import CutExamples, cut_examples
from radit_jax.data.batches.examples import lm_text_example, question_example, r_text_example
from radit_jax.data.batches.prefix_trees import LmTokenizer, fits
from radit_jax.data.finetuning.mixture import share_count
from radit_jax.data.records import Chunk, Example, Question
from radit_jax.retrieval.candidates import ExampleSearch
from radit_jax.retrieval.ranking import split
from radit_jax.retrieval.search import Searcher
from radit_jax.runtime.distributed import processes
from radit_jax.runtime.distributed.mesh import concatenate_hosts
from radit_jax.runtime.pretrained.model_io import load_own_tokenizer
from radit_jax.runtime.storage.stage_folder import StageFolder, StageInputs

ChunkRows = Int[np.ndarray, "E K"]  # each example's chunks by their rows in the corpus; −1 is no chunk


@dataclass(frozen=True)
class LmFtRetrieval:
    """The settings of `run_lm_ft`. An instance is an example under one Background."""

    chunks_per_example: int  # k̃
    corpus_text_fraction: float  # the share of the instances that is cut from the corpus
    gold_context_fraction: float  # the share of the questions whose only Background is a gold chunk
    force_gold: bool  # a gold chunk that was not retrieved takes the last chunk's place
    retrieved_background: bool  # False: examples without a gold context have no Background
    max_length: int  # tokens
    seed: int

    @property
    def instances_per_example(self) -> int:
        """The instances of an example that retrieves."""
        return self.chunks_per_example if self.retrieved_background else 1


@dataclass(frozen=True)
class RFtRetrieval:
    """The settings of `run_r_ft`."""

    num_chunks: int  # |C'|
    corpus_text_fraction: float  # the share of the examples that is cut from the corpus
    text_tokens: int  # a chunk's first tokens are x, its last are y
    num_examples: int  # tasks and text; 0: all tasks, and text for its fraction
    max_length: int  # tokens
    seed: int


def run_lm_ft(
    inputs: StageInputs, output: StageFolder, *, mesh: MeshConfig, **settings: Any
) -> dict[str, Any]:
    """D_L with k̃ chunks: tasks with their first answer, and halves of chunks.

    `settings` are the fields of `LmFtRetrieval`. An example with a Background of its own retrieves nothing.
    """
    retrieval = LmFtRetrieval(**settings)
    sources = _Sources.load(inputs, mesh)
    train_facts = _retrieve_lm_ft("train", sources, retrieval, output)
    _retrieve_lm_ft("dev", sources, retrieval, output)
    return train_facts


def run_r_ft(
    inputs: StageInputs, output: StageFolder, *, mesh: MeshConfig, **settings: Any
) -> dict[str, Any]:
    """D_R with k chunks: tasks with their shortest answer, and first and last tokens of chunks.

    `settings` are the fields of `RFtRetrieval`. Where development examples were drawn, they get chunks too:
    they choose R-ft's checkpoint.
    """
    retrieval = RFtRetrieval(**settings)
    sources = _Sources.load(inputs, mesh)
    train_facts = _retrieve_r_ft("train", sources, retrieval, output)
    if sources.corpus.examples("r_ft", "dev") is not None:
        _retrieve_r_ft("dev", sources, retrieval, output)
    return train_facts


@dataclass(frozen=True)
class _Sources:
    """What both retrieve stages read: they take examples from the corpus, and search chunks for each."""

    corpus: Corpus  # chunks and examples
    tokenizer: LmTokenizer  # the base language model's, which cuts texts
    readers: Sequence[LmTokenizer]  # of all language models that read the examples, which have to fit
    searcher: Searcher  # an untuned retriever and its index

    @classmethod
    def load(cls, inputs: StageInputs, mesh: MeshConfig) -> "_Sources":
        corpus = Corpus(inputs["corpus"])
        readers = []
        for name in ("lm", "labeller"):
            if name in inputs:
                readers.append(load_own_tokenizer(inputs[name].verified_path("lm")))
        return cls(corpus, readers[0], readers, Searcher.load(inputs, mesh, copies=True))


def _retrieve_lm_ft(
    split: str, sources: _Sources, settings: LmFtRetrieval, output: StageFolder
) -> dict[str, Any]:
    """Save a split of D_L with its chunks; facts for the manifest."""
    corpus, tokenizer, max_length = sources.corpus, sources.tokenizer, settings.max_length
    is_train = split == "train"

    # The tasks' examples, and for training as many of the corpus as make up their share.
    drawn = _drawn(corpus, "lm_ft", split, lambda question: question.answers[0])
    questions, tasks = _fitting(drawn, sources.readers, max_length)
    only_gold = _draw_gold_contexts(questions, settings) if is_train else np.zeros(len(tasks), bool)
    num_instances = _num_instances(tasks, only_gold, settings)
    num_texts = 0
    if is_train:
        num_text_instances = share_count(num_instances, settings.corpus_text_fraction)
        num_texts = round(num_text_instances / settings.instances_per_example)
    texts = cut_examples(
        corpus.chunks,
        num_texts,
        lambda chunk: _if_fits(lm_text_example(chunk, tokenizer), sources.readers, max_length),
        settings.seed,
    )
    if not settings.retrieved_background:
        tasks = _without_chunks(tasks)
        texts = texts._replace(examples=_without_chunks(texts.examples))

    # Their chunks, which processes find in shards. The rows of the tasks come first.
    search = _search(sources, tasks, texts, settings.chunks_per_example, output, split)
    retrieved, num_copies = _retrieved(search)
    task_rows = retrieved.chunk_rows[: len(tasks)]
    _put_gold(task_rows, questions, corpus, only_gold, settings.force_gold)
    retrieved.save(output, split)

    facts = _facts(len(drawn), len(tasks), texts, retrieved, num_copies)
    if is_train:
        num_text_instances = len(texts.examples) * settings.instances_per_example
        share = num_text_instances / max(1, num_instances + num_text_instances)
        facts["text_share"] = round(share, 4)
        _warn("lm_ft", "instances", settings.corpus_text_fraction, facts, "Add passages.")
    return facts


def _put_gold(
    rows: ChunkRows,
    questions: Sequence[Question],
    corpus: Corpus,
    only_gold: Bool[np.ndarray, " E"],
    force_gold: bool,
) -> None:
    """Put gold chunks where the settings and the draw of `only_gold` ask for them."""
    row_of = corpus.gold_rows(questions) if force_gold or only_gold.any() else {}
    if force_gold:
        rows[:] = with_gold(rows, questions, row_of)
    if only_gold.any():
        rows[:] = with_gold_alone(rows, questions, row_of, only_gold)


def _draw_gold_contexts(questions: Sequence[Question], settings: LmFtRetrieval) -> Bool[np.ndarray, " E"]:
    """Which of the questions have a gold chunk as their only Background."""
    rng = np.random.default_rng([settings.seed, 4])
    numbers = rng.random(len(questions))
    is_drawn = numbers < settings.gold_context_fraction
    has_gold = np.array([bool(question.gold_chunks) for question in questions], bool)
    return is_drawn & has_gold


def _num_instances(
    tasks: Sequence[Example], only_gold: Bool[np.ndarray, " E"], settings: LmFtRetrieval
) -> int:
    """The instances of the tasks: one of an example that does not retrieve."""
    has_background = np.array([example.background is not None for example in tasks], bool)
    instances = np.where(only_gold | has_background, 1, settings.instances_per_example)
    return int(instances.sum())


def _retrieve_r_ft(
    split: str, sources: _Sources, settings: RFtRetrieval, output: StageFolder
) -> dict[str, Any]:
    """Save a split of D_R with its chunks; facts for the manifest."""
    corpus, tokenizer, max_length = sources.corpus, sources.tokenizer, settings.max_length
    is_train = split == "train"

    # The tasks' examples, and for training those of the corpus.
    drawn = _drawn(corpus, "r_ft", split, lambda question: min(question.answers, key=len))
    num_texts = 0
    if is_train and settings.num_examples:
        num_texts = round(settings.num_examples * settings.corpus_text_fraction)
        drawn = drawn[: settings.num_examples - num_texts]
    _, tasks = _fitting(drawn, sources.readers, max_length)
    if is_train and not settings.num_examples:
        num_texts = share_count(len(tasks), settings.corpus_text_fraction)

    def text_example(chunk: Chunk) -> Example | None:
        example = r_text_example(chunk, tokenizer, settings.text_tokens)
        return _if_fits(example, sources.readers, max_length)

    texts = cut_examples(corpus.chunks, num_texts, text_example, settings.seed)

    # Their chunks, which processes find in shards.
    search = _search(sources, tasks, texts, settings.num_chunks, output, split)
    retrieved, num_copies = _retrieved(search)
    retrieved.save(output, split)

    facts = _facts(len(drawn), len(tasks), texts, retrieved, num_copies)
    if is_train:
        share = len(texts.examples) / max(1, len(retrieved.examples))
        facts["text_share"] = round(share, 4)
        remedy = "Add passages."
        if texts.num_skipped:
            remedy = (
                f"{texts.num_skipped:,} chunks gave none. Lower r_ft.text_tokens "
                f"({settings.text_tokens}), because a chunk needs twice as many tokens, or add passages."
            )
        _warn("r_ft", "examples", settings.corpus_text_fraction, facts, remedy)
    return facts


def with_gold(rows: ChunkRows, questions: Sequence[Question], row_of: Mapping[str, int]) -> ChunkRows:
    """`rows` with a gold chunk in the last place of each question that has one but did not retrieve it."""
    rows = rows.copy()
    for number, question in enumerate(questions):
        gold = [row_of[chunk] for chunk in question.gold_chunks]
        retrieved = rows[number].tolist()
        if gold and not set(gold) & set(retrieved):
            # The last place is that of the worst chunk.
            rows[number, -1] = gold[0]
    return rows


def with_gold_alone(
    rows: ChunkRows,
    questions: Sequence[Question],
    row_of: Mapping[str, int],
    only_gold: Bool[np.ndarray, " E"],
) -> ChunkRows:
    """`rows` with a gold chunk and nothing else for the questions of `only_gold` that have one.

    The paper treats reading comprehension so: the gold context is the Background, and nothing is retrieved.
    """
    rows = rows.copy()
    for number in np.flatnonzero(only_gold).tolist():
        gold = questions[number].gold_chunks
        if gold:
            rows[number] = -1
            rows[number, 0] = row_of[gold[0]]
    return rows


def _drawn(
    corpus: Corpus, mixture: str, split: str, choose_answer: Callable[[Question], str]
) -> list[tuple[Question, Example]]:
    """The examples that were drawn for a mixture; without a mixture each question with one of its answers."""
    drawn = corpus.examples(mixture, split)
    if drawn is not None:
        return drawn
    pairs = []
    for question in corpus.questions(split):
        pairs.append((question, question_example(question, choose_answer(question))))
    return pairs


def _fitting(
    drawn: Sequence[tuple[Question, Example]], readers: Sequence[LmTokenizer], max_length: int
) -> tuple[list[Question], list[Example]]:
    """The questions whose examples fit into a row, and these examples."""
    # Each process tokenises its part of them.
    process, num_processes = processes.process_index_and_count()
    parts = split(len(drawn), num_processes)
    own = [drawn[row][1] for row in parts[process]]
    is_fitting = np.array([_if_fits(one, readers, max_length) is not None for one in own], bool)
    if num_processes > 1:
        is_fitting = concatenate_hosts(is_fitting, [len(part) for part in parts])

    questions, examples = [], []
    for row in np.flatnonzero(is_fitting).tolist():
        question, example = drawn[row]
        questions.append(question)
        examples.append(example)
    if drawn and not questions:
        raise ValueError(
            f"retrieve: expected a question that fits, with its answer, into the {max_length} tokens of a "
            f"row, got {len(drawn)} that are all longer. Raise the sequence_length of the stage that reads "
            "them."
        )
    return questions, examples


def _without_chunks(examples: Sequence[Example]) -> list[Example]:
    """The examples with no Background, where they do not bring their own."""
    return [
        replace(example, background="") if example.background is None else example for example in examples
    ]


def _if_fits(example: Example | None, readers: Sequence[LmTokenizer], max_length: int) -> Example | None:
    if example and all(fits(tokenizer, example, max_length) for tokenizer in readers):
        return example
    return None


def _search(
    sources: _Sources, tasks: Sequence[Example], texts: CutExamples, k: int, output: StageFolder, split: str
) -> ExampleSearch:
    """The search of the examples' chunks, tasks first."""
    examples = [*tasks, *texts.examples]
    source_rows = np.full(len(examples), -1, np.int64)
    source_rows[len(tasks) :] = texts.sources
    return ExampleSearch(sources.searcher, sources.corpus.chunks, output, split, examples, source_rows, k)


def _retrieved(search: ExampleSearch) -> tuple[Retrieved, int]:
    """The examples with their chunks, and how many candidates were left out as copies."""
    search.make()
    rows, scores, num_copies = search.read()
    return Retrieved(search.examples, rows, scores), num_copies


def _facts(
    num_drawn: int, num_tasks: int, texts: CutExamples, retrieved: Retrieved, num_copies: int
) -> dict[str, Any]:
    """What the manifest says of a split."""
    # Texts that are short of chunks: too many candidates were copies, or the corpus is small.
    text_rows = retrieved.chunk_rows[num_tasks:]
    retrieves = np.array([example.background is None for example in texts.examples], bool)
    is_short = (text_rows[retrieves] < 0).any(axis=1)
    return {
        "questions": num_tasks,
        "questions_too_long": num_drawn - num_tasks,
        "text_examples": len(texts.examples),
        "text_examples_asked": texts.num_asked,
        "chunks_skipped": texts.num_skipped,
        "copies_excluded": num_copies,
        "texts_short_of_chunks": int(is_short.sum()),
    }


def _warn(section: str, unit: str, fraction: float, facts: Mapping[str, Any], remedy: str) -> None:
    """Say where the corpus has fewer text examples than were asked for, and what helps."""
    made, asked = facts["text_examples"], facts["text_examples_asked"]
    if made < asked:
        print(
            f"   warning: {section}.corpus_text_fraction {fraction} asks for {asked:,} text examples, the "
            f"corpus gives {made:,}: they are {facts['text_share']:.1%} of the {unit}, each as often as any "
            f"other. {remedy}",
            flush=True,
        )
