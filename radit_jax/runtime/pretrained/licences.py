"""The licence of a checkpoint or of data: what its own files say, else what its page is known to say."""

import re
from pathlib import Path

from radit_jax.runtime.pretrained.hf_config import REMEDY
from radit_jax.runtime.storage.files import read_json
from radit_jax.text.card import Origin

READ = 1 << 16  # bytes of a README or a licence that are looked at
LONGEST = 80  # characters of what others wrote, in a model card

# Ids of the hub, and the licence that stands on their pages.
KNOWN: tuple[tuple[str, str], ...] = (
    (r"facebook/dragon-plus-(query|context)-encoder", "cc-by-nc-4.0"),
    (r"sentence-transformers/all-MiniLM-L6-v2", "apache-2.0"),
    (r"(google-bert/)?bert-base-uncased", "apache-2.0"),
    (r"huggyllama/llama-\d+b", "llama 1 (for research only)"),
    (r"meta-llama/Llama-2-.*", "llama2"),
    (r"meta-llama/Meta-Llama-3-.*", "llama3"),
    (r"meta-llama/(Meta-)?Llama-3\.1-.*", "llama3.1"),
    (r"meta-llama/Llama-3\.2-.*", "llama3.2"),
)


def origin(role: str, source: str, folder: Path) -> Origin:
    """What lies in `folder`, which settings name by `source`, and its licence where one can be found.

    What others wrote of it is one line of at most `LONGEST` characters.
    """
    name = source.removeprefix("hub:")
    made_of = _trained_from(folder)
    for found, where in (
        (_front_matter(folder / "README.md"), "its README.md"),
        (_first_line(folder), "its licence file"),
        (_known(name.partition("@")[0]), "its page on the hub"),
        (_known(made_of), f"the page of {made_of}"),
    ):
        if found:
            return Origin(role, name, _one_line(found).lower(), _one_line(where))
    return Origin(role, name, "")


def _front_matter(path: Path) -> str:
    """The licence in the metadata at the head of a hub's README; empty where it is no text on one line."""
    head = re.match(r"---\r?\n(.*?)\r?\n---", _head_of(path), re.DOTALL)
    fields = dict(re.findall(r"^(license|license_name): *(\S.*?) *$", head[1], re.MULTILINE)) if head else {}
    named = fields.get("license", "").strip("\"'")
    return fields.get("license_name", named) if named in ("", "other") else named


def _first_line(folder: Path) -> str:
    """The first line of a licence file that has anything on it."""
    for path in sorted([*folder.glob("LICENSE*"), *folder.glob("LICENCE*")]):
        lines = (line.strip(" #*=-") for line in _head_of(path).splitlines())
        return next((line for line in lines if line), "")
    return ""


def _head_of(path: Path) -> str:
    """The beginning of a text; empty where there is none."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return file.read(READ).decode(errors="replace").removeprefix("\ufeff")


def _trained_from(folder: Path) -> str:
    """What a checkpoint's config says that it was made of; empty where there is no such text."""
    path = folder / "config.json"
    if not path.is_file():
        return ""
    named = read_json(path, REMEDY).get("_name_or_path", "")
    return named if isinstance(named, str) else ""


def _known(name: str) -> str:
    return next((licence for pattern, licence in KNOWN if re.fullmatch(pattern, name)), "")


def _one_line(text: str) -> str:
    """A text of others without line ends and control characters, cut short."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= LONGEST else line[: LONGEST - 2] + " …"
