"""Ask a trained system: `python -m radit_jax.ask "Who built Dray Tower?" --workdir=runs/tiny`.

Shows the chunks that were retrieved before and after R-ft with their weights p_R, and the answers of Eq. 2.
`--export=PATH` needs nothing but an export; `--file=questions.jsonl` answers many, a line of JSON each. A
question that is too long for the language model's row has an `error` in the place of its answers.
"""

import argparse
import functools
import json
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from radit_jax.config import EvaluateConfig
from radit_jax.errors import exit_command, run_command
from radit_jax.runtime.storage.top_level_folder import TopLevelFolder
from radit_jax.text.printable import printable
from radit_jax.text.prompts import question_prompt

# A passage has up to four lines; --file writes it whole.
fill = functools.partial(textwrap.fill, subsequent_indent=" " * 9, max_lines=4, placeholder=" …")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser("python -m radit_jax.ask", description=(__doc__ or "").partition("\n")[0])
    p.add_argument("question", nargs="?", help="a question in plain words")
    p.add_argument(
        "--workdir", default="runs/tiny", metavar="FOLDER", help="of a finished run (default: runs/tiny)"
    )
    p.add_argument("--export", metavar="FOLDER", help="an export; default: the workdir's")
    p.add_argument(
        "--file", metavar="FILE", help="questions in any form that data.folder may have; to standard output"
    )
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    return run_command(lambda: answer_command(options))


def answer_command(options: argparse.Namespace) -> None:
    """What the command line asks for: one question shown, or a file of them answered in JSON lines."""
    if bool(options.question) == bool(options.file):
        raise ValueError("ask: give either a question or --file=questions.jsonl")
    export = TopLevelFolder(options.export or f"{options.workdir}/export")
    if not export.complete:
        raise ValueError(
            f"ask: {export.home} holds no finished export; run --stage=export, or name one by --export"
        )
    if options.file:
        answer_file(export, options.file)
        return
    found = next(ask(export, [options.question]))
    if "error" in found:
        raise ValueError(f"ask: {found['error']} Ask a shorter question.")
    show(options.question, found)


def answer_file(export: TopLevelFolder, name: str) -> None:
    """A line of JSON for each question of the file; an error where none could be asked."""
    from etils import epath

    from radit_jax.data.readers.questions import read_asked

    path = epath.Path(name)
    if not path.is_file():
        raise ValueError(f"ask: expected a file of questions, got no file {path}. Correct its path.")
    read = list(read_asked(path))
    if not read:
        raise ValueError(f"{path}: expected questions, got none. Write one a line.")
    in_utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    errors = []
    for (line, _), found in zip(read, ask(export, [question for _, question in read]), strict=True):
        print(json.dumps({**line, **found}, ensure_ascii=not in_utf8))
        errors += [found["error"]] if "error" in found else []
    if len(errors) == len(read):
        raise ValueError(f"{path}: expected questions that fit, got none. {errors[0]}")
    if errors:
        print(f"warning: {path}: {len(errors):,} of {len(read):,} questions were too long", file=sys.stderr)


def ask(export: TopLevelFolder, questions: Sequence[str]) -> Iterator[dict[str, Any]]:
    """For each question its answers and its chunks, by the tuned query encoder and by the base one.

    Where both encoders learnt, the exported vectors of chunks do not fit the base one, which is left out. A
    question that no row holds with its answer has an `error` instead, and costs no other its answers.
    """
    import numpy as np

    from radit_jax.config import MeshConfig
    from radit_jax.data.artifacts.corpus import Chunks
    from radit_jax.lm.answering import answer
    from radit_jax.retrieval.search import Searcher
    from radit_jax.runtime.distributed.memory import naming_remedy
    from radit_jax.runtime.distributed.mesh import make_mesh, row_layout
    from radit_jax.runtime.pretrained.model_io import load_model

    stored = export.read_json("answering.json")
    settings = EvaluateConfig(**{**stored["evaluate"], "tasks": ()}).answering()
    temperature = stored["temperature"]
    chunks, mesh = Chunks(export), make_mesh(MeshConfig())
    k = min(settings.chunks_per_answer, len(chunks))
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    with naming_remedy("ask"):
        searcher = Searcher.load({"retriever": export, "embeddings": export, "index": export}, MeshConfig())
        if not stored.get("both_encoders"):
            base = searcher.with_params(load_model(export.verified_path("base_query_encoder")).params)
            found["base_chunks"] = base.retrieve(questions, k, temperature)
        found["chunks"] = searcher.retrieve(questions, k, temperature)
        lm = load_model(export.verified_path("lm"), dtype=settings.dtype, mesh=mesh)
        lm = lm._replace(module=lm.module.clone(layout=row_layout(mesh)))
        errors = {n: _too_long(question, lm.tokenizer, settings) for n, question in enumerate(questions)}
        fitting = [n for n, error in errors.items() if not error]
        asked, (rows, log_probs) = [questions[n] for n in fitting], found["chunks"]
        made = answer(lm, asked, rows[fitting], log_probs[fitting], chunks, settings, "ask") if asked else []
        answers = dict(zip(fitting, made, strict=True))
    for number, error in errors.items():
        if error:
            yield {"error": error}
            continue
        yield {
            "answers": [candidate._asdict() for candidate in answers[number]],
            **{
                name: [
                    {"p_R": float(p), "title": chunk.title, "text": chunk.text}
                    for p, chunk in zip(np.exp(log_probs[number]), chunks.take(rows[number]), strict=True)
                ]
                for name, (rows, log_probs) in found.items()
            },
        }


def _too_long(question: str, tokenizer: Any, settings: EvaluateConfig) -> str:
    """What is wrong with a question that no row holds even without a Background, as `evaluate` judges it."""
    prompt = tokenizer.encode(tokenizer.opening + question_prompt(question))
    room = settings.sequence_length - settings.max_new_tokens - 1
    if len(prompt) <= room:
        return ""
    return (
        f"expected a question of at most {room} tokens, as the row of evaluate.sequence_length "
        f"{settings.sequence_length} holds <bos> and an answer too, got {len(prompt)}."
    )


def show(question: str, found: Mapping[str, Any]) -> None:
    """One question's answers and chunks for a person to read."""
    print(f"{printable(question)}\n")
    for candidate in found["answers"]:
        print(f"  {candidate['probability']:.3f}  {printable(candidate['text'])}")
    for name, title in (("chunks", "chunks after R-ft"), ("base_chunks", "chunks before R-ft")):
        if name not in found:
            continue
        print(f"\n{title} (p_R)")
        for chunk in found[name]:
            passage = f"{chunk['title']}: {chunk['text']}" if chunk["title"] else chunk["text"]
            passage = printable(passage)
            print(fill(passage, shutil.get_terminal_size().columns, initial_indent=f"  {chunk['p_R']:.3f}  "))


if __name__ == "__main__":
    exit_command(main)
