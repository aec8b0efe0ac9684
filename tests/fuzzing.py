"""Broken inputs: what is done to a valid one, and what may come of it.

    .venv/bin/python tests/fuzzing.py                  lists the readers of tests/fuzz_readers.py
    .venv/bin/python tests/fuzzing.py READER NUMBER    leaves that input in a folder and reads it

An input is a folder of small files, valid at first, one of which was broken. It depends on the reader's name
and the input's number alone. A reader gives a result or its own error; anything else is a fault.
"""

import json
import pathlib
import random
import resource
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

SECONDS, KIBIBYTES = 10, 1 << 20  # what one input may take
Files = Mapping[str, bytes]


class Reader(NamedTuple):
    """A valid input, and what reads it."""

    files: Callable[[], Files]  # by their paths in a folder
    read: Callable[[pathlib.Path], object]  # of that folder
    count: int = 20  # inputs in the fast tests
    names_file: bool = True  # its errors name a file


# ---- breaking an input ----

VALUES = (  # as JSON spells them
    *("null", "true", "0", "-1", "1.5", "1e308", "1e999", "NaN", "-Infinity", "9" * 400, "9" * 5000),
    *('""', '" "', '"x"', '"/"', '"../../etc/passwd"', '"1e5"', r'"\ud83d"', r'"\u0000"', r'"\u001b[2J"'),
    *("[]", "{}", "[null]", "[[]]", '[{"a": 1}]', '{"a": null}', "[" * 101 + "]" * 101),
    *('"' + "word " * 30_000 + '"', "[" * 100_000, '{"a":' * 5000 + "1" + "}" * 5000),
)
BYTES = (
    b"\0",
    b"\xff",
    b'"',
    b"'",
    b"\t",
    b",",
    b"=",
    b"\r",
    b"\n",
    b"{",
    b"]",
    b"<",
    b"\xed\xa0\xbd",
    b"\\",
)
CODECS = ("utf-16", "utf-8-sig", "utf-32-le", "latin-1", "cp1252")
MARK = "<here>"


def broken(files: Files, chance: random.Random) -> dict[str, bytes]:
    """The files, one of them broken in one to three ways."""
    name = chance.choice(sorted(files))
    data = files[name]
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        data = chance.choice(MUTATIONS)(data, chance)
    return {**files, name: data}


def flip_bits(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.randint(1, 4) if data else 0):
        changed[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def cut_short(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.choice((0, len(data) // 2, chance.randint(0, len(data))))]


def move_spans(data: bytes, chance: random.Random) -> bytes:
    """Leave a span out, write it twice or many times, or swap it with the one after it."""
    a, b, c = sorted(chance.randint(0, len(data)) for _ in range(3))
    one, two = data[a:b], data[b:c]
    many = one * (1 + 20_000 // (len(one) + 1))
    return data[:a] + chance.choice((two, one + one + two, many + two, two + one)) + data[c:]


def insert(data: bytes, chance: random.Random) -> bytes:
    at = chance.randint(0, len(data))
    return data[:at] + chance.choice(BYTES) + data[at:]


def recode(data: bytes, chance: random.Random) -> bytes:
    if chance.random() < 0.2:
        return data.replace(b"\n", b"\r\n")
    return data.decode(errors="replace").encode(chance.choice(CODECS), errors="replace")


def change_value(data: bytes, chance: random.Random) -> bytes:
    """Put another value in one place: of a JSON file, of one JSON line, or of one line's fields."""
    lines = data.split(b"\n") if _parsed(data) is None else [data]
    at = chance.randrange(len(lines))
    value = _parsed(lines[at])
    lines[at] = _change_field(lines[at], chance) if value is None else _change_json(value, chance)
    return b"\n".join(lines)


def _parsed(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _change_field(line: bytes, chance: random.Random) -> bytes:
    separator = next((mark for mark in (b"\t", b"=", b",") if mark in line), b" ")
    fields = line.split(separator)
    fields[chance.randrange(len(fields))] = chance.choice(VALUES).strip('"').encode()
    return separator.join(fields)


def _change_json(value: Any, chance: random.Random) -> bytes:
    root = [value]
    holder, key = chance.choice(list(_places(root)))
    if isinstance(holder, dict) and chance.random() < 0.25:
        moved = holder.pop(key)
        holder.update({chance.choice(("", "x", "id", "text", "é")): moved} if chance.random() < 0.5 else {})
    else:
        holder[key] = MARK
    return json.dumps(root)[1:-1].replace(f'"{MARK}"', chance.choice(VALUES)).encode()


def _places(root: Any) -> Iterator[tuple[Any, Any]]:
    """(holder, key) of every value inside lists and objects."""
    waiting = [root]
    while waiting:
        holder = waiting.pop()
        for key in list(holder) if isinstance(holder, dict) else range(len(holder)):
            yield holder, key
            waiting += [holder[key]] if isinstance(holder[key], dict | list) else []


MUTATIONS = (flip_bits, cut_short, move_spans, insert, recode, *(change_value,) * 6)


# ---- reading it ----


def fault(name: str, reader: Reader, number: int) -> str:
    """What is wrong with what comes of an input; empty where nothing is."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="fuzz"))
    try:
        write(folder, broken(reader.files(), random.Random(f"{name} {number}")))
        found = outcome(reader, folder)
        return f"tests/fuzzing.py {name} {number}: {found}" if found else ""
    finally:
        shutil.rmtree(folder)


def write(folder: pathlib.Path, files: Files) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def outcome(reader: Reader, folder: pathlib.Path) -> str:
    """Read the input in `folder` and say what is wrong: another kind of error, a hang, too much memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    names = {path.name for path in folder.rglob("*")} | {str(folder)}
    signal.signal(signal.SIGALRM, _give_up)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reader.read(folder)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        signal.setitimer(signal.ITIMER_REAL, 0)
        if not is_own(error):
            return "".join(traceback.format_exception(error, limit=-3))
        if reader.names_file and not any(name in str(error) for name in names):
            return f"no file is named: {str(error)[:300]}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return f"{grown / 1024:.0f} MiB of memory" if grown > KIBIBYTES else ""


def is_own(error: BaseException) -> bool:
    """Whether it is a ValueError that a `raise` in the package made, and no library's."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    raised = "/radit_jax/" in last.filename and (last.line or "").startswith("raise")
    return type(error) is ValueError and raised


def _give_up(*_: object) -> None:
    raise TimeoutError(f"it hangs: {SECONDS} s are over")


def main(arguments: list[str]) -> None:
    from fuzz_readers import READERS

    if len(arguments) != 2:
        print("\n".join(READERS))
        return
    name, number = arguments[0], int(arguments[1])
    folder = pathlib.Path(tempfile.mkdtemp(prefix="fuzz"))
    valid = READERS[name].files()
    files = broken(valid, random.Random(f"{name} {number}"))
    write(folder, files)
    for path, data in files.items():
        if data != valid[path]:
            print(f"{folder / path}: {data[:2000]!r}")
    print(outcome(READERS[name], folder) or "right, or an error of its own")


if __name__ == "__main__":
    main(sys.argv[1:])
