"""Small files are there whole or not at all, and what is wrong with one is said with its name."""

import os

import pytest

from radit_jax.runtime.storage import files


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path, monkeypatch):
    file = tmp_path / "workdir.json"
    files.write_whole(file, "old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write_whole(file, "new")
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["workdir.json"]


def test_a_symbolic_link_is_replaced_and_what_it_names_stays_as_it_was(tmp_path):
    (tmp_path / "elsewhere").write_text("a user's own")
    (tmp_path / "results.json").symlink_to(tmp_path / "elsewhere")
    files.write_whole(tmp_path / "results.json", "ours")
    assert (tmp_path / "elsewhere").read_text() == "a user's own"
    assert (tmp_path / "results.json").read_text() == "ours"
    assert not (tmp_path / "results.json").is_symlink()


def test_a_written_file_has_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "plain").write_text("")
    files.write_whole(tmp_path / "ours", "")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_write_leaves_the_mask_that_other_threads_make_files_under(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("the mask was changed"))
    files.write_whole(tmp_path / "ours", b"")


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    (tmp_path / "marked.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert files.read_json(tmp_path / "marked.json", "Mend it.") == {"a": 1}
    assert files.read_text(tmp_path / "marked.json") == '{"a": 1}'


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "expected JSON, got ''"),
        (b"\xff\xfe", "expected UTF-8, got invalid start byte at byte 0"),
        (b"[" * 200_000, "at most 100 levels"),
        (b"[" * 150 + b"]" * 150, "at most 100 levels"),
        (b'{"a": ' + b"9" * 5000 + b"}", "expected JSON, got"),
        (rb'{"a": "\ud83d"}', "half of a surrogate pair"),
        (rb'{"\udc00": 1}', "half of a surrogate pair"),
        (b"[1]", r"expected a JSON object, got \[1\]"),
        (b"null", "expected a JSON object, got null"),
    ],
)
def test_what_is_no_json_object_is_one_error_with_place_and_remedy(tmp_path, data, said):
    file = tmp_path / "config.json"
    file.write_bytes(data)
    with pytest.raises(ValueError, match=rf"config\.json: .*{said}.*\. Mend it\.$"):
        files.read_json(file, "Mend it.")


def test_a_whole_surrogate_pair_is_the_character_it_spells():
    assert files.parse_json(rb'"\ud83d\ude00"', "here", "Mend it.") == "😀"


def test_a_hundred_levels_are_read():
    assert files.parse_json("[" * 100 + "]" * 100, "here", "Mend it.")
