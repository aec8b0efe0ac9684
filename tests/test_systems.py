"""What a system does to a run, in every stage: one line says it, and the same command goes on (slow).

A disk that is full, read-only, not to be written, or gone; few descriptors; another run and `ask` meanwhile.
"""

import contextlib
import io
import pathlib
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator

import pytest
from test_kills import ROOT, SETTINGS, command, environment, results

from radit_jax import ask, train
from radit_jax.pipeline.graph import KINDS

pytestmark = pytest.mark.slow

QUESTION = "Where does Hob Crane stand?"
WITHOUT_RIGHTS = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]  # of root, to write anywhere


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A finished run; all programs are compiled beside it."""
    workdir = tmp_path_factory.mktemp("systems") / "whole"
    assert ended(workdir, "all", workdir.parent) == (0, "")
    return workdir


def ended(workdir: pathlib.Path, stage: str, compiled: pathlib.Path, *before: str) -> tuple[int, str]:
    """The command's exit code and, where it is not 0, the one line that says why."""
    done = subprocess.run(
        [*before, *command(workdir, stage)],
        cwd=ROOT,
        env=environment(compiled),
        capture_output=True,
        text=True,
    )
    return done.returncode, why(done.returncode, done.stderr)


def why(code: int, errors: str) -> str:
    """The line of error, which stands last and stands for a traceback."""
    print(f"code {code}: {errors.strip()[-400:]}")
    assert "Traceback" not in errors, errors
    return errors.strip().split("\n")[-1] if code else ""


def begun(whole: pathlib.Path, stage: str, workdir: pathlib.Path) -> None:
    """A workdir in which `stage` is the next."""
    later = KINDS[list(KINDS).index(stage) :]
    shutil.copytree(whole, workdir, ignore=lambda folder, names: later if folder == str(whole) else ())
    for file in (*workdir.glob("results*"), *workdir.glob("predictions*")):
        file.unlink()


def half(folder: pathlib.Path) -> int:
    """Half of what a folder's files take on a disk, in bytes."""
    pages = [-(-path.lstat().st_size // 4096) for path in folder.rglob("*") if path.is_file()]
    return 4096 * (sum(pages) // 2)


@contextlib.contextmanager
def small_disk(path: pathlib.Path) -> Iterator[Callable[[str], None]]:
    """A filesystem in memory at `path`; what is given sets its options."""
    path.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "none", path], capture_output=True).returncode:
        pytest.skip("this user may not mount a filesystem")
    try:
        yield lambda options: subprocess.run(["mount", "-o", f"remount,{options}", path], check=True)
    finally:
        subprocess.run(["umount", "-l", path], check=True)


@pytest.mark.parametrize("stage", KINDS)
def test_a_full_disk_is_one_line_and_the_run_goes_on(
    whole: pathlib.Path, tmp_path: pathlib.Path, stage: str
) -> None:
    with small_disk(tmp_path / "disk") as mount:
        workdir = tmp_path / "disk" / "run"
        begun(whole, stage, workdir)
        mount(f"size={shutil.disk_usage(workdir).used + half(whole / stage)}")
        code, line = ended(workdir, stage, whole.parent)
        assert code == 1 and line.startswith("error: ") and "No space left" in line
        assert str(workdir) in line
        mount("size=1g")
        assert ended(workdir, "all", whole.parent) == (0, "")
        assert results(workdir) == results(whole)


@pytest.mark.parametrize("stage", KINDS)
def test_a_stage_that_may_not_be_written_is_one_line_and_goes_on(
    whole: pathlib.Path, tmp_path: pathlib.Path, stage: str
) -> None:
    workdir = tmp_path / "run"
    begun(whole, stage, workdir)
    (workdir / stage).mkdir()
    (workdir / stage / "notes").touch()  # an empty folder could be removed, and made again
    (workdir / stage).chmod(0o555)
    code, line = ended(workdir, stage, whole.parent, *WITHOUT_RIGHTS)
    assert code == 1 and line.startswith("error: ") and str(workdir / stage) in line
    (workdir / stage).chmod(0o755)
    assert ended(workdir, "all", whole.parent) == (0, "")
    assert results(workdir) == results(whole)


def test_what_may_only_be_read_is_refused_to_a_run_and_serves_ask(
    whole: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    with small_disk(tmp_path / "disk") as mount:
        workdir = tmp_path / "disk" / "run"
        shutil.copytree(whole, workdir)
        mount("ro")
        code, line = ended(workdir, "all", whole.parent)
        assert code == 1 and line.startswith("error: ") and "Read-only" in line
        assert answered(workdir) == answered(whole)


def answered(workdir: pathlib.Path) -> tuple[int, str]:
    """What `ask` prints, or why it does not."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = ask.main([QUESTION, f"--workdir={workdir}"])
    return code, out.getvalue() or why(code, err.getvalue())


def test_256_descriptors_are_enough(whole: pathlib.Path, tmp_path: pathlib.Path) -> None:
    limited = ["bash", "-c", 'ulimit -Sn 256; exec "$@"', "bash"]
    assert ended(tmp_path / "run", "all", whole.parent, *limited) == (0, "")
    assert results(tmp_path / "run") == results(whole)


@contextlib.contextmanager
def paused_in(
    workdir: pathlib.Path, compiled: pathlib.Path, stages: Iterator[str] | list[str], *options: str
) -> Iterator[Iterator[str]]:
    """The command, which stands still whenever one of `stages` has begun, until the next is asked for."""
    pipes = {"stdout": subprocess.PIPE, "text": True, "cwd": ROOT, "env": environment(compiled)}
    with (
        (compiled / "errors").open("w+") as errors,
        subprocess.Popen([*command(workdir), *options], stderr=errors, **pipes) as process,
    ):

        def begun() -> Iterator[str]:
            for line in process.stdout:
                # ── 3/12 base/lm: was never run
                title = line.partition(":")[0].split()
                stage = title[-1].partition("/")[0] if title else ""
                if line.startswith("──") and stage in stages:
                    process.send_signal(signal.SIGSTOP)
                    yield stage
                    process.send_signal(signal.SIGCONT)
            process.wait()
            errors.seek(0)
            yield why(process.returncode, errors.read())

        try:
            yield begun()
        finally:
            process.kill()


@pytest.mark.parametrize("stage", KINDS)
def test_a_workdir_that_is_removed_is_one_line(
    whole: pathlib.Path, tmp_path: pathlib.Path, stage: str
) -> None:
    workdir = tmp_path / "run"
    begun(whole, stage, workdir)
    with paused_in(workdir, whole.parent, [stage]) as begins:
        assert next(begins) == stage
        shutil.rmtree(workdir)
        *_, line = begins
        assert line.startswith("error: ") and str(workdir) in line


def test_another_run_is_refused_in_every_stage_and_ask_answers_from_the_export_that_is_there(
    whole: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    workdir = tmp_path / "run"
    workdir.mkdir()
    shutil.copytree(whole / "export", workdir / "export")
    answer, stages = answered(whole), []
    with paused_in(workdir, whole.parent, list(KINDS), "--set=export.run_depth=5") as begins:
        for stage in begins:
            if stage not in KINDS:
                assert stage == ""  # no error
                break
            stages.append(stage)
            err = io.StringIO()
            with contextlib.redirect_stderr(err):
                code = train.main([f"--workdir={workdir}", *(f"--set={setting}" for setting in SETTINGS)])
            assert code == 1 and "in use by process" in why(code, err.getvalue())
            code, said = answered(workdir)
            assert (code, said) == answer or stage == "export" and said.startswith("error: ask: ")
    assert set(stages) == set(KINDS)
    assert results(workdir) == results(whole)
