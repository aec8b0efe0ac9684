"""The licence of a checkpoint or of data, by its own files, or else by what its page is known to say."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from radit_jax.runtime.pretrained.gguf_file import is_gguf, open_gguf
from radit_jax.runtime.pretrained.hf_config import REMEDY
from radit_jax.runtime.storage.files import read_json
from radit_jax.text.card import Origin

Manifest = Mapping[str, Any]
READ = 1 << 16  # bytes of a README or a licence that are read
LONGEST = 80  # characters of others' text in a model card

# Patterns of the hub's ids, and the licence on their pages.
KNOWN: tuple[tuple[str, str], ...] = (
    (r"facebook/dragon-plus-(query|context)-encoder", "cc-by-nc-4.0"),
    (r"sentence-transformers/all-MiniLM-L6-v2", "apache-2.0"),
    (r"(google-bert/)?bert-base-uncased", "apache-2.0"),
    (r"huggyllama/llama-\d+b", "llama 1 (for research only)"),
    (r"meta-llama/Llama-2-.*", "llama2"),
    (r"meta-llama/Meta-Llama-3-.*", "llama3"),
    (r"meta-llama/(Meta-)?Llama-3\.1-.*", "llama3.1"),
    (r"meta-llama/Llama-3\.2-.*", "llama3.2"),
    (r"google/gemma-[23]-.*", "gemma"),
)


def origin(role: str, source: str, folder: Path) -> Origin:
    """The origin of what `folder` holds, which settings call `source`, with its licence if one is found.

    `folder` may be a GGUF file, which says its licence itself. Others' text in the result is one line of at
    most `LONGEST` characters.
    """
    name = source.removeprefix("hub:")
    in_metadata = ""
    if is_gguf(folder):
        in_metadata = str(open_gguf(folder).metadata.get("general.license", ""))
        folder = folder.parent
    base = _base_model(folder)
    repository = name.partition("@")[0]
    known_ids = [identity for identity in (repository, base) if _known_licence(identity)]
    hub_id = known_ids[0] if known_ids else ""
    # The first place with a licence counts.
    candidates = (
        (in_metadata, "its metadata"),
        (_front_matter(folder / "README.md"), "its README.md"),
        (_first_line(folder), "its licence file"),
        (_known_licence(repository), "its page on the hub"),
        (_known_licence(base), f"the page of {base}"),
    )
    for licence, where in candidates:
        if licence:
            return Origin(role, name, _one_line(licence).lower(), _one_line(where), hub_id)
    return Origin(role, name, "", hub_id=hub_id)


def origins_of_run(
    lm: Manifest | None,
    retriever: Manifest | None,
    scores: Manifest | None,
    corpus: Manifest | None,
) -> list[Origin]:
    """What a run's models were made of, by the manifests of its stages, and its data.

    The manifests are those of the untuned models, of the scores and of the corpus; None of a stage that has
    not finished.
    """
    # 1) The untuned models.
    recorded: dict[str, Any] = {}
    if lm is not None:
        recorded["language model"] = lm.get("origin")
    if retriever is not None:
        recorded["query encoder"] = retriever.get("origin")
        recorded["chunk encoder"] = retriever.get("chunk_origin")
    origins = []
    for role, fields in recorded.items():
        made_here = Origin(role, "trained from scratch", "none")
        origins.append(Origin(**fields) if fields else made_here)

    # 2) Labels may come from another model than the run's own.
    labels = scores.get("origin") if scores is not None else None
    own = recorded.get("language model") or {}
    if labels and labels["name"] != own.get("name"):
        origins.append(Origin(**labels)._replace(role="labels"))

    # 3) The data.
    if corpus is not None:
        origins += _data_origins(corpus)
    return origins


def _data_origins(corpus: Manifest) -> list[Origin]:
    """Where passages and questions come from. Their folder holds the licence, next to their files."""
    data = corpus.get("settings", {}).get("data", {})
    if data.get("class") == "Instructions":
        passages, datasets = corpus["passages"], data["datasets"]
        folder = Path(passages)
        if not folder.is_dir():
            folder = folder.parent
        return [origin("corpus", passages, folder), origin("data", datasets, Path(datasets))]
    if "folder" in data:
        return [origin("data", data["folder"], Path(data["folder"]))]
    return [Origin("data", "a generated world", "none")]


def _front_matter(path: Path) -> str:
    """The licence in the metadata at the head of a hub's README; "" where it is not a text on one line."""
    # Three dashes begin and end it.
    head = re.match(r"---\r?\n(.*?)\r?\n---", _read_head(path), re.DOTALL)
    if head is None:
        return ""
    fields = dict(re.findall(r"^(license|license_name): *(\S.*?) *$", head[1], re.MULTILINE))
    licence = fields.get("license", "").strip("\"'")
    if licence in ("", "other"):
        return fields.get("license_name", licence)
    return licence


def _first_line(folder: Path) -> str:
    """The first line of the licence file that is not blank; "" where there is none."""
    paths = sorted([*folder.glob("LICENSE*"), *folder.glob("LICENCE*")])
    if not paths:
        return ""
    for line in _read_head(paths[0]).splitlines():
        words = line.strip(" #*=-")
        if words:
            return words
    return ""


def _read_head(path: Path) -> str:
    """The beginning of a text file; "" where there is none."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return file.read(READ).decode(errors="replace").removeprefix("\ufeff")


def _base_model(folder: Path) -> str:
    """The checkpoint that this one was made from, by its config; "" where it does not say."""
    path = folder / "config.json"
    if not path.is_file():
        return ""
    name = read_json(path, REMEDY).get("_name_or_path", "")
    return name if isinstance(name, str) else ""


def _known_licence(name: str) -> str:
    for pattern, licence in KNOWN:
        if re.fullmatch(pattern, name):
            return licence
    return ""


def _one_line(text: str) -> str:
    """Others' text without line ends and control characters, cut short."""
    characters = [c if c.isprintable() else " " for c in text]
    line = " ".join("".join(characters).split())
    if len(line) > LONGEST:
        return line[: LONGEST - 2] + " …"
    return line
