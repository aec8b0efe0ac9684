"""Readers of the tasks whose answer is chosen: MMLU, ARC, BoolQ, OpenBookQA, and four of commonsense."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from radit_jax.data.eval_tasks.task import Choice, EvalExample, Reader
from radit_jax.data.readers.lines import demand, json_objects, line_object, one_of, quoted, text_lines
from radit_jax.data.readers.tables import table_rows

LETTERS = "ABCD"


# ---- tasks with choices ----


def _with_choices(
    identifier: str, prompt: str, answers: Sequence[str], label: int, where: str, **more: Any
) -> EvalExample:
    """An item whose choices continue one prompt; `label` counts from 0."""
    if not 0 <= label < len(answers):
        raise ValueError(
            f"{where}: the label of choice {label + 1} came, there are {len(answers)}; correct the line"
        )
    choices = tuple(Choice(answer, prompt, f" {answer}") for answer in answers)
    return EvalExample(identifier, prompt, answers=(answers[label],), choices=choices, label=label, **more)


def mmlu_tables(path: epath.Path) -> list[epath.Path]:
    return sorted(file for file in path.iterdir() if file.suffix == ".csv")


def read_mmlu(path: epath.Path, counts: Counter[str]) -> Iterator[EvalExample]:
    """All subjects of a folder: question, choices, the right letter. The query is question and choices."""
    for file in mmlu_tables(path):
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
            yield _with_choices(
                f"{file.stem}:{number}", prompt, LETTERS, label, where, query=query, subject=subject
            )


def read_boolq(path: epath.Path, counts: Counter[str]) -> Iterator[EvalExample]:
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
        yield _with_choices(f"{path.name}:{number}", prompt, ("yes", "no"), 0 if answer else 1, where)


def file_and_labels(path: epath.Path) -> list[epath.Path]:
    return [path, path.parent / f"{path.stem}-labels.lst"]


def _labelled(path: epath.Path, fields: Sequence[str]) -> Iterator[tuple[str, dict[str, Any], int]]:
    """The lines of `NAME.jsonl` with the labels in `NAME-labels.lst`, one for each."""
    _, labels = file_and_labels(path)
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


def read_piqa(path: epath.Path, counts: Counter[str]) -> Iterator[EvalExample]:
    for number, (where, line, label) in enumerate(_labelled(path, ("goal", "sol1", "sol2")), start=1):
        counts["read"] += 1
        prompt = f"Question: {line['goal']}\nAnswer:"
        yield _with_choices(
            f"{path.name}:{number}", prompt, (line["sol1"].strip(), line["sol2"].strip()), label, where
        )


def read_siqa(path: epath.Path, counts: Counter[str]) -> Iterator[EvalExample]:
    answers = ("answerA", "answerB", "answerC")
    for number, (where, line, label) in enumerate(
        _labelled(path, ("context", "question", *answers)), start=1
    ):
        counts["read"] += 1
        prompt = f"{line['context']} Q: {line['question']} A:"
        yield _with_choices(
            f"{path.name}:{number}", prompt, [line[name] for name in answers], label - 1, where
        )


def read_hellaswag(path: epath.Path, counts: Counter[str]) -> Iterator[EvalExample]:
    for number, (where, line) in enumerate(json_objects(path), start=1):
        demand(
            line, {"ctx": "a string", "endings": "a list of strings", "label": "a string or a number"}, where
        )
        counts["read"] += 1
        label = _label(str(line["label"]), [str(n) for n in range(len(line["endings"]))], where)
        endings = [_hellaswag_text(ending) for ending in line["endings"]]
        yield _with_choices(f"{path.name}:{number}", _hellaswag_context(line, where), endings, label, where)


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


def read_winogrande(path: epath.Path, counts: Counter[str]) -> Iterator[EvalExample]:
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


def science_reader(template: str) -> Reader:
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
            yield _with_choices(line["id"], template.format(question["stem"]), answers, label, where)

    return read


def read_openbookqa_table(path: epath.Path, counts: Counter[str]) -> Iterator[EvalExample]:
    """OpenBookQA's table, whose choices stand in one column: `(A) the sun (B) the moon …`."""
    for number, (where, row) in enumerate(table_rows(path, delimiter="\t", num_columns=5)):
        if number == 0:
            continue
        identifier, stem, listed, _, key = row
        counts["read"] += 1
        _, *parts = re.split(r"\(([A-D])\) ", listed)
        answers = [text.strip() for text in parts[1::2]]
        yield _with_choices(identifier, stem, answers, _label(key, parts[::2], where), where)


def _label(key: str, names: Sequence[str], where: str) -> int:
    if key not in names:
        wanted = one_of(names) if names else "a choice"
        raise ValueError(f"{where}: expected the right answer to be {wanted}, got {quoted(key)}. Correct it.")
    return names.index(key)
