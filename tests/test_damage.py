"""Every file of a small workdir flipped, halved, emptied, deleted and swapped with another one (slow).

    RADIT_DAMAGES=10 pytest -m slow tests/test_damage.py -s

damages ten files drawn of each folder, in each way. Whatever is read afterwards gives what it gave before, or
one line of error.
"""

import contextlib
import io
import os
import pathlib
import random
import shutil
import signal
import traceback
from collections.abc import Callable, Iterator

import jax
import numpy as np
import pytest
import test_train
from test_kills import results

import radit_jax
from radit_jax import ask, train
from radit_jax.runtime.monitoring.metrics import Metrics
from radit_jax.runtime.storage.stage_folder import StageFolder

pytestmark = pytest.mark.slow

DRAWN = int(os.environ.get("RADIT_DAMAGES", "0"))  # files of a folder; 0: all
DAMAGES = ("flip", "halve", "empty", "delete", "swap")
SETTINGS = [f"--set={setting}" for setting in test_train.SMALL]


# ---- damaging ----


def files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The files to be damaged, by their paths in `folder`."""
    found = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    found = [path for path in found if path.name != "lock"]
    return random.Random(0).sample(found, DRAWN) if 0 < DRAWN < len(found) else found


def damage(how: str, folder: pathlib.Path, name: pathlib.Path) -> None:
    path, chance = folder / name, random.Random(str(name))
    data = path.read_bytes()
    if how == "flip" and data:
        at = chance.randrange(len(data))
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :])
    elif how == "halve":
        path.write_bytes(data[: len(data) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "delete":
        path.unlink()
    elif how == "swap":
        other = chance.choice([file for file in sorted(path.parent.parent.rglob("*")) if file.is_file()])
        path.write_bytes(other.read_bytes())
        other.write_bytes(data)


def faults(
    whole: pathlib.Path,
    scratch: pathlib.Path,
    read: Callable[[pathlib.Path], str],
    inside: str = "",
    in_turn: bool = False,
) -> Iterator[str]:
    """Damage copies of `whole`, in files of the folder `inside`, and yield what `read` says is wrong.

    Each file is damaged in every way, or `in_turn` in one.
    """
    names = [pathlib.Path(inside) / name for name in files(whole / inside)]
    for number, name in enumerate(names):
        for how in (DAMAGES[number % len(DAMAGES)],) if in_turn else DAMAGES:
            copy = scratch / "copy"
            shutil.copytree(whole, copy)
            damage(how, copy, name)
            try:
                problem = read(copy)
            except Exception:
                problem = traceback.format_exc(limit=-2, chain=False)
            shutil.rmtree(copy)
            jax.clear_caches()
            if problem:
                print(f"{how} {name}: {problem}", flush=True)
                yield f"{how} {name}: {problem}"
    print(f"{len(names)} files damaged")


def command(main: Callable[..., int], *arguments: str) -> tuple[int, str, str]:
    """Exit code, what was printed, and what is wrong: neither a result nor one line of error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(list(arguments))
    last = err.getvalue().strip().split("\n")[-1]
    clear = code == 0 or code == 1 and last.startswith("error: ")
    return code, out.getvalue(), "" if clear else f"code {code}: {err.getvalue()[-2000:]}"


# ---- a finished run ----


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A finished run; all of its programs are compiled."""
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path_factory.mktemp("compiled"))
    workdir = tmp_path_factory.mktemp("damage") / "whole"
    code, _, problem = command(train.main, "--stage=all", f"--workdir={workdir}", *SETTINGS)
    assert code == 0, problem
    yield workdir
    del os.environ["JAX_COMPILATION_CACHE_DIR"]


def test_a_damaged_run_gives_its_results_or_an_error(whole: pathlib.Path, tmp_path: pathlib.Path) -> None:
    def read(workdir: pathlib.Path) -> str:
        code, _, problem = command(train.main, "--stage=all", f"--workdir={workdir}", *SETTINGS)
        same = code or results(workdir) == results(whole)
        return problem or ("" if same else "other results")

    found = list(faults(whole, tmp_path, read))
    assert not found, "\n".join(found)


def exported(workdir: pathlib.Path) -> dict[str, bytes]:
    """What an export has of a run; its models in Hugging Face's form, whose bytes are always the same."""
    names = [path.relative_to(workdir) for path in (workdir / "export").rglob("*") if path.is_file()]
    names = [name for name in names if "params" not in name.parts and name.name != "manifest.json"]
    return {str(name): (workdir / name).read_bytes() for name in names}


def test_an_export_of_what_is_damaged_is_the_same_or_an_error(
    whole: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """Export reads again what almost every stage before it made, in one of the ways for each file."""

    def export(workdir: pathlib.Path) -> tuple[int, str]:
        more = "--set=export.run_depth=5"
        code, _, problem = command(train.main, "--stage=export", f"--workdir={workdir}", *SETTINGS, more)
        return code, problem

    shutil.copytree(whole, tmp_path / "first")
    assert export(tmp_path / "first") == (0, "")
    wanted = exported(tmp_path / "first")

    def read(workdir: pathlib.Path) -> str:
        code, problem = export(workdir)
        return problem or ("" if code or exported(workdir) == wanted else "another export")

    found = list(faults(whole, tmp_path, read, in_turn=True))
    assert not found, "\n".join(found)


def test_ask_answers_from_a_damaged_export_as_before_or_refuses(
    whole: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    question = "Where does Hob Crane stand?"
    _, answer, _ = command(ask.main, question, f"--export={whole / 'export'}")
    assert "chunks after R-ft" in answer

    def read(export: pathlib.Path) -> str:
        code, printed, problem = command(ask.main, question, f"--export={export}")
        return problem or ("" if code or printed == answer else f"another answer: {printed}")

    found = list(faults(whole / "export", tmp_path, read))
    assert not found, "\n".join(found)


@pytest.mark.parametrize("name", ["lm", "query_encoder", "hf/lm", "hf/retriever/query_encoder"])
def test_a_damaged_model_is_loaded_as_it_was_or_refused(
    whole: pathlib.Path, tmp_path: pathlib.Path, name: str
) -> None:
    module, params, tokenizer = radit_jax.load(str(whole / "export" / name))

    def read(export: pathlib.Path) -> str:
        try:
            found = radit_jax.load(str(export / name))
        except ValueError:
            return ""
        equal = jax.tree.map(lambda a, b: np.array_equal(a, b), found[1], params)
        same = jax.tree.all(equal) and found[0].config == module.config
        ids = found[2] and found[2].encode("Where does Hob Crane stand?")
        return "" if same and ids == tokenizer.encode("Where does Hob Crane stand?") else "another model"

    found = list(faults(whole / "export", tmp_path, read, inside=name))
    assert not found, "\n".join(found)


# ---- an unfinished one ----


def stop_in(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have SIGTERM come after the third step of a training stage, or the first file of another one."""
    write_line, write_file = Metrics.write, StageFolder.write

    def line(metrics: Metrics, step: int, name: str, values: dict) -> None:
        write_line(metrics, step, name, values)
        if name == stage and step == 3:
            signal.raise_signal(signal.SIGTERM)

    def file(folder: StageFolder, name: str, data: bytes) -> None:
        write_file(folder, name, data)
        if folder.stage == stage:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Metrics, "write", line)
    if stage not in ("lm_ft", "r_ft"):
        monkeypatch.setattr(StageFolder, "write", file)


def facts(workdir: pathlib.Path, stage: str) -> list[dict]:
    """What a stage's manifests say of its result."""
    from radit_jax.runtime.storage.workdir import Workdir

    manifests = Workdir(workdir).manifests(stage)
    return [
        {k: v for k, v in m.items() if k not in ("files", "versions", "commit", "seal", "seconds")}
        for m in manifests
    ]


@pytest.mark.parametrize("stage", ["embed", "lm_ft", "score", "r_ft"])
def test_a_damaged_unfinished_stage_goes_on_to_its_result_or_an_error(
    whole: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    half = tmp_path / "half"
    options = (f"--stage={stage}", f"--workdir={half}", *SETTINGS)
    with monkeypatch.context() as patched:
        stop_in(stage, patched)
        code, _, problem = command(train.main, *options)
    assert code == 75, problem
    [folder] = (path for path in (half / stage).iterdir())

    def read(workdir: pathlib.Path) -> str:
        code, _, problem = command(train.main, options[0], f"--workdir={workdir}", *SETTINGS)
        same = code or facts(workdir, stage) == facts(whole, stage)
        return problem or ("" if same else f"another result: {facts(workdir, stage)}")

    found = list(faults(half, tmp_path, read, inside=str(folder.relative_to(half))))
    assert not found, "\n".join(found)
