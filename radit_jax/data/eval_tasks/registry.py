r"""The tasks that RA-DIT is evaluated on: official files in, prompts, queries and gold answers out.

A task is a row of `BENCHMARKS`: its files, its metric, and how an answer is found. The language model either
generates an answer of at most `max_new_tokens`, of several candidates the one that scores highest, or it
chooses among the task's own choices. A candidate or a choice y is scored by the task's `scoring_rule`:

    sum             log p(y | x)                          short answers, MMLU's letters
    nll_token       log p(y | x) / tokens of y            long answers: ELI5, Wizard of Wikipedia
    per_character   log p(y | x) / characters of y        PIQA, SIQA, HellaSwag, WinoGrande, ARC
    nll_compl       log p(y | x) − log p(y | "Answer:")   BoolQ, OpenBookQA

By the sum the shortest of several long answers would always win, and by characters "no" would win over "yes".
WinoGrande's y is the rest of the sentence, the same words after either option. Templates and rules are those
of arXiv 2310.01352; what the paper leaves open is marked `ours`.

A split is a file or a part of one, and no two of train, dev and test share a question (docs/tasks.md has a
row for each task): KILT's dev and test are the halves of its dev file, for its test file has no answers;
where else the official test questions are those of a dev file, dev is a tenth of the train file.
"""

import difflib
import hashlib
import itertools
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from etils import epath

from radit_jax.config import EvaluateConfig, Experiment
from radit_jax.data.readers.lines import (
    demand,
    json_list,
    json_objects,
    line_object,
    one_of,
    quoted,
    table_rows,
    text_lines,
)
from radit_jax.data.readers.questions import kilt_answers, kilt_provenance, question_files, read_questions
from radit_jax.text.kilt import FEVER_LABELS, fever_label
from radit_jax.text.metrics import exact_match, f1, normalize, rouge_l, strict_accuracy
from radit_jax.text.prompts import question_prompt

ScoringRule = Literal["sum", "nll_token", "per_character", "nll_compl"]
Share = Literal["all", "one half", "the other half", "a tenth", "nine tenths"]
PRIOR_PROMPT = "Answer:"
METRICS = {"exact_match": exact_match, "f1": f1, "rouge_l": rouge_l, "accuracy": strict_accuracy}
AIDA_INSTRUCTION = (
    "Output the Wikipedia page title of the entity mentioned between [START_ENT] and [END_ENT] "
    "in the given text"
)
LETTERS = "ABCD"


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


def _itself(path: epath.Path) -> list[epath.Path]:
    return [path]


class TaskFile(NamedTuple):
    """An official file, named as its publisher names it, below a folder of the task's or source's name."""

    path: str
    read: Reader
    files: Listing = _itself  # all that `read` reads


class TaskPart(NamedTuple):
    """A split: an official file, by its name in `Benchmark.sources`, and the share of it that is asked."""

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
    def is_official(self) -> bool:
        """Whether it is a row of the table, and not a user's file."""
        return EVAL_TASKS.get(self.name) is self

    @property
    def is_kilt(self) -> bool:
        """Whether KILT's leaderboard takes predictions for its test questions."""
        return "hidden" in self.splits

    def answer(self, generated: str) -> str:
        """A generated text as the task's answers are written."""
        return fever_label(generated) if self is EVAL_TASKS["fever"] else generated.strip()

    def mark(self, item: EvalExample, generated: str) -> float:
        """The metric of a generated answer, 0 for an empty one."""
        return METRICS[self.metric](self.answer(generated), item.answers)


def find_task(name: str) -> EvalTask:
    """The task of this name, or, where the name is a file's, that file's questions, marked by exact match."""
    if name in EVAL_TASKS:
        return EVAL_TASKS[name]
    path = epath.Path(name)
    if path.suffix:
        files = {"file": (TaskFile(name, _read_own, question_files),)}
        splits = {split: TaskPart("file") for split in ("train", "dev", "test", "official")}
        return EvalTask(path.stem, "exact_match", files, splits)
    close = difflib.get_close_matches(name, EVAL_TASKS, n=1)
    hint = (
        f"did you mean {close[0]!r}?" if close else f"there are {one_of(list(EVAL_TASKS))}, or a file's path"
    )
    raise ValueError(f"evaluate: no task {name!r}; {hint}")


def task_files(evaluate: EvaluateConfig) -> list[epath.Path]:
    """The files in `evaluate.tasks_folder` that questions and shots are read from."""
    splits, files = (evaluate.split, *(["train"] if evaluate.shots else [])), []
    for name in evaluate.tasks:
        files += [] if os.path.isabs(name) else find_task(name).files(evaluate.tasks_folder, splits)
    return list(dict.fromkeys(files))


def check_tasks(evaluate: EvaluateConfig) -> None:
    """Refuse tasks without their files, and rows that hold no answer of theirs, before anything is made."""
    for name in evaluate.tasks:
        task = find_task(name)
        for split in (evaluate.split, *(["train"] if evaluate.shots else [])):
            task.describe(evaluate.tasks_folder, split)
        longest = evaluate.answering(task.max_new_tokens).max_new_tokens
        if task.generates and longest >= evaluate.sequence_length:
            raise ValueError(
                f"evaluate.sequence_length: expected more than {longest} tokens, the length of an answer of "
                f"{task.name}, got {evaluate.sequence_length}. Raise it, or set evaluate.max_new_tokens."
            )


def development_tasks(experiment: Experiment) -> EvaluateConfig:
    """How `lm_ft.select=kilt_dev` asks: by evaluation's settings, on the dev part of KILT's tasks."""
    own, limit = experiment.lm_ft.select_folder, experiment.lm_ft.select_questions
    evaluate = replace(experiment.evaluate, bootstrap_samples=1, kilt_titles="")  # no figures, no provenance
    return replace(evaluate, split="dev", tasks=KILT_DEVELOPMENT, tasks_folder=own, questions_per_task=limit)


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


# ---- KILT ----


def _kilt_reader(make: Callable[[Mapping[str, Any], str], Mapping[str, Any]]) -> Reader:
    """A reader of KILT's lines; `make` gives prompt, query and what else the task's items have."""

    def read(path: epath.Path, counts: Counter[str]) -> Iterator[EvalExample]:
        for where, line in json_objects(path):
            demand(line, {"id": "a string", "input": "a string"}, where)
            counts["read"] += 1
            answers = _gold(line, where)
            if "output" in line and not answers:
                counts["skipped_without_answer"] += 1
                continue
            pages = kilt_provenance(line, where) if "output" in line else ()
            made = {"target": answers[0] if answers else "", **make(line, where)}
            yield EvalExample(id=line["id"], answers=answers, pages=pages, **made)

    return read


def _gold(line: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """The distinct gold answers of a line, without the white space around some of them."""
    found = kilt_answers(line, where) if "output" in line else ()
    return tuple(dict.fromkeys(answer.strip() for answer in found))


def _asked(line: Mapping[str, Any], where: str) -> dict[str, Any]:
    return {"prompt": question_prompt(line["input"]), "query": line["input"]}


def _zsre(line: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The first of the questions into which KILT puts the entity and the relation (`ours`)."""
    meta = line.get("meta")
    questions = meta.get("template_questions") if isinstance(meta, dict) else None
    if not isinstance(questions, list) or not questions or not isinstance(questions[0], str):
        raise ValueError(
            f"{where}: expected a list of questions in meta.template_questions, got {quoted(questions)}. "
            "Take KILT's file with them."
        )
    return {"prompt": question_prompt(questions[0]), "query": questions[0]}


def _trex(line: Mapping[str, Any], where: str) -> dict[str, Any]:
    return {"prompt": f"{line['input']}\nA:", "query": line["input"]}


def _aida(line: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The query is the mention between the marks (`ours`)."""
    mention, end, _ = line["input"].partition("[START_ENT]")[2].partition("[END_ENT]")
    if not end:
        raise ValueError(
            f"{where}: expected a mention between [START_ENT] and [END_ENT] in 'input', got "
            f"{quoted(line['input'])}. Take KILT's file."
        )
    return {"prompt": f"{line['input']}\n{AIDA_INSTRUCTION}\nA:", "query": mention.strip()}


def _wow(line: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Turns alternate and the last is the one to be answered, so the first is an answer if they are even."""
    turns = line["input"].split("\n")
    speakers = itertools.cycle("QA" if len(turns) % 2 else "AQ")
    dialogue = [f"{speaker}: {turn}\n" for speaker, turn in zip(speakers, turns, strict=False)]
    return {"prompt": "".join(dialogue) + "A:", "query": " ".join(turns)}


_SPOKEN = {label: word for word, label in FEVER_LABELS.items()}


def _fever(line: Mapping[str, Any], where: str) -> dict[str, Any]:
    answers = _gold(line, where)
    if answers and answers[0] not in _SPOKEN:
        raise ValueError(
            f"{where}: the answer {answers[0]!r} came, needed is {one_of(list(_SPOKEN))}; correct it"
        )
    return {**_claim(line["input"]), "target": _SPOKEN[answers[0]] if answers else ""}


def _claim(claim: str) -> dict[str, Any]:
    return {"prompt": f"Is this statement true? {claim}\nA:", "query": claim}


def _kilt(name: str, make: Callable[[Mapping[str, Any], str], Mapping[str, Any]]) -> dict[str, TaskFile]:
    files = {"train": "train", "dev": "dev", "hidden": "test_without_answers"}
    return {
        file: TaskFile(f"kilt/{name}-{part}-kilt.jsonl", _kilt_reader(make)) for file, part in files.items()
    }


# ---- original files of tasks with free answers ----


def _read_nq(path: epath.Path, counts: Counter[str]) -> Iterator[EvalExample]:
    for number, (where, line) in enumerate(json_objects(path), start=1):
        demand(line, {"question": "a string", "answer": "a list of strings"}, where)
        counts["read"] += 1
        yield _free(f"{path.name}:{number}", line["question"], tuple(line["answer"]))


def _read_hotpotqa(path: epath.Path, counts: Counter[str]) -> Iterator[EvalExample]:
    for where, line in json_list(path):
        demand(line, {"_id": "a string", "question": "a string", "answer": "a string"}, where)
        counts["read"] += 1
        yield _free(line["_id"], line["question"], (line["answer"],))


def _read_trivia_qa(path: epath.Path, counts: Counter[str]) -> Iterator[EvalExample]:
    """TriviaQA's own files; the aliases are gold answers too, the value itself is the one to show."""
    for where, line in json_list(path, "Data"):
        demand(line, {"QuestionId": "a string", "Question": "a string"}, where)
        answer = line_object(line.get("Answer", {}), where)
        counts["read"] += 1
        if "Value" not in answer:
            counts["skipped_without_answer"] += 1
            continue
        answer = {"Aliases": [], "NormalizedAliases": [], **answer}
        lists = dict.fromkeys(("Aliases", "NormalizedAliases"), "a list of strings")
        demand(answer, {"Value": "a string", **lists}, where)
        aliases = dict.fromkeys([answer["Value"], *answer["Aliases"], *answer["NormalizedAliases"]])
        yield _free(line["QuestionId"], line["Question"], tuple(aliases))


def _read_own(path: epath.Path, counts: Counter[str]) -> Iterator[EvalExample]:
    """Questions in any of the forms of `questions.py`."""
    for asked in read_questions(path):
        counts["read"] += 1
        if asked.question.answers:
            yield _free(asked.question.id, asked.question.question, asked.question.answers)
        else:
            counts["skipped_without_answer"] += 1


def _free(identifier: str, question: str, answers: tuple[str, ...]) -> EvalExample:
    return EvalExample(
        identifier, question_prompt(question), question, answers, target=answers[0] if answers else ""
    )


def _read_fever(path: epath.Path, counts: Counter[str]) -> Iterator[EvalExample]:
    for where, line in json_objects(path):
        demand(line, {"id": "a string or a number", "claim": "a string", "label": "a string"}, where)
        counts["read"] += 1
        if line["label"] not in _SPOKEN:
            counts["skipped_not_enough_info"] += 1
            continue
        claim = _claim(line["claim"])
        yield EvalExample(str(line["id"]), **claim, answers=(line["label"],), target=_SPOKEN[line["label"]])


# ---- tasks with choices ----


def _chosen(
    identifier: str, prompt: str, answers: Sequence[str], label: int, where: str, **more: Any
) -> EvalExample:
    """An item whose choices continue one prompt; `label` counts from 0."""
    if not 0 <= label < len(answers):
        raise ValueError(
            f"{where}: the label of choice {label + 1} came, there are {len(answers)}; correct the line"
        )
    choices = tuple(Choice(answer, prompt, f" {answer}") for answer in answers)
    return EvalExample(identifier, prompt, answers=(answers[label],), choices=choices, label=label, **more)


def _tables(path: epath.Path) -> list[epath.Path]:
    return sorted(file for file in path.iterdir() if file.suffix == ".csv")


def _read_mmlu(path: epath.Path, counts: Counter[str]) -> Iterator[EvalExample]:
    """All subjects of a folder: question, choices, the right letter. The query is question and choices."""
    for file in _tables(path):
        subject = file.stem.rpartition("_")[0]
        for number, (where, row) in enumerate(
            table_rows(file, delimiter=",", num_columns=6, quoting="csv"), start=1
        ):
            question, *options, letter = row
            counts["read"] += 1
            listed = "".join(f"{name}. {option}\n" for name, option in zip(LETTERS, options, strict=True))
            prompt = f"Question: {question}\n{listed}A:"
            query = " ".join([question, *options])
            label = LETTERS.find(letter.strip() or "?")
            yield _chosen(
                f"{file.stem}:{number}", prompt, LETTERS, label, where, query=query, subject=subject
            )


def _read_boolq(path: epath.Path, counts: Counter[str]) -> Iterator[EvalExample]:
    """Google's files name the answer `answer`, SuperGLUE's `label`."""
    for number, (where, line) in enumerate(json_objects(path), start=1):
        demand(line, {"question": "a string", "passage": "a string"}, where)
        counts["read"] += 1
        answer = line.get("answer", line.get("label"))
        if not isinstance(answer, bool):
            raise ValueError(
                f"{where}: the answer {answer!r} came, needed is true or false; correct the line"
            )
        question = line["question"].rstrip("? ") + "?"
        prompt = f"{line['passage']}\nQuestion: {question}\nAnswer:"
        yield _chosen(f"{path.name}:{number}", prompt, ("yes", "no"), 0 if answer else 1, where)


def _with_labels(path: epath.Path) -> list[epath.Path]:
    return [path, path.parent / f"{path.stem}-labels.lst"]


def _labelled(path: epath.Path, fields: Sequence[str]) -> Iterator[tuple[str, dict[str, Any], int]]:
    """The lines of `NAME.jsonl` with the labels in `NAME-labels.lst`, one for each."""
    _, labels = _with_labels(path)
    if not labels.exists():
        raise ValueError(f"{path}: no {labels.name} beside it, needed are its labels; download them there")
    lines, wanted = list(json_objects(path)), [text.strip() for _, text in text_lines(labels) if text.strip()]
    if len(lines) != len(wanted) or not all(re.fullmatch("[0-9]{1,3}", label) for label in wanted):
        raise ValueError(
            f"{labels}: {len(wanted)} labels came, needed is a number for each of the {len(lines)} lines of "
            f"{path.name}; take both files from one release"
        )
    for (where, line), label in zip(lines, wanted, strict=True):
        demand(line, dict.fromkeys(fields, "a string"), where)
        yield where, line, int(label)


def _read_piqa(path: epath.Path, counts: Counter[str]) -> Iterator[EvalExample]:
    for number, (where, line, label) in enumerate(_labelled(path, ("goal", "sol1", "sol2")), start=1):
        counts["read"] += 1
        prompt = f"Question: {line['goal']}\nAnswer:"
        yield _chosen(
            f"{path.name}:{number}", prompt, (line["sol1"].strip(), line["sol2"].strip()), label, where
        )


def _read_siqa(path: epath.Path, counts: Counter[str]) -> Iterator[EvalExample]:
    answers = ("answerA", "answerB", "answerC")
    for number, (where, line, label) in enumerate(
        _labelled(path, ("context", "question", *answers)), start=1
    ):
        counts["read"] += 1
        prompt = f"{line['context']} Q: {line['question']} A:"
        yield _chosen(f"{path.name}:{number}", prompt, [line[name] for name in answers], label - 1, where)


def _read_hellaswag(path: epath.Path, counts: Counter[str]) -> Iterator[EvalExample]:
    for number, (where, line) in enumerate(json_objects(path), start=1):
        demand(
            line, {"ctx": "a string", "endings": "a list of strings", "label": "a string or a number"}, where
        )
        counts["read"] += 1
        label = _label(str(line["label"]), [str(n) for n in range(len(line["endings"]))], where)
        endings = [_hellaswag_text(ending) for ending in line["endings"]]
        yield _chosen(f"{path.name}:{number}", _hellaswag_context(line, where), endings, label, where)


def _hellaswag_context(line: Mapping[str, Any], where: str) -> str:
    """The context, whose second sentence is cut off behind its first words, with a capital there."""
    if "ctx_a" not in line or "ctx_b" not in line:
        return _hellaswag_text(line["ctx"])
    demand(line, {"ctx_a": "a string", "ctx_b": "a string"}, where)
    return _hellaswag_text(f"{line['ctx_a']} {line['ctx_b'].capitalize()}")


def _hellaswag_text(text: str) -> str:
    """Text without WikiHow's marks in square brackets, as lm-evaluation-harness cleans it.

    >>> _hellaswag_text("How to hide [title] Find a bush. [step] Crouch.")
    'How to hide. Find a bush. Crouch.'
    """
    without_marks = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return without_marks.replace("  ", " ")


def _read_winogrande(path: epath.Path, counts: Counter[str]) -> Iterator[EvalExample]:
    fields = ("qID", "sentence", "option1", "option2", "answer")
    for where, line in json_objects(path):
        demand(line, dict.fromkeys(fields, "a string"), where)
        counts["read"] += 1
        prefix, blank, suffix = line["sentence"].partition("_")
        if not blank or not suffix.strip():
            raise ValueError(
                f"{where}: 'sentence' has no _ with words behind it, needed is one; correct the line"
            )
        options = (line["option1"], line["option2"])
        choices = tuple(Choice(option, prefix + option, suffix) for option in options)
        label = _label(line["answer"], ["1", "2"], where)
        yield EvalExample(line["qID"], prefix, answers=(options[label],), choices=choices, label=label)


def _science_reader(template: str) -> Reader:
    """A reader of the Allen Institute's multiple-choice lines; `template` has a `{}` for the question."""

    def read(path: epath.Path, counts: Counter[str]) -> Iterator[EvalExample]:
        for where, line in json_objects(path):
            demand(line, {"id": "a string", "answerKey": "a string"}, where)
            question = line_object(line.get("question"), where)
            demand(question, {"stem": "a string", "choices": "a list of objects"}, where)
            choices = question["choices"]
            for choice in choices:
                demand(choice, {"text": "a string", "label": "a string"}, where)
            counts["read"] += 1
            label = _label(line["answerKey"], [choice["label"] for choice in choices], where)
            answers = [choice["text"] for choice in choices]
            yield _chosen(line["id"], template.format(question["stem"]), answers, label, where)

    return read


def _read_obqa_table(path: epath.Path, counts: Counter[str]) -> Iterator[EvalExample]:
    """OpenBookQA's table, whose choices stand in one column: `(A) the sun (B) the moon …`."""
    for number, (where, row) in enumerate(table_rows(path, delimiter="\t", num_columns=5)):
        if number == 0:
            continue
        identifier, stem, listed, _, key = row
        counts["read"] += 1
        _, *parts = re.split(r"\(([A-D])\) ", listed)
        answers = [text.strip() for text in parts[1::2]]
        yield _chosen(identifier, stem, answers, _label(key, parts[::2], where), where)


def _label(key: str, names: Sequence[str], where: str) -> int:
    if key not in names:
        wanted = one_of(names) if names else "a choice"
        raise ValueError(f"{where}: expected the right answer to be {wanted}, got {quoted(key)}. Correct it.")
    return names.index(key)


# ---- the table ----


_TRAIN_AND_DEV = {  # the official test questions are those of the dev file
    "train": TaskPart("train", "nine tenths"),
    "dev": TaskPart("train", "a tenth"),
    "test": TaskPart("dev"),
    "official": TaskPart("dev"),
}
_THREE_FILES = {name: TaskPart(name) for name in ("train", "dev", "test")} | {"official": TaskPart("test")}
_MMLU = {
    "train": TaskPart("dev"),
    "dev": TaskPart("val"),
    "test": TaskPart("test"),
    "official": TaskPart("test"),
}
_HALVES = {
    "train": TaskPart("train"),
    "dev": TaskPart("dev", "one half"),
    "test": TaskPart("dev", "the other half"),
    "official": TaskPart("dev"),
    "hidden": TaskPart("hidden"),
}


def _files(read: Reader, files: Listing = _itself, /, **paths: str) -> dict[str, TaskFile]:
    return {file: TaskFile(path, read, files) for file, path in paths.items()}


def _task(
    name: str,
    metric: str,
    *sources: Mapping[str, TaskFile],
    splits: Mapping[str, TaskPart] = _TRAIN_AND_DEV,
    rule: ScoringRule = "sum",
    tokens: int = 0,
) -> EvalTask:
    joined: dict[str, tuple[TaskFile, ...]] = {}
    for files in sources:
        for file, source in files.items():
            joined[file] = (*joined.get(file, ()), source)
    return EvalTask(name, metric, joined, splits, rule, tokens)


def _arc(part: str) -> dict[str, TaskFile]:
    names = {split: f"arc/ARC-{part}-{split.title()}.jsonl" for split in ("train", "dev", "test")}
    return _files(_science_reader("Question: {}\nAnswer:"), **names)


_TASKS = (
    _task(
        "mmlu",
        "accuracy",
        _files(_read_mmlu, _tables, dev="mmlu/dev", val="mmlu/val", test="mmlu/test"),
        splits=_MMLU,
    ),
    _task(
        "nq",
        "exact_match",
        _files(_read_nq, train="nq_open/NQ-open.train.jsonl", dev="nq_open/NQ-open.dev.jsonl"),
        _kilt("nq", _asked),
        splits=_TRAIN_AND_DEV | {"hidden": TaskPart("hidden")},
        tokens=32,
    ),
    _task(
        "trivia_qa",
        "exact_match",
        _files(
            _read_trivia_qa,
            train="trivia_qa/unfiltered-web-train.json",
            dev="trivia_qa/unfiltered-web-dev.json",
        ),
        tokens=32,
    ),
    _task(
        "hotpotqa",
        "exact_match",
        _kilt("hotpotqa", _asked),
        _files(
            _read_hotpotqa,
            train="hotpotqa/hotpot_train_v1.1.json",
            dev="hotpotqa/hotpot_dev_fullwiki_v1.json",
        ),
        splits=_HALVES,
        tokens=32,
    ),
    _task(
        "fever",
        "accuracy",
        _kilt("fever", _fever),
        _files(_read_fever, train="fever/train.jsonl", dev="fever/paper_dev.jsonl"),
        splits=_HALVES,
        tokens=16,
    ),
    _task("aida", "accuracy", _kilt("aidayago2", _aida), splits=_HALVES, tokens=32),
    _task("zsre", "accuracy", _kilt("structured_zeroshot", _zsre), splits=_HALVES, tokens=32),
    _task("trex", "accuracy", _kilt("trex", _trex), splits=_HALVES, tokens=32),
    _task("wow", "f1", _kilt("wow", _wow), splits=_HALVES, rule="nll_token", tokens=64),
    _task("eli5", "rouge_l", _kilt("eli5", _asked), splits=_HALVES, rule="nll_token", tokens=256),
    _task(
        "boolq",
        "accuracy",
        _files(_read_boolq, train="boolq/train.jsonl", dev="boolq/val.jsonl"),
        _files(_read_boolq, dev="boolq/dev.jsonl"),
        rule="nll_compl",
    ),
    _task(
        "piqa",
        "accuracy",
        _files(_read_piqa, _with_labels, train="piqa/train.jsonl", dev="piqa/valid.jsonl"),
        rule="per_character",
    ),
    _task(
        "siqa",
        "accuracy",
        _files(_read_siqa, _with_labels, train="social_i_qa/train.jsonl", dev="social_i_qa/dev.jsonl"),
        rule="per_character",
    ),
    _task(
        "hellaswag",
        "accuracy",
        _files(_read_hellaswag, train="hellaswag/hellaswag_train.jsonl", dev="hellaswag/hellaswag_val.jsonl"),
        rule="per_character",
    ),
    _task(
        "winogrande",
        "accuracy",
        _files(_read_winogrande, train="winogrande/train_xl.jsonl", dev="winogrande/dev.jsonl"),
        rule="per_character",
    ),
    _task("arc_easy", "accuracy", _arc("Easy"), splits=_THREE_FILES, rule="per_character"),
    _task("arc_challenge", "accuracy", _arc("Challenge"), splits=_THREE_FILES, rule="per_character"),
    _task(
        "obqa",
        "accuracy",
        _files(
            _science_reader("{}"),
            **{split: f"openbookqa/{split}.jsonl" for split in ("train", "dev", "test")},
        ),
        _files(_read_obqa_table, **{split: f"openbookqa/{split}.tsv" for split in ("train", "dev", "test")}),
        splits=_THREE_FILES,
        rule="nll_compl",
    ),
)
EVAL_TASKS = {task.name: task for task in _TASKS}
KILT_DEVELOPMENT = (
    "hotpotqa",
    "fever",
    "aida",
    "zsre",
    "trex",
    "wow",
)  # what LM-ft's checkpoint is chosen by
