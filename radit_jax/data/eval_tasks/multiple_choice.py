"""Readers of the tasks with choices: MMLU, ARC, BoolQ, OpenBookQA, and four commonsense tasks."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from radit_jax.data.eval_tasks.task import Choice, EvalExample, Reader
from radit_jax.data.readers.lines import (
    JsonObject,
    demand,
    json_objects,
    line_object,
    one_of,
    quoted,
    text_lines,
)
from radit_jax.data.readers.tables import table_rows

LETTERS = "ABCD"


# ---- one item ----


def _with_choices(
    identifier: str,
    prompt: str,
    answers: Sequence[str],
    label: int,
    where: str,
    **more: Any,
) -> EvalExample:
    """An item whose choices continue one prompt; `label` counts from 0."""
    if not 0 <= label < len(answers):
        raise ValueError(
            f"{where}: expected the right answer to be choice 1 to {len(answers)}, got choice {label + 1}. "
            "Take the publisher's file."
        )
    # A space parts prompt and choice; it is scored with the choice.
    choices = tuple(Choice(answer, prompt, f" {answer}") for answer in answers)
    return EvalExample(
        identifier,
        prompt,
        answers=(answers[label],),
        choices=choices,
        label=label,
        **more,
    )


def _label(
    key: str,
    names: Sequence[str],
    where: str,
) -> int:
    """The number of the choice with this name, counted from 0."""
    if key not in names:
        expected = one_of(names) if names else "a choice"
        raise ValueError(
            f"{where}: expected the right answer to be {expected}, got {quoted(key)}. Take the publisher's "
            "file."
        )
    return names.index(key)


# ---- MMLU and BoolQ ----


def mmlu_tables(path: epath.Path) -> list[epath.Path]:
    """The tables of a split's folder, one for each subject, sorted by name."""
    return sorted(file for file in path.iterdir() if file.suffix == ".csv")


def read_mmlu(path: epath.Path, counts: Counter[str]) -> Iterator[EvalExample]:
    """All subjects of a folder: question, choices, the right letter. The query is question and choices."""
    for file in mmlu_tables(path):
        subject, _, _ = file.stem.rpartition("_")  # NAME_test.csv
        rows = table_rows(file, delimiter=",", num_columns=6, quoting="csv")
        for line_number, (where, row) in enumerate(rows, start=1):
            question, *options, letter = row
            counts["read"] += 1

            # The options are in the prompt, and the choices are their letters.
            lines = [f"{name}. {option}\n" for name, option in zip(LETTERS, options, strict=True)]
            listed = "".join(lines)
            yield _with_choices(
                f"{file.stem}:{line_number}",
                f"Question: {question}\n{listed}A:",
                LETTERS,
                LETTERS.find(letter.strip() or "?"),  # -1, which is refused, for any other text
                where,
                query=" ".join([question, *options]),
                subject=subject,
            )


def read_boolq(path: epath.Path, counts: Counter[str]) -> Iterator[EvalExample]:
    """Google's files name the answer `answer`, SuperGLUE's `label`."""
    for line_number, (where, line) in enumerate(json_objects(path), start=1):
        demand(line, {"question": "a string", "passage": "a string"}, where)
        counts["read"] += 1
        # A test file has neither field.
        answer = line.get("answer", line.get("label"))
        if not isinstance(answer, bool):
            raise ValueError(
                f"{where}: expected the answer true or false, got {quoted(answer)}. Take the publisher's "
                "file."
            )
        # The files leave the question mark out.
        question = line["question"].rstrip("? ") + "?"
        yield _with_choices(
            f"{path.name}:{line_number}",
            f"{line['passage']}\nQuestion: {question}\nAnswer:",
            ("yes", "no"),
            0 if answer else 1,
            where,
        )


# ---- commonsense: PIQA, SIQA, HellaSwag, WinoGrande ----


def file_and_labels(path: epath.Path) -> list[epath.Path]:
    """`NAME.jsonl`, and `NAME-labels.lst` in the same folder."""
    return [path, path.parent / f"{path.stem}-labels.lst"]


def _labelled(
    path: epath.Path,
    fields: Sequence[str],
) -> Iterator[tuple[str, dict[str, Any], int]]:
    """(place, line, label) of each line of `NAME.jsonl`; `NAME-labels.lst` has the labels in that order."""
    # Both files are read whole, to compare their lengths.
    _, labels_file = file_and_labels(path)
    if not labels_file.exists():
        raise ValueError(
            f"{path}: expected its labels next to it, in {labels_file.name}, got no such file. Download it "
            "there."
        )
    lines = list(json_objects(path))
    texts = [text.strip() for _, text in text_lines(labels_file)]
    labels = [text for text in texts if text]

    # Files of two releases do not fit each other.
    are_numbers = all(re.fullmatch("[0-9]{1,3}", label) for label in labels)
    if len(lines) != len(labels) or not are_numbers:
        raise ValueError(
            f"{labels_file}: expected a number for each of the {len(lines)} lines of {path.name}, got "
            f"{len(labels)} labels. Take both files from one release."
        )
    for (where, line), label in zip(lines, labels, strict=True):
        demand(line, dict.fromkeys(fields, "a string"), where)
        yield where, line, int(label)


def read_piqa(path: epath.Path, counts: Counter[str]) -> Iterator[EvalExample]:
    """PIQA: a goal and two solutions, without the white space around some of them."""
    # Label 0 is the first solution.
    lines = _labelled(path, ("goal", "sol1", "sol2"))
    for line_number, (where, line, label) in enumerate(lines, start=1):
        counts["read"] += 1
        yield _with_choices(
            f"{path.name}:{line_number}",
            f"Question: {line['goal']}\nAnswer:",
            (line["sol1"].strip(), line["sol2"].strip()),
            label,
            where,
        )


def read_siqa(path: epath.Path, counts: Counter[str]) -> Iterator[EvalExample]:
    """Social IQa: a context, a question and three answers, whose labels count from 1."""
    # The first of the three has label 1.
    answers = ("answerA", "answerB", "answerC")
    lines = _labelled(path, ("context", "question", *answers))
    for line_number, (where, line, label) in enumerate(lines, start=1):
        counts["read"] += 1
        yield _with_choices(
            f"{path.name}:{line_number}",
            f"{line['context']} Q: {line['question']} A:",
            [line[name] for name in answers],
            label - 1,
            where,
        )


def read_hellaswag(
    path: epath.Path,
    counts: Counter[str],
) -> Iterator[EvalExample]:
    """HellaSwag: a context and four endings of it, cleaned."""
    # Labels are numbers in the published files, and strings in the copies on the hub.
    kinds = {
        "ctx": "a string",
        "endings": "a list of strings",
        "label": "a string or a number",
    }
    for line_number, (where, line) in enumerate(json_objects(path), start=1):
        demand(line, kinds, where)
        counts["read"] += 1
        endings = [_hellaswag_text(ending) for ending in line["endings"]]
        names = [str(n) for n in range(len(endings))]
        yield _with_choices(
            f"{path.name}:{line_number}",
            _hellaswag_context(line, where),
            endings,
            _label(str(line["label"]), names, where),
            where,
        )


def _hellaswag_context(line: JsonObject, where: str) -> str:
    """The context: a sentence and the first words of a second one, which begins with a capital."""
    # `ctx` has the two halves as one, with a small letter between them; some copies have it alone.
    if "ctx_a" not in line or "ctx_b" not in line:
        return _hellaswag_text(line["ctx"])
    demand(line, {"ctx_a": "a string", "ctx_b": "a string"}, where)
    return _hellaswag_text(f"{line['ctx_a']} {line['ctx_b'].capitalize()}")


def _hellaswag_text(text: str) -> str:
    """Text without WikiHow's tags in square brackets, as lm-evaluation-harness cleans it.

    >>> _hellaswag_text("How to hide [title] Find a bush. [step] Crouch.")
    'How to hide. Find a bush. Crouch.'
    """
    # The title ends like a sentence; what a removed tag leaves is one space too many.
    with_full_stops = text.strip().replace(" [title]", ". ")
    without_tags = re.sub(r"\[.*?\]", "", with_full_stops)
    return without_tags.replace("  ", " ")


def read_winogrande(
    path: epath.Path,
    counts: Counter[str],
) -> Iterator[EvalExample]:
    """WinoGrande: a sentence with a blank `_` and two options; what follows the blank is scored."""
    fields = ("qID", "sentence", "option1", "option2", "answer")
    for where, line in json_objects(path):
        demand(line, dict.fromkeys(fields, "a string"), where)
        counts["read"] += 1
        sentence = line["sentence"]
        prefix, blank, suffix = sentence.partition("_")
        if not blank or not suffix.strip():
            raise ValueError(
                f"{where}: expected a _ with words after it in 'sentence', got {quoted(sentence)}. Take the "
                "publisher's file."
            )
        # Each option makes a prompt of its own, and the same words are scored after either.
        options = (line["option1"], line["option2"])
        choices = tuple(Choice(option, prefix + option, suffix) for option in options)
        label = _label(line["answer"], ["1", "2"], where)
        yield EvalExample(
            line["qID"],
            prefix,
            answers=(options[label],),
            choices=choices,
            label=label,
        )


# ---- science: ARC, OpenBookQA ----


def science_reader(template: str) -> Reader:
    """A reader of the Allen Institute's multiple-choice lines; `template` has a `{}` for the question."""
    choice_fields = {"text": "a string", "label": "a string"}

    def read(path: epath.Path, counts: Counter[str]) -> Iterator[EvalExample]:
        for where, line in json_objects(path):
            demand(line, {"id": "a string", "answerKey": "a string"}, where)
            question = line_object(line.get("question"), where)
            demand(
                question,
                {"stem": "a string", "choices": "a list of objects"},
                where,
            )
            choices = question["choices"]
            for choice in choices:
                demand(choice, choice_fields, where)
            counts["read"] += 1

            # The labels are letters in most questions, and digits in others.
            labels = [choice["label"] for choice in choices]
            yield _with_choices(
                line["id"],
                template.format(question["stem"]),
                [choice["text"] for choice in choices],
                _label(line["answerKey"], labels, where),
                where,
            )

    return read


def read_openbookqa_table(
    path: epath.Path,
    counts: Counter[str],
) -> Iterator[EvalExample]:
    """OpenBookQA's table, which has the choices in one column: `(A) the sun (B) the moon …`."""
    rows = table_rows(path, delimiter="\t", num_columns=5)
    for line_number, (where, row) in enumerate(rows):
        if line_number == 0:  # the head
            continue
        identifier, stem, listed, _, key = row
        counts["read"] += 1

        # The text before (A), then letters and choices in turn.
        _, *parts = re.split(r"\(([A-D])\) ", listed)
        letters = parts[::2]
        answers = [text.strip() for text in parts[1::2]]
        label = _label(key, letters, where)
        yield _with_choices(identifier, stem, answers, label, where)
