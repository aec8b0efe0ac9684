"""Ask a trained system: `python -m radit_jax.ask "Who built Dray Tower?" --workdir=runs/tiny`.

Shows the chunks that were retrieved before and after R-ft with their weights p_R, and the answers of Eq. 2.
`--export=PATH` needs nothing but an export. `--file=questions.jsonl` answers many questions, each with a line
of JSON; one that is too long for the language model's row has an `error` in place of its answers. `--json`
answers one question so: `question`, `answer`, `probability`, then `answers` (every candidate's `text` and
`probability`), `chunks` and `base_chunks` (each with its `p_R`, `title` and `text`). `--serve` keeps the
models in memory, and answers on a page and in JSON (`serving/server.py`).
"""

import argparse
import contextlib
import json
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from radit_jax.command_line import module_parser
from radit_jax.errors import exit_command, parse_and_run
from radit_jax.runtime.distributed.devices import prepare_devices
from radit_jax.runtime.storage.top_level_folder import TopLevelFolder
from radit_jax.serving.command import add_export, add_options, find_export, serve_export
from radit_jax.text.printable import printable, shown_answer

CHUNK_TITLES = {"chunks": "chunks after R-ft", "base_chunks": "chunks before R-ft"}


def parser() -> argparse.ArgumentParser:
    """The command line of `ask`."""
    p = module_parser("ask", __doc__, answer_command)
    p.add_argument("question", nargs="?", help="a question in plain words")
    add_export(p)
    p.add_argument(
        "--file", metavar="FILE", help="questions in any form that data.folder may have; to standard output"
    )
    p.add_argument("--json", action="store_true", help="one question's answers for programs, in one line")
    service = p.add_argument_group("a service, until Ctrl-C (pip install 'radit_jax[serve]')")
    service.add_argument("--serve", action="store_true", help="serve a page and a JSON endpoint")
    add_options(service)
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    return parse_and_run(parser(), arguments)


def answer_command(options: argparse.Namespace) -> None:
    """Show one question's answers, answer a file of questions in JSON lines, or serve.

    Raises ValueError where there is no question, or no export to ask.
    """
    asked = [options.question, options.file, options.serve]
    if sum(map(bool, asked)) != 1:
        raise ValueError(
            "ask: expected one of a question, --file and --serve, got several or none. "
            "Give one, as in --file=questions.jsonl."
        )
    if options.serve:
        serve_export(options)
        return
    export = find_export(options)
    prepare_devices()  # before jax starts
    from radit_jax.runtime.monitoring.compilation import announcing_compilation

    # A file's results are for programs, a single question's for a person.
    with announcing_compilation():
        if options.file:
            answer_file(export, options.file)
            return
        result = next(ask(export, [options.question]))
    if "error" in result:
        raise ValueError(f"ask: {result['error']} Ask a shorter question.")
    if options.json:
        print(_in_json(one_answer(options.question, result)))
        return
    show(options.question, result)


def answer_file(export: TopLevelFolder, name: str) -> None:
    """Print a line of JSON for each question of the file `name`: its own fields, then the answers.

    A question that is too long has an `error` instead. Raises ValueError where no question can be asked.
    """
    from etils import epath

    from radit_jax.data.readers.questions import read_asked

    # A bucket's path is read too.
    path = epath.Path(name)
    if not path.is_file():
        raise ValueError(f"ask: expected a file of questions, got no file {path}. Correct its path.")
    lines_and_questions = list(read_asked(path))
    if not lines_and_questions:
        raise ValueError(f"{path}: expected questions, got none. Write one a line.")

    # 1) Ask them all, and print each result after the fields of its line.
    errors = []
    questions = [question for _, question in lines_and_questions]
    results = ask(export, questions)
    for (line, _), result in zip(lines_and_questions, results, strict=True):
        print(_in_json({**line, **result}))
        if "error" in result:
            errors.append(result["error"])

    # 2) Say how many were too long.
    num_questions = len(lines_and_questions)
    if len(errors) == num_questions:
        raise ValueError(f"{path}: expected questions that fit, got none. {errors[0]}")
    if errors:
        warning = f"warning: {path}: {len(errors):,} of {num_questions:,} questions were too long"
        print(warning, file=sys.stderr)


def one_answer(question: str, result: Mapping[str, Any]) -> dict[str, Any]:
    """One question's result for programs: the best candidate first, then all that `--file` writes."""
    best = result["answers"][0]
    return {
        "question": question,
        "answer": best["text"],
        "probability": best["probability"],
        **result,
    }


def _in_json(value: Mapping[str, Any]) -> str:
    """A line of JSON; a terminal or pipe of another encoding gets escapes for what it may not have."""
    encoding = sys.stdout.encoding or ""
    is_utf8 = encoding.lower().replace("-", "") == "utf8"
    return json.dumps(value, ensure_ascii=not is_utf8)


def ask(export: TopLevelFolder, questions: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Each question's `answers`, the `chunks` by the tuned query encoder and `base_chunks` by the base one.

    Where both encoders learnt, the exported vectors of chunks do not fit the base one, which is left out. A
    question that no row holds with its answer has only an `error`; the others are answered all the same.
    """
    from radit_jax.runtime.monitoring.progress import Progress
    from radit_jax.serving.system import TUNED, AnsweringSystem

    # 1) Retrieve with both query encoders, and answer those of the questions that fit.
    # What is said on the way is no result, and standard output is for results.
    with contextlib.redirect_stdout(sys.stderr):
        system = AnsweringSystem.load(export)
        retrieved = system.retrieve(questions)
        errors = [system.why_too_long(question) for question in questions]
        fitting = [place for place, error in enumerate(errors) if not error]
        answers: dict[int, list[Any]] = {}
        if fitting:
            texts = [questions[place] for place in fitting]
            with Progress(len(texts), "ask", "questions") as bar:
                answered = system.answer(texts, retrieved[TUNED].part(fitting), bar)
            answers = dict(zip(fitting, answered, strict=True))

    # 2) Give the results in the order of the questions.
    for place, error in enumerate(errors):
        if error:
            yield {"error": error}
            continue
        yield {"answers": answers[place], **system.describe_chunks(retrieved, place)}


def show(question: str, result: Mapping[str, Any]) -> None:
    """Print one question's answers and chunks for a person to read."""
    print(f"{printable(question)}\n")
    for candidate in result["answers"]:
        text = printable(shown_answer(candidate["text"]))
        print(f"  {candidate['probability']:.3f}  {text}")

    for name, title in CHUNK_TITLES.items():
        if name not in result:
            continue
        print(f"\n{title} (p_R)")
        for chunk in result[name]:
            print(_passage(chunk))


def _passage(chunk: Mapping[str, Any]) -> str:
    """A chunk's p_R, title and text, wrapped for the terminal."""
    passage = chunk["text"]
    if chunk["title"]:
        passage = f"{chunk['title']}: {passage}"
    columns = shutil.get_terminal_size().columns
    # A passage has up to four lines; --file writes it whole.
    return textwrap.fill(
        printable(passage),
        columns,
        initial_indent=f"  {chunk['p_R']:.3f}  ",
        subsequent_indent=" " * 9,
        max_lines=4,
        placeholder=" …",
    )


if __name__ == "__main__":
    exit_command(main)
