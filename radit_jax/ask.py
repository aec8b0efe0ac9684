"""Ask a trained system: `python -m radit_jax.ask "Who built Dray Tower?" --workdir=runs/tiny`.

Shows the chunks that were retrieved before and after R-ft with their weights p_R, and the answers of Eq. 2.
`--export=PATH` needs nothing but an export. `--file=questions.jsonl` answers many questions, each with a line
of JSON; one that is too long for the language model's row has an `error` in place of its answers.
"""

import argparse
import json
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from radit_jax.config import EvaluateConfig
from radit_jax.errors import exit_command, run_command
from radit_jax.runtime.storage.top_level_folder import TopLevelFolder
from radit_jax.text.printable import printable
from radit_jax.text.prompts import question_prompt

CHUNK_TITLES = {"chunks": "chunks after R-ft", "base_chunks": "chunks before R-ft"}


def parser() -> argparse.ArgumentParser:
    """The command line of `ask`."""
    p = argparse.ArgumentParser("python -m radit_jax.ask", description=(__doc__ or "").partition("\n")[0])
    p.add_argument("question", nargs="?", help="a question in plain words")
    p.add_argument(
        "--workdir", default="runs/tiny", metavar="FOLDER", help="of a finished run (default: runs/tiny)"
    )
    p.add_argument("--export", metavar="FOLDER", help="an export; default: the workdir's")
    p.add_argument(
        "--file", metavar="FILE", help="questions in any form that data.folder may have; to standard output"
    )
    p.set_defaults(run=answer_command)
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = parser().parse_args(arguments)
    return run_command(lambda: answer_command(options))


def answer_command(options: argparse.Namespace) -> None:
    """Show one question's answers, or answer a file of questions in JSON lines.

    Raises ValueError where there is no question, or no export to ask.
    """
    if bool(options.question) == bool(options.file):
        raise ValueError(
            "ask: expected a question or --file, got both or neither. Give one, as in --file=questions.jsonl."
        )
    export = TopLevelFolder(options.export or f"{options.workdir}/export")
    if not export.complete:
        raise ValueError(
            f"ask: expected a finished export, got none in {export.home}. "
            "Run --stage=export, or name one with --export."
        )
    # A file's results are for programs, a single question's for a person.
    if options.file:
        answer_file(export, options.file)
        return

    result = next(ask(export, [options.question]))
    if "error" in result:
        raise ValueError(f"ask: {result['error']} Ask a shorter question.")
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
    # A terminal or pipe of another encoding gets escapes for what it may not have.
    encoding = sys.stdout.encoding or ""
    is_utf8 = encoding.lower().replace("-", "") == "utf8"
    errors = []
    questions = [question for _, question in lines_and_questions]
    results = ask(export, questions)
    for (line, _), result in zip(lines_and_questions, results, strict=True):
        print(json.dumps({**line, **result}, ensure_ascii=not is_utf8))
        if "error" in result:
            errors.append(result["error"])

    # 2) Say how many were too long.
    num_questions = len(lines_and_questions)
    if len(errors) == num_questions:
        raise ValueError(f"{path}: expected questions that fit, got none. {errors[0]}")
    if errors:
        warning = f"warning: {path}: {len(errors):,} of {num_questions:,} questions were too long"
        print(warning, file=sys.stderr)


def ask(export: TopLevelFolder, questions: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Each question's `answers`, the `chunks` by the tuned query encoder and `base_chunks` by the base one.

    Where both encoders learnt, the exported vectors of chunks do not fit the base one, which is left out. A
    question that no row holds with its answer has only an `error`; the others are answered all the same.
    """
    import numpy as np

    from radit_jax.config import MeshConfig
    from radit_jax.data.artifacts.corpus import Chunks
    from radit_jax.lm.answering import Retrieval, answer
    from radit_jax.retrieval.search import Searcher
    from radit_jax.runtime.distributed.memory import naming_remedy
    from radit_jax.runtime.distributed.mesh import make_mesh, row_layout
    from radit_jax.runtime.pretrained.model_io import load_model

    # The export says how it was evaluated; its tasks are not asked here.
    stored = export.read_json("answering.json")
    settings = EvaluateConfig(**{**stored["evaluate"], "tasks": ()}).answering()
    temperature = stored["temperature"]
    chunks = Chunks(export)
    mesh = make_mesh(MeshConfig())
    k = min(settings.chunks_per_answer, len(chunks))
    retrieved: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # rows of chunks, and log p_R
    with naming_remedy("ask"):
        # 1) Retrieve with both query encoders.
        searcher = Searcher.load({"retriever": export, "embeddings": export, "index": export}, MeshConfig())
        if not stored.get("both_encoders"):
            base_params = load_model(export.verified_path("base_query_encoder")).params
            base_searcher = searcher.with_params(base_params)
            retrieved["base_chunks"] = base_searcher.retrieve(questions, k, temperature)
        retrieved["chunks"] = searcher.retrieve(questions, k, temperature)

        # 2) Answer those of the questions that fit.
        lm = load_model(export.verified_path("lm"), dtype=settings.dtype, mesh=mesh)
        module = lm.module.clone(layout=row_layout(mesh))
        lm = lm._replace(module=module)
        errors = [_too_long(question, lm.tokenizer, settings) for question in questions]
        fitting = [index for index, error in enumerate(errors) if not error]
        answers: dict[int, list[Any]] = {}
        if fitting:
            retrieval = Retrieval(chunks, *retrieved["chunks"]).part(fitting)
            texts = [questions[index] for index in fitting]
            answered = answer(lm, texts, retrieval, settings, "ask")
            answers = dict(zip(fitting, answered, strict=True))

    # 3) Give the results in the order of the questions.
    for index, error in enumerate(errors):
        if error:
            yield {"error": error}
            continue
        result: dict[str, Any] = {}
        result["answers"] = []
        for candidate in answers[index]:
            result["answers"].append({"text": candidate.text, "probability": candidate.probability})
        for name, (rows, log_probs) in retrieved.items():
            result_chunks = chunks.take(rows[index])
            result[name] = _with_probabilities(result_chunks, np.exp(log_probs[index]))
        yield result


def _with_probabilities(chunks: Iterable[Any], probabilities: Any) -> list[dict[str, Any]]:
    """A question's chunks with their p_R, as JSON holds them."""
    entries = []
    for chunk, p in zip(chunks, probabilities, strict=True):
        entries.append({"p_R": float(p), "title": chunk.title, "text": chunk.text})
    return entries


def _too_long(question: str, tokenizer: Any, settings: EvaluateConfig) -> str:
    """The error of a question that no row holds even without a Background; empty for one that fits."""
    # The shortest prompt that the question can have, and what the row holds besides its answer.
    prompt = tokenizer.encode_prompt(question_prompt(question))
    room = settings.sequence_length - settings.max_new_tokens
    if len(prompt) <= room:
        return ""
    return (
        f"expected a question of at most {room} tokens, as the row of evaluate.sequence_length "
        f"{settings.sequence_length} holds an answer too, got {len(prompt)}."
    )


def show(question: str, result: Mapping[str, Any]) -> None:
    """Print one question's answers and chunks for a person to read."""
    print(f"{printable(question)}\n")
    for candidate in result["answers"]:
        text = printable(candidate["text"])
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
