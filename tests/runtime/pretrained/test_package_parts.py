"""A file in parts: packages on the path that hold them, and the joined file in the cache."""

import hashlib
import importlib.util
import os
import pathlib

import pytest
from gguf_files import write_gguf

from radit_jax.config import checkpoint_folder
from radit_jax.runtime.pretrained import hub, package_parts
from radit_jax.runtime.pretrained.gguf_file import open_gguf
from radit_jax.runtime.pretrained.licences import origin


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a package whose file is in parts, with a cache of its own; a test may say other parts."""
    site = tmp_path / "site"
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    package_parts._joined_once.cache_clear()
    whole = write_gguf(tmp_path / "whole.gguf", {}, **{"general.license": "gemma"}).read_bytes()

    def install_parts(name, parts=(whole[:40], whole[40:100], whole[100:]), digest=None):
        data = site / name / "data"
        data.mkdir(parents=True)
        (site / name / "__init__.py").touch()
        digest = digest or hashlib.sha256(whole).hexdigest()
        (data / "SHA256SUMS").write_text(f"{digest}  small.gguf\n")
        (data / "TERMS.html").write_text("terms")
        required = []
        for number, part in enumerate(parts):
            part_name = f"{name}_part{number + 1}"
            required.append(f"Requires-Dist: {part_name.replace('_', '-')}==1.0\n")
            if part is not None:
                folder = site / part_name / "data"
                folder.mkdir(parents=True)
                (folder / f"small.gguf.part{number:02d}").write_bytes(part)
        info = site / f"{name}-1.0.dist-info"
        info.mkdir()
        header = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
        (info / "METADATA").write_text(
            header + "".join(required) + "Requires-Dist: pytest ; extra == 'test'\n"
        )
        importlib.invalidate_caches()
        return whole

    return install_parts


def test_parts_are_joined_once_with_the_terms_next_to_them(install, tmp_path):
    whole = install("parts_a")
    path = hub.find("package:parts_a")
    assert path.read_bytes() == whole and path.is_relative_to(tmp_path / "cache" / "radit_jax")
    assert (path.parent / "TERMS.html").read_text() == "terms"
    assert open_gguf(path).metadata["general.license"] == "gemma"
    assert origin("language model", "package:parts_a", path).licence == "gemma"
    # It is not written again, in this process or another.
    inode = os.stat(path).st_ino
    package_parts._joined_once.cache_clear()
    assert hub.find_small("package:parts_a") == path and os.stat(path).st_ino == inode


def test_a_damaged_file_in_the_cache_is_joined_again(install):
    whole = install("parts_b")
    path = hub.find("package:parts_b")
    path.write_bytes(whole[:-1] + b"!")
    package_parts._joined_once.cache_clear()
    assert hub.find("package:parts_b").read_bytes() == whole


def test_the_package_and_the_joined_file_have_one_identity(install, tmp_path):
    whole = install("parts_c")
    copied = tmp_path / "copy.gguf"
    copied.write_bytes(whole)
    path, files = hub.content("package:parts_c")
    assert files is None and pathlib.Path(path).read_bytes() == whole
    assert hub.content(str(copied)) == (str(copied), None)
    # A folder with nothing else is the file, too.
    (tmp_path / "alone").mkdir()
    copied.rename(tmp_path / "alone" / "copy.gguf")
    assert hub.content(str(tmp_path / "alone")) == (str(tmp_path / "alone" / "copy.gguf"), None)


def test_a_missing_package_is_named(install):
    install("parts_d", parts=(b"a", None))
    with pytest.raises(ValueError, match=r"parts_d: expected the package parts_d_part2, .*small\.gguf"):
        hub.find("package:parts_d")


def test_a_missing_part_is_seen(install, tmp_path):
    install("parts_e")
    part = tmp_path / "site" / "parts_e_part2" / "data" / "small.gguf.part01"
    part.unlink()
    with pytest.raises(ValueError, match=r"parts small\.gguf\.part00 and on, got small\.gguf\.part00, sm"):
        hub.find("package:parts_e")


def test_another_hash_is_refused(install):
    install("parts_f", digest="0" * 64)
    with pytest.raises(ValueError, match=r"package parts_f: .*SHA-256 0{64}, got [0-9a-f]{64}\. pip install"):
        hub.find("package:parts_f")


def test_an_unclear_list_of_hashes_is_refused(install, tmp_path):
    install("parts_g")
    (tmp_path / "site" / "parts_g" / "data" / "SHA256SUMS").write_text("../evil.gguf")
    with pytest.raises(ValueError, match=r"SHA256SUMS: expected the SHA-256 and the name of one \.gguf file"):
        hub.find("package:parts_g")


def test_a_package_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="expected the installed package 'no_such_parts'"):
        checkpoint_folder("package:no_such_parts")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"none\.gguf: expected a file, got none of that name"):
        hub.find(str(tmp_path / "none.gguf"))
