"""Which stage folders of a workdir belong to its last run, and what their manifests say."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from radit_jax.config.renamed_settings import with_new_names
from radit_jax.report.run_records import StageRecord
from radit_jax.runtime.pretrained.licences import origins_of_run
from radit_jax.runtime.storage.entries import bytes_or_none
from radit_jax.runtime.storage.files import parse_json
from radit_jax.runtime.storage.stage_folder import StageFolder
from radit_jax.runtime.storage.workdir import Workdir
from radit_jax.text.card import Origin

KINDS = ("corpus", "base", "embed", "index", "retrieve", "lm_ft", "score", "r_ft", "evaluate")
Folders = Mapping[str, StageFolder]  # by the stage's name

# Stages of one kind are told apart by a setting, where a manifest does not say which it is.
_ROLES = {
    "corpus": {"passages": "corpus/chunks"},
    "base": {"lm": "base/lm", "retriever": "base/retriever"},
    "retrieve": {"chunks_per_example": "retrieve/lm_ft", "num_chunks": "retrieve/r_ft"},
    "embed": {"embed": "embed/retriever"},
    "index": {"index": "index/retriever"},
}
# Settings that stages have outside a section, and their paths.
_ALONE = {
    "temperature": "retrieve.temperature",
    "num_chunks": "retrieve.num_chunks",
    "seed": "seed",
}
_NOT_FACTS = ("stage", "fingerprint", "settings", "files", "versions", "commit", "seal", "inputs")
_COUNTED = ("truncated", "too_long", "skipped", "dropped", "left_out", "excluded")  # in names of counts


def run_folders(workdir: Workdir) -> dict[str, StageFolder]:
    """The finished stages of the workdir's last run, by name in their order.

    A manifest names the stages that its stage read. Those of an older version do not: there, the last
    finished stage of each name is taken.
    """
    folders: dict[str, StageFolder] = {}
    for kind in KINDS:
        for manifest in workdir.manifests(kind):
            name = _role(kind, manifest.get("settings", {}))
            folders[name] = workdir.folder(kind, manifest["fingerprint"])
    # The results at the top may be of settings that returned.
    published = _published(workdir)
    if published is not None:
        folders["evaluate"] = published
    # What the last stages read is what counts, whatever other settings have left since.
    for name in reversed(list(folders)):
        folders |= _read_by(folders[name], workdir)
    return {name: folders[name] for name in _in_order(folders)}


def _published(workdir: Workdir) -> StageFolder | None:
    """The evaluation whose `results.json` lies at the workdir's top; None where there is none."""
    data = bytes_or_none(workdir.path / "results.json")
    # A person may have put another file there.
    fingerprint = None
    if data:
        with contextlib.suppress(ValueError, AttributeError):
            fingerprint = parse_json(data, "results.json", "").get("fingerprint")
    folder = workdir.folder("evaluate", str(fingerprint))
    return folder if folder.complete else None


def _role(
    kind: str,
    settings: Mapping[str, Any],
) -> str:
    """The name of a stage by its kind and settings."""
    for setting, name in _ROLES.get(kind, {}).items():
        if setting in settings:
            return name
    return kind


def _read_by(
    folder: StageFolder,
    workdir: Workdir,
) -> dict[str, StageFolder]:
    """The folders that a stage read, as its manifest says."""
    inputs = folder.manifest.get("inputs", {})
    read = {}
    for name, fingerprint in inputs.items():
        kind, _, _ = name.partition("/")
        other = workdir.folder(kind, fingerprint)
        if other.complete:
            read[name] = other
    return read


def _in_order(names: Mapping[str, Any]) -> list[str]:
    """Names of stages in the order of the method."""

    def place(name: str) -> tuple[int, str]:
        kind, _, _ = name.partition("/")
        return KINDS.index(kind), name

    return sorted(names, key=place)


def stage_record(
    name: str,
    folder: StageFolder,
) -> StageRecord:
    """What the manifest of a finished stage says."""
    manifest = folder.manifest
    facts = {key: value for key, value in manifest.items() if key not in _NOT_FACTS}
    seconds, device = facts.pop("seconds", None), facts.pop("device", None)
    sizes = [record["size"] for record in manifest["files"].values()]
    return StageRecord(
        name,
        folder.fingerprint,
        manifest.get("settings", {}),
        facts,
        manifest.get("commit"),
        manifest.get("versions", {}),
        sum(sizes),
        seconds,
        device,
    )


def counts_of(stages: Sequence[StageRecord]) -> dict[str, int]:
    """What stages cut or left out: their facts of such names that are not 0, as `lm_ft truncated_chunks`."""
    counts = {}
    for stage in stages:
        for name, value in stage.facts.items():
            is_counted = any(word in name for word in _COUNTED)
            if is_counted and type(value) is int and value:
                counts[f"{stage.name} {name}"] = value
    return counts


def manifest_settings(stages: Sequence[StageRecord]) -> dict[str, Any]:
    """The settings that manifests keep, by path, as far as they are those of a section of an experiment."""
    found: dict[str, Any] = {}
    for stage in stages:
        # A model's own section is below `base`.
        above = "base." if stage.name.startswith("base/") else ""
        for name, value in with_new_names(stage.settings).items():
            if isinstance(value, Mapping):
                found |= _by_path(value, f"{above}{name}")
            elif name in _ALONE:
                found[_ALONE[name]] = value
    return found


def _by_path(section: Mapping[str, Any], path: str) -> dict[str, Any]:
    """The values of a section of settings and of those in it."""
    found: dict[str, Any] = {}
    for name, value in section.items():
        inner = f"{path}.{name}"
        if isinstance(value, Mapping):
            found |= _by_path(value, inner)
        elif name != "class":
            found[inner] = value
    return found


def origins(folders: Folders) -> list[Origin]:
    """What the models were made of, with their licences, as far as the stages have finished."""
    names = ("base/lm", "base/retriever", "score", "corpus")
    manifests = [folders[name].manifest if name in folders else None for name in names]
    return origins_of_run(*manifests)
