"""A GGUF file that packages ship in parts: joined once, in the user's cache, and checked by its hash.

NAME/data/SHA256SUMS                   the hash and the name of the whole file
NAME_part1/data/FILE.gguf.part00 ...   the parts, each in a package that NAME requires

An index of packages limits how large a package may be.
"""

import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
from pathlib import Path

from radit_jax.runtime.storage.files import read_text, write_whole
from radit_jax.runtime.storage.hashes import hash_file

SUMS = "SHA256SUMS"
_LINE = re.compile(r"(?P<digest>[0-9a-f]{64})[ \t]+[*]?(?P<name>[\w][\w.-]*\.gguf)")
_REQUIREMENT = re.compile(r"[\w][\w.-]*")


def is_in_parts(folder: Path) -> bool:
    """Whether an installed package's folder names a file that other packages hold parts of."""
    return (folder / "data" / SUMS).is_file()


def joined_file(folder: Path) -> Path:
    """The whole file of the package in `folder`, with the package's other files next to it.

    It is joined where the cache does not have it. ValueError where a part is missing, or where the whole has
    another hash than the package says.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return _joined_once(folder, Path(cache) / "radit_jax" / "gguf")


@functools.cache
def _joined_once(folder: Path, cache: Path) -> Path:
    """`joined_file` in the folder `cache`, which is read once in a process."""
    digest, name = _sum(folder / "data" / SUMS)
    # By its hash, so that no release of the package finds another's file.
    home = cache / digest[:16]
    target = home / name
    if target.is_file() and hash_file(target) == digest:
        return target
    parts = _parts(folder.name, name)
    home.mkdir(parents=True, exist_ok=True)
    # The licence goes with the model.
    for file in sorted((folder / "data").iterdir()):
        if file.is_file():
            shutil.copyfile(file, home / file.name)
    # The whole is checked before it takes its name.
    content = b"".join(part.read_bytes() for part in parts)
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        raise ValueError(
            f"package {folder.name}: expected parts whose whole has SHA-256 {digest}, got {found}. "
            f"{_reinstall(folder.name)}"
        )
    write_whole(target, content)
    return target


def _sum(path: Path) -> tuple[str, str]:
    """The hash and the name of the only file in a list of `sha256sum`."""
    lines = read_text(path).split("\n")
    matches = [_LINE.fullmatch(line.strip()) for line in lines if line.strip()]
    if len(matches) != 1 or matches[0] is None:
        raise ValueError(
            f"{path}: expected the SHA-256 and the name of one .gguf file, got another text. "
            f"{_reinstall(path.parent.parent.name)}"
        )
    return matches[0]["digest"], matches[0]["name"]


def _parts(package: str, name: str) -> list[Path]:
    """The parts of the file `name` in order: those of all packages that `package` requires."""
    parts: list[Path] = []
    for required in _required(package):
        spec = importlib.util.find_spec(required)
        if spec is None or not spec.submodule_search_locations:
            raise ValueError(
                f"package {package}: expected the package {required}, which holds a part of {name}, got "
                f"none. {_reinstall(package)}"
            )
        parts += Path(spec.submodule_search_locations[0], "data").glob(f"{name}.part*")
    # By number: .part00, .part01, and so on without a gap.
    parts.sort(key=lambda path: path.name)
    names = [path.name for path in parts]
    expected = [f"{name}.part{number:02d}" for number in range(len(parts))]
    if not parts or names != expected:
        raise ValueError(
            f"package {package}: expected the parts {name}.part00 and on, got {', '.join(names) or 'none'}. "
            f"{_reinstall(package)}"
        )
    return parts


def _reinstall(package: str) -> str:
    return f"pip install --force-reinstall {package.replace('_', '-')}."


def _required(package: str) -> list[str]:
    """The packages that `package` requires, by the names of their folders."""
    try:
        requirements = importlib.metadata.requires(package) or []
    except importlib.metadata.PackageNotFoundError:
        requirements = []
    # A name may be spelled with any of - _ and dots.
    names = []
    for requirement in requirements:
        match = _REQUIREMENT.match(requirement)
        if match is not None and "extra ==" not in requirement:
            names.append(re.sub(r"[-.]+", "_", match[0]).lower())
    return names
