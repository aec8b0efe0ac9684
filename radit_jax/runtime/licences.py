"""The licence of a checkpoint or of data: what its own files say, else what its page is known to say."""

import json
import re
from pathlib import Path

from radit_jax.text.card import Origin

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
    """What lies in `folder`, which settings name by `source`, and its licence where one can be found."""
    name = source.removeprefix("hub:")
    for found, where in (
        (_front_matter(folder / "README.md"), "its README.md"),
        (_first_line(folder), "its licence file"),
        (_known(name.partition("@")[0]), "its page on the hub"),
        (_known(_trained_from(folder)), f"the page of {_trained_from(folder)}"),
    ):
        if found:
            return Origin(role, name, found.lower(), where)
    return Origin(role, name, "")


def _front_matter(path: Path) -> str:
    """The licence in the metadata at the head of a hub's README."""
    if not path.exists():
        return ""
    head = re.match(r"---\n(.*?)\n---", path.read_text(errors="replace"), re.DOTALL)
    fields = dict(re.findall(r"^(license|license_name): *(\S.*?) *$", head[1], re.MULTILINE)) if head else {}
    named = fields.get("license", "").strip("\"'")
    return fields.get("license_name", named) if named in ("", "other") else named


def _first_line(folder: Path) -> str:
    """The first line of a licence file that has anything on it."""
    for path in sorted([*folder.glob("LICENSE*"), *folder.glob("LICENCE*")]):
        lines = (line.strip(" #*=-") for line in path.read_text(errors="replace").splitlines())
        return next((line for line in lines if line), "")
    return ""


def _trained_from(folder: Path) -> str:
    """What a checkpoint's config says that it was made of."""
    path = folder / "config.json"
    return json.loads(path.read_text()).get("_name_or_path", "") if path.exists() else ""


def _known(name: str) -> str:
    return next((licence for pattern, licence in KNOWN if re.fullmatch(pattern, name)), "")
