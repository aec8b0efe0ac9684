r"""A task of the evaluation: from official files to prompts, queries and gold answers.

A task has files, a metric and a way to find an answer. Either the language model generates candidates of at
most `max_new_tokens` tokens, and the one with the highest score is the answer, or it chooses among the task's
own choices. A candidate or a choice y is scored by the task's `scoring_rule`:

    sum             log p(y | x)                          short answers, MMLU's letters
    nll_token       log p(y | x) / tokens of y            long answers: ELI5, Wizard of Wikipedia
    per_character   log p(y | x) / characters of y        PIQA, SIQA, HellaSwag, WinoGrande, ARC
    nll_compl       log p(y | x) − log p(y | "Answer:")   BoolQ, OpenBookQA

By `sum` the shortest of several long answers would always win, and by `per_character` "no" would win over
"yes". WinoGrande's y is the rest of the sentence, the same words after either option. Templates and rules are
those of arXiv 2310.01352; what the paper leaves open is marked `ours`.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from etils import epath

from radit_jax.data.readers.lines import one_of
from radit_jax.text.metrics import exact_match, f1, normalize, rouge_l, strict_accuracy

ScoringRule = Literal["sum", "nll_token", "per_character", "nll_compl"]
Share = Literal["all", "one half", "the other half", "a tenth", "nine tenths"]
PRIOR_PROMPT = "Answer:"  # the prompt of `nll_compl`'s second term
METRICS = {"exact_match": exact_match, "f1": f1, "rouge_l": rouge_l, "accuracy": strict_accuracy}


class Choice(NamedTuple):
    """An answer to choose: the language model reads `prompt` and is scored on `scored`."""

    answer: str
    prompt: str
    scored: str


@dataclass(frozen=True)
class EvalExample:
    """One question of a task."""

    id: str
    prompt: str  # the text after the Background, up to where the answer starts
    query: str = ""  # what the retriever reads; empty: nothing is retrieved
    answers: tuple[str, ...] = ()  # gold; empty in test files without answers
    choices: tuple[Choice, ...] = ()
    label: int = -1  # number of the right choice
    target: str = ""  # the answer that a shot shows
    pages: tuple[tuple[str, ...], ...] = ()  # KILT's provenance: sets of Wikipedia pages
    subject: str = ""  # of MMLU, where a question's shots are from its own subject

    @property
    def shot(self) -> tuple[str, str]:
        """Prompt and right answer, as an example before other questions; no text goes between the two."""
        if self.choices:
            right = self.choices[self.label]
            return right.prompt, right.scored
        return self.prompt, f" {self.target}"


# Yields a file's questions, and counts the lines that it reads and skips.
Reader = Callable[[epath.Path, Counter[str]], Iterator[EvalExample]]
# From a task's path to all files that its reader opens.
Listing = Callable[[epath.Path], list[epath.Path]]


def only_itself(path: epath.Path) -> list[epath.Path]:
    """The `Listing` of readers that open one file."""
    return [path]


class TaskFile(NamedTuple):
    """An official file under its publisher's name, below a folder with the task's or the source's name."""

    path: str
    read: Reader
    files: Listing = only_itself  # all files that `read` opens


class TaskPart(NamedTuple):
    """A split: an official file, by its name in `EvalTask.sources`, and the share of it that is asked."""

    file: str
    share: Share = "all"

    def holds(self, item: EvalExample) -> bool:
        """Whether the item is in this share."""
        if self.share == "all":
            return True

        # Halves are of KILT's files, whose items have ids.
        if self.share in ("one half", "the other half"):
            is_even = _hash(item.id) % 2 == 0
            return is_even == (self.share == "one half")

        # Tenths go by the question, so that one that is in a file twice is on one side only.
        question = normalize(item.query or item.prompt)
        is_tenth = _hash(question) % 10 == 0
        return is_tenth == (self.share == "a tenth")


def _hash(text: str) -> int:
    """A number that depends on the text alone, the same on every machine and in every run."""
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8])


@dataclass(frozen=True)
class EvalTask:
    """A task: its files, its splits, its metric, and how the language model answers it."""

    name: str
    metric: str  # a name in METRICS; for a task with choices it is the accuracy of the choice
    sources: Mapping[str, tuple[TaskFile, ...]]  # alternatives for each file: the first that exists is read
    splits: Mapping[str, TaskPart]  # train (for shots), dev, test, official; KILT's tasks also have hidden
    scoring_rule: ScoringRule = "sum"  # by which generated candidates, or the task's choices, are compared
    max_new_tokens: int = 32  # of a generated answer; 0: the answer is chosen
    as_answer: Callable[[str], str] = str.strip  # from a generated text to the form of the task's answers
    is_official: bool = False  # a row of the table, not a user's file

    def load(
        self,
        folder: epath.PathLike,
        split: str = "test",
        counts: Counter[str] | None = None,
    ) -> list[EvalExample]:
        """The items of a split, from the task's file below `folder`, or directly in it.

        `counts` gets how many of the file's items were `read`, how many were `skipped_…` for which reason,
        and how many are `in_another_split`; all others are returned.
        """
        part = self._part(split)
        source, path = self._find(epath.Path(folder), part.file)
        if counts is None:
            counts = Counter()

        # Several splits may be parts of one file.
        items = []
        for item in source.read(path, counts):
            if part.holds(item):
                items.append(item)
            else:
                counts["in_another_split"] += 1
        if not items:
            raise ValueError(
                f"{path}: expected a question of {self.name} in {part.share} of it, its split {split!r}, got "
                "none. Name a larger file, or another split."
            )
        return items

    def has(self, folder: epath.PathLike, split: str) -> bool:
        """Whether there is such a split, with its file in `folder`."""
        if split not in self.splits:
            return False
        file = self.splits[split].file
        return self._first_that_exists(epath.Path(folder), file) is not None

    def files(
        self,
        folder: epath.PathLike,
        splits: Iterable[str],
    ) -> list[epath.Path]:
        """The existing files in `folder` that these splits are read from, each once."""
        parts = [self.splits[split] for split in splits if split in self.splits]
        paths: list[epath.Path] = []
        for part in parts:
            existing = self._first_that_exists(epath.Path(folder), part.file)
            if existing is not None:
                source, path = existing
                paths += source.files(path)
        return [path for path in dict.fromkeys(paths) if path.exists()]

    def describe(self, folder: epath.PathLike, split: str) -> str:
        """Which questions a split has, in words: `one half of kilt/trex-dev-kilt.jsonl`."""
        part = self._part(split)
        source, _ = self._find(epath.Path(folder), part.file)
        return f"{part.share} of {source.path}"

    def _part(self, split: str) -> TaskPart:
        """The file and the share of it that make a split."""
        if split not in self.splits:
            raise ValueError(
                f"{self.name}: expected a split {one_of(list(self.splits))}, got {split!r}. Set "
                "evaluate.split to one of them."
            )
        return self.splits[split]

    def _first_that_exists(
        self,
        folder: epath.Path,
        file: str,
    ) -> tuple[TaskFile, epath.Path] | None:
        """The first of a file's sources that exists, below its own folder or directly in `folder`."""
        for source in self.sources[file]:
            for path in (folder / source.path, folder / epath.Path(source.path).name):
                if path.exists():
                    return source, path
        return None

    def _find(
        self,
        folder: epath.Path,
        file: str,
    ) -> tuple[TaskFile, epath.Path]:
        """The source of a file and its path; an error names the files that would do."""
        # Any of the sources would do, so the error names them all.
        existing = self._first_that_exists(folder, file)
        if existing is None:
            names = one_of([source.path for source in self.sources[file]])
            raise ValueError(f"{self.name}: expected {names} in {folder}, got none. Download it there.")
        return existing

    @property
    def generates(self) -> bool:
        """Whether the language model writes the answer; otherwise it chooses one."""
        return self.max_new_tokens > 0

    @property
    def is_kilt(self) -> bool:
        """Whether KILT's leaderboard takes predictions for its test questions."""
        return "hidden" in self.splits

    def answer(self, generated: str) -> str:
        """A generated text in the form of the task's answers."""
        return self.as_answer(generated)

    def metric_value(self, item: EvalExample, generated: str) -> float:
        """The task's metric for a generated answer, in 0 to 1; 0 for an empty one."""
        metric = METRICS[self.metric]
        return metric(self.answer(generated), item.answers)


def sample(
    items: Sequence[EvalExample],
    limit: int,
    *,
    seed: int,
) -> list[EvalExample]:
    """At most `limit` random items, in their order; a larger sample contains a smaller one."""
    rng = np.random.default_rng([seed, *b"sample"])
    return _draw(items, limit, rng)


def draw_shots(
    pool: Sequence[EvalExample],
    count: int,
    *,
    seed: int,
    subject: str = "",
) -> list[EvalExample]:
    """`count` random examples of the pool, in its order; with a subject, of that subject only."""
    candidates = [item for item in pool if not subject or item.subject == subject]
    if len(candidates) < count:
        of_subject = f" of {subject}" if subject else ""
        raise ValueError(
            f"draw_shots: expected {count} examples{of_subject}, got {len(candidates)}. Ask for fewer shots, "
            "or give a larger file."
        )
    rng = np.random.default_rng([seed, *subject.encode()])
    return _draw(candidates, count, rng)


def _draw(
    items: Sequence[EvalExample],
    count: int,
    rng: np.random.Generator,
) -> list[EvalExample]:
    """The first `count` of the items' random order, in their own order."""
    order = rng.permutation(len(items))
    drawn = sorted(order[:count].tolist())
    return [items[index] for index in drawn]
