"""Stages in buckets that are kept in memory, and refuse what an object store cannot do."""

import concurrent.futures
import contextlib
import json
import os
import pathlib
import re
import signal
import time
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
import pytest
import small_run
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry as implementations
from fsspec.registry import register_implementation
from small import CHUNKS

from radit_jax.command_line import run_stage
from radit_jax.config import load_experiment
from radit_jax.data.artifacts.chunk_writing import write_chunks
from radit_jax.data.artifacts.chunks import Chunks
from radit_jax.pipeline.run_log import read_runs, recorded
from radit_jax.pipeline.runner import Run
from radit_jax.pipeline.stage import Stage
from radit_jax.report.run_data import _NO_PASSAGES, read_run
from radit_jax.runtime.distributed import processes
from radit_jax.runtime.storage import bucket, locks
from radit_jax.runtime.storage import lease as leases
from radit_jax.runtime.storage.checkpoints import Checkpoints
from radit_jax.runtime.storage.entries import files_under
from radit_jax.runtime.storage.source_hashes import SourceHashes
from radit_jax.runtime.storage.stage_folder import StageFolder
from radit_jax.runtime.storage.top_level_folder import TopLevelFolder
from radit_jax.runtime.storage.workdir import Workdir

EXPERIMENTS = pathlib.Path(__file__).parents[3] / "experiments"


class Objects(MemoryFileSystem):
    """Objects by name: no renames, no appends, nothing to say of a folder."""

    protocol = ("gs", "gcs", "s3")
    fails: str = ""  # a put of what has this in its name

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + str(path).split("://")[-1].strip("/")

    def _open(self, path, mode="rb", **options):  # pyright: ignore[reportIncompatibleMethodOverride]
        assert "a" not in mode, f"append to {path}"
        return super()._open(path, mode, **options)

    def pipe_file(self, path, value, mode="overwrite", **options):
        if Objects.fails and Objects.fails in path:
            raise PermissionError(f"{path}: denied")
        super().pipe_file(path, value, mode=mode, **options)

    def put_file(self, local, path, **options):  # pyright: ignore[reportIncompatibleMethodOverride]
        self.pipe_file(path, open_bytes(local))

    def mv(self, path1, path2, *args, **kwargs):  # pyright: ignore[reportIncompatibleMethodOverride]
        raise AssertionError(f"rename of {path1}")

    rename = move = mv


def open_bytes(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


@pytest.fixture(autouse=True)
def objects(monkeypatch) -> Iterator[dict]:
    known = dict(implementations)
    for scheme in Objects.protocol:
        register_implementation(scheme, Objects, clobber=True)
    monkeypatch.setattr(Objects, "store", {})
    monkeypatch.setattr(Objects, "pseudo_dirs", [""])
    monkeypatch.setattr(Objects, "fails", "")
    monkeypatch.setattr(bucket, "_homes", {})
    yield Objects.store
    implementations.clear()
    implementations.update(known)


@pytest.fixture(params=["gs", "s3"])
def home(request) -> str:
    return f"{request.param}://lab/runs/tiny"


@pytest.fixture
def machines(home, tmp_path) -> tuple[Workdir, Workdir]:
    """The same workdir on two machines, each with its own scratch."""
    return Workdir(home, tmp_path / "one"), Workdir(home, tmp_path / "two")


NAME = "0123456789ab"


def folders(machines: tuple[Workdir, Workdir]) -> tuple[StageFolder, StageFolder]:
    one, two = (workdir.folder("embed", NAME) for workdir in machines)
    return one, two


def write_params(folder: StageFolder) -> None:
    (folder.path / "params" / "d").mkdir(parents=True, exist_ok=True)
    (folder.path / "params" / "d" / "data").write_bytes(b"weights")
    (folder.path / "params" / "_METADATA").write_bytes(b"{}")
    folder.commit("params")


# ---- downloads ----


@pytest.fixture
def of_chunks(machines) -> tuple[StageFolder, StageFolder]:
    """Ten chunks in files of three, written by one machine, and the folder as another one sees it."""
    one, two = (workdir.folder("corpus", NAME) for workdir in machines)
    write_chunks(one, iter(CHUNKS), chunks_per_file=3)
    return one, two


def test_a_machine_fetches_the_files_of_chunks_that_it_reads(of_chunks, fetched):
    one, two = of_chunks
    one.finish(chunks=len(CHUNKS))
    chunks = Chunks(two)
    # The first file and the last one say how many chunks there are.
    assert len(chunks) == 10 and fetched == ["chunks.array_record.list", "00000", "00003"]
    assert chunks.take([4, 5, 3, 9]) == [CHUNKS[row] for row in (4, 5, 3, 9)]
    assert fetched[3:] == ["00001"]
    # What was fetched is not fetched again, and who needs all gets the rest.
    assert Chunks(two)[4] == CHUNKS[4] and fetched[4:] == []
    whole = two.verified_path("chunks.array_record")
    assert sorted(file.name for file in whole.iterdir()) == ["00000", "00001", "00002", "00003"]
    assert fetched[4:] == ["00002"]


def test_a_file_of_chunks_that_was_altered_or_is_gone_is_named_when_it_is_read(of_chunks, objects):
    one, two = of_chunks
    one.finish(chunks=len(CHUNKS))
    file = one.home / "chunks.array_record" / "00001"
    data = file.read_bytes()
    file.write_bytes(data[::-1])
    chunks = Chunks(two)
    assert chunks[0] == CHUNKS[0]
    wanted = r"chunks.array_record/00001: expected the bytes that were written, got altered bytes. Delete"
    with pytest.raises(ValueError, match=wanted):
        chunks.take([4])
    file.write_bytes(data)
    assert chunks[4] == CHUNKS[4]


def test_an_export_lists_what_the_store_copied_and_its_machine_never_had(machines):
    one, two = folders(machines)
    write_params(one)
    one.finish()
    export = machines[1].published("export", NAME)
    export.copy_from(two, "params")
    export.commit_each("params")
    export.finish()
    assert sorted(export.manifest["files"]) == ["params/_METADATA", "params/d"]
    assert (export.verified_path("params") / "d" / "data").read_bytes() == b"weights"


def test_chunks_of_an_earlier_version_have_no_list_and_are_fetched_together(of_chunks, fetched):
    one, two = of_chunks
    for name in ("chunks.array_record.list", "chunks.array_record.list.sha256"):
        (one.home / name).unlink()
    one.finish(chunks=len(CHUNKS))
    assert list(Chunks(two)) == list(CHUNKS)
    assert sorted(fetched) == ["00000", "00001", "00002", "00003"]


@pytest.fixture
def fetched(monkeypatch) -> list[str]:
    """The last part of every object that was downloaded."""
    names: list[str] = []
    real = Objects.get_file

    def get_file(self, key, local, **options):
        names.append(key.rpartition("/")[2])
        if Objects.fails and key.endswith(Objects.fails):
            # The other threads' files are whole by then.
            _wait_for(pathlib.Path(local).parent / "d" / "data")
            pathlib.Path(local).write_bytes(b"half")
            raise PermissionError(f"{key}: denied")
        return real(self, key, local, **options)

    monkeypatch.setattr(Objects, "get_file", get_file)
    return names


def _wait_for(file: pathlib.Path) -> None:
    deadline = time.monotonic() + 30
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.01)


def test_an_interrupted_download_goes_on_with_the_files_that_it_lacks(machines, fetched, monkeypatch) -> None:
    one, two = folders(machines)
    write_params(one)
    monkeypatch.setattr(Objects, "fails", "_METADATA")
    with pytest.raises(PermissionError):
        two.verified_path("params")
    assert not (two.path / "params" / "_METADATA").exists()  # a part of it has another name

    monkeypatch.setattr(Objects, "fails", "")
    fetched.clear()
    params = two.verified_path("params")
    assert fetched == ["_METADATA"]
    assert sorted(file.name for file in files_under(params)) == ["_METADATA", "data"]
    assert (params / "d" / "data").read_bytes() == b"weights"


def test_a_file_of_the_same_size_and_other_bytes_is_fetched_again(machines, fetched) -> None:
    one, two = folders(machines)
    write_params(one)
    stale = two.path / "params" / "d" / "data"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"WEIGHTS")
    params = two.verified_path("params")
    assert (params / "d" / "data").read_bytes() == b"weights"
    assert sorted(fetched) == ["_METADATA", "_METADATA", "data"]


# ---- stages ----


def test_what_is_evicted_is_fetched_again_and_on_a_disk_nothing_is(machines, tmp_path) -> None:
    one, two = folders(machines)
    one.write_array("matrix.npy", np.eye(3))
    one.finish()
    two.map_arrays(["matrix.npy"])[0]
    other = [(folder.path / "matrix.npy").exists() for folder in (one, two)]
    one.evict()
    assert other == [True, True] and not one.path.exists() and two.path.exists()
    np.testing.assert_array_equal(folders(machines)[0].map_arrays(["matrix.npy"])[0], np.eye(3))
    on_disk = StageFolder(tmp_path / "disk" / "embed" / NAME)
    on_disk.write("matrix.npy", b"1")
    on_disk.evict()
    assert on_disk.read("matrix.npy") == b"1"


def test_a_run_evicts_what_no_stage_that_is_left_reads_or_writes(tmp_path) -> None:
    evicted = []

    class Folder(StageFolder):
        def evict(self) -> None:
            evicted.append(self.stage)

    names = ("corpus", "embed", "index", "score", "r_ft")
    run = object.__new__(Run)
    object.__setattr__(run, "folders", {name: Folder(tmp_path / name / NAME) for name in names})
    score = Stage("score", "score:run", {"corpus": "corpus"}, {})
    run.evict([score, Stage("r_ft", "r_ft:run", {"embeddings": "embed", "scores": "score"}, {})])
    assert evicted == ["index"]
    run.evict([])
    assert evicted == ["index"]


def test_an_array_that_the_bucket_lost_is_one_clear_error(machines) -> None:
    one, two = folders(machines)
    one.write_array("part.npy", np.eye(2))
    bucket.delete_objects(one.home / "part.npy")
    with pytest.raises(ValueError, match=r"part.npy: expected the \d+ bytes that were written, got 0"):
        two.map_arrays(["part.npy"])[0]


def test_an_array_is_fetched_by_the_machine_that_uses_it(machines) -> None:
    one, two = folders(machines)
    for number in range(3):
        one.write_array(f"part-{number}.npy", np.full((2, 2), number))
    arrays = two.map_arrays([f"part-{number}.npy" for number in range(3)])
    np.testing.assert_array_equal(arrays[1], np.full((2, 2), 1))
    assert [(two.path / f"part-{number}.npy").exists() for number in range(3)] == [False, True, False]


def test_threads_that_ask_for_one_array_fetch_it_once_and_no_other_process_waits(
    machines, monkeypatch
) -> None:
    one, two = folders(machines)
    one.write_array("matrix.npy", np.eye(3))
    one.finish()
    # One of two processes, without lines: a wait would be an error.
    program = processes.ProcessGroup(processes.ProcessTopology("h:1", 2, 1))
    monkeypatch.setattr(processes, "_process_group", program)
    downloads, download = [], bucket.download

    def slow(home, local):
        downloads.append(home)
        time.sleep(0.05)
        download(home, local)

    monkeypatch.setattr(bucket, "download", slow)
    arrays = two.map_arrays(["matrix.npy"])
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: arrays[0], range(4)))
    assert len(downloads) == 1 and processes.is_multiprocess()
    np.testing.assert_array_equal(found[-1], np.eye(3))
    assert [path.name for path in two.path.iterdir()] == ["matrix.npy"]


def test_what_processes_of_several_machines_commit_each_fetches_that_reads_it(machines, monkeypatch) -> None:
    for number, folder in enumerate(folders(machines)):
        monkeypatch.setattr(
            processes, "_process_group", processes.ProcessGroup(processes.ProcessTopology("h:1", 2, number))
        )
        (folder.path / f"tree-{number}").mkdir(parents=True)
        (folder.path / f"tree-{number}" / "data").write_bytes(b"%d" % number)
        with processes.apart():
            folder.commit(f"tree-{number}")
    first, second = folders(machines)
    with processes.apart():
        assert (second.verified_path("tree-0") / "data").read_bytes() == b"0"
    assert not (first.path / "tree-1").exists()


def test_what_one_machine_writes_another_reads(machines) -> None:
    one, two = folders(machines)
    one.write_json("facts.json", {"k": [1, 2]})
    one.write_jsonl("rows.jsonl", [{"text": "é"}])
    one.write_arrays("arrays.npz", ids=np.arange(3))
    one.write_array("sub/matrix.npy", np.eye(3))
    write_params(one)
    assert two.has("facts.json") and two.has("params") and not two.complete
    one.finish(count=3)
    assert two.complete and two.manifest["count"] == 3
    assert two.read_json("facts.json") == {"k": [1, 2]}
    assert two.read_jsonl("rows.jsonl") == [{"text": "é"}]
    np.testing.assert_array_equal(two.read_arrays("arrays.npz")["ids"], [0, 1, 2])
    assert isinstance(two.map_arrays(["sub/matrix.npy"])[0], np.memmap)
    assert (two.verified_path("params") / "d" / "data").read_bytes() == b"weights"
    assert sorted(two.manifest["files"]) == [
        "arrays.npz",
        "facts.json",
        "params",
        "rows.jsonl",
        "sub/matrix.npy",
    ]


def test_only_the_manifest_and_the_data_are_left(machines, objects) -> None:
    one, _ = folders(machines)
    one.write("shard", b"some bytes")
    one.finish()
    assert set(objects) == {
        f"/lab/runs/tiny/embed/{NAME}/shard",
        f"/lab/runs/tiny/embed/{NAME}/manifest.json",
    }


def test_the_manifest_is_the_same_as_on_a_disk(machines, tmp_path) -> None:
    manifests = []
    for workdir in (machines[0], Workdir(tmp_path / "disk")):
        folder = workdir.folder("embed", NAME)
        folder.write("shard", b"some bytes")
        write_params(folder)
        folder.finish()
        manifests.append(json.loads((folder.home / "manifest.json").read_text()))
    assert manifests[0] == manifests[1]


def test_what_was_not_committed_does_not_count(machines, objects) -> None:
    one, two = folders(machines)
    assert not two.half_written
    one.write("whole", b"some bytes")
    one.write("cut", b"some bytes")
    del objects[f"/lab/runs/tiny/embed/{NAME}/cut.sha256"]
    assert [name for name in ("whole", "cut", "never") if two.has(name)] == ["whole"]
    assert two.half_written


def test_a_put_that_fails_commits_nothing(machines) -> None:
    one, two = folders(machines)
    one.write("shard", b"old bytes")
    write_params(one)
    Objects.fails = "shard"
    with pytest.raises(PermissionError):
        one.write("shard", b"new bytes")
    Objects.fails = "d/data"
    with pytest.raises(PermissionError):
        write_params(one)
    assert not two.has("shard") and not two.has("params")


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"some by", "expected the 10 bytes that were written, got 7"),
        (b"some bytez", "expected the bytes that were written, got altered"),
    ],
)
def test_a_damaged_object_is_named(machines, objects, home, data, fault) -> None:
    one, two = folders(machines)
    one.write("shard", b"some bytes")
    objects[f"/lab/runs/tiny/embed/{NAME}/shard"].seek(0)
    objects[f"/lab/runs/tiny/embed/{NAME}/shard"].truncate()
    objects[f"/lab/runs/tiny/embed/{NAME}/shard"].write(data)
    remedy = f"Delete the folder {home}/embed/{NAME} and run {run_stage('embed')}"
    message = f"{home}/embed/{NAME}/shard: {fault}.* {remedy}"
    with pytest.raises(ValueError, match=message):
        two.read("shard")


def test_a_damaged_copy_on_this_machine_comes_down_again(machines) -> None:
    one, two = folders(machines)
    write_params(one)
    for folder in (one, two):
        (folder.path / "params").mkdir(parents=True, exist_ok=True)
        (folder.path / "params" / "stray").write_bytes(b"")
        (folder.path / "params" / "_METADATA").write_bytes(b"[]")
        folder.verified_path("params")
        assert (folder.path / "params" / "_METADATA").read_bytes() == b"{}"
        assert not (folder.path / "params" / "stray").exists()


def test_a_folder_that_is_committed_again_loses_what_it_no_longer_has(machines, objects) -> None:
    one, two = folders(machines)
    write_params(one)
    (one.path / "params" / "_METADATA").unlink()
    one.commit("params")
    two.verified_path("params")
    assert [name for name in objects if name.endswith("_METADATA")] == []


def test_an_adopted_file_or_folder_is_there_for_others(machines) -> None:
    one, two = folders(machines)
    write_params(one)
    one.finish()
    adopted = machines[1].published("export", "a" * 12)
    adopted.copy_from(two, "params")
    # The store copied: nothing of it is on the machine that asked.
    assert not (two.path / "params").exists() and not (adopted.path / "params").exists()
    export = machines[0].published("export", "a" * 12)
    assert (export.verified_path("params") / "d" / "data").read_bytes() == b"weights"
    export.finish()
    assert TopLevelFolder(export.home).fingerprint == "a" * 12


def test_a_workdir_finds_what_it_holds_by_time(machines, objects) -> None:
    for letter in "ca":
        folder = machines[0].folder("embed", letter * 12)
        folder.write("shard", b"bytes")
        folder.finish()
        time.sleep(0.01)
    machines[0].folder("score", "d" * 12).write("shard", b"bytes")
    assert [m["fingerprint"][0] for m in machines[1].manifests("embed")] == ["c", "a"]
    current = [machines[1].folder("embed", "c" * 12), machines[1].folder("score", "c" * 12)]
    stale = machines[1].superseded(current)
    assert [repr(folder) for folder in stale] == [f"embed/{'a' * 12}", f"score/{'d' * 12}"]
    for folder in stale:
        folder.clear()
    assert {name.split("/")[5] for name in objects} == {"c" * 12}
    assert not machines[0].folder("embed", "a" * 12).complete


def test_a_workdir_belongs_to_one_experiment(machines) -> None:
    machines[0].claim("tiny")
    with pytest.raises(ValueError, match="expected a workdir of the experiment 'wiki', got one of 'tiny'"):
        machines[1].claim("wiki")


def test_a_source_in_a_bucket_is_its_content_as_on_a_disk(machines, tmp_path, monkeypatch) -> None:
    (tmp_path / "source" / "sub").mkdir(parents=True)
    for name, data in (("a", b"one"), ("sub/b", b"two")):
        (tmp_path / "source" / name).write_bytes(data)
        bucket.put(f"gs://lab/source/{name}", data)
    first = machines[0].source_hash("gs://lab/source")
    assert first == machines[0].source_hash(tmp_path / "source")
    machines[0].claim("tiny")
    with monkeypatch.context() as context:
        context.setattr(
            "radit_jax.runtime.storage.source_hashes.hash_file", lambda path: pytest.fail("it was read again")
        )
        assert machines[1].source_hash("gs://lab/source") == first
    bucket.put("gs://lab/source/a", b"six")
    assert machines[0].source_hash("gs://lab/source") != first
    with pytest.raises(ValueError, match="gs://lab/nowhere: expected a file or a folder, got none"):
        machines[0].source_hash("gs://lab/nowhere")


def test_logs_follow_a_run_to_another_machine(machines) -> None:
    one, two = folders(machines)
    one.path.mkdir(parents=True)
    (one.path / "metrics.jsonl").write_text("{}\n")
    (one.path / "tensorboard").mkdir()
    (one.path / "tensorboard" / "events").write_bytes(b"x")
    one.keep_logs()
    two.fetch_logs()
    assert (two.path / "metrics.jsonl").read_text() == "{}\n"
    assert (two.path / "tensorboard" / "events").read_bytes() == b"x"
    two.finish()
    assert two.manifest["files"] == {}


# ---- whether it can be used ----


def test_a_bucket_that_may_not_be_written_is_one_clear_error(machines, home) -> None:
    Objects.fails = "probe-"
    message = f"{home}: expected .* this account may write and delete objects, got /lab/.*: denied. Log in"
    with pytest.raises(ValueError, match=message), machines[0].lock():
        pass


def test_a_bucket_that_may_not_be_read_is_one_clear_error(monkeypatch, home) -> None:
    def find(*args: object, **options: object) -> None:
        raise OSError("Forbidden: storage.objects.list")

    monkeypatch.setattr(Objects, "find", find)
    message = f"{home}: expected .* may list and read objects, got Forbidden: storage.objects.list. Log in"
    with pytest.raises(ValueError, match=message):
        Workdir(home)


@pytest.mark.parametrize(("scheme", "extra"), [("gs", "gcs"), ("s3", "s3")])
def test_a_missing_package_is_named(monkeypatch, scheme, extra) -> None:
    def missing(*args: object, **options: object) -> None:
        raise ImportError("no module")

    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    with pytest.raises(
        ValueError, match=rf"expected a package for {scheme}://, got none. pip .*'radit_jax\[{extra}\]'"
    ):
        Workdir(f"{scheme}://lab/run")


@pytest.mark.parametrize("path", ["gs://b/../..", "s3://../x", "gs://b/./x", "gs://b/a/../../../etc"])
def test_a_path_that_leads_out_of_the_scratch_is_refused(tmp_path, path) -> None:
    with pytest.raises(ValueError, match=r"expected a path without '\.' and '\.\.', got one with"):
        Workdir(path, tmp_path / "scratch")
    with pytest.raises(ValueError, match="expected a path without"):
        bucket.local_copy(path, tmp_path / "scratch")


@pytest.mark.parametrize("path", ["http://x/y", "file:///tmp/x", "://x", "gs://", "s3:///", "GS://b/x"])
def test_what_is_neither_a_folder_nor_a_bucket_is_refused(path) -> None:
    with pytest.raises(ValueError, match=r"expected a folder, gs://BUCKET/FOLDER or s3://BUCKET/FOLDER, got"):
        Workdir(path)


# ---- the lease ----


@pytest.fixture
def quick(monkeypatch) -> None:
    monkeypatch.setattr(leases, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(leases, "PATIENCE_SECONDS", 0.5)


def test_a_lease_that_beats_keeps_others_out(machines, quick) -> None:
    message = f"lab/runs/tiny: expected .*, got one in use by process {os.getpid()} on .*. Wait for it"
    with machines[0].lock(), pytest.raises(ValueError, match=message), machines[1].lock():
        pass


def test_another_machine_sees_who_holds_the_lease(machines) -> None:
    with machines[0].lock():
        assert re.match(
            rf"process {os.getpid()} on .*, last heard of \d+ s ago", locks.holder(machines[1].path)
        )
    assert locks.holder(machines[1].path) is None


def test_a_lease_that_was_given_back_is_free_at_once(machines, objects) -> None:
    for number in (1, 2):
        with machines[number % 2].lock():
            pass
        assert [name.split("/")[-1] for name in objects] == [f"{number:08d}"]


def test_who_waits_for_a_lease_heeds_a_stop(machines, home, monkeypatch) -> None:
    bucket.put(f"{home}/lock/00000007", b'{"process": 3, "host": "gone", "beats": 4}')
    monkeypatch.setattr(processes._process_group, "stop_signal", signal.SIGTERM)
    with pytest.raises(processes.Stopped), machines[0].lock():
        pass


def test_a_lease_whose_holder_was_killed_is_taken_over(machines, quick, capsys, home) -> None:
    bucket.put(f"{home}/lock/00000007", b'{"process": 3, "host": "gone", "beats": 4}')
    with machines[0].lock():
        assert bucket.sizes(f"{home}/lock").keys() == {"00000008"}
    assert f"{home}: process 3 on gone had it; waiting" in capsys.readouterr().err


def test_of_two_who_take_over_one_wins(machines, quick, monkeypatch, home) -> None:
    def silence(path, holder) -> None:  # while it lasts, another comes first
        bucket.put(f"{home}/lock/00000002", leases._signature(0))

    bucket.put(f"{home}/lock/00000001", b"{}")
    monkeypatch.setattr(leases, "_wait_for_silence", silence)
    with pytest.raises(ValueError, match="in use by process"), machines[0].lock():
        pass


def test_a_holder_that_was_silent_too_long_ends(machines, quick, monkeypatch, capsys, home) -> None:
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    with machines[0].lock():
        bucket.put(f"{home}/lock/00000002", leases._signature(0))
        until = time.monotonic() + 5
        while not ended and time.monotonic() < until:
            time.sleep(0.01)
        with pytest.raises(ValueError, match=r"expected the lock that this run took, got another run's"):
            machines[0].folder("embed", NAME).write("shard", b"late")
    assert ended and ended[0] == 1
    assert bucket.sizes(home).keys() == {"lock/00000001", "lock/00000002"}
    assert bucket.get(f"{home}/lock/00000002") == leases._signature(0)
    assert f"{home}: another run took the workdir over" in capsys.readouterr().err


# ---- checkpoints on s3, which Orbax refuses ----


def checkpoints(workdir: Workdir) -> Checkpoints:
    return Checkpoints(workdir.folder("lm_ft", NAME).path / "checkpoints")


@pytest.fixture
def s3(tmp_path) -> tuple[Workdir, Workdir]:
    return Workdir("s3://lab/runs/tiny", tmp_path / "one"), Workdir("s3://lab/runs/tiny", tmp_path / "two")


def state(step: int) -> dict:
    return {"w": jnp.full((2, 3), float(step))}


def test_checkpoints_follow_a_run_to_another_machine(s3) -> None:
    first = checkpoints(s3[0])
    for step in (1, 2, 3):
        first.save(step, state(step), {"note": step})
        first.save_best(step, state(step), {1: 0.5, 2: 0.75, 3: 0.25}[step])
    second = checkpoints(s3[1])
    assert second.latest() == 3 and second.best() == (2, 0.75)
    restored, extra = second.restore(state(0))
    np.testing.assert_array_equal(restored["w"], state(3)["w"])
    assert extra == {"note": 3}
    np.testing.assert_array_equal(second.restore_best(state(0))["w"], state(2)["w"])


def test_only_the_latest_checkpoints_stay(s3, objects) -> None:
    first = checkpoints(s3[0])
    for step in (1, 2, 3):
        first.save(step, state(step))
    kept = {name.split("/latest/")[1].split("/")[0] for name in objects if "/latest/" in name}
    assert kept == {"2", "3", "2.json", "3.json"}


def test_a_save_that_fails_leaves_the_checkpoint_before(s3) -> None:
    first = checkpoints(s3[0])
    first.save(1, state(1))
    Objects.fails = "latest/2"
    with pytest.raises(PermissionError):
        first.save(2, state(2))
    Objects.fails = ""
    assert checkpoints(s3[1]).latest() == 1
    assert checkpoints(s3[0]).latest() == 1  # the bucket's are the true ones


def test_a_checkpoint_that_came_down_in_part_comes_again(s3) -> None:
    checkpoints(s3[0]).save(1, state(1))
    checkpoints(s3[1])
    cut = s3[1].folder("lm_ft", NAME).path / "checkpoints" / "latest" / "1" / "_CHECKPOINT_METADATA"
    cut.unlink()
    assert checkpoints(s3[1]).latest() == 1
    assert cut.exists()


def test_a_workdir_inside_a_source_is_not_part_of_it_in_a_bucket_either(tmp_path):
    source, hashes = "gs://bucket/data", SourceHashes(tmp_path / "sources.json")
    bucket.put(f"{source}/a.jsonl", b"{}")
    before = hashes.of(source)
    for name in (".DS_Store", "run/workdir.json", "run/corpus/chunks", "deep/run/workdir.json", "deep/run/x"):
        bucket.put(f"{source}/{name}", b"x")
    assert hashes.of(source) == before
    bucket.put(f"{source}/runs.jsonl", b"{}")
    assert hashes.of(source) != before


def test_results_of_other_questions_stay_under_their_name(machines, home):
    for letter, name in (("a", "corpus-test"), ("b", "nq-test"), ("c", "nq-test")):
        folder = machines[0].folder("evaluate", letter * 12)
        folder.write("results.json", letter.encode())
        folder.write(f"predictions-{letter}.jsonl", b"")
        folder.finish()
        machines[0].publish(folder, ("results.json", "predictions*.jsonl"), f"results/{name}")
    results = epath.Path(home) / "results"
    assert (results / "corpus-test" / "results.json").read_text() == "a"
    assert (results / "nq-test" / "results.json").read_text() == "c"
    assert sorted(file.name for file in (results / "nq-test").iterdir()) == [
        "predictions-c.jsonl",
        "results.json",
    ]


def test_runs_of_two_machines_are_on_one_record(machines):
    experiment = load_experiment(str(EXPERIMENTS / "tiny.py"))
    with contextlib.suppress(KeyboardInterrupt), recorded(experiment, machines[0].path, ["corpus"]):
        raise KeyboardInterrupt
    with recorded(experiment, machines[1].path, ["corpus", "base/lm"]):
        assert [run["outcome"] for run in read_runs(machines[0].path)] == ["stopped", "running"]
    runs = read_runs(machines[0].path)
    assert [(run["outcome"], len(run["stages"])) for run in runs] == [("stopped", 1), ("done", 2)]


def test_a_report_reads_a_run_that_another_machine_made(home, tmp_path):
    workdir = Workdir(home, tmp_path / "one")
    training = small_run.stage_folder(workdir, "lm_ft")
    small_run.write_metrics(training, [{"step": 1, "name": "lm_ft", "time": 1.0, "loss": 3.0}])
    small_run.small_run(home, tmp_path / "one", questions=True)
    run = read_run(home, tmp_path / "two")
    assert [stage.name for stage in run.stages] == list(small_run.SETTINGS) and run.experiment == "small"
    assert [question.category for question in run.questions] == ["gained", "lost", "right"]
    assert run.series[0].values == {"loss": [3.0]} and set(run.passages) == {"dray", "elm", "fen", "yes"}


def test_a_corpus_that_is_too_large_to_fetch_is_not_fetched(home, tmp_path, monkeypatch):
    small_run.small_run(home, tmp_path / "one", questions=True)
    monkeypatch.setattr("radit_jax.report.question_records.MAX_DOWNLOAD", 1)
    run = read_run(home, tmp_path / "two")
    assert not list((tmp_path / "two").rglob("chunks.array_record"))
    assert set(run.questions[0].chunks) == {"r_ft"} and run.lacks == [_NO_PASSAGES]
