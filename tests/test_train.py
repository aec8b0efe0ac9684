"""The command line, whole: a world of a few entities through every stage, then what users do next to it."""

import contextlib
import io
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.util import tensor_util

import radit_jax
from radit_jax import ask, config, train
from radit_jax.pipeline import runner
from radit_jax.pipeline.run_log import read_runs
from radit_jax.runtime.storage.workdir import Workdir

SMALL = [
    "data.train_entities=12",
    "data.dev_entities=4",
    "data.test_entities=5",
    "data.pretraining_entities=400",
    "data.documents=80",
    "data.encoder_groups=40",
    "base.lm.optimizer.steps=4",
    "base.lm.batch_size=8",
    "base.lm.model.num_layers=1",
    "base.lm.model.hidden_size=32",
    "base.lm.model.head_size=16",
    "base.retriever.model.num_layers=1",
    "base.retriever.optimizer.steps=4",
    "base.retriever.groups_per_batch=4",
    "lm_ft.optimizer.steps=4",
    "lm_ft.batch_size=8",
    "lm_ft.validate_every=2",
    "lm_ft.checkpoint_every=2",
    "score.batch_size=8",
    "score.shard_size=300",
    "r_ft.optimizer.steps=4",
    "r_ft.batch_size=16",
    "r_ft.refresh_every=2",
    "r_ft.validate_every=2",
    "evaluate.batch_size=8",
    "evaluate.bootstrap_samples=50",
]


def run(workdir: pathlib.Path, *options: str, small: bool = True) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of `radit_jax.train`."""
    settings = [f"--set={assignment}" for assignment in SMALL] if small else []
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = train.main([f"--workdir={workdir}", *settings, *options])
    return code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A finished run, made as a newcomer makes it: with a relative path."""
    folder = tmp_path_factory.mktemp("run")
    with contextlib.chdir(folder.parent):
        code, out, err = run(pathlib.Path(folder.name), "--stage=all")
    assert code == 0, err
    assert "no report was written" not in out, out
    return folder


def test_the_command_line_is_frozen() -> None:
    options = {action.option_strings[0]: action.default for action in train.parser()._actions}
    assert options == {
        "-h": "==SUPPRESS==",
        "--stage": "all",
        "--experiment": str(train.TINY),
        "--workdir": None,
        "--scratch": None,
        "--set": [],
        "--dry-run": False,
        "--prune": False,
        "--coordinator": None,
        "--num-processes": None,
        "--process-id": None,
    }


def in_a_process(code: str, *arguments: str, **environment: str) -> str:
    """What a program of its own prints last."""
    command = [sys.executable, "-c", code, *arguments]
    ended = subprocess.run(
        command, capture_output=True, text=True, cwd=train.TINY.parents[1], env=os.environ | environment
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()[-1]


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_the_command_shows_its_options_before_it_imports_what_takes_seconds(arguments: list[str]) -> None:
    code = """
import contextlib, sys
from radit_jax import train
with contextlib.suppress(SystemExit):
    if sys.argv[1:]:
        train.main(sys.argv[1:])
print([name for name in ("jax", "flax", "transformers", "tensorflow", "torch") if name in sys.modules])
"""
    assert in_a_process(code, *arguments) == "[]"


COUNTED = """
import collections, sys
import jax
events = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **_: events.update([event.rpartition("/")[2]]))
from radit_jax import train
{}
print(events["compile_requests_use_cache"], events["cache_hits"])
"""


def test_a_program_that_compiles_in_a_moment_is_kept(tmp_path: pathlib.Path) -> None:
    code = COUNTED.format("train.prepare_jax(train.Workdir(sys.argv[1]))\njax.jit(lambda x: x + 1)(1.0)")
    kept = str(tmp_path / "compiled")
    runs = [in_a_process(code, str(tmp_path), JAX_COMPILATION_CACHE_DIR=kept) for _ in range(2)]
    assert runs == ["1 0", "1 1"]


@pytest.mark.slow
def test_a_stage_that_ran_before_compiles_nothing_again(tmp_path: pathlib.Path) -> None:
    code = COUNTED.format("assert train.main(sys.argv[1:]) == 0")
    settings = [*SMALL, "base.lm.optimizer.steps=1", "base.retriever.optimizer.steps=1"]
    options = ["--stage=base", f"--workdir={tmp_path / 'run'}", *(f"--set={setting}" for setting in settings)]
    kept = str(tmp_path / "compiled")
    compiled, found = map(int, in_a_process(code, *options, JAX_COMPILATION_CACHE_DIR=kept).split())
    assert compiled > found
    shutil.rmtree(tmp_path / "run")
    compiled, found = map(int, in_a_process(code, *options, JAX_COMPILATION_CACHE_DIR=kept).split())
    assert compiled == found > 0


def test_results_lie_at_the_top_and_under_their_name(workdir: pathlib.Path) -> None:
    for name in ("results.json", "predictions.jsonl"):
        assert (workdir / "results" / "corpus-test" / name).read_bytes() == (workdir / name).read_bytes()


def test_a_whole_run_leaves_a_page_of_it(workdir: pathlib.Path) -> None:
    page = (workdir / "report.html").read_text()
    assert "<h1>RA-DIT answers" in page and 'id="questions-0"' in page


def test_tensorboard_has_the_figures_of_evaluation(workdir: pathlib.Path) -> None:
    (file,) = workdir.glob("evaluate/*/tensorboard/events*")
    scalars = {}
    for event in EventFileLoader(str(file)).Load():
        for value in event.summary.value:
            if value.tag != "settings":
                scalars[value.tag] = tensor_util.make_ndarray(value.tensor).item()
    results = json.loads((workdir / "results.json").read_text())
    radit = results["systems"]["radit"]["exact_match"]["value"]
    assert scalars["evaluate/systems/radit/exact_match"] == pytest.approx(radit)


def test_the_run_is_on_record(workdir: pathlib.Path) -> None:
    first = read_runs(workdir)[0]
    assert first["outcome"] == "done" and first["settings"]["lm_ft.optimizer.steps"] == 4
    assert first["stages"][0] == "corpus" and first["stages"][-1] == "export"
    assert list(first["seconds"]) == first["stages"] and first["seconds"]["lm_ft"].keys() == {"lm_ft"}
    assert sum(first["seconds"]["evaluate"].values()) > 0 and "evaluate radit" in first["seconds"]["evaluate"]


def test_results_have_every_figure_with_its_interval(workdir: pathlib.Path) -> None:
    results = json.loads((workdir / "results.json").read_text())
    assert set(results["systems"]) == {"closed_book", "base", "lm_ft", "r_ft", "radit"}
    assert set(results["gains"]) == {"lm_ft-base", "r_ft-base", "radit-lm_ft", "radit-base"}
    assert set(results["context"]) == {"base_lm", "lm_ft_lm"}
    assert set(results["context"]["base_lm"]) == {"gold", "retrieved", "random", "none"}
    recalls = {f"{kind}_recall@{k}" for kind in ("gold", "answer") for k in (1, 5, 10)}
    assert set(results["retrieval"]["r_ft"]) == {*recalls, "mrr"}
    assert results["num_questions"] == 15
    nll = results["systems"]["radit"]["answer_nll"]
    assert nll["low"] <= nll["value"] <= nll["high"]


def test_predictions_show_chunks_with_weights_that_sum_to_one(workdir: pathlib.Path) -> None:
    lines = [json.loads(line) for line in (workdir / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 15
    for line in lines:
        assert len(line["chunks"]) == 10
        np.testing.assert_allclose(sum(chunk["p_R"] for chunk in line["chunks"]), 1, rtol=1e-4)
        probabilities = [answer["probability"] for answer in line["answers"]]
        assert probabilities == sorted(probabilities, reverse=True)
        assert sum(probabilities) <= 1 + 1e-4


def test_a_finished_run_is_current_and_runs_nothing_again(workdir: pathlib.Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in workdir.glob("*/*/manifest.json")}
    code, out, _ = run(workdir, "--stage=all")
    assert code == 0
    assert "everything is current" in out
    assert {path: path.stat().st_mtime_ns for path in workdir.glob("*/*/manifest.json")} == before


def test_a_changed_setting_reruns_only_what_depends_on_it(workdir: pathlib.Path) -> None:
    _, out, _ = run(workdir, "--dry-run", "--set=r_ft.tau=0.5")
    would_run = {line.split()[2]: line for line in out.splitlines() if line.startswith("would run")}
    assert set(would_run) == {"r_ft", "evaluate", "export"}
    assert "r_ft.tau 0.02 → 0.5" in would_run["r_ft"]
    assert "what it reads has changed" in would_run["evaluate"]


def test_the_mesh_and_paths_change_no_fingerprint(workdir: pathlib.Path) -> None:
    _, out, _ = run(workdir, "--dry-run", "--set=mesh.fsdp=4")
    assert "would run" not in out


def test_an_unknown_stage_is_refused(tmp_path: pathlib.Path) -> None:
    code, _, err = run(tmp_path / "new", "--stage=rft")
    assert code == 1
    assert "--stage: expected one of corpus, base," in err and "got 'rft'" in err
    assert not (tmp_path / "new").exists()


def test_a_part_of_a_place_among_processes_is_refused(tmp_path: pathlib.Path) -> None:
    code, _, err = run(tmp_path / "new", "--coordinator=host:1")
    assert code == 1
    assert "expected --coordinator=HOST:PORT, --num-processes=N and --process-id=0 to N-1, got only" in err
    assert not (tmp_path / "new").exists()


def test_a_program_on_one_host_of_many_names_the_others_and_writes_nothing(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RADIT_JOIN_SECONDS", "0.3")
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost,worker-1.pod")
    monkeypatch.setenv("TPU_WORKER_ID", "0")
    code, _, err = run(tmp_path / "new")
    assert code == 1
    assert err.startswith(
        "error: hosts: expected 2 processes within 0.3 s, got 1, without process 1 (worker-1.pod)"
    )
    assert not (tmp_path / "new").exists()


def test_sigterm_ends_the_command_with_a_code_of_its_own_and_one_line(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "prepare_jax", lambda _: signal.raise_signal(signal.SIGTERM))
    code, _, err = run(tmp_path / "new", "--stage=corpus")
    assert code == 75
    assert err == "stopped by SIGTERM at corpus; what was finished is kept. The same command goes on.\n"
    monkeypatch.undo()
    assert run(tmp_path / "new", "--stage=corpus")[0] == 0


def test_several_hosts_on_s3_are_told_to_name_a_shared_scratch() -> None:
    train.check_scratch("s3://bucket/run", "/shared")
    train.check_scratch("gs://bucket/run", None)
    with pytest.raises(ValueError, match=r"--workdir=s3://bucket/run: expected --scratch with several hosts"):
        train.check_scratch("s3://bucket/run", None)


def test_another_experiments_workdir_is_refused(workdir: pathlib.Path, tmp_path: pathlib.Path) -> None:
    other = tmp_path / "other.py"
    other.write_text(
        "from dataclasses import replace\nimport sys\n"
        f"sys.path.insert(0, {str(train.TINY.parent)!r})\nimport tiny\n"
        "def experiment():\n    return replace(tiny.experiment(), name='other')\n"
    )
    code, _, err = run(workdir, f"--experiment={other}")
    assert code == 1
    assert "'tiny'" in err
    assert "--workdir" in err


def test_more_chunks_than_the_corpus_has_are_refused(workdir: pathlib.Path) -> None:
    code, _, err = run(workdir, "--stage=retrieve", "--set=retrieve.num_chunks=100")
    assert code == 1
    assert "retrieve.num_chunks: expected at most " in err and ", got 100. Lower the setting" in err


def test_an_altered_output_is_found_by_who_reads_it(workdir: pathlib.Path) -> None:
    scores = next(workdir.glob("score/*/scores.npz"))
    whole = scores.read_bytes()
    scores.write_bytes(whole[:-3] + b"xxx")
    try:
        code, _, err = run(workdir, "--stage=r_ft", "--set=r_ft.tau=0.3")
    finally:
        scores.write_bytes(whole)
    assert code == 1
    assert str(scores) in err
    assert "altered bytes" in err


def test_the_export_loads_bit_equal_in_a_fresh_process(workdir: pathlib.Path) -> None:
    _, params, _ = radit_jax.load(str(workdir / "export" / "lm"))
    here = sum(float(np.abs(np.asarray(leaf, np.float64)).sum()) for leaf in jax.tree.leaves(params))
    code = (
        "import sys, jax, numpy as np, radit_jax\n"
        "module, params, tokenizer = radit_jax.load(sys.argv[1])\n"
        "print(repr(sum(float(np.abs(np.asarray(x, np.float64)).sum()) for x in jax.tree.leaves(params))))\n"
        "ids = np.array([tokenizer.encode('Q: Who?')])\n"
        "print(radit_jax.generate(module, params, ids, max_new_tokens=3).shape)\n"
    )
    command = [sys.executable, "-c", code, str(workdir / "export" / "lm")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")
    assert float(printed[0]) == here
    assert printed[1] == "(1, 3)"


def test_r_ft_changes_the_query_encoder_and_nothing_else(workdir: pathlib.Path) -> None:
    base = next(path.parent for path in workdir.glob("base/*/query_encoder"))
    _, chunk_encoder, _ = radit_jax.load(str(base / "chunk_encoder"))
    _, exported, _ = radit_jax.load(str(workdir / "export" / "chunk_encoder"))
    jax.tree.map(np.testing.assert_array_equal, chunk_encoder, exported)


def test_ask_answers_from_the_export_alone(
    workdir: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (workdir / "export").rename(tmp_path / "export")
    try:
        assert ask.main(["Where does Hob Crane stand?", f"--export={tmp_path / 'export'}"]) == 0
        shown = capsys.readouterr().out
        assert "chunks after R-ft" in shown
        assert "chunks before R-ft" in shown
        (tmp_path / "questions.jsonl").write_text('{"question": "Who?"}\n{"question": "Where?"}\n')
        assert ask.main([f"--export={tmp_path / 'export'}", f"--file={tmp_path / 'questions.jsonl'}"]) == 0
        assert [json.loads(line)["question"] for line in capsys.readouterr().out.splitlines()] == [
            "Who?",
            "Where?",
        ]
    finally:
        (tmp_path / "export").rename(workdir / "export")


def test_ask_without_an_export_says_how_to_make_one(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask.main(["Who?", f"--workdir={tmp_path}"]) == 1
    assert f"Run `radit export --workdir={tmp_path}`" in capsys.readouterr().err


@pytest.mark.parametrize(("answer", "left"), [("y", False), ("", True)])
def test_prune_shows_what_it_would_delete_and_asks(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], answer, left
) -> None:
    workdir = Workdir(tmp_path)
    stale = workdir.folder("embed", "a" * 12)
    stale.write("shard", bytes(2_500_000))
    monkeypatch.setattr("builtins.input", lambda question: answer)
    train.prune(runner.Run(config.load_experiment(str(train.TINY)), workdir))
    assert f"{tmp_path}/embed/{'a' * 12}: 2.5 MB\n" in capsys.readouterr().out
    assert stale.path.exists() == left


def test_prune_without_anybody_to_answer_is_an_error(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workdir = Workdir(tmp_path)
    stale = workdir.folder("embed", "a" * 12)
    stale.write("shard", b"x")
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    with pytest.raises(ValueError, match=r"--prune: expected an answer on .*, got the end of the input"):
        train.prune(runner.Run(config.load_experiment(str(train.TINY)), workdir))
    assert stale.path.exists()


# ---- what the system and the person refuse ----


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            "--workdir=http://host/run",
            "expected a folder, gs://BUCKET/FOLDER or s3://BUCKET/FOLDER, got http://",
        ),
        (
            "--workdir=file:///tmp/run",
            "expected a folder, gs://BUCKET/FOLDER or s3://BUCKET/FOLDER, got file://",
        ),
        ("--workdir=", "--workdir: expected a folder, got ''"),
        ("--scratch= ", "--scratch: expected a folder, got ' '"),
        ("--scratch=gs://bucket/scratch", "--scratch: expected a folder of this machine, got 'gs://"),
    ],
)
def test_an_address_that_is_no_folder_is_refused(
    option: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main([option, "--stage=corpus"]) == 1
    assert message in capsys.readouterr().err


def test_a_workdir_that_cannot_be_is_one_line(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").touch()
    for workdir in (tmp_path / "file", tmp_path / "file" / "run", pathlib.Path("/proc/nowhere")):
        code, _, err = run(workdir, "--stage=corpus")
        assert code == 1
        assert len(err.splitlines()) == 1 and err.startswith("error: ") and str(workdir) in err


def test_a_setting_out_of_its_range_is_refused_before_anything_is_written(tmp_path: pathlib.Path) -> None:
    code, _, err = run(tmp_path / "new", "--set=retrieve.temperature=nan")
    assert code == 1
    assert err == "error: retrieve.temperature: expected 1e-06 <= x <= 1e+06, got nan.\n"
    assert not (tmp_path / "new").exists()


def test_a_second_run_of_the_same_workdir_waits_for_nothing_and_claims_nothing(
    tmp_path: pathlib.Path,
) -> None:
    with Workdir(tmp_path / "run").lock():
        code, _, err = run(tmp_path / "run", "--stage=corpus")
    assert code == 1
    assert f"in use by process {os.getpid()}" in err
    assert os.listdir(tmp_path / "run") == ["lock"]


def test_a_workdir_that_was_cut_short_in_its_first_moments_takes_its_own_command(
    tmp_path: pathlib.Path,
) -> None:
    (tmp_path / "workdir.json").touch()
    (tmp_path / "sources.json").write_text('{"cut sho')
    assert run(tmp_path, "--stage=corpus")[0] == 0


def test_a_finished_stage_drops_its_training_state_unless_it_is_to_be_kept(tmp_path: pathlib.Path) -> None:
    stages = runner.Run(config.load_experiment(str(train.TINY)), Workdir(tmp_path))
    kept = runner.Run(config.override_settings(stages.experiment, ["keep_checkpoints=true"]), stages.workdir)
    output = stages.folders["lm_ft"]
    (output.path / "checkpoints").mkdir(parents=True)
    output.finish()
    kept.drop_checkpoints(kept.stages["lm_ft"])
    assert (output.path / "checkpoints").exists()
    stages.drop_checkpoints(stages.stages["lm_ft"])
    assert sorted(os.listdir(output.path)) == ["manifest.json"]


def test_keeping_training_state_leaves_what_is_finished_current(tmp_path: pathlib.Path) -> None:
    tiny = config.load_experiment(str(train.TINY))
    one, other = (
        {name: folder.fingerprint for name, folder in runner.Run(e, Workdir(tmp_path)).folders.items()}
        for e in (tiny, config.override_settings(tiny, ["keep_checkpoints=true"]))
    )
    assert one == other


def test_ask_shows_control_characters_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    chunk = {"p_R": 1.0, "title": "\x1b]0;title\x07", "text": "a\x1b[2Jb"}
    ask.show("Who\x9b1m?", {"answers": [{"probability": 1.0, "text": "Bo\x08"}], "chunks": [chunk]})
    shown = capsys.readouterr().out
    assert not set("\x1b\x07\x08\x9b") & set(shown)
    assert r"a\x1b[2Jb" in shown
