r"""A task of the evaluation: official files in, prompts, queries and gold answers out.

A task has files, a metric and a way to find an answer. The language model either
generates an answer of at most `max_new_tokens`, of several candidates the one that scores highest, or it
chooses among the task's own choices. A candidate or a choice y is scored by the task's `scoring_rule`:

    sum             log p(y | x)                          short answers, MMLU's letters
    nll_token       log p(y | x) / tokens of y            long answers: ELI5, Wizard of Wikipedia
    per_character   log p(y | x) / characters of y        PIQA, SIQA, HellaSwag, WinoGrande, ARC
    nll_compl       log p(y | x) − log p(y | "Answer:")   BoolQ, OpenBookQA

By the sum the shortest of several long answers would always win, and by characters "no" would win over "yes".
WinoGrande's y is the rest of the sentence, the same words after either option. Templates and rules are those
of arXiv 2310.01352; what the paper leaves open is marked `ours`.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from etils import epath

from radit_jax.data.readers.lines import (
    one_of,
)
from radit_jax.text.metrics import exact_match, f1, normalize, rouge_l, strict_accuracy

ScoringRule = Literal["sum", "nll_token", "per_character", "nll_compl"]
Share = Literal["all", "one half", "the other half", "a tenth", "nine tenths"]
PRIOR_PROMPT = "Answer:"
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
    prompt: str  # what stands behind the Background, up to where the answer starts
    query: str = ""  # what the retriever reads; empty: nothing is retrieved
    answers: tuple[str, ...] = ()  # gold; empty in test files without answers
    choices: tuple[Choice, ...] = ()
    label: int = -1  # of the right choice
    target: str = ""  # what a shot shows as the answer
    pages: tuple[tuple[str, ...], ...] = ()  # KILT's provenance: sets of Wikipedia pages
    subject: str = ""  # MMLU's, whose shots are its own

    @property
    def shot(self) -> tuple[str, str]:
        """Prompt and right answer, as an example to others; concatenated as they are."""
        if self.choices:
            return self.choices[self.label].prompt, self.choices[self.label].scored
        return self.prompt, f" {self.target}"


Reader = Callable[[epath.Path, Counter[str]], Iterator[EvalExample]]
Listing = Callable[[epath.Path], list[epath.Path]]


def only_itself(path: epath.Path) -> list[epath.Path]:
    return [path]


class TaskFile(NamedTuple):
    """An official file, named as its publisher names it, below a folder of the task's or source's name."""

    path: str
    read: Reader
    files: Listing = only_itself  # all that `read` reads


class TaskPart(NamedTuple):
    """A split: an official file, by its name in `EvalTask.sources`, and the share of it that is asked."""

    file: str
    share: Share = "all"

    def holds(self, item: EvalExample) -> bool:
        """Whether the item is in this share. Halves go by a hash of the id, which KILT's items have; tenths
        by one of the question, so that a question that stands twice in a file stays on one side."""
        if self.share == "all":
            return True
        if self.share in ("one half", "the other half"):
            return (_hash(item.id) % 2 == 0) == (self.share == "one half")
        return (_hash(normalize(item.query or item.prompt)) % 10 == 0) == (self.share == "a tenth")


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


@dataclass(frozen=True)
class EvalTask:
    """A task. `sources` has the official files that will do, of which the first that is there is read."""

    name: str
    metric: str  # a name in METRICS; of a task with choices, accuracy of the choice
    sources: Mapping[str, tuple[TaskFile, ...]]
    splits: Mapping[str, TaskPart]  # train (for shots), dev, test, official; of KILT's tasks also hidden
    scoring_rule: ScoringRule = "sum"  # by which generated candidates, or the task's choices, are compared
    max_new_tokens: int = 32  # of a generated answer; 0: the answer is chosen
    as_answer: Callable[[str], str] = str.strip  # a generated text as the task's answers are written
    is_official: bool = False  # a row of the table, not a user's file

    def load(
        self, folder: epath.PathLike, split: str = "test", counts: Counter[str] | None = None
    ) -> list[EvalExample]:
        """The items of a split, of the task's files in `folder`, or directly in it.

        `counts` gets how many of the file were `read`, how many `skipped_…` for which reason, and how many
        are `in_another_split`; the others are kept.
        """
        part = self._part(split)
        source, path = self._find(epath.Path(folder), part.file)
        counted = Counter[str]() if counts is None else counts
        items = []
        for item in source.read(path, counted):
            if part.holds(item):
                items.append(item)
            else:
                counted["in_another_split"] += 1
        if not items:
            raise ValueError(
                f"{path}: expected a question of {self.name} in {part.share} of it, its split {split!r}, got "
                "none. Name a larger file, or another split."
            )
        return items

    def has(self, folder: epath.PathLike, split: str) -> bool:
        """Whether there is such a split, with its file in `folder`."""
        return split in self.splits and self._found(epath.Path(folder), self.splits[split].file) is not None

    def files(self, folder: epath.PathLike, splits: Iterable[str]) -> list[epath.Path]:
        """The files in `folder` that these splits are read from, as far as they are there."""
        named = (self._found(epath.Path(folder), self.splits[s].file) for s in splits if s in self.splits)
        listed = (file for source, path in filter(None, named) for file in source.files(path))
        return [file for file in dict.fromkeys(listed) if file.exists()]

    def describe(self, folder: epath.PathLike, split: str) -> str:
        """Which questions a split has, in words: `one half of kilt/trex-dev-kilt.jsonl`."""
        part = self._part(split)
        source, _ = self._find(epath.Path(folder), part.file)
        return f"{part.share} of {source.path}"

    def _part(self, split: str) -> TaskPart:
        if split not in self.splits:
            raise ValueError(
                f"{self.name}: expected a split {one_of(list(self.splits))}, got {split!r}. Set "
                "evaluate.split to one of them."
            )
        return self.splits[split]

    def _found(self, folder: epath.Path, file: str) -> tuple[TaskFile, epath.Path] | None:
        for source in self.sources[file]:
            for path in (folder / source.path, folder / epath.Path(source.path).name):
                if path.exists():
                    return source, path
        return None

    def _find(self, folder: epath.Path, file: str) -> tuple[TaskFile, epath.Path]:
        if found := self._found(folder, file):
            return found
        names = one_of([source.path for source in self.sources[file]])
        raise ValueError(f"{self.name}: no {names} in {folder}, needed is one; download it there")

    @property
    def generates(self) -> bool:
        """Whether the language model writes the answer; otherwise it chooses one."""
        return self.max_new_tokens > 0

    @property
    def is_kilt(self) -> bool:
        """Whether KILT's leaderboard takes predictions for its test questions."""
        return "hidden" in self.splits

    def answer(self, generated: str) -> str:
        """A generated text as the task's answers are written."""
        return self.as_answer(generated)

    def mark(self, item: EvalExample, generated: str) -> float:
        """The metric of a generated answer, 0 for an empty one."""
        return METRICS[self.metric](self.answer(generated), item.answers)


def sample(items: Sequence[EvalExample], limit: int, *, seed: int) -> list[EvalExample]:
    """At most `limit` of the items, drawn, in their order; a larger draw contains a smaller one."""
    order = np.random.default_rng([seed, *b"sample"]).permutation(len(items))
    return [items[number] for number in sorted(order[:limit].tolist())]


def draw_shots(pool: Sequence[EvalExample], count: int, *, seed: int, subject: str = "") -> list[EvalExample]:
    """`count` examples of the pool, in its order; with a subject, of that subject's own."""
    own = [item for item in pool if item.subject == subject] if subject else list(pool)
    if len(own) < count:
        raise ValueError(
            f"draw_shots: {len(own)} examples came{f' of {subject}' if subject else ''}, needed are {count}; "
            "ask for fewer shots or give a larger file"
        )
    order = np.random.default_rng([seed, *subject.encode()]).permutation(len(own))
    return [own[number] for number in sorted(order[:count].tolist())]
