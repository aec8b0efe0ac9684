"""The table of the tasks that RA-DIT is evaluated on: a row per task, its files, its metric, its splits.

A split is a file or a part of one, and no two of train, dev and test share a question (docs/tasks.md has a
row for each task). KILT's test files have no answers, so its dev and test are the halves of its dev files.
Where the official test questions of another task are those of a dev file, dev is a tenth of the train file.
"""

import difflib
import os
from collections.abc import Callable, Mapping
from dataclasses import replace

from etils import epath

from radit_jax.config import EvaluateConfig, Experiment
from radit_jax.data.eval_tasks.kilt import (
    aida,
    as_asked,
    fever,
    kilt_files,
    read_fever,
    trex,
    wizard_of_wikipedia,
    zero_shot_re,
)
from radit_jax.data.eval_tasks.multiple_choice import (
    file_and_labels,
    mmlu_tables,
    read_boolq,
    read_hellaswag,
    read_mmlu,
    read_openbookqa_table,
    read_piqa,
    read_siqa,
    read_winogrande,
    science_reader,
)
from radit_jax.data.eval_tasks.open_qa import read_hotpotqa, read_nq, read_trivia_qa, read_users_file
from radit_jax.data.eval_tasks.task import (
    EvalTask,
    Listing,
    Reader,
    ScoringRule,
    TaskFile,
    TaskPart,
    only_itself,
)
from radit_jax.data.readers.lines import one_of
from radit_jax.data.readers.questions import question_files
from radit_jax.text.kilt import fever_label


def find_task(name: str) -> EvalTask:
    """The task of this name, or, where the name is a file's, that file's questions, scored by exact match."""
    if name in EVAL_TASKS:
        return EVAL_TASKS[name]

    # All splits of a user's file are the whole file.
    path = epath.Path(name)
    if path.suffix:
        files = {"file": (TaskFile(name, read_users_file, question_files),)}
        splits = {split: TaskPart("file") for split in ("train", "dev", "test", "official")}
        return EvalTask(path.stem, "exact_match", files, splits)

    # A name in neither form is most often a misspelt one.
    expected = one_of([*EVAL_TASKS, "a file's path"])
    close = difflib.get_close_matches(name, EVAL_TASKS, n=1)
    remedy = f"Did you mean {close[0]!r}?" if close else "Name one of them."
    raise ValueError(f"evaluate: expected a task, {expected}, got {name!r}. {remedy}")


def task_files(evaluate: EvaluateConfig) -> list[epath.Path]:
    """The files in `evaluate.tasks_folder` that questions and shots are read from."""
    # A file with an absolute path is the user's own, and in no tasks_folder.
    files: list[epath.Path] = []
    for name in evaluate.tasks:
        if not os.path.isabs(name):
            files += find_task(name).files(evaluate.tasks_folder, _splits_read(evaluate))
    return list(dict.fromkeys(files))


def _splits_read(evaluate: EvaluateConfig) -> tuple[str, ...]:
    """The split that is asked, and the one that shots are from."""
    if evaluate.shots:
        return (evaluate.split, "train")
    return (evaluate.split,)


def check_tasks(evaluate: EvaluateConfig) -> None:
    """Refuse tasks whose files are missing or whose answers no row holds, before any work is done."""
    for name in evaluate.tasks:
        task = find_task(name)
        for split in _splits_read(evaluate):
            task.describe(evaluate.tasks_folder, split)

        # A row holds the answer after the prompt.
        longest = evaluate.answering(task.max_new_tokens).max_new_tokens
        if task.generates and longest >= evaluate.sequence_length:
            raise ValueError(
                f"evaluate.sequence_length: expected more than {longest} tokens, the length of an answer of "
                f"{task.name}, got {evaluate.sequence_length}. Raise it, or set evaluate.max_new_tokens."
            )


def development_tasks(experiment: Experiment) -> EvaluateConfig:
    """How `lm_ft.select=kilt_dev` asks: by evaluation's settings, on the dev part of KILT's tasks."""
    lm_ft = experiment.lm_ft
    return replace(
        experiment.evaluate,
        split="dev",
        tasks=KILT_DEVELOPMENT,
        tasks_folder=lm_ft.select_folder,
        questions_per_task=lm_ft.select_questions,
        # Settings that make no difference here get one value, so that they do not count in fingerprints.
        bootstrap_samples=1,
        kilt_titles="",
    )


# ---- the splits of a task ----


# The official test questions are those of the dev file.
_TRAIN_AND_DEV = {
    "train": TaskPart("train", "nine tenths"),
    "dev": TaskPart("train", "a tenth"),
    "test": TaskPart("dev"),
    "official": TaskPart("dev"),
}
# Every part has a file of its own, with answers.
_THREE_FILES = {
    "train": TaskPart("train"),
    "dev": TaskPart("dev"),
    "test": TaskPart("test"),
    "official": TaskPart("test"),
}
# MMLU trains on nothing: its shots are from its dev files, five questions a subject.
_MMLU = {
    "train": TaskPart("dev"),
    "dev": TaskPart("val"),
    "test": TaskPart("test"),
    "official": TaskPart("test"),
}
# KILT's hidden questions get predictions only.
_HALVES = {
    "train": TaskPart("train"),
    "dev": TaskPart("dev", "one half"),
    "test": TaskPart("dev", "the other half"),
    "official": TaskPart("dev"),
    "hidden": TaskPart("hidden"),
}


# ---- rows of the table ----


def _files(
    read: Reader,
    files: Listing = only_itself,
    /,
    **paths: str,
) -> dict[str, TaskFile]:
    """Official files that one reader reads, by the names that splits call them."""
    return {file: TaskFile(path, read, files) for file, path in paths.items()}


def _task(
    name: str,
    metric: str,
    *sources: Mapping[str, TaskFile],
    splits: Mapping[str, TaskPart] = _TRAIN_AND_DEV,
    rule: ScoringRule = "sum",
    tokens: int = 0,
    as_answer: Callable[[str], str] = str.strip,
) -> EvalTask:
    """A row of the table. If a file has several `sources`, the first that exists is read."""
    # Sources need not have the same files: NQ's own have no hidden questions.
    alternatives: dict[str, tuple[TaskFile, ...]] = {}
    for files in sources:
        for file, source in files.items():
            alternatives[file] = (*alternatives.get(file, ()), source)
    return EvalTask(
        name,
        metric,
        alternatives,
        splits,
        rule,
        tokens,
        as_answer,
        is_official=True,
    )


def _arc(part: str) -> dict[str, TaskFile]:
    """The files of one of ARC's two parts, Easy or Challenge."""
    names = {split: f"arc/ARC-{part}-{split.title()}.jsonl" for split in ("train", "dev", "test")}
    return _files(science_reader("Question: {}\nAnswer:"), **names)


_TASKS = (
    # Knowledge. MMLU chooses a letter, the others are answered in words.
    _task(
        "mmlu",
        "accuracy",
        _files(
            read_mmlu,
            mmlu_tables,
            dev="mmlu/dev",
            val="mmlu/val",
            test="mmlu/test",
        ),
        splits=_MMLU,
    ),
    _task(
        "nq",
        "exact_match",
        _files(
            read_nq,
            train="nq_open/NQ-open.train.jsonl",
            dev="nq_open/NQ-open.dev.jsonl",
        ),
        kilt_files("nq", as_asked),
        # The dev file of NQ-open is the usual test set; only the hidden questions are KILT's alone.
        splits=_TRAIN_AND_DEV | {"hidden": TaskPart("hidden")},
        tokens=32,
    ),
    # TriviaQA's unfiltered files are its open-domain form.
    _task(
        "trivia_qa",
        "exact_match",
        _files(
            read_trivia_qa,
            train="trivia_qa/unfiltered-web-train.json",
            dev="trivia_qa/unfiltered-web-dev.json",
        ),
        tokens=32,
    ),
    # KILT. Its own form comes first where there are two, because it names the gold pages.
    _task(
        "hotpotqa",
        "exact_match",
        kilt_files("hotpotqa", as_asked),
        _files(
            read_hotpotqa,
            train="hotpotqa/hotpot_train_v1.1.json",
            dev="hotpotqa/hotpot_dev_fullwiki_v1.json",
        ),
        splits=_HALVES,
        tokens=32,
    ),
    _task(
        "fever",
        "accuracy",
        kilt_files("fever", fever),
        _files(read_fever, train="fever/train.jsonl", dev="fever/paper_dev.jsonl"),
        splits=_HALVES,
        tokens=16,
        as_answer=fever_label,
    ),
    _task("aida", "accuracy", kilt_files("aidayago2", aida), splits=_HALVES, tokens=32),
    # Relations between entities: zsRE asks a question, T-REx does not.
    _task(
        "zsre",
        "accuracy",
        kilt_files("structured_zeroshot", zero_shot_re),
        splits=_HALVES,
        tokens=32,
    ),
    _task("trex", "accuracy", kilt_files("trex", trex), splits=_HALVES, tokens=32),
    # Long answers are compared per token.
    _task(
        "wow",
        "f1",
        kilt_files("wow", wizard_of_wikipedia),
        splits=_HALVES,
        rule="nll_token",
        tokens=64,
    ),
    _task(
        "eli5",
        "rouge_l",
        kilt_files("eli5", as_asked),
        splits=_HALVES,
        rule="nll_token",
        tokens=256,
    ),
    # Commonsense, without retrieval: these have no query.
    _task(
        "boolq",
        "accuracy",
        # SuperGLUE's files, or Google's, whose train file has the same name.
        _files(read_boolq, train="boolq/train.jsonl", dev="boolq/val.jsonl"),
        _files(read_boolq, dev="boolq/dev.jsonl"),
        rule="nll_compl",
    ),
    # Choices of several words are compared per character.
    _task(
        "piqa",
        "accuracy",
        _files(
            read_piqa,
            file_and_labels,
            train="piqa/train.jsonl",
            dev="piqa/valid.jsonl",
        ),
        rule="per_character",
    ),
    _task(
        "siqa",
        "accuracy",
        _files(
            read_siqa,
            file_and_labels,
            train="social_i_qa/train.jsonl",
            dev="social_i_qa/dev.jsonl",
        ),
        rule="per_character",
    ),
    _task(
        "hellaswag",
        "accuracy",
        _files(
            read_hellaswag,
            train="hellaswag/hellaswag_train.jsonl",
            dev="hellaswag/hellaswag_val.jsonl",
        ),
        rule="per_character",
    ),
    _task(
        "winogrande",
        "accuracy",
        _files(
            read_winogrande,
            train="winogrande/train_xl.jsonl",
            dev="winogrande/dev.jsonl",
        ),
        rule="per_character",
    ),
    # ARC's parts are tasks of their own, as in the literature.
    _task(
        "arc_easy",
        "accuracy",
        _arc("Easy"),
        splits=_THREE_FILES,
        rule="per_character",
    ),
    _task(
        "arc_challenge",
        "accuracy",
        _arc("Challenge"),
        splits=_THREE_FILES,
        rule="per_character",
    ),
    # Its publisher gives the same questions in two forms.
    _task(
        "obqa",
        "accuracy",
        _files(
            science_reader("{}"),
            **{split: f"openbookqa/{split}.jsonl" for split in ("train", "dev", "test")},
        ),
        _files(
            read_openbookqa_table,
            **{split: f"openbookqa/{split}.tsv" for split in ("train", "dev", "test")},
        ),
        splits=_THREE_FILES,
        rule="nll_compl",
    ),
)
EVAL_TASKS = {task.name: task for task in _TASKS}
# LM-ft's checkpoint is chosen by these.
KILT_DEVELOPMENT = ("hotpotqa", "fever", "aida", "zsre", "trex", "wow")
