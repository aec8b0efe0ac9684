"""The paper's data: a corpus to retrieve from, and the examples of D_L and D_R drawn from their datasets.

    corpus/     a corpus in a form of `documents.py`
    datasets/   gsm8k/train.jsonl …, the publishers' files, or what `finetuning/tfds_builders.py` wrote

Every dataset's dev part gives the examples that checkpoints are chosen with; of a dataset without one some of
the train part are held out. The dev examples of D_R are also the questions: the index is tuned and measured
with them, and those with a short answer can be evaluated on. No question of any dev or test part is in a
train part, and nothing is chosen by a question that is evaluated on.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from etils import epath

from radit_jax.config import Instructions
from radit_jax.data.artifacts.corpus import PREPARED, CorpusData
from radit_jax.data.eval_tasks.registry import find_task
from radit_jax.data.eval_tasks.task import EvalExample, draw_shots
from radit_jax.data.finetuning.asked_elsewhere import AskedElsewhere
from radit_jax.data.finetuning.datasets import DATASETS, Dataset, Mixture
from radit_jax.data.finetuning.mixture import (
    ASKED_ELSEWHERE,
    Drawn,
    ReadOptions,
    asked_in_dev_and_test,
    datasets_of,
    draw_lm_ft,
    draw_r_ft,
    files_read,
    has_split,
    parse_weights,
)
from radit_jax.data.finetuning.sources import Split
from radit_jax.data.readers.chunking import count_document
from radit_jax.data.readers.documents import corpus_files, find_corpus, read_chunked
from radit_jax.data.readers.tables import Quoting
from radit_jax.data.records import Chunk, Example, Item, Question

SHORT_ANSWER = 5  # words: what may be evaluated by exact match
# By what share a count may differ from the expected one: the paper rounds, files are revised, and its count
# of oasst1's replies (31,598) is lower than that of all of them, which we take.
_TOLERANCE = 0.1


# ---- the corpus ----


def read_chunks(
    passages: str, format: str, max_words: int, counts: Counter[str], quoting: Quoting = "auto"
) -> Iterator[Chunk]:
    """The chunks of a corpus' file or folder, a document in memory at a time; what was read is counted."""
    path = corpus_path(passages)
    for _, chunks in read_chunked(path, format, max_words, quoting):
        count_document(counts, chunks)
        yield from chunks
    refuse_no_text(path, counts)


def refuse_no_text(path: epath.Path, counts: Counter[str]) -> None:
    """ValueError for a corpus of which no document has a chunk."""
    if counts["documents"] == counts["documents_skipped_without_text"]:
        raise ValueError(f"{path}: expected a document with text to retrieve, got none. Write one per line.")


def corpus_path(passages: str) -> epath.Path:
    """The corpus' file that `data.corpus` names, or finds in a folder."""
    root = epath.Path(passages)
    if not root.exists():
        raise ValueError(
            f"data.corpus: expected a corpus to retrieve from, got no {root}. Name its folder by --set "
            "data.corpus=PATH."
        )
    path = find_corpus(root) if root.is_dir() else root
    if path is None:
        raise ValueError(
            f"data.corpus {root}: expected passages.jsonl or a corpus in another form, got neither. Name its "
            "file by --set data.passages_file=NAME."
        )
    return path


def corpus_sources(passages: str, format: str) -> list[epath.Path] | None:
    """The files that the chunks are read from; None where Beam prepared them, and all of the folder is."""
    if (epath.Path(passages) / PREPARED).exists():
        return None
    return corpus_files(corpus_path(passages), format)


# ---- the datasets ----


def dataset_sources(settings: Instructions) -> list[epath.Path]:
    """The files that examples are read from: what else lies in `data.datasets` makes nothing stale."""
    files: list[epath.Path] = []
    # Which datasets they are does not depend on shares or the seed.
    for dataset in _Mixtures(settings, 0.0, 1, 0).datasets:
        files += files_read(dataset, settings.datasets)
    for name in settings.lm_ft_benchmarks:
        files += find_task(name).files(settings.datasets, ("train", "dev", "test"))
    return list(dict.fromkeys(files))


def check_files(settings: Instructions) -> None:
    """Refuse unknown names, weights that have no effect, and datasets without files.

    It reads no examples, so that it can run before the corpus is read.
    """
    # 1) Look up the tasks and datasets by name. Where LM-ft learns from tasks alone, it has no datasets.
    for name in settings.lm_ft_benchmarks:
        find_task(name)
    datasets_by_mixture = {}
    if settings.lm_ft_datasets or not settings.lm_ft_benchmarks:
        datasets_by_mixture["lm_ft"] = datasets_of("lm_ft", settings.lm_ft_datasets or None)
    datasets_by_mixture["r_ft"] = datasets_of("r_ft", settings.r_ft_datasets or None)
    # 2) Refuse weights of dialogues, and of datasets that are not the mixture's.
    for mixture in ("lm_ft", "r_ft"):
        for name in _weights(settings, mixture):
            if not _may_be_weighted(DATASETS[name], mixture):
                raise ValueError(
                    f"data.{mixture}_weights: expected a dataset whose share is its own, got {name!r}. Leave "
                    "it out; data.dialogue_fraction is the share of dialogues in LM-ft."
                )
    # 3) Look for the files of every dataset's train part.
    for mixture, datasets in datasets_by_mixture.items():
        absent = [dataset.name for dataset in datasets if not has_split(dataset, settings.datasets, "train")]
        if absent:
            raise ValueError(
                f"data.datasets {settings.datasets}: expected the train parts of {mixture}'s datasets, got "
                f"none of {', '.join(absent)}. Get their files (python -m "
                "radit_jax.data.finetuning.tfds_builders --help), or name those that are there by --set "
                f"data.{mixture}_datasets=NAME,NAME."
            )


def _may_be_weighted(dataset: Dataset, mixture: Mixture) -> bool:
    """Whether a weight may change a dataset's share; the share of D_L's dialogues is a setting."""
    if mixture == "lm_ft" and dataset.category == "dialogue":
        return False
    return dataset in datasets_of(mixture, None)


def read_examples(
    settings: Instructions, corpus_text_fraction: float, instances_per_example: int, seed: int
) -> CorpusData:
    """The examples of D_L and D_R, without chunks; `corpus_text_fraction` is LM-ft's.

    `instances_per_example` is how many instances LM-ft makes of an example that retrieves.
    """
    reading = ReadOptions(settings.datasets, seed, settings.held_out_fraction, settings.on_error)
    mixtures = _Mixtures(settings, corpus_text_fraction, instances_per_example, seed)
    # 1) D_R's dev part gives the examples that checkpoints are chosen by, and the test questions.
    r_ft_dev, test = _split_dev(mixtures.r_ft(reading, "dev"), settings.r_ft_dev_examples)
    # 2) No train part may have a question of a dev or test part, nor a dev part a test question.
    asked = asked_in_dev_and_test(reading, mixtures.datasets)
    for item in mixtures.benchmark_questions():
        asked.add(item)
    tested = AskedElsewhere()
    for item in test.items:
        tested.add(item)
    train = replace(reading, without=asked)
    dev = replace(reading, without=tested)
    # 3) Draw.
    drawn = {
        ("lm_ft", "train"): mixtures.lm_ft(train, "train"),
        ("lm_ft", "dev"): mixtures.lm_ft(dev, "dev"),
        ("r_ft", "train"): mixtures.r_ft(train, "train"),
        ("r_ft", "dev"): r_ft_dev,
    }
    # 4) Put every example with its question, and refuse an empty part.
    examples = {}
    counts = {}
    for (mixture, split), part in drawn.items():
        if not part.examples:
            raise ValueError(
                f"data.{mixture}_datasets: expected one {split} example at least, got none. Name a dataset "
                "with such a part, or raise data.held_out_fraction."
            )
        examples[mixture, split] = list(zip(part.questions, part.examples, strict=True))
        counts[f"{mixture}_{split}"] = part.counts
    questions = {
        "train": drawn["r_ft", "train"].questions,
        "dev": r_ft_dev.questions,
        "test": test.questions,
    }
    return CorpusData((), questions, examples=examples, counts=counts)


def instruction_warnings(settings: Instructions, num_chunks: int, corpus: CorpusData) -> list[str]:
    """Counts that differ from those that the settings expect, in words."""
    num_examples = sum(count["kept"] for count in corpus.counts["r_ft_train"].values())
    # (setting, expected, counted, in words)
    chunks = ("expected_chunks", settings.expected_chunks, num_chunks, "chunks")
    examples = (
        "expected_r_ft_tasks",
        settings.expected_r_ft_tasks,
        num_examples,
        "train examples of D_R's datasets",
    )
    warnings = []
    for name, expected, count, what in (chunks, examples):
        if expected and abs(count - expected) > _TOLERANCE * expected:
            warnings.append(f"expected {expected:,} {what} (data.{name}), got {count:,}")
    return warnings


@dataclass(frozen=True)
class _Mixtures:
    """D_L and D_R as the settings ask for them."""

    settings: Instructions
    corpus_text_fraction: float  # the share of LM-ft's instances that are the corpus' own text
    instances_per_example: int  # of one that retrieves
    seed: int

    @property
    def on_benchmarks(self) -> bool:
        """Whether LM-ft learns from tasks of the evaluation alone."""
        return bool(self.settings.lm_ft_benchmarks) and not self.settings.lm_ft_datasets

    @property
    def datasets(self) -> list[Dataset]:
        """All datasets of either mixture, each once."""
        lm_ft: list[Dataset] = []
        if not self.on_benchmarks:
            lm_ft = datasets_of("lm_ft", self.settings.lm_ft_datasets or None)
        r_ft = datasets_of("r_ft", self.settings.r_ft_datasets or None)
        by_name = {dataset.name: dataset for dataset in (*lm_ft, *r_ft)}
        return list(by_name.values())

    def lm_ft(self, reading: ReadOptions, split: Split) -> Drawn:
        """LM-ft's examples of a split, before the unsupervised text."""
        if self.on_benchmarks:
            return self._benchmarks(reading, split)
        # Development examples are not weighted: they measure.
        is_train = split == "train"
        return draw_lm_ft(
            reading,
            self.settings.lm_ft_datasets or None,
            split=split,
            cap=self.settings.lm_ft_cap if is_train else self.settings.lm_ft_dev_examples,
            dialogue_share=self.settings.dialogue_fraction,
            text_share=self.corpus_text_fraction,
            weights=_weights(self.settings, "lm_ft") if is_train else None,
            num_chunks=self.instances_per_example,
        )

    def r_ft(self, reading: ReadOptions, split: Split) -> Drawn:
        """R-ft's examples of a split, before the corpus' text; of the dev part enough to be split in two."""
        # Half of the dev part chooses checkpoints, half is evaluated on.
        is_train = split == "train"
        return draw_r_ft(
            reading,
            self.settings.r_ft_datasets or None,
            split=split,
            count=None if is_train else 2 * self.settings.r_ft_dev_examples,
            weights=_weights(self.settings, "r_ft") if is_train else None,
        )

    def _benchmarks(self, reading: ReadOptions, split: Split) -> Drawn:
        """`benchmark_examples` of each task of the evaluation, from its train or dev part."""
        drawn = Drawn([], [], [], {})
        for name in self.settings.lm_ft_benchmarks:
            counts = Counter[str]()
            loaded = find_task(name).load(self.settings.datasets, split, counts)
            # Leave out what is asked in a dev or test part.
            allowed = [asked for asked in loaded if _benchmark_item(name, asked) not in reading.without]
            counts[ASKED_ELSEWHERE] = len(loaded) - len(allowed)
            shots = draw_shots(allowed, self.settings.benchmark_examples, seed=self.seed)
            drawn.examples.extend(_benchmark_example(name, asked) for asked in shots)
            drawn.questions.extend(_benchmark_question(name, asked) for asked in shots)
            drawn.counts[name] = {**counts, "drawn": len(shots)}
        return drawn

    def benchmark_questions(self) -> Iterator[Item]:
        """What the tasks that LM-ft learns from are evaluated on, and which no training may see.

        A user's own file has no such part: LM-ft learns from all of it.
        """
        root = self.settings.datasets
        for name in self.settings.lm_ft_benchmarks:
            task = find_task(name)
            # Its train part is what LM-ft learns from.
            for split in ("dev", "test"):
                if task.is_official and task.has(root, split):
                    for asked in task.load(root, split):
                        yield _benchmark_item(name, asked)


def _weights(settings: Instructions, mixture: Mixture) -> dict[str, float]:
    """The weight of each dataset that the settings give one."""
    pairs = settings.lm_ft_weights if mixture == "lm_ft" else settings.r_ft_weights
    return parse_weights(f"data.{mixture}_weights", pairs)


def _split_dev(drawn: Drawn, count: int) -> tuple[Drawn, Drawn]:
    """The examples that checkpoints are chosen by, and the test examples, which choose nothing.

    Either has at most `count`. Every second question with a short answer is a test question, and a question
    that is asked twice is on one side.
    """
    # Only short answers can be evaluated by exact match.
    short = [index for index, question in enumerate(drawn.questions) if _is_short(question)]
    test = short[::2][:count]
    tested = AskedElsewhere()
    for index in test:
        tested.add(drawn.items[index])
    dev = [index for index, item in enumerate(drawn.items) if item not in tested][:count]
    if not test or not dev:
        raise ValueError(
            f"data.r_ft_datasets: expected a dev question with an answer of at most {SHORT_ANSWER} words to "
            "evaluate on, and another to choose checkpoints by, got "
            f"{len(drawn.questions)} dev questions, {len(short)} of them with such an answer. Add a dataset "
            "such as freebase_qa, or raise data.held_out_fraction."
        )
    return _selected(drawn, dev), _selected(drawn, test)


def _selected(drawn: Drawn, indices: Sequence[int]) -> Drawn:
    return Drawn(
        [drawn.examples[index] for index in indices],
        [drawn.questions[index] for index in indices],
        [drawn.items[index] for index in indices],
        drawn.counts,
    )


def _benchmark_item(name: str, item: EvalExample) -> Item:
    """A task's question in the form in which questions are compared."""
    # AIDA's query is a mention alone, which other questions have as well.
    question = item.prompt if name == "aida" else item.query or item.prompt
    return Item(f"{name}/{item.id}", question, item.answers)


def _benchmark_example(name: str, item: EvalExample) -> Example:
    prompt, answer = item.shot
    return Example(id=f"{name}/{item.id}", query=item.query, prompt=prompt, answer=answer)


def _benchmark_question(name: str, item: EvalExample) -> Question:
    return Question(f"{name}/{item.id}", item.query, item.answers, prompt=item.prompt)


def _is_short(question: Question) -> bool:
    return any(len(answer.split()) <= SHORT_ANSWER for answer in question.answers)
