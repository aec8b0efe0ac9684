import errno
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import time
import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
import pytest
from etils import epath

from radit_jax.config import MeshConfig
from radit_jax.runtime.distributed.mesh import make_mesh
from radit_jax.runtime.storage import checkpoint_files, checkpoint_series
from radit_jax.runtime.storage.checkpoints import Checkpoints, load_params, save_params


class State(NamedTuple):
    step: Any
    params: Any


def state_at(step: int) -> State:
    weights = jnp.arange(24, dtype=jnp.float32).reshape(8, 3) / 7 + step
    return State(jnp.int32(step), {"a": {"kernel": weights}, "b": weights[0].astype(jnp.bfloat16)})


def assert_same(found, wanted):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def sharded(axis: str | None) -> jax.NamedSharding:
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    return jax.NamedSharding(mesh, jax.P(axis))


def test_parameters_are_read_back_bit_for_bit_as_plain_dicts(tmp_path):
    params = state_at(1).params
    save_params(tmp_path / "params", params)
    assert_same(load_params(tmp_path / "params"), params)


def test_saving_parameters_replaces_what_was_there(tmp_path):
    save_params(tmp_path / "params", {"old": jnp.zeros(3)})
    save_params(tmp_path / "params", {"new": np.ones(2, np.float32)})
    assert_same(load_params(tmp_path / "params"), {"new": jnp.ones(2)})


def test_parameters_take_the_sharding_that_is_asked_for(tmp_path):
    kernel = jax.device_put(jnp.arange(64.0).reshape(8, 8), sharded("fsdp"))
    save_params(tmp_path / "params", {"kernel": kernel})
    like = {"kernel": jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=sharded("fsdp"))}
    split = load_params(tmp_path / "params", like)
    assert split["kernel"].sharding == like["kernel"].sharding
    whole = load_params(tmp_path / "params")  # as another machine, with one device, would
    assert len(whole["kernel"].sharding.device_set) == 1
    assert_same(split, whole)


def test_parameters_are_read_straight_to_their_places_on_a_mesh(tmp_path):
    params = {"lm_head": {"kernel": jnp.arange(64.0).reshape(8, 8)}, "norm": jnp.ones(8)}
    save_params(tmp_path / "params", params)
    split = load_params(tmp_path / "params", mesh=make_mesh(MeshConfig()))
    assert split["lm_head"]["kernel"].sharding.shard_shape((8, 8)) == (1, 8)
    assert split["norm"].sharding.is_fully_replicated
    assert_same(split, params)


def test_parameters_of_another_shape_are_refused(tmp_path):
    save_params(tmp_path / "params", {"kernel": jnp.ones((4, 2))})
    with pytest.raises(ValueError, match="shape"):
        load_params(tmp_path / "params", {"kernel": jnp.ones((4, 3))})


def test_there_is_nothing_to_restore_at_first(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest() is None and checkpoints.best() is None


def test_the_latest_checkpoint_is_restored_with_its_extra(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in (10, 20):
        checkpoints.save(step, state_at(step), {"epoch": step / 10})
    for reader in (checkpoints, Checkpoints(tmp_path)):
        assert reader.latest() == 20
        state, extra = reader.restore(state_at(0))
        assert_same(state, state_at(20))
        assert extra == {"epoch": 2.0}


def test_only_the_latest_few_checkpoints_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3):
        checkpoints.save(step, state_at(step))
    assert sorted(os.listdir(tmp_path / "latest")) == ["2", "2.json", "3", "3.json"]


def test_the_best_parameters_are_kept_apart_and_alone(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save_best(0, state_at(0).params, 0.25)
    checkpoints.save_best(10, state_at(10).params, 0.5)
    for step in (10, 20, 30):
        checkpoints.save(step, state_at(step))
    for reader in (checkpoints, Checkpoints(tmp_path)):
        assert reader.best() == (10, 0.5)
        assert_same(reader.restore_best(state_at(0).params), state_at(10).params)
    assert sorted(os.listdir(tmp_path / "best")) == ["10", "10.json"]


def test_a_step_may_be_saved_again(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for value in (1, 2):
        checkpoints.save(5, state_at(value))
        checkpoints.save_best(5, state_at(value).params, 0.5)
    assert_same(checkpoints.restore(state_at(0))[0], state_at(2))
    assert_same(checkpoints.restore_best(state_at(0).params), state_at(2).params)


def test_a_state_may_be_donated_as_soon_as_its_save_has_started(tmp_path):
    """A save that read the arrays later would find the next step's numbers."""
    next_state = jax.jit(lambda tree: jax.tree.map(lambda a: a * 0 - 1, tree), donate_argnums=0)
    wanted = state_at(1)
    checkpoints = Checkpoints(tmp_path)
    state = state_at(1)
    checkpoints.start_saving(1, state)
    for _ in range(3):
        state = next_state(state)
    jax.block_until_ready(state)
    checkpoints.finish_saving()
    assert_same(Checkpoints(tmp_path).restore(state_at(0))[0], wanted)


def test_a_checkpoint_counts_only_once_its_save_is_finished(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.unwritten() is None
    checkpoints.save(1, state_at(1))
    checkpoints.start_saving(2, state_at(2))
    while checkpoints.unwritten():
        time.sleep(0.01)
    # All its files are there, and a kill would leave the one before.
    assert not (tmp_path / "latest" / "2.json").exists()
    assert (tmp_path / "latest" / "2").exists() and checkpoints.unwritten() is False
    checkpoints.start_saving(3, state_at(3))  # which commits the one before first
    assert (tmp_path / "latest" / "2.json").exists()
    assert checkpoints.latest() == 3


def test_saving_is_silent(tmp_path):
    code = f"""
import jax.numpy as jnp
from radit_jax.runtime.storage.checkpoints import Checkpoints, load_params, save_params
save_params({str(tmp_path / "params")!r}, {{"a": jnp.ones(3)}})
load_params({str(tmp_path / "params")!r})
Checkpoints({str(tmp_path)!r}).save(1, {{"a": jnp.ones(3)}})
"""
    result = run_python(code)
    assert (result.stdout, result.stderr) == ("", "")


def test_a_save_cut_short_is_passed_over_and_can_be_done_again(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, state_at(step))
    latest = tmp_path / "latest"
    (latest / "2").rename(latest / "2.orbax-checkpoint-tmp")
    (latest / "2.orbax-checkpoint-tmp" / "state" / "manifest.ocdbt").unlink()
    reopened = Checkpoints(tmp_path)
    assert reopened.latest() == 1
    assert_same(reopened.restore(state_at(0))[0], state_at(1))
    reopened.save(2, state_at(3))
    assert_same(Checkpoints(tmp_path).restore(state_at(0))[0], state_at(3))
    assert sorted(os.listdir(latest)) == ["1", "1.json", "2", "2.json"]


def test_parameters_cut_short_can_be_saved_again(tmp_path):
    save_params(tmp_path / "params", state_at(1).params)
    (tmp_path / "params").rename(tmp_path / "params.orbax-checkpoint-tmp")
    save_params(tmp_path / "params", state_at(2).params)
    assert_same(load_params(tmp_path / "params"), state_at(2).params)
    assert os.listdir(tmp_path) == ["params"]


def test_a_deletion_cut_short_hides_neither_the_latest_nor_the_best(tmp_path):
    writer = Checkpoints(tmp_path, keep=3)
    for step in (1, 2):
        writer.save(step, state_at(step))
        writer.save_best(step, state_at(step).params, step / 4)
    for folder, marker in (("latest", "1"), ("best", "1")):
        shutil.copytree(tmp_path / folder / "2", tmp_path / folder / marker, dirs_exist_ok=True)
        for left in ("_CHECKPOINT_METADATA", "state", "metrics"):
            shutil.rmtree(tmp_path / folder / marker / left, ignore_errors=True)
    reopened = Checkpoints(tmp_path)
    assert reopened.latest() == 2 and reopened.best() == (2, 0.5)
    assert_same(reopened.restore(state_at(0))[0], state_at(2))
    reopened.save_best(3, state_at(3).params, 0.75)
    reopened.save(3, state_at(3))
    assert reopened.latest() == 3 and reopened.best() == (3, 0.75)


def damage_file(folder: pathlib.Path, how: str) -> pathlib.Path:
    """Damage the largest file of a checkpoint, as a disk or a person might."""
    file = max((file for file in folder.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    if how == "deleted":
        file.unlink()
    else:
        file.write_bytes({"flipped": bytes(data), "halved": data[: len(data) // 2], "emptied": b""}[how])
    return file


@pytest.mark.parametrize("how", ["flipped", "halved", "emptied", "deleted"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_taken(tmp_path, capsys, how):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, state_at(step))
    damaged = damage_file(tmp_path / "latest" / "2", how)
    reopened = Checkpoints(tmp_path)
    assert reopened.latest() == 1
    assert f"{damaged}: expected the bytes that were written, got" in capsys.readouterr().err
    assert_same(reopened.restore(state_at(0))[0], state_at(1))
    reopened.save(2, state_at(5))
    assert_same(Checkpoints(tmp_path).restore(state_at(0))[0], state_at(5))


@pytest.mark.parametrize(
    "record", [None, b"", b"[]", b"\xff", b'{"step": 2, "files": {}}', "altered", "another's"]
)
def test_a_checkpoint_without_its_record_is_not_used_and_that_is_said(tmp_path, capsys, record):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, state_at(step), {"epoch": step})
    file = tmp_path / "latest" / "2.json"
    if record == "altered":
        record = file.read_bytes().replace(b'"epoch": 2', b'"epoch": 3')
    if record == "another's":
        record = (tmp_path / "latest" / "1.json").read_bytes()
    file.unlink() if record is None else file.write_bytes(record)
    reopened = Checkpoints(tmp_path)
    assert reopened.latest() == 1
    assert f"{tmp_path}/latest/2: no record of its files, so it is not used" in capsys.readouterr().err
    assert reopened.restore(state_at(0))[1] == {"epoch": 1}


def test_the_checkpoints_of_a_version_that_wrote_no_records_are_left_alone(tmp_path, capsys):
    for step in (1, 2):
        ocp.save(tmp_path / "latest" / str(step), state_at(step))
    assert Checkpoints(tmp_path).latest() is None
    assert capsys.readouterr().err.count("no record of its files, so it is not used") == 2


@pytest.mark.parametrize("how", ["flipped", "deleted", "no record", "gone"])
def test_training_does_not_go_on_without_the_best_parameters_that_it_had(tmp_path, how):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save_best(1, state_at(1).params, 0.5)
    checkpoints.save(2, state_at(2))
    if how == "no record":
        (tmp_path / "best" / "1.json").unlink()
    elif how == "gone":
        shutil.rmtree(tmp_path / "best")
    else:
        damage_file(tmp_path / "best" / "1", how)
    message = (
        r"best/1: expected the parameters that were the best when step 2 was saved, got none that are whole"
    )
    with pytest.raises(ValueError, match=message):
        Checkpoints(tmp_path).restore(state_at(0))


def test_training_goes_on_with_better_parameters_than_its_checkpoint_knew(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save_best(1, state_at(1).params, 0.5)
    checkpoints.save(2, state_at(2))
    checkpoints.save_best(3, state_at(3).params, 0.75)  # and a kill before step 3 was saved
    reopened = Checkpoints(tmp_path)
    reopened.restore(state_at(0))
    assert reopened.best() == (3, 0.75)


@pytest.mark.parametrize("killed_in", ["save_async", "write_whole", "_remove_others"])
@pytest.mark.parametrize("kind", ["latest", "best"])
def test_a_kill_anywhere_in_a_save_leaves_what_was_there_before_or_what_is_new(
    tmp_path, monkeypatch, killed_in, kind
):
    def saved(checkpoints, step):
        if kind == "latest":
            return checkpoints.save(step, state_at(step))
        return checkpoints.save_best(step, state_at(step).params, step / 10)

    def killed(*args, **options):
        raise KeyboardInterrupt

    checkpoints = Checkpoints(tmp_path, keep=1)
    saved(checkpoints, 1)
    where = {
        "save_async": checkpoint_series.ocp,
        "write_whole": checkpoint_series,
        "_remove_others": checkpoint_series.CheckpointSeries,
    }[killed_in]
    with monkeypatch.context() as context:
        context.setattr(where, killed_in, killed)
        with pytest.raises(KeyboardInterrupt):
            saved(checkpoints, 2)
    reopened = Checkpoints(tmp_path, keep=1)
    expected = 2 if killed_in == "_remove_others" else 1
    if kind == "latest":
        assert reopened.latest() == expected
    else:
        assert reopened.best() == (expected, expected / 10)
    saved(reopened, 3)
    assert sorted(os.listdir(tmp_path / kind)) == ["3", "3.json"]


def test_each_process_hashes_what_it_wrote(tmp_path, monkeypatch):
    """Two processes by turns, in one: what Orbax writes for them is there before either looks."""
    for name in ("state/ocdbt.process_0/d/a", "state/ocdbt.process_1/d/b", "state/_METADATA"):
        file = tmp_path / "latest" / "1" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    read = []
    real = checkpoint_files._checksum
    monkeypatch.setattr(checkpoint_files, "_checksum", lambda path: read.append(path.name) or real(path))
    monkeypatch.setattr(checkpoint_series.multihost_utils, "sync_global_devices", lambda name: None)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    series = checkpoint_series.CheckpointSeries(epath.Path(tmp_path / "latest"), 2, None)
    sums = {}
    for index, own in ((1, ["b"]), (0, ["_METADATA", "a"])):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        read.clear()
        own_sums = series._wait_for_files(1, lambda: None)
        assert sorted(read) == own
        sums = series._join_checksums(1, own_sums)
    assert sums["state/ocdbt.process_1/d/b"] == [25, zlib.crc32(b"state/ocdbt.process_1/d/b")]
    assert len(sums) == 3 and os.listdir(tmp_path / "latest") == ["1"]


SAVER = """
import sys
import jax.numpy as jnp
from radit_jax.runtime.storage.checkpoints import Checkpoints
checkpoints = Checkpoints(sys.argv[1])
step = checkpoints.latest() or 0
while True:
    step += 1
    state = {f"w{i}": jnp.full((200, 500), step, jnp.float32) for i in range(20)}
    print("saving", flush=True)
    checkpoints.save(step, {"step": jnp.int32(step), **state}, {"step": step})
"""


@pytest.mark.slow
def test_a_kill_in_the_middle_of_a_save_leaves_a_whole_checkpoint(tmp_path):
    latest = 0
    for attempt in range(8):
        command = [sys.executable, "-c", SAVER, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as saver:
            for _ in range(3):
                assert saver.stdout is not None and saver.stdout.readline() == "saving\n"
            time.sleep(0.01 * attempt)
            saver.send_signal(signal.SIGKILL)
        checkpoints = Checkpoints(tmp_path)
        newest = checkpoints.latest()
        assert newest is not None and newest >= latest + 2
        latest = newest
        like = {"step": jnp.int32(0)} | {f"w{i}": jnp.zeros((200, 500)) for i in range(20)}
        state, extra = checkpoints.restore(like)
        assert extra == {"step": latest}
        for leaf in jax.tree.leaves(state):
            assert (leaf == latest).all()


ROOT = pathlib.Path(__file__).parents[3]


def run_python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)


def test_relative_paths_will_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_params("model", state_at(0).params)
    assert_same(load_params("model"), state_at(0).params)
    Checkpoints("run").save(3, state_at(3))
    assert Checkpoints("run").latest() == 3


def test_a_file_that_the_system_refuses_is_one_error_with_its_name(tmp_path, capfd):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    noise = np.random.default_rng(0).random((100, 100), np.float32)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))  # as a full disk, in every user's power
    try:
        with pytest.raises(OSError) as refused:
            save_params(epath.Path(tmp_path / "params"), {"a": jnp.asarray(noise)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert refused.value.errno == errno.EFBIG
    assert str(refused.value.filename).startswith(str(tmp_path / "params"))
    assert "Traceback" not in capfd.readouterr().err
