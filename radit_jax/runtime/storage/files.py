"""Files that a reader takes for whole: there whole or not at all, and read with errors that say where.

A text is UTF-8, with or without a byte order mark. JSON has a limit on its depth, and every string in it can
be written again: half of a surrogate pair, which JSON can spell and UTF-8 cannot, is refused.
"""

import hashlib
import json
import os
import pathlib
import re
import tempfile
from collections.abc import Mapping
from typing import Any

from etils import epath

from radit_jax.errors import naming
from radit_jax.runtime.storage import bucket

SEAL = "seal"  # the key of an object's hash of itself
MAX_DEPTH = 100  # lists and objects inside each other; the deepest real file has about ten
_UMASK = os.umask(0o077)  # it is read by setting it: once, before other threads make files
os.umask(_UMASK)
_HALF_OF_A_PAIR = re.compile(rb"\\u[dD][89a-fA-F]")


def write_whole(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Write a file so that no reader, and no restart after a kill, ever meets a part of it.

    On a disk the bytes go to a file beside `path` and reach the disk before they take its name; a failed
    write leaves the old file as it was. In a bucket one write is one object. A symbolic link is replaced,
    never followed.
    """
    content = data.encode() if isinstance(data, str) else data
    if bucket.is_bucket(path):
        epath.Path(path).write_bytes(content)
        return
    target = pathlib.Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, beside = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".new", dir=target.parent)
    try:
        with naming(path), os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(beside, 0o666 & ~_UMASK)
        os.replace(beside, target)
    except BaseException:
        pathlib.Path(beside).unlink(missing_ok=True)
        raise
    sync_folder(target.parent)


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Bring a folder's list of names to the disk, where the system can."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # some network filesystems cannot; the write itself is done
        pass
    finally:
        os.close(descriptor)


def read_text(path: str | os.PathLike[str], remedy: str = "Convert the file to UTF-8.") -> str:
    """The text of a UTF-8 file without its byte order mark."""
    data = epath.Path(path).read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: expected UTF-8, got {error.reason} at byte {error.start}. {remedy}"
        ) from None


def read_json(path: str | os.PathLike[str], remedy: str) -> dict[str, Any]:
    """The JSON object in a file; anything else is a ValueError that names the file and says `remedy`."""
    return as_object(parse_json(epath.Path(path).read_bytes(), str(path), remedy), str(path), remedy)


def parse_json(data: bytes | str, where: str, remedy: str) -> Any:
    """The value that JSON text spells; `where` and `remedy` are for the ValueError of text that spells none.

    >>> parse_json('{"a": [1, 2]}', "here", "Write JSON.")
    {'a': [1, 2]}
    >>> parse_json("[" * 100_000, "here", "Write JSON.")
    Traceback (most recent call last):
    ValueError: here: expected JSON of at most 100 levels, got more. Write JSON.
    """
    raw = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    try:
        value = json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{where}: expected UTF-8, got {error.reason} at byte {error.start}. {remedy}"
        ) from None
    except (RecursionError, MemoryError):
        raise ValueError(
            f"{where}: expected JSON of at most {MAX_DEPTH} levels, got more. {remedy}"
        ) from None
    except ValueError as error:  # JSONDecodeError, or an integer of thousands of digits
        shown = raw[:60].decode(errors="replace")
        raise ValueError(f"{where}: expected JSON, got {shown!r} ({error}). {remedy}") from None
    if _deeper_than(value, MAX_DEPTH):
        raise ValueError(f"{where}: expected JSON of at most {MAX_DEPTH} levels, got more. {remedy}")
    if _HALF_OF_A_PAIR.search(raw):
        _refuse_lone_surrogates(value, where, remedy)
    return value


def as_object(value: Any, where: str, remedy: str) -> dict[str, Any]:
    """`value`, which must be a JSON object."""
    if not isinstance(value, Mapping):
        shown = json.dumps(value, ensure_ascii=True)[:60]
        raise ValueError(f"{where}: expected a JSON object, got {shown}. {remedy}")
    return dict(value)


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """`value` as JSON has it, with a hash of all the rest under the key `seal`.

    >>> has_seal(sealed({"a": (1, 2)})), has_seal({**sealed({"a": 1}), "a": 2}), has_seal({"a": 1})
    (True, False, False)
    """
    plain = json.loads(json.dumps(value))
    return {**plain, SEAL: _hash_of_rest(plain)}


def has_seal(value: Mapping[str, Any]) -> bool:
    """Whether what was read has a seal, and is what was sealed."""
    return value.get(SEAL) == _hash_of_rest(value)


def _hash_of_rest(value: Mapping[str, Any]) -> str:
    rest = {key: part for key, part in value.items() if key != SEAL}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _deeper_than(value: Any, levels: int) -> bool:
    """Whether lists and objects stand inside each other more than `levels` deep, found level by level."""
    here = [value]
    for _ in range(levels + 1):
        inside: list[Any] = []
        for one in here:
            if isinstance(one, dict):
                inside.extend(one.values())
            elif isinstance(one, list):
                inside.extend(one)
        if not inside:
            return False
        here = inside
    return any(isinstance(one, dict | list) for one in here)


def _refuse_lone_surrogates(value: Any, where: str, remedy: str) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise ValueError(
            f"{where}: expected text that UTF-8 can write, got half of a surrogate pair ({half!r}). {remedy}"
        ) from None
