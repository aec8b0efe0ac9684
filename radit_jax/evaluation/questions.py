"""Which questions are asked: a task's with their shots, and the corpus' own, as far as they fit a row."""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from radit_jax.config import OWN_ANSWERS, EvaluateConfig
from radit_jax.data.batches.examples import question_example
from radit_jax.data.batches.prefix_trees import answer_ids, fits
from radit_jax.data.eval_tasks.registry import find_task
from radit_jax.data.eval_tasks.task import EvalExample, EvalTask, draw_shots, sample
from radit_jax.data.records import Question
from radit_jax.runtime.pretrained.tokenizers import Tokenizer

TOO_LONG = "skipped_too_long"  # among a task's counts


@dataclass(frozen=True)
class LoadedTask:
    """A task's questions as they are asked: which of them, and after which examples."""

    task: EvalTask
    items: Sequence[EvalExample]
    shots: Sequence[Sequence[EvalExample]]  # the examples before each item, the nearest last
    counts: Mapping[str, int] = field(default_factory=dict)  # of lines read and skipped
    split: str = "test"
    part: str = ""  # which questions the split has, in words
    whole: "LoadedTask | None" = None  # the task that these questions were taken from, if they are not all

    @property
    def has_answers(self) -> bool:
        """Whether gold answers are known: KILT's hidden test questions get predictions only."""
        return any(item.answers for item in self.items)

    @property
    def retrieves(self) -> bool:
        """Whether chunks are retrieved, which the commonsense tasks have no query for."""
        return any(item.query for item in self.items)

    @property
    def has_pages(self) -> bool:
        """Whether gold Wikipedia pages are known, as in KILT's files."""
        whole = self.whole or self
        return any(item.pages for item in whole.items)

    def take(self, questions: slice) -> "LoadedTask":
        """The task with these questions only."""
        return replace(self, items=self.items[questions], shots=self.shots[questions], whole=self)

    @property
    def shot_items(self) -> list[EvalExample]:
        """Every example that any question is asked after, once."""
        all_shots = itertools.chain.from_iterable(self.shots)
        by_id = {shot.id: shot for shot in all_shots}
        return list(by_id.values())


def load_tasks(settings: EvaluateConfig, *, seed: int) -> list[LoadedTask]:
    """The tasks that `evaluate.tasks` names, none of them twice."""
    tasks = [_load(find_task(name), settings, seed) for name in settings.tasks]

    # Two files may have one name; results are stored by the task's name.
    seen = set()
    for loaded in tasks:
        name = loaded.task.name
        if name in seen:
            raise ValueError(f"evaluate.tasks: expected each task once, got {name} twice. Name it once.")
        seen.add(name)
    return tasks


def _load(
    task: EvalTask,
    settings: EvaluateConfig,
    seed: int,
) -> LoadedTask:
    """A task's questions, or a sample of them, and the shots of each."""
    folder, split = settings.tasks_folder, settings.split
    # The whole split is read, so that a sample is one of all its questions.
    counts = Counter[str]()
    items = task.load(folder, split, counts)
    if settings.questions_per_task:
        items = sample(items, settings.questions_per_task, seed=seed)
    shots = _draw_for_items(task, items, settings, seed)
    part = task.describe(folder, split)
    return LoadedTask(task, items, shots, counts, split, part)


def _draw_for_items(
    task: EvalTask,
    items: Sequence[EvalExample],
    settings: EvaluateConfig,
    seed: int,
) -> list[list[EvalExample]]:
    """The shots of each item, all from the train split; no item is among its own shots."""
    if not settings.shots:
        return [[] for _ in items]

    # Where questions and shots are from one split, one more is drawn in place of the item itself.
    pool = task.load(settings.tasks_folder, "train")
    shares_split = task.splits["train"] == task.splits[settings.split]
    num_drawn = settings.shots + int(shares_split)
    by_subject = {}
    for subject in {item.subject for item in items}:
        by_subject[subject] = draw_shots(pool, num_drawn, seed=seed, subject=subject)

    # All questions of a subject have the same shots, except the one that is a shot itself.
    shots = []
    for item in items:
        drawn = by_subject[item.subject]
        if shares_split:
            drawn = [shot for shot in drawn if shot.id != item.id]
        shots.append(drawn[: settings.shots])
    return shots


def longest_answer(settings: EvaluateConfig) -> int:
    """The most tokens of any answer that `settings` ask for, which is at least 1."""
    # Without tasks the corpus' own questions are asked.
    longest = OWN_ANSWERS
    if settings.tasks:
        longest = max(find_task(name).max_new_tokens for name in settings.tasks)
    return settings.answering(max(1, longest)).max_new_tokens


def without_too_long(
    loaded: LoadedTask,
    tokenizer: Tokenizer,
    settings: EvaluateConfig,
) -> LoadedTask:
    """The task without the questions that do not fit into a row even without a Background.

    They are counted, and a warning is printed; if no question fits, that is an error. `settings` are those of
    `evaluate`, whichever stage asks.
    """
    # The prompt and the answer have to fit; a Background is cut to the room that remains.
    task, row_length = loaded.task, settings.sequence_length
    max_new_tokens = settings.answering(task.max_new_tokens).max_new_tokens
    # `fitting` has places in `loaded.items`, `sizes` tokens by id.
    fitting, sizes = [], {}
    for index, item in enumerate(loaded.items):
        size = _num_tokens(task, item, tokenizer, max_new_tokens)
        sizes[item.id] = size
        if size <= row_length:
            fitting.append(index)
    left_out = len(loaded.items) - len(fitting)
    if not left_out:
        return loaded

    # Say how many are too long, and how long the longest is: that tells by how much to raise the setting.
    longest = max(sizes, key=sizes.__getitem__)
    message = (
        f"questions too long for the row of evaluate.sequence_length {row_length}: {left_out}; "
        f"{longest} has {sizes[longest]} tokens with its answer"
    )
    _warn_too_long(task.name, message, num_fitting=len(fitting))
    return replace(
        loaded,
        items=[loaded.items[index] for index in fitting],
        shots=[loaded.shots[index] for index in fitting],
        counts={**loaded.counts, TOO_LONG: left_out},
    )


def _num_tokens(
    task: EvalTask,
    item: EvalExample,
    tokenizer: Tokenizer,
    max_new_tokens: int,
) -> int:
    """Tokens of prompt and answer; where there are choices, the most of any of them."""
    if task.generates:
        return len(tokenizer.encode_prompt(item.prompt)) + max_new_tokens

    # Most choices share their prompt, which is long: each prompt is tokenised once.
    longest_scored = {choice.prompt: 0 for choice in item.choices}
    for choice in item.choices:
        num_scored = len(answer_ids(tokenizer, choice.scored))
        longest_scored[choice.prompt] = max(longest_scored[choice.prompt], num_scored)
    sizes = []
    for prompt, num_scored in longest_scored.items():
        sizes.append(len(tokenizer.encode_prompt(prompt)) + num_scored)
    return max(sizes)


def questions_that_fit(
    questions: Sequence[Question],
    tokenizer: Tokenizer,
    settings: EvaluateConfig,
) -> list[Question]:
    """The questions that fit into a row without a Background, with a generated or gold answer.

    Questions that are left out are counted in a warning; if none fits, that is an error.
    """
    row_length = settings.sequence_length
    max_prompt_length = row_length - settings.max_new_tokens

    def fit(question: Question) -> bool:
        # The gold answer is scored, and another one is generated: both need room.
        example = question_example(question, question.answers[0])
        if not fits(tokenizer, example, row_length):
            return False
        return len(tokenizer.encode_prompt(example.prompt)) <= max_prompt_length

    fitting = [question for question in questions if fit(question)]
    left_out = len(questions) - len(fitting)
    if left_out:
        message = f"questions too long for the row of evaluate.sequence_length {row_length}: {left_out}"
        _warn_too_long("evaluate", message, num_fitting=len(fitting))
    return fitting


def _warn_too_long(where: str, message: str, *, num_fitting: int) -> None:
    """Say which questions are left out; ValueError if no other is left to ask."""
    if not num_fitting:
        raise ValueError(
            f"{where}: expected questions that fit, got none: {message}. Raise evaluate.sequence_length."
        )
    print(f"   warning: {where}: {message}; left out", flush=True)
