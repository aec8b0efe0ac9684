import json
import os
import socket

import pytest

from radit_jax.runtime.storage import source_hashes
from radit_jax.runtime.storage.source_hashes import SourceHashes, list_folder


@pytest.fixture
def file(tmp_path):
    return tmp_path / "run" / "sources.json"


def remembered(file, path):
    """The hash by a process that finds what others have remembered, and the number of files that it read."""
    hashes, read = SourceHashes(file), []
    real = source_hashes.hash_file
    with pytest.MonkeyPatch.context() as context:
        context.setattr(source_hashes, "hash_file", lambda path: read.append(path) or real(path))
        digest = hashes.of(path)
    hashes.save()
    return digest, len(read)


def test_a_hash_follows_the_content_and_is_remembered(file, tmp_path):
    source = tmp_path / "passages.jsonl"
    source.write_text("one")
    first = "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"
    assert remembered(file, source) == (first, 1)
    assert remembered(file, source) == (first, 0)
    source.write_text("two")
    assert remembered(file, source)[0] != first


def test_nothing_is_written_before_what_was_computed_is_saved(file, tmp_path):
    (tmp_path / "source").write_text("one")
    hashes = SourceHashes(file)
    hashes.of(tmp_path / "source")
    assert not file.parent.exists()
    hashes.save()
    assert file.exists()


def test_a_file_changed_with_its_size_and_its_time_is_read_again(file, tmp_path):
    source = tmp_path / "source"
    source.write_text("one")
    os.utime(source, ns=(1, 1))
    first, _ = remembered(file, source)
    source.write_text("two")
    os.utime(source, ns=(1, 1))
    assert remembered(file, source)[0] != first


def test_another_file_put_in_the_place_of_one_is_read_again(file, tmp_path):
    for name, text in (("a", "one"), ("b", "two")):
        (tmp_path / name).write_text(text)
        os.utime(tmp_path / name, ns=(1, 1))
    first, _ = remembered(file, tmp_path / "a")
    (tmp_path / "b").rename(tmp_path / "a")
    assert remembered(file, tmp_path / "a")[0] != first


def test_what_one_host_remembers_another_does_not_believe(file, tmp_path, monkeypatch):
    (tmp_path / "source").write_text("one")
    first, _ = remembered(file, tmp_path / "source")
    monkeypatch.setattr(socket, "gethostname", lambda: "other")
    assert remembered(file, tmp_path / "source") == (first, 1)
    monkeypatch.undo()
    assert remembered(file, tmp_path / "source") == (first, 0)
    assert len(json.loads(file.read_text())) == 2 + 1  # two hosts and the seal


@pytest.mark.parametrize("content", ["", '{"cut sho', "[]", "{}", '{"a": 3}', '{"/old/path": [3, 5, "ab"]}'])
def test_a_damaged_memory_is_only_forgotten(file, tmp_path, content):
    (tmp_path / "source").write_text("one")
    first, _ = remembered(file, tmp_path / "source")
    file.write_text(content)
    assert remembered(file, tmp_path / "source") == (first, 1)


def test_a_remembered_hash_that_was_altered_is_forgotten(file, tmp_path):
    (tmp_path / "source").write_text("one")
    first, _ = remembered(file, tmp_path / "source")
    file.write_text(file.read_text().replace(first, first[::-1]))
    assert remembered(file, tmp_path / "source") == (first, 1)


def test_the_hash_of_a_folder_covers_names_and_content(file, tmp_path):
    source = tmp_path / "checkpoint"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "a").write_text("one")
    hashes = [remembered(file, source)]
    (source / "sub" / "a").rename(source / "sub" / "b")
    hashes.append(remembered(file, source))
    (source / "sub" / "b").write_text("three")
    hashes.append(remembered(file, source))
    assert len({digest for digest, _ in hashes}) == 3


def test_hidden_files_and_a_workdir_inside_do_not_count(file, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.jsonl").write_text("{}")
    before = SourceHashes(file).of(folder)
    for name in (".DS_Store", ".git/HEAD", "run/workdir.json", "run/corpus/chunks"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
    assert SourceHashes(file).of(folder) == before
    (folder / "b.jsonl").touch()
    assert SourceHashes(file).of(folder) != before


def test_of_named_files_others_do_not_count(file, tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / name).write_text(name)
    hashes = SourceHashes(file)
    before = hashes.of(tmp_path, [tmp_path / "b", tmp_path / "a"])
    (tmp_path / "c").write_text("other")
    assert hashes.of(tmp_path, [tmp_path / "a", tmp_path / "b"]) == before
    assert hashes.of(tmp_path, [tmp_path / "a", tmp_path / "c"]) != before
    (tmp_path / "a").write_text("changed")
    assert hashes.of(tmp_path, [tmp_path / "a", tmp_path / "b"]) != before


def test_where_a_named_file_outside_the_folder_lies_does_not_count(file, tmp_path):
    found = []
    for name in ("one", "deeper/two"):
        (tmp_path / name / "data").mkdir(parents=True)
        (tmp_path / name / "a").write_text("a")
        (tmp_path / "b").write_text("b")
        found.append(SourceHashes(file).of(tmp_path / name / "data", [tmp_path / name / "a", tmp_path / "b"]))
    assert found[0] == found[1]


def test_what_is_read_through_a_link_is_hashed(file, tmp_path):
    source, elsewhere = tmp_path / "source", tmp_path / "elsewhere"
    for folder in (source, elsewhere):
        folder.mkdir()
    (elsewhere / "a").write_text("one")
    (source / "linked").symlink_to(elsewhere)
    assert list_folder(source).keys() == {"linked/a"}
    before, _ = remembered(file, source)
    (elsewhere / "a").write_text("two")
    assert remembered(file, source)[0] != before


def test_loops_of_links_end(file, tmp_path):
    folders = [tmp_path / "source" / str(number) for number in range(12)]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "a").write_text("one")
        for other in folders:
            (folder / f"to-{other.name}").symlink_to(other)
    (tmp_path / "source" / "up").symlink_to(tmp_path)
    listing = list_folder(tmp_path / "source")
    assert sum(name.endswith("/a") for name in listing) == len(folders)
    assert listing["up/source"] == "." and listing["0/to-0"] == "0"
    assert remembered(file, tmp_path / "source")[1] == len(folders)


def test_a_missing_source_is_an_error(file, tmp_path):
    with pytest.raises(
        ValueError, match="nowhere: expected a file or a folder, got none of that name. Correct the path"
    ):
        SourceHashes(file).of(tmp_path / "nowhere")
