import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from shares import in_three_shares

from radit_jax.runtime.distributed import processes
from radit_jax.runtime.storage import hashes
from radit_jax.runtime.storage.entries import bytes_freed, bytes_stored
from radit_jax.runtime.storage.fingerprints import canonical, fingerprint, shard_name
from radit_jax.runtime.storage.manifests import parse_jsonl
from radit_jax.runtime.storage.stage_folder import StageFolder
from radit_jax.runtime.storage.top_level_folder import TopLevelFolder
from radit_jax.runtime.storage.workdir import Workdir


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
    listed: Any = ["red", "blue"]
    assert name_of(Drawing(shape=Circle(1), colours=listed)) == name_of(Drawing())
    reordered = name_of(Drawing(), parents={"b": "2", "a": "1"})
    assert reordered == name_of(Drawing(), parents={"a": "1", "b": "2"})


def test_a_setting_without_canonical_form_is_refused():
    with pytest.raises(TypeError, match="fingerprint: expected settings .*, got a PosixPath: "):
        canonical({"path": pathlib.PosixPath("x")})


def test_shards_are_named_by_number_and_count():
    assert shard_name("scores", 3, 10) == "scores-00003-of-00010"


def test_the_store_imports_without_jax():
    code = "import sys, radit_jax.runtime.storage.stage_folder; assert 'jax' not in sys.modules, 'jax'"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=pathlib.Path(__file__).parents[3])


# ---- the workdir ----


def test_a_workdir_belongs_to_one_experiment(workdir):
    workdir.claim("tiny")
    workdir.claim("tiny")
    with pytest.raises(
        ValueError, match=r"expected a workdir of the experiment 'wiki', got one of 'tiny'. Name another"
    ):
        workdir.claim("wiki")


def test_a_folder_with_files_of_others_is_no_workdir(workdir):
    workdir.path.mkdir()
    (workdir.path / "thesis.tex").write_text("x")
    with pytest.raises(ValueError) as refused:
        workdir.check_free("tiny")
    assert str(refused.value) == (
        f"{workdir.path}: expected a workdir or an empty folder, got one with 'thesis.tex', which no run "
        f"wrote. Name one for the run alone: --workdir={workdir.path}/tiny."
    )
    workdir.check_free("tiny", log_file=f"{workdir.path}/thesis.tex")
    assert os.listdir(workdir.path) == ["thesis.tex"]


@pytest.mark.parametrize("left", [".DS_Store", "lost+found/", "run.log", "lock", "compiled/", "workdir.json"])
def test_what_systems_and_starts_leave_makes_no_folder_anothers(workdir, left):
    workdir.check_free("tiny")  # there is none yet
    workdir.path.mkdir()
    if left.endswith("/"):
        (workdir.path / left).mkdir()
    else:
        (workdir.path / left).write_text("")
    workdir.check_free("tiny")


def test_a_workdir_that_lost_its_name_is_known_by_its_stages(workdir):
    workdir.claim("tiny")
    with pytest.raises(ValueError, match="expected a workdir of the experiment 'wiki', got one of 'tiny'"):
        workdir.check_free("wiki")
    (workdir.path / "workdir.json").unlink()
    (workdir.path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match="got one with 'notes.txt'"):
        workdir.check_free("wiki")
    (workdir.path / "corpus" / "0123456789ab").mkdir(parents=True)
    workdir.check_free("wiki")
    # An export alone is at the top.
    (workdir.path / "corpus" / "0123456789ab").rmdir()
    (workdir.path / "corpus").rename(workdir.path / "export")
    (workdir.path / "export" / "manifest.json").write_text("{}")
    workdir.check_free("wiki")


def test_a_workdir_that_cannot_be_written_is_refused(workdir, tmp_path):
    workdir.check_writable()
    assert not workdir.path.exists()
    with pytest.raises(
        ValueError, match=r"expected a folder that a run may write in, got .* in /proc\. Name"
    ):
        Workdir("/proc/nobody/run").check_writable()
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file: expected a folder, got a file. Name another --workdir."):
        Workdir(tmp_path / "file").check_free("tiny")


def test_a_lock_held_by_another_process_names_that_process(workdir):
    code = f"""
import sys
from radit_jax.runtime.storage.workdir import Workdir
with Workdir({str(workdir.path)!r}).lock():
    print("held", flush=True)
    sys.stdin.read()
"""
    command = [sys.executable, "-c", code]
    root = pathlib.Path(__file__).parents[3]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        date = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
        message = rf"run: expected .*, got one in use by process {holder.pid} on \S+, started {date}. Wait"
        with pytest.raises(ValueError, match=message), workdir.lock():
            pass
        holder.kill()
    with workdir.lock():  # the system freed it
        pass


def test_only_folders_of_other_settings_are_superseded(workdir):
    current = make(workdir.folder("embed", "a" * 12)), workdir.folder("score", "b" * 12)
    stale = make(workdir.folder("embed", "b" * 12))
    half_written = workdir.folder("score", "c" * 12)
    half_written.write("shard", b"bytes")
    training = workdir.folder("score", "d" * 12)
    (training.path / "checkpoints" / "latest").mkdir(parents=True)
    (workdir.path / "export" / "lm").mkdir(parents=True)  # not a stage's folder
    found = workdir.superseded(current)
    assert [folder.path for folder in found] == [stale.path, half_written.path, training.path]
    freed = bytes_freed(folder.home for folder in found)
    assert [size > 0 for size in freed] == [True, True, False]


def test_a_persons_folders_are_not_superseded_nor_what_a_link_leads_to(workdir, tmp_path):
    current = [workdir.folder("embed", "a" * 12), workdir.folder("score", "a" * 12)]
    make(workdir.folder("notes", "b" * 12))  # no stage's name
    make(workdir.folder("embed", "of-last-year"))
    (workdir.path / "embed" / ("c" * 12)).mkdir()
    (workdir.path / "embed" / ("c" * 12) / "thesis.txt").write_text("a person's")
    elsewhere = make(StageFolder(tmp_path / "elsewhere" / ("d" * 12)))
    os.symlink(elsewhere.path, workdir.path / "embed" / ("d" * 12))
    os.symlink(tmp_path / "elsewhere", workdir.path / "score")
    assert workdir.superseded(current) == []


PUBLISHED = ("results.json", "predictions*.jsonl")


def evaluated(workdir, letter, **files):
    folder = workdir.folder("evaluate", letter * 12)
    for name, text in files.items():
        folder.write(name.replace("_", "."), text.encode())
    folder.finish()
    return folder


def test_results_take_the_place_of_earlier_ones_and_of_nothing_else(workdir, capsys):
    first = evaluated(workdir, "a", results_json="1", predictions_jsonl="1", notes_txt="1")
    workdir.publish(first, PUBLISHED)
    own = {"predictions-of-mine.jsonl": "mine", "results.txt": "mine"}
    for name, text in own.items():
        (workdir.path / name).write_text(text)
    second = evaluated(workdir, "b", **{"results_json": "2", "predictions-x_jsonl": "2"})
    workdir.publish(second, PUBLISHED)
    top = {file.name: file.read_text() for file in workdir.path.iterdir() if file.is_file()}
    assert top == {"results.json": "2", "predictions-x.jsonl": "2", **own}
    assert capsys.readouterr().err == ""


def test_results_under_a_name_stay_when_others_take_the_top(workdir, capsys):
    for letter, name in (("a", "corpus-test"), ("b", "nq-test"), ("c", "nq-test")):
        folder = evaluated(workdir, letter, results_json=letter, **{f"predictions-{letter}_jsonl": letter})
        workdir.publish(folder, PUBLISHED, f"results/{name}")
        workdir.publish(folder, PUBLISHED)
    (workdir.path / "results" / "nq-test" / "notes.txt").write_text("mine")
    files = {
        file.relative_to(workdir.path).as_posix(): file.read_text()
        for file in pathlib.Path(workdir.path).rglob("*")
        if file.is_file() and "evaluate" not in file.parts
    }
    assert files == {
        "results.json": "c",
        "predictions-c.jsonl": "c",
        "results/corpus-test/results.json": "a",
        "results/corpus-test/predictions-a.jsonl": "a",
        "results/nq-test/results.json": "c",
        "results/nq-test/predictions-c.jsonl": "c",
        "results/nq-test/notes.txt": "mine",
    }
    assert capsys.readouterr().err == ""


def test_results_of_a_run_that_was_deleted_since_are_still_ours(workdir, capsys):
    first = evaluated(workdir, "a", results_json="1", predictions_jsonl="1")
    workdir.publish(first, PUBLISHED)
    second = evaluated(workdir, "b", results_json="2")
    (stale,) = workdir.superseded([second])
    stale.clear()
    workdir.publish(second, PUBLISHED)
    top = {file.name: file.read_text() for file in workdir.path.iterdir() if file.is_file()}
    assert top == {"results.json": "2"} and capsys.readouterr().err == ""


@pytest.mark.parametrize("record", ["", "{", "[]", '{"results.json": 1}'])
def test_a_damaged_record_of_what_was_published_makes_nothing_ours(workdir, record):
    folder = evaluated(workdir, "a", results_json="1")
    (workdir.path / "evaluate" / "published.json").write_text(record)
    (workdir.path / "results.json").write_text("mine")
    workdir.publish(folder, PUBLISHED)
    assert (workdir.path / "results.json.1").read_text() == "mine"


def test_what_a_person_put_in_the_place_of_results_is_kept_under_another_name(workdir, capsys):
    folder = evaluated(workdir, "a", results_json="1")
    for text in ("mine", "mine too"):
        (workdir.path / "results.json").write_text(text)
        workdir.publish(folder, PUBLISHED)
        workdir.publish(folder, PUBLISHED)
    assert (workdir.path / "results.json").read_text() == "1"
    assert [(workdir.path / f"results.json.{n}").read_text() for n in (1, 2)] == ["mine", "mine too"]
    assert (
        "results.json: this run did not write it, so it was kept as results.json.1" in capsys.readouterr().err
    )


def test_a_link_in_the_place_of_results_is_replaced_and_not_followed(workdir, tmp_path):
    folder = evaluated(workdir, "a", results_json="1")
    (tmp_path / "thesis").write_text("a person's")
    for name in ("results.json", "predictions.jsonl"):
        os.symlink(tmp_path / "thesis", workdir.path / name)
    workdir.publish(folder, PUBLISHED)
    assert not os.path.islink(workdir.path / "results.json")
    assert os.path.islink(workdir.path / "predictions.jsonl")
    assert (tmp_path / "thesis").read_text() == "a person's"


def test_the_manifests_of_a_stage_are_those_that_are_whole_the_latest_last(workdir):
    for number, letter in enumerate("cab"):
        make(workdir.folder("embed", letter * 12))
        os.utime(workdir.path / "embed" / (letter * 12) / "manifest.json", (number, number))
    half_written = workdir.folder("embed", "d" * 12)
    half_written.write("shard", b"bytes")
    (half_written.path / "manifest.json").write_text("{")
    assert [manifest["fingerprint"][0] for manifest in workdir.manifests("embed")] == ["c", "a", "b"]
    assert workdir.manifests("score") == []


@pytest.mark.parametrize("left", [b"", b" \n"])
def test_a_workdir_whose_first_moments_were_cut_short_is_nobodys(workdir, left):
    workdir.path.mkdir()
    (workdir.path / "workdir.json").write_bytes(left)
    workdir.claim("tiny")
    workdir.claim("tiny")


@pytest.mark.parametrize("content", [b"[]", b'"-5"', b"{", b"\xff\xfe", b"[" * 5000])
def test_a_workdirs_name_of_another_form_is_one_error(workdir, content):
    workdir.path.mkdir()
    (workdir.path / "workdir.json").write_bytes(content)
    with pytest.raises(
        ValueError, match=r"workdir\.json: expected .* Delete it, or name another --workdir\."
    ):
        workdir.claim("tiny")


def test_a_kill_while_the_workdir_is_claimed_leaves_it_free(workdir, monkeypatch):
    def killed(*paths):
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            workdir.claim("tiny")
    assert os.listdir(workdir.path) == []
    workdir.claim("tiny")


# ---- a stage's folder ----


def test_what_was_written_is_read_back_before_and_after_the_manifest(folder):
    rows = [{"id": "a", "text": "é\nline"}, {"id": "b", "n": 1.5}]
    folder.write_json("facts.json", {"k": [1, 2]})
    folder.write_jsonl("rows.jsonl", rows)
    folder.write_arrays("arrays.npz", ids=np.arange(6).reshape(2, 3), scores=np.array([0.1], np.float32))
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
        matrix = reader.map_arrays(["sub/matrix.npy"])[0]
        assert isinstance(matrix, np.memmap)
        np.testing.assert_array_equal(matrix, np.eye(3))


@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"{}"]
)
def test_arrays_that_were_cut_short_before_they_were_hashed_are_one_error(folder, damage):
    folder.write_arrays("whole.npz", ids=np.arange(60))
    folder.write_array("whole.npy", np.arange(60))
    for name, read in (
        ("whole.npz", folder.read_arrays),
        ("whole.npy", lambda name: folder.map_arrays([name])[0]),
    ):
        folder.write(name, damage(folder.read(name)))
        with pytest.raises(ValueError, match=rf"{name}: expected arrays of numpy, got .* Delete the folder"):
            read(name)


def test_arrays_of_other_names_are_refused(folder):
    folder.write_arrays("x.npz", ids=np.arange(6))
    assert list(folder.read_arrays("x.npz", "ids")) == ["ids"]
    with pytest.raises(
        ValueError, match=r"x\.npz: expected arrays of numpy, got .*\['ids'\], not \['rows'\]"
    ):
        folder.read_arrays("x.npz", "rows")
    folder.write_array("x.npz", np.arange(6))
    with pytest.raises(ValueError, match=r"x\.npz: expected arrays of numpy"):
        folder.read_arrays("x.npz")


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


MANIFEST = {"stage": "embed", "fingerprint": "0123456789ab", "files": {}}
DAMAGED = [
    b'{"stage": "emb',
    b"[]",
    b"\xfe\xff{}",
    json.dumps(MANIFEST | {"files": 3}).encode(),
    json.dumps(MANIFEST | {"files": {"x": {}}}).encode(),
    json.dumps(MANIFEST | {"files": {"x": {"size": True, "sha256": "ab"}}}).encode(),
    json.dumps(MANIFEST | {"files": {"../x": {"size": 1, "sha256": "ab"}}}).encode(),
    json.dumps(MANIFEST | {"files": {"/etc/passwd": {"size": 1, "sha256": "ab"}}}).encode(),
    json.dumps({"stage": "embed", "files": {}}).encode(),
    json.dumps(MANIFEST | {"stage": 5}).encode(),
]


@pytest.mark.parametrize("content", DAMAGED)
@pytest.mark.parametrize("published", [False, True])
def test_a_manifest_of_another_form_is_one_error_with_the_remedy(folder, content, published):
    folder.path.mkdir(parents=True)
    (folder.path / "manifest.json").write_bytes(content)
    with pytest.raises(
        ValueError, match=r"manifest\.json: expected .*, got .*\. Delete the folder .*0123456789ab"
    ):
        _ = (TopLevelFolder if published else StageFolder)(folder.path).complete


def test_a_fact_that_was_altered_after_it_was_written_is_found(folder):
    folder.finish(num_chunks=3, best=(1, 2.5))
    file = folder.path / "manifest.json"
    assert StageFolder(folder.path).manifest["best"] == [1, 2.5]
    file.write_text(file.read_text().replace('"num_chunks": 3', '"num_chunks": 7'))
    with pytest.raises(
        ValueError, match=r"manifest\.json: expected the facts that were written, got altered ones"
    ):
        _ = StageFolder(folder.path).complete


def test_a_manifest_of_a_version_that_sealed_none_is_believed(folder):
    folder.path.mkdir(parents=True)
    (folder.path / "manifest.json").write_text(json.dumps(MANIFEST))
    assert folder.complete


@pytest.mark.parametrize("name", ["embed/ba9876543210", "index/0123456789ab"])
def test_a_finished_stage_under_the_name_of_another_is_refused(workdir, folder, name):
    make(folder)
    (workdir.path / name).parent.mkdir(exist_ok=True)
    folder.path.rename(workdir.path / name)
    message = (
        rf"manifest\.json: expected that of {name}, got that of embed/0123456789ab\. Give the folder its name"
    )
    with pytest.raises(ValueError, match=message):
        _ = StageFolder(workdir.path / name).complete


@pytest.mark.parametrize(
    "content", [b"false", b"{}", b"[1]", b'{"size": "3", "sha256": 5}', b"\xff", b"[" * 5000]
)
def test_a_sidecar_of_another_form_vouches_for_nothing(folder, content):
    folder.write("shard", b"some bytes")
    (folder.path / "shard.sha256").write_bytes(content)
    assert not folder.has("shard")
    with pytest.raises(ValueError, match="expected a whole file 'shard', got none"):
        folder.finish()
    folder.write("shard", b"again")
    folder.finish()
    assert list(folder.manifest["files"]) == ["shard"]


def test_a_half_written_stage_is_not_complete_and_says_so(folder):
    folder.write("shard", b"bytes")
    (folder.path / "manifest.json").write_text("")  # as a power cut may leave it
    assert not folder.complete and folder.half_written
    with pytest.raises(
        ValueError,
        match=r"embed/0123456789ab: expected a finished stage, got .* Run `radit run .* --stage=embed`",
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


@pytest.mark.parametrize("killed_in", ["fsync", "replace"])
def test_a_kill_in_any_write_leaves_a_stage_that_can_be_gone_on_with(folder, monkeypatch, killed_in):
    """Kill at the 1st, 2nd, ... call until nothing is left to kill; what counts is whole each time."""
    real, left = getattr(os, killed_in), [0]

    def killed(*args):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(os, killed_in, killed)
    number = 0
    for number in range(100):
        left[0] = number
        reopened = StageFolder(folder.path)
        try:
            for name in ("one", "two"):
                if not reopened.has(name):
                    reopened.write(name, name.encode())
                assert reopened.read(name) == name.encode()
            if not reopened.complete:
                reopened.finish(count=2)
        except KeyboardInterrupt:
            continue
        break
    left[0] = 1000
    finished = StageFolder(folder.path)
    assert sorted(finished.manifest["files"]) == ["one", "two"] and 1 < number < 20
    assert sorted(os.listdir(folder.path)) == ["manifest.json", "one", "two"]


def test_a_kill_while_overwriting_leaves_no_sidecar_that_vouches_for_the_new_bytes(folder, monkeypatch):
    folder.write("shard", b"old bytes")
    monkeypatch.setattr(StageFolder, "_write_sidecar", lambda *args: None)  # the kill comes before the commit
    folder.write("shard", b"new bytes")
    assert not folder.has("shard")


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"some by", "expected the 10 bytes that were written, got 7"),
        (b"some bytez", "expected the bytes that were written, got altered bytes"),
    ],
)
def test_a_truncated_or_altered_file_is_named_with_the_remedy(folder, data, fault, finished):
    folder.write("shard", b"some bytes")
    if finished:
        folder.finish()
    (folder.path / "shard").write_bytes(data)
    remedy = r"Delete the folder .*0123456789ab and run `radit run EXPERIMENT --stage=embed`\."
    message = rf"embed/0123456789ab/shard: {fault}\. {remedy}"
    for read in (folder.read, folder.verified_path):
        with pytest.raises(ValueError, match=message):
            read("shard")


def test_a_deleted_file_of_a_finished_stage_is_damage(folder):
    make(folder)
    (folder.path / "shard").unlink()
    with pytest.raises(ValueError, match="shard: expected the 10 bytes that were written, got 0. Delete the"):
        StageFolder(folder.path).has("shard")
    with pytest.raises(ValueError, match="shard: expected the 10 bytes that were written, got 0"):
        StageFolder(folder.path).read("shard")


def test_an_altered_memory_mapped_array_is_refused(folder):
    folder.write_array("x.npy", np.arange(100))
    data = bytearray((folder.path / "x.npy").read_bytes())
    data[-8] ^= 1
    (folder.path / "x.npy").write_bytes(data)
    with pytest.raises(ValueError, match=r"x\.npy: expected the bytes that were written, got altered bytes"):
        folder.map_arrays(["x.npy"])[0]


def test_a_file_that_was_never_committed_cannot_be_read(folder):
    (folder.path).mkdir(parents=True)
    (folder.path / "stray").write_bytes(b"bytes")
    with pytest.raises(
        ValueError, match="expected a whole file 'stray', got none. Run `radit run .* --stage"
    ):
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
    assert finished.has("params") and finished.verified_path("params") == params
    assert list(finished.manifest["files"]) == ["params"]

    (params / "d" / "data").write_bytes(b"weightz")
    with pytest.raises(ValueError, match="params: expected the bytes that were written, got altered bytes"):
        finished.verified_path("params")
    (params / "d" / "data").unlink()
    with pytest.raises(ValueError, match=r"params: expected the 9 bytes that were written, got 2"):
        finished.has("params")


def test_processes_commit_what_each_wrote_and_check_what_each_reads(tmp_path, monkeypatch):
    folder = StageFolder(tmp_path / "index" / ("a" * 12))
    for number in (0, 1):
        program = processes.ProcessGroup(
            processes.ProcessTopology("h:1", 2, number)
        )  # without lines: a wait would be an error
        monkeypatch.setattr(processes, "_process_group", program)
        name = f"tree-{number}"
        (folder.path / name).mkdir(parents=True)
        (folder.path / name / "data").write_bytes(b"leaves")
        with processes.apart():
            with pytest.raises(ValueError, match=f"expected a whole file '{name}', got none"):
                folder.verified_path(name)
            folder.commit(name)
            assert (folder.verified_path(name) / "data").read_bytes() == b"leaves"


def test_an_adopted_file_or_folder_is_the_other_stages(workdir, folder):
    folder.write("shard", b"some bytes")
    (folder.path / "params" / "d").mkdir(parents=True)
    (folder.path / "params" / "d" / "data").write_bytes(b"weights")
    folder.commit("params")
    folder.finish()
    export = workdir.published("export", "a" * 12)
    for name in ("shard", "params"):
        export.copy_from(folder, name)
        export.verified_path(name)
    assert (export.path / "params" / "d" / "data").read_bytes() == b"weights"
    export.finish()
    assert export.manifest["files"] == folder.manifest["files"]


def test_an_adopted_file_is_stored_once_unless_people_edit_such_files(workdir, folder):
    folder.write("weights", b"some bytes")
    folder.write("config.json", b"{}")
    folder.finish()
    export = workdir.published("export", "a" * 12)
    export.write("renamed", b"of an earlier run")
    for name in ("weights", "config.json"):
        export.copy_from(folder, name)
    export.copy_from(folder, "weights", to="renamed")
    export.finish()
    assert os.path.samefile(folder.path / "weights", export.path / "renamed")
    assert not os.path.samefile(folder.path / "config.json", export.path / "config.json")
    assert export.manifest["files"]["renamed"] == folder.manifest["files"]["weights"]
    # What both hold counts where it was made, and is freed with the last of its three names.
    own = (export.path / "manifest.json").stat().length + len(b"{}")
    assert bytes_stored([folder.home, export.home])[1] == own == bytes_freed([export.home])[0]
    assert bytes_freed([export.home, folder.home])[0] == own + len(b"some bytes")
    # Each outlives the other, and a workdir that is copied has files of its own.
    moved = Workdir(shutil.copytree(workdir.path, workdir.path.parent / "moved"))
    folder.clear()
    assert export.verified_path("renamed").read_bytes() == b"some bytes"
    assert moved.folder("embed", folder.fingerprint).read("weights") == b"some bytes"


def test_files_are_copied_where_the_disk_has_no_links(workdir, folder, monkeypatch):
    def refuse(source, target):
        raise OSError("Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    make(folder)
    export = workdir.published("export", "a" * 12)
    export.copy_from(folder, "shard")
    assert export.verified_path("shard").read_bytes() == b"some bytes"
    assert not os.path.samefile(folder.path / "shard", export.path / "shard")


def test_a_damaged_file_is_not_adopted(workdir, folder):
    make(folder)
    (folder.path / "shard").write_bytes(b"some bytez")
    with pytest.raises(ValueError, match="expected the bytes that were written, got altered bytes"):
        workdir.published("export", "a" * 12).copy_from(folder, "shard")


def test_a_published_folder_is_complete_for_one_fingerprint_only(workdir):
    make(workdir.published("export", "a" * 12))
    assert workdir.published("export", "a" * 12).complete
    other = workdir.published("export", "b" * 12)
    assert not other.complete
    assert TopLevelFolder(other.path).fingerprint == "a" * 12  # as a reader who knows no settings finds it
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


def test_a_finished_stage_can_drop_what_no_manifest_names(folder):
    make(folder)
    (folder.path / "checkpoints" / "latest" / "3").mkdir(parents=True)
    for _ in range(2):
        folder.drop("checkpoints")
        assert sorted(os.listdir(folder.path)) == ["manifest.json", "shard"]


# ---- JSON lines ----


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('{"id": 1, "text": ', r"line 2: expected JSON, got '\{\"id\": 1, \"text\": '"),
        ("[1, 2]", r"line 2: expected a JSON object, got \[1, 2\]\. Correct the line\."),
        ('{"id": 1}', r"line 2: expected the field 'text', got \['id'\]\. Correct the line\."),
    ],
)
def test_a_malformed_line_is_named_by_file_and_number(line, fault):
    with pytest.raises(ValueError, match=rf"passages\.jsonl {fault}"):
        parse_jsonl(f'{{"id": 0, "text": ""}}\n{line}\n'.encode(), "passages.jsonl", ("id", "text"))


def test_blank_lines_count_but_carry_nothing():
    assert parse_jsonl(b'{"id": 0}\n\n{"id": 1}', "x.jsonl") == [{"id": 0}, {"id": 1}]


def test_a_separator_of_lines_inside_a_string_does_not_split_it(folder):
    rows = [{"text": "a\u2028b\x85c"}]
    folder.write_jsonl("rows.jsonl", rows)
    assert folder.read_jsonl("rows.jsonl") == rows


# ---- several processes ----


def test_a_folder_is_hashed_once_by_all_processes_and_damage_is_seen_by_all(tmp_path, monkeypatch):
    folder = Workdir(tmp_path / "run").folder("corpus", "a" * 12)
    for number in range(5):
        (folder.path / "chunks").mkdir(parents=True, exist_ok=True)
        (folder.path / "chunks" / f"{number}").write_bytes(b"%d" % number)
    folder.commit("chunks")
    folder.finish()
    monkeypatch.setattr(processes, "in_shares", in_three_shares)
    read = []
    real = hashes._read_and_hash
    monkeypatch.setattr(hashes, "_read_and_hash", lambda path: read.append(path.name) or real(path))
    assert folder.verified_path("chunks") == folder.path / "chunks"
    assert sorted(read) == ["0", "1", "2", "3", "4"]
    (folder.path / "chunks" / "3").write_bytes(b"X")
    with pytest.raises(ValueError, match="chunks: expected the bytes that were written, got altered bytes"):
        folder.verified_path("chunks")


class FirstProcess:
    """The line to a first process that always says the same."""

    def __init__(self, value):
        self.value, self.heard = value, []

    def send(self, said):
        self.heard.append(said["where"])

    def receive(self):
        return {"stop": False, "values": [{"value": self.value, "fault": ""}]}


def test_another_process_than_the_first_writes_nothing_and_believes_the_first(tmp_path, monkeypatch):
    line: Any = FirstProcess(True)
    second = processes.ProcessGroup(processes.ProcessTopology("h:1", 2, 1))
    second.connections = {0: line}
    monkeypatch.setattr(processes, "_process_group", second)
    workdir = Workdir(tmp_path / "run")
    with pytest.raises(
        ValueError, match="expected a folder that all hosts see, got one that only .* has. Name one on a sha"
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


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("notes.txt", True),
        ("hf/lm/notes.txt", True),
        ("hf/lm/README.md", True),
        (".DS_Store", False),
        ("hf/.DS_Store", False),
    ],
)
def test_an_export_in_which_a_person_put_something_is_kept_when_it_is_made_anew(tmp_path, name, kept):
    first = Workdir(tmp_path).published("export", "a" * 12)
    first.write("hf/lm/config.json", b"{}")
    first.write("hf/lm/README.md", b"a card")
    first.finish()
    (tmp_path / "export" / name).write_text("mine")
    Workdir(tmp_path).published("export", "b" * 12).clear()
    assert not (tmp_path / "export").exists()
    assert (tmp_path / "export.1").exists() == kept
    if kept:
        assert (tmp_path / "export.1" / name).read_text() == "mine"


def test_a_folder_committed_file_by_file_is_checked_but_for_its_card_and_what_was_added(tmp_path):
    export = Workdir(tmp_path).published("export", "a" * 12)
    lm = export.path / "hf" / "lm"
    lm.mkdir(parents=True)
    for name in ("config.json", "README.md"):
        (lm / name).write_text("{}")
    export.commit("hf/lm")
    export.commit_each("hf/lm")
    export.finish()
    assert set(export.manifest["files"]) == {"hf/lm/config.json", "hf/lm/README.md"}
    assert export.holds("hf/lm") and not export.holds("hf/l")
    for name in ("README.md", ".gitattributes", "notes.txt"):
        (lm / name).write_text("mine")
    assert export.verified_path("hf/lm") == lm
    (lm / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"config\.json: expected the bytes that were written"):
        export.verified_path("hf/lm")
