import dataclasses
import hashlib
import json
import os
import pathlib
import subprocess
import sys
from dataclasses import dataclass, replace

import numpy as np
import pytest

from radit_jax.runtime import hosts
from radit_jax.runtime.store import (
    PublishedFolder,
    StageFolder,
    Workdir,
    canonical,
    fingerprint,
    read_jsonl,
    shard_name,
)


@dataclass(frozen=True)
class Circle:
    size: float = 1.0


@dataclass(frozen=True)
class Square:
    size: float = 1.0


@dataclass(frozen=True)
class Drawing:
    shape: Circle | Square = dataclasses.field(default_factory=Circle)
    colours: tuple[str, ...] = ("red", "blue")
    border: Square | None = None


def name_of(settings, **changes):
    whole = {"stage": "draw", "version": 1, "parents": {"paint": "ab"}, "sources": {"x": "cd"}} | changes
    return fingerprint(settings=settings, **whole)


def make(folder: StageFolder) -> StageFolder:
    folder.write("shard", b"some bytes")
    folder.finish(count=3)
    return StageFolder(folder.path)


@pytest.fixture
def workdir(tmp_path):
    return Workdir(tmp_path / "run")


@pytest.fixture
def folder(workdir):
    return workdir.folder("embed", "0123456789ab")


# ---- fingerprints ----


def test_canonical_form_is_plain_json_with_the_class_of_each_part():
    assert canonical(Drawing()) == {
        "class": "Drawing",
        "shape": {"class": "Circle", "size": 1},
        "colours": ["red", "blue"],
        "border": None,
    }


def test_a_fingerprint_is_frozen():
    # Changing the canonical form would make every user rebuild everything.
    assert name_of(Drawing()) == "045d30bef138"


@pytest.mark.parametrize(
    "settings",
    [
        replace(Drawing(), shape=Square()),
        replace(Drawing(), shape=Circle(1.5)),
        replace(Drawing(), colours=("blue", "red")),
        replace(Drawing(), border=Square()),
    ],
)
def test_every_setting_changes_the_fingerprint(settings):
    assert name_of(settings) != name_of(Drawing())


@pytest.mark.parametrize(
    "change",
    [{"stage": "d"}, {"version": 2}, {"parents": {"paint": "ac"}}, {"parents": {}}, {"sources": {"x": "ce"}}],
)
def test_stage_version_parents_and_sources_change_the_fingerprint(change):
    assert name_of(Drawing(), **change) != name_of(Drawing())


def test_equal_settings_have_one_fingerprint_however_they_are_written():
    assert name_of(Drawing(shape=Circle(1), colours=["red", "blue"])) == name_of(Drawing())
    reordered = name_of(Drawing(), parents={"b": "2", "a": "1"})
    assert reordered == name_of(Drawing(), parents={"a": "1", "b": "2"})


def test_a_setting_without_canonical_form_is_refused():
    with pytest.raises(TypeError, match="a setting of type PosixPath has no canonical form"):
        canonical({"path": pathlib.PosixPath("x")})


def test_shards_are_named_by_number_and_count():
    assert shard_name("scores", 3, 10) == "scores-00003-of-00010"


def test_the_store_imports_without_jax():
    code = "import sys, radit_jax.runtime.store; assert 'jax' not in sys.modules, 'jax'"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=pathlib.Path(__file__).parents[2])


# ---- the workdir ----


def test_a_workdir_belongs_to_one_experiment(workdir):
    workdir.claim("tiny")
    workdir.claim("tiny")
    with pytest.raises(
        ValueError, match=r"it holds the experiment 'tiny', needed is one of 'wiki'; name another"
    ):
        workdir.claim("wiki")


def test_a_lock_held_by_another_process_names_that_process(workdir):
    code = f"""
import sys
from radit_jax.runtime.store import Workdir
with Workdir({str(workdir.path)!r}).lock():
    print("held", flush=True)
    sys.stdin.read()
"""
    command = [sys.executable, "-c", code]
    root = pathlib.Path(__file__).parents[2]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        date = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
        message = (
            rf"run: in use by process {holder.pid} on \S+, started {date}; needed is a workdir of our own"
        )
        with pytest.raises(ValueError, match=message), workdir.lock():
            pass
        holder.kill()
    with workdir.lock():  # the system freed it
        pass


def test_a_source_hash_follows_the_content_and_is_remembered(workdir, tmp_path, monkeypatch):
    source = tmp_path / "passages.jsonl"
    source.write_text("one")
    first = workdir.source_hash(source)
    assert first == "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"

    with monkeypatch.context() as context:
        context.setattr("radit_jax.runtime.store._hash_file", lambda path: pytest.fail("it was read again"))
        assert workdir.source_hash(source) == first
    source.write_text("two")
    os.utime(source, ns=(1, 1))
    assert workdir.source_hash(source) != first


def test_a_damaged_memory_of_hashes_is_only_forgotten(workdir, tmp_path):
    (tmp_path / "source").write_text("one")
    first = workdir.source_hash(tmp_path / "source")
    (workdir.path / "sources.json").write_text('{"cut sho')
    assert workdir.source_hash(tmp_path / "source") == first


def test_the_hash_of_a_folder_covers_names_and_content(workdir, tmp_path):
    source = tmp_path / "checkpoint"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "a").write_text("one")
    hashes = [workdir.source_hash(source)]
    (source / "sub" / "a").rename(source / "sub" / "b")
    hashes.append(workdir.source_hash(source))
    (source / "sub" / "b").write_text("three")
    hashes.append(workdir.source_hash(source))
    assert len(set(hashes)) == 3


def test_a_missing_source_is_an_error(workdir, tmp_path):
    with pytest.raises(
        ValueError, match="nowhere: no such file or folder, needed as a source; correct its path"
    ):
        workdir.source_hash(tmp_path / "nowhere")


def test_only_folders_of_other_settings_are_superseded(workdir):
    current = make(workdir.folder("embed", "a" * 12))
    stale = make(workdir.folder("embed", "b" * 12))
    half_written = workdir.folder("score", "c" * 12)
    half_written.write("shard", b"bytes")
    (workdir.path / "export" / "lm").mkdir(parents=True)  # not a stage's folder
    found = workdir.superseded([current])
    assert [folder.path for folder in found] == [stale.path, half_written.path]


def test_the_manifests_of_a_stage_are_those_that_are_whole_the_latest_last(workdir):
    for number, letter in enumerate("cab"):
        make(workdir.folder("embed", letter * 12))
        os.utime(workdir.path / "embed" / (letter * 12) / "manifest.json", (number, number))
    half_written = workdir.folder("embed", "d" * 12)
    half_written.write("shard", b"bytes")
    (half_written.path / "manifest.json").write_text("{")
    assert [manifest["fingerprint"][0] for manifest in workdir.manifests("embed")] == ["c", "a", "b"]
    assert workdir.manifests("score") == []


# ---- a stage's folder ----


def test_what_was_written_is_read_back_before_and_after_the_manifest(folder):
    rows = [{"id": "a", "text": "é\nline"}, {"id": "b", "n": 1.5}]
    folder.write_json("facts.json", {"k": [1, 2]})
    folder.write_jsonl("rows.jsonl", rows)
    folder.write_arrays("arrays.npz", ids=np.arange(6).reshape(2, 3), scores=np.float32([0.1]))
    folder.write_array("sub/matrix.npy", np.eye(3, dtype=np.float16))
    for reader in (folder, None):
        if reader is None:
            folder.finish()
            reader = StageFolder(folder.path)
        assert reader.read_json("facts.json") == {"k": [1, 2]}
        assert reader.read_jsonl("rows.jsonl") == rows
        arrays = reader.read_arrays("arrays.npz")
        np.testing.assert_array_equal(arrays["ids"], [[0, 1, 2], [3, 4, 5]])
        assert arrays["scores"].dtype == np.float32
        matrix = reader.map_array("sub/matrix.npy")
        assert isinstance(matrix, np.memmap)
        np.testing.assert_array_equal(matrix, np.eye(3))


def test_equal_arrays_make_equal_files(folder):
    for name in ("a.npz", "b.npz"):
        folder.write_arrays(name, x=np.arange(3))
    assert folder.read("a.npz") == folder.read("b.npz")


def test_the_manifest_names_facts_files_and_versions_and_completes_the_stage(folder):
    assert not folder.complete
    folder.write("shard", b"some bytes")
    assert not folder.complete
    folder.finish(num_chunks=3, recall={"value": 0.5})
    manifest = json.loads((folder.path / "manifest.json").read_text())
    assert folder.complete and folder.manifest == manifest
    assert manifest["stage"] == "embed" and manifest["fingerprint"] == "0123456789ab"
    assert manifest["num_chunks"] == 3 and manifest["recall"] == {"value": 0.5}
    assert manifest["files"] == {"shard": {"size": 10, "sha256": hashlib.sha256(b"some bytes").hexdigest()}}
    assert {"jax", "flax", "numpy"} <= set(manifest["versions"])
    assert sorted(os.listdir(folder.path)) == ["manifest.json", "shard"]


def test_a_half_written_stage_is_not_complete_and_says_so(folder):
    folder.write("shard", b"bytes")
    (folder.path / "manifest.json").write_text('{"stage": "emb')
    assert not folder.complete
    with pytest.raises(
        ValueError, match=r"embed/0123456789ab: half-written or not there, .* run --stage=embed"
    ):
        _ = folder.manifest


def test_a_killed_write_is_recognised_and_a_whole_one_is_kept(folder):
    folder.write("whole", b"some bytes")
    folder.path.joinpath("no_sidecar").write_bytes(b"some by")
    folder.write("cut_sidecar", b"some bytes")
    folder.path.joinpath("cut_sidecar.sha256").write_text('{"size": 1')
    folder.write("cut_later", b"some bytes")
    folder.path.joinpath("cut_later").write_bytes(b"some by")
    reopened = StageFolder(folder.path)
    names = ["whole", "no_sidecar", "cut_sidecar", "cut_later", "never_written"]
    assert [name for name in names if reopened.has(name)] == ["whole"]


def test_a_kill_while_overwriting_leaves_no_sidecar_that_vouches_for_the_new_bytes(folder, monkeypatch):
    folder.write("shard", b"old bytes")
    monkeypatch.setattr(StageFolder, "_commit", lambda *args: None)  # the kill comes before the commit
    folder.write("shard", b"new bytes")
    assert not folder.has("shard")


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"some by", "7 bytes came, needed are the 10 that were written"),
        (b"some bytez", "altered bytes came, needed are those that were written"),
    ],
)
def test_a_truncated_or_altered_file_is_named_with_the_remedy(folder, data, fault, finished):
    folder.write("shard", b"some bytes")
    if finished:
        folder.finish()
    (folder.path / "shard").write_bytes(data)
    message = rf"embed/0123456789ab/shard: {fault}; delete the folder .*0123456789ab and rerun --stage=embed"
    for read in (folder.read, folder.check):
        with pytest.raises(ValueError, match=message):
            read("shard")


def test_a_deleted_file_of_a_finished_stage_is_damage(folder):
    make(folder)
    (folder.path / "shard").unlink()
    assert not folder.has("shard")
    with pytest.raises(ValueError, match="shard: 0 bytes came, needed are the 10"):
        StageFolder(folder.path).read("shard")


def test_an_altered_memory_mapped_array_is_refused(folder):
    folder.write_array("x.npy", np.arange(100))
    data = bytearray((folder.path / "x.npy").read_bytes())
    data[-8] ^= 1
    (folder.path / "x.npy").write_bytes(data)
    with pytest.raises(ValueError, match=r"x\.npy: altered bytes came"):
        folder.map_array("x.npy")


def test_a_file_that_was_never_committed_cannot_be_read(folder):
    (folder.path).mkdir(parents=True)
    (folder.path / "stray").write_bytes(b"bytes")
    with pytest.raises(ValueError, match="no whole file 'stray' came, which is needed; run --stage=embed"):
        folder.read("stray")


def test_a_folder_that_another_library_wrote_is_committed_and_checked_as_a_whole(folder):
    params = folder.path / "params"
    (params / "d").mkdir(parents=True)
    (params / "d" / "data").write_bytes(b"weights")
    (params / "_METADATA").write_bytes(b"{}")
    assert not folder.has("params")
    folder.commit("params")
    folder.finish()
    finished = StageFolder(folder.path)
    assert finished.has("params") and finished.check("params") == params
    assert list(finished.manifest["files"]) == ["params"]

    (params / "d" / "data").write_bytes(b"weightz")
    with pytest.raises(ValueError, match="params: altered bytes came"):
        finished.check("params")
    (params / "d" / "data").unlink()
    assert not finished.has("params")


def test_processes_commit_what_each_wrote_and_check_what_each_reads(tmp_path, monkeypatch):
    folder = StageFolder(tmp_path / "index" / ("a" * 12))
    for number in (0, 1):
        program = hosts.Program(hosts.Place("h:1", 2, number))  # without lines: a wait would be an error
        monkeypatch.setattr(hosts, "_program", program)
        name = f"tree-{number}"
        (folder.path / name).mkdir(parents=True)
        (folder.path / name / "data").write_bytes(b"leaves")
        with pytest.raises(ValueError, match=f"no whole file '{name}' came"):
            folder.check_own(name)
        folder.commit_own(name)
        assert (folder.check_own(name) / "data").read_bytes() == b"leaves"


def test_an_adopted_file_or_folder_is_the_other_stages(workdir, folder):
    folder.write("shard", b"some bytes")
    (folder.path / "params" / "d").mkdir(parents=True)
    (folder.path / "params" / "d" / "data").write_bytes(b"weights")
    folder.commit("params")
    folder.finish()
    export = workdir.published("export", "a" * 12)
    for name in ("shard", "params"):
        export.adopt(folder, name)
        export.check(name)
    assert (export.path / "params" / "d" / "data").read_bytes() == b"weights"
    export.finish()
    assert export.manifest["files"] == folder.manifest["files"]


def test_a_damaged_file_is_not_adopted(workdir, folder):
    make(folder)
    (folder.path / "shard").write_bytes(b"some bytez")
    with pytest.raises(ValueError, match="altered bytes came"):
        workdir.published("export", "a" * 12).adopt(folder, "shard")


def test_a_published_folder_is_complete_for_one_fingerprint_only(workdir):
    make(workdir.published("export", "a" * 12))
    assert workdir.published("export", "a" * 12).complete
    other = workdir.published("export", "b" * 12)
    assert not other.complete
    assert PublishedFolder(other.path).fingerprint == "a" * 12  # as a reader who knows no settings finds it
    other.clear()
    assert not other.path.exists()
    make(other)
    assert workdir.published("export", "b" * 12).complete
    assert not workdir.published("export", "a" * 12).complete


def test_a_cleared_folder_is_gone_and_can_be_made_again(folder):
    make(folder)
    assert folder.complete
    folder.clear()
    assert not folder.complete and not folder.path.exists()
    folder.clear()
    assert make(folder).complete


# ---- JSON lines ----


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('{"id": 1, "text": ', r"line 2: '\{\"id\": 1, \"text\": ' came, JSON is needed"),
        ("[1, 2]", r"line 2: '\[1, 2\]' came, a JSON object is needed; correct the line"),
        ('{"id": 1}', r"line 2: the fields \['id'\] came, needed is 'text'; add it"),
    ],
)
def test_a_malformed_line_is_named_by_file_and_number(tmp_path, line, fault):
    file = tmp_path / "passages.jsonl"
    file.write_text('{"id": 0, "text": ""}\n' + line + "\n")
    with pytest.raises(ValueError, match=rf"passages\.jsonl {fault}"):
        read_jsonl(file, fields=("id", "text"))


def test_blank_lines_count_but_carry_nothing(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"id": 0}\n\n{"id": 1}')
    assert read_jsonl(tmp_path / "x.jsonl") == [{"id": 0}, {"id": 1}]


def test_a_separator_of_lines_inside_a_string_does_not_split_it(folder):
    rows = [{"text": "a\u2028b\x85c"}]
    folder.write_jsonl("rows.jsonl", rows)
    assert folder.read_jsonl("rows.jsonl") == rows


def test_a_missing_file_of_json_lines_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"x\.jsonl: no such file, JSON lines are needed; correct its path"):
        read_jsonl(tmp_path / "x.jsonl")


# ---- several processes ----


class FirstProcess:
    """The line to a first process that always says the same."""

    def __init__(self, value):
        self.value, self.heard = value, []

    def send(self, said):
        self.heard.append(said["where"])

    def receive(self):
        return {"stop": False, "value": {"value": self.value, "fault": "", "stopped": ""}}


def test_another_process_than_the_first_writes_nothing_and_believes_the_first(tmp_path, monkeypatch):
    line = FirstProcess(True)
    second = hosts.Program(hosts.Place("h:1", 2, 1))
    second.lines = {0: line}
    monkeypatch.setattr(hosts, "_program", second)
    workdir = Workdir(tmp_path / "run")
    with pytest.raises(
        ValueError, match="has for itself, needed is one that all hosts see; name one on a sha"
    ):
        workdir.claim("tiny")
    folder = workdir.folder("score", "a" * 12)
    folder.write("a.txt", b"a")
    folder.finish()
    assert folder.has("a.txt")  # which may not be seen here yet
    folder.clear()
    assert not (tmp_path / "run").exists()
    names = ("a.txt", "manifest.json", "a.txt", "clear")
    assert line.heard == ["workdir.json", *(f"score/{'a' * 12} {name}" for name in names)]
