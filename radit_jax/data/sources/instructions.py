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
from radit_jax.data.readers.documents import corpus_files, find_corpus, read_chunked
from radit_jax.data.readers.tables import Quoting
from radit_jax.data.records import Chunk, Example, Item, Question

SHORT_ANSWER = 5  # words: what may be evaluated by exact match
_TOLERANCE = 0.1  # of an expected count: the paper rounds, files are revised, and its count of oasst1's
# replies (31,598) is lower than that of all of them, which we take


def read_chunks(
    passages: str, format: str, max_words: int, counts: Counter[str], quoting: Quoting = "auto"
) -> Iterator[Chunk]:
    """The chunks of a corpus' file or folder, a document in memory at a time; what was read is counted."""
    path = corpus_path(passages)
    for _, chunks in read_chunked(path, format, max_words, quoting):
        counts["documents"] += 1
        counts["documents_split"] += len(chunks) > 1
        counts["documents_skipped_without_text"] += not chunks
        yield from chunks
    if counts["documents"] == counts["documents_skipped_without_text"]:
        raise ValueError(f"{path}: expected a document with text to retrieve, got none. Write one per line.")


def corpus_path(passages: str) -> epath.Path:
    """The corpus' file that `data.corpus` names, or finds in a folder."""
    root = epath.Path(passages)
    if not root.exists():
        raise ValueError(
            f"data.corpus: no {root} came, needed is a corpus to retrieve from; "
            "name its folder by --set data.corpus=PATH"
        )
    path = find_corpus(root) if root.is_dir() else root
    if path is None:
        raise ValueError(
            f"data.corpus {root}: no corpus in it, needed is passages.jsonl or another form; "
            "name its file by --set data.passages_file=NAME"
        )
    return path


def corpus_sources(passages: str, format: str) -> list[epath.Path] | None:
    """The files that the chunks are read from; None where Beam prepared them, and all of the folder is."""
    if (epath.Path(passages) / PREPARED).exists():
        return None
    return corpus_files(corpus_path(passages), format)


def dataset_sources(settings: Instructions) -> list[epath.Path]:
    """The files that examples are read from: what else lies in `data.datasets` makes nothing stale."""
    found: list[epath.Path] = []
    for task in _Mixtures(settings, 0.0, 1, 0).tasks:
        found += files_read(task, settings.datasets)
    for name in settings.lm_ft_benchmarks:
        found += find_task(name).files(settings.datasets, ("train", "dev", "test"))
    return list(dict.fromkeys(found))


def check_files(settings: Instructions) -> None:
    """Refuse names of no dataset, and datasets without files, before the corpus is read."""
    for name in settings.lm_ft_benchmarks:
        find_task(name)
    wanted = {}
    if settings.lm_ft_datasets or not settings.lm_ft_benchmarks:
        wanted["lm_ft"] = datasets_of("lm_ft", settings.lm_ft_datasets or None)
    wanted["r_ft"] = datasets_of("r_ft", settings.r_ft_datasets or None)
    for mixture in ("lm_ft", "r_ft"):
        members = datasets_of(mixture, None)
        for name in _weights(settings, mixture):
            if DATASETS[name] not in members or DATASETS[name].category == "dialogue" and mixture == "lm_ft":
                raise ValueError(
                    f"data.{mixture}_weights: expected a dataset whose share is its own, got {name!r}. Leave "
                    "it out; data.dialogue_fraction is the share of dialogues in LM-ft."
                )
    for mixture, tasks in wanted.items():
        absent = [task.name for task in tasks if not has_split(task, settings.datasets, "train")]
        if absent:
            raise ValueError(
                f"data.datasets {settings.datasets}: no train part of {', '.join(absent)} came; get their "
                "files (python -m radit_jax.data.finetuning.tfds_builders --help), or name those "
                "that are there by "
                f"--set data.{mixture}_datasets=NAME,NAME"
            )


def read_examples(
    settings: Instructions, corpus_text_fraction: float, instances_per_example: int, seed: int
) -> CorpusData:
    """The examples of D_L and D_R, without chunks; `corpus_text_fraction` is LM-ft's.

    `instances_per_example` is how many instances LM-ft makes of an example that retrieves.
    """
    reading = ReadOptions(settings.datasets, seed, settings.held_out_fraction, settings.on_error)
    mixtures = _Mixtures(settings, corpus_text_fraction, instances_per_example, seed)
    r_ft_dev, test = _apart(mixtures.r_ft(reading, "dev"), settings.r_ft_dev_examples)
    asked = asked_in_dev_and_test(reading, mixtures.tasks)
    for item in mixtures.benchmark_questions():
        asked.add(item)
    tested = AskedElsewhere()
    for item in test.items:
        tested.add(item)
    train, dev = replace(reading, without=asked), replace(reading, without=tested)
    drawn = {
        ("lm_ft", "train"): mixtures.lm_ft(train, "train"),
        ("lm_ft", "dev"): mixtures.lm_ft(dev, "dev"),
        ("r_ft", "train"): mixtures.r_ft(train, "train"),
        ("r_ft", "dev"): r_ft_dev,
    }
    for (mixture, split), found in drawn.items():
        if not found.examples:
            raise ValueError(
                f"data.{mixture}_datasets: no {split} example came, needed is one at least; name a dataset "
                "with such a part, or raise data.held_out_fraction"
            )
    questions: dict[str, list[Question]] = {s: drawn["r_ft", s].questions for s in ("train", "dev")}
    questions["test"] = test.questions
    return CorpusData(
        (),
        questions,
        examples={name: list(zip(d.questions, d.examples, strict=True)) for name, d in drawn.items()},
        counts={f"{mixture}_{split}": found.counts for (mixture, split), found in drawn.items()},
    )


def instruction_warnings(settings: Instructions, num_chunks: int, corpus: CorpusData) -> list[str]:
    """What was expected and did not come, in words."""
    kept = sum(count["kept"] for count in corpus.counts["r_ft_train"].values())
    pairs = (
        ("expected_chunks", settings.expected_chunks, num_chunks, "chunks"),
        ("expected_r_ft_tasks", settings.expected_r_ft_tasks, kept, "train examples of D_R's datasets"),
    )
    return [
        f"expected {expected:,} {what} (data.{name}), got {found:,}"
        for name, expected, found, what in pairs
        if expected and abs(found - expected) > _TOLERANCE * expected
    ]


@dataclass(frozen=True)
class _Mixtures:
    """D_L and D_R as the settings ask for them."""

    settings: Instructions
    corpus_text_fraction: float
    instances_per_example: int
    seed: int

    @property
    def on_benchmarks(self) -> bool:
        """Whether LM-ft learns from tasks of the evaluation alone."""
        return bool(self.settings.lm_ft_benchmarks) and not self.settings.lm_ft_datasets

    @property
    def tasks(self) -> list[Dataset]:
        """All datasets of either mixture, each once."""
        lm_ft = [] if self.on_benchmarks else datasets_of("lm_ft", self.settings.lm_ft_datasets or None)
        r_ft = datasets_of("r_ft", self.settings.r_ft_datasets or None)
        return list({task.name: task for task in (*lm_ft, *r_ft)}.values())

    def lm_ft(self, reading: ReadOptions, split: Split) -> Drawn:
        if self.on_benchmarks:
            return self._benchmarks(reading, split)
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
        is_train = split == "train"
        return draw_r_ft(
            reading,
            self.settings.r_ft_datasets or None,
            split=split,
            count=None if is_train else 2 * self.settings.r_ft_dev_examples,
            weights=_weights(self.settings, "r_ft") if is_train else None,
        )

    def _benchmarks(self, reading: ReadOptions, split: Split) -> Drawn:
        """So many examples of each task of the evaluation, from its train or dev part, but those left out."""
        drawn = Drawn([], [], [], {})
        for name in self.settings.lm_ft_benchmarks:
            counts = Counter[str]()
            whole = find_task(name).load(self.settings.datasets, split, counts)
            items = [asked for asked in whole if _benchmark_item(name, asked) not in reading.without]
            counts[ASKED_ELSEWHERE] = len(whole) - len(items)
            some = draw_shots(items, self.settings.benchmark_examples, seed=self.seed)
            drawn.examples.extend(_benchmark_example(name, item) for item in some)
            drawn.questions.extend(_benchmark_question(name, item) for item in some)
            drawn.counts[name] = {**counts, "drawn": len(some)}
        return drawn

    def benchmark_questions(self) -> Iterator[Item]:
        """What the tasks that LM-ft learns from are evaluated on, which nobody must learn from.

        A file of somebody's own has no such part: whoever names it here learns from all of it.
        """
        tasks = {name: find_task(name) for name in self.settings.lm_ft_benchmarks}
        for name, task in tasks.items():
            for split in ("dev", "test"):
                if task.is_official and task.has(self.settings.datasets, split):
                    for asked in task.load(self.settings.datasets, split):
                        yield _benchmark_item(name, asked)


def _weights(settings: Instructions, mixture: Mixture) -> dict[str, float]:
    pairs = settings.lm_ft_weights if mixture == "lm_ft" else settings.r_ft_weights
    return parse_weights(f"data.{mixture}_weights", pairs)


def _apart(drawn: Drawn, count: int) -> tuple[Drawn, Drawn]:
    """The examples that checkpoints are chosen by, and those that nothing is chosen by.

    Of each `count` at most: every second question with a short answer is one of the latter, and a question
    that is asked twice is on one side.
    """
    short = [number for number, question in enumerate(drawn.questions) if _is_short(question)]
    test = short[::2][:count]
    tested = AskedElsewhere()
    for number in test:
        tested.add(drawn.items[number])
    dev = [number for number, item in enumerate(drawn.items) if item not in tested][:count]
    if not test or not dev:
        raise ValueError(
            f"data.r_ft_datasets: {len(drawn.questions)} dev questions came, {len(short)} with an answer of "
            f"at most {SHORT_ANSWER} words, needed are one such to evaluate on and another to choose "
            "checkpoints by; add a dataset such as freebase_qa, or raise data.held_out_fraction"
        )
    return _some(drawn, dev), _some(drawn, test)


def _some(drawn: Drawn, numbers: Sequence[int]) -> Drawn:
    return Drawn(
        [drawn.examples[number] for number in numbers],
        [drawn.questions[number] for number in numbers],
        [drawn.items[number] for number in numbers],
        drawn.counts,
    )


def _benchmark_item(name: str, item: EvalExample) -> Item:
    """A task's question in the form in which questions are compared."""
    # AIDA's query is a mention alone, which other questions have as well.
    question = item.prompt if name == "aida" else item.query or item.prompt
    return Item(f"{name}/{item.id}", question, item.answers)


def _benchmark_example(name: str, item: EvalExample) -> Example:
    prompt, answer = item.shot
    return Example(f"{name}/{item.id}", item.query, prompt, answer)


def _benchmark_question(name: str, item: EvalExample) -> Question:
    return Question(f"{name}/{item.id}", item.query, item.answers, prompt=item.prompt)


def _is_short(question: Question) -> bool:
    return any(len(answer.split()) <= SHORT_ANSWER for answer in question.answers)
