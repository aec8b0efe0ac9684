"""Files that are written whole or not at all, and read with errors that name the file.

Text is UTF-8, with or without a byte order mark. The depth of JSON is limited. A string in it that UTF-8
cannot write, because JSON spells half of a surrogate pair, is refused.
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

SEAL = "seal"  # the key for the hash of an object's other keys
MAX_DEPTH = 100  # of lists and objects inside each other; the deepest real file has about ten
_MAX_SHOWN = 60  # bytes of a wrong text in an error
# The umask can be read only by setting it: once, before other threads make files.
_UMASK = os.umask(0o077)
os.umask(_UMASK)
_HALF_OF_A_PAIR = re.compile(rb"\\u[dD][89a-fA-F]")


def write_whole(path: epath.PathLike, data: bytes | str) -> None:
    """Write a file so that no reader, and no restart after a kill, sees a part of it.

    On a disk the bytes go to another file in the same folder, and reach the disk before that file takes the
    name `path`. A failed write leaves the old file as it was. In a bucket one write is one object. A symbolic
    link is replaced, not followed.
    """
    content = data.encode() if isinstance(data, str) else data
    if bucket.is_bucket(path):
        epath.Path(path).write_bytes(content)
        return
    target = pathlib.Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{target.name}."
    descriptor, new_file = tempfile.mkstemp(prefix=prefix, suffix=".new", dir=target.parent)
    try:
        with naming(path), os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp gives permissions to this user only.
        os.chmod(new_file, 0o666 & ~_UMASK)
        os.replace(new_file, target)
    except BaseException:
        pathlib.Path(new_file).unlink(missing_ok=True)
        raise
    sync_folder(target.parent)


def sync_folder(folder: epath.PathLike) -> None:
    """Bring a folder's list of names to the disk, where the system can."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # some network filesystems refuse; the file's own bytes are written
        pass
    finally:
        os.close(descriptor)


def read_text(path: epath.PathLike, remedy: str = "Convert the file to UTF-8.") -> str:
    """The text of a UTF-8 file without its byte order mark."""
    data = epath.Path(path).read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: expected UTF-8, got {error.reason} at byte {error.start}. {remedy}"
        ) from None


def read_json(path: epath.PathLike, remedy: str) -> dict[str, Any]:
    """The JSON object in a file; for anything else a ValueError that names the file and the `remedy`."""
    where = str(path)
    value = parse_json(epath.Path(path).read_bytes(), where, remedy)
    return as_object(value, where, remedy)


def parse_json(data: bytes | str, where: str, remedy: str) -> Any:
    """The value of a JSON text. `where` and `remedy` begin and end the ValueError for a text without one.

    >>> parse_json('{"a": [1, 2]}', "here", "Write JSON.")
    {'a': [1, 2]}
    >>> parse_json("[" * 100_000, "here", "Write JSON.")
    Traceback (most recent call last):
    ValueError: here: expected JSON of at most 100 levels, got more. Write JSON.
    """
    raw = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    # 1) The value, with errors that say where.
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
        shown = raw[:_MAX_SHOWN].decode(errors="replace")
        raise ValueError(f"{where}: expected JSON, got {shown!r} ({error}). {remedy}") from None

    # 2) What Python accepts and a reader or writer after this one may not.
    if _deeper_than(value, MAX_DEPTH):
        raise ValueError(f"{where}: expected JSON of at most {MAX_DEPTH} levels, got more. {remedy}")
    if _HALF_OF_A_PAIR.search(raw):
        _refuse_lone_surrogates(value, where, remedy)
    return value


def as_object(value: Any, where: str, remedy: str) -> dict[str, Any]:
    """`value` if it is a JSON object, else a ValueError."""
    if not isinstance(value, Mapping):
        shown = json.dumps(value, ensure_ascii=True)[:_MAX_SHOWN]
        raise ValueError(f"{where}: expected a JSON object, got {shown}. {remedy}")
    return dict(value)


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """`value` in JSON's types, with a hash of all other keys under the key `seal`.

    >>> has_seal(sealed({"a": (1, 2)})), has_seal({**sealed({"a": 1}), "a": 2}), has_seal({"a": 1})
    (True, False, False)
    """
    plain = json.loads(json.dumps(value))
    return {**plain, SEAL: _hash_of_rest(plain)}


def has_seal(value: Mapping[str, Any]) -> bool:
    """Whether an object has a seal, and its other keys are what was sealed."""
    return value.get(SEAL) == _hash_of_rest(value)


def _hash_of_rest(value: Mapping[str, Any]) -> str:
    rest = dict(value)
    rest.pop(SEAL, None)
    text = json.dumps(rest, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _deeper_than(value: Any, levels: int) -> bool:
    """Whether lists and objects lie more than `levels` deep in each other.

    It goes level by level: a recursion of that depth could fail by itself.
    """
    # Level 0 is the value itself.
    level = [value]
    for _ in range(levels + 1):
        next_level: list[Any] = []
        for node in level:
            if isinstance(node, dict):
                next_level.extend(node.values())
            elif isinstance(node, list):
                next_level.extend(node)
        if not next_level:
            return False
        level = next_level
    return any(isinstance(node, dict | list) for node in level)


def _refuse_lone_surrogates(value: Any, where: str, remedy: str) -> None:
    """Raise ValueError for a string that UTF-8 cannot write."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise ValueError(
            f"{where}: expected text that UTF-8 can write, got half of a surrogate pair ({half!r}). {remedy}"
        ) from None
