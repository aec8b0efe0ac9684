"""Where a checkpoint is: a folder, a GGUF file, either inside an installed package, or a repository of a hub.

    /models/llama   ~/llama   ./llama   runs/llama      a folder
    /models/llama.gguf                                  a file, or a folder with no other checkpoint
    package:NAME/FOLDER                                 inside an installed package
    package:NAME                                        a file in parts, in the packages that NAME requires
    hub:ORG/NAME    hub:ORG/NAME@REVISION   ORG/NAME    on the hub

`ORG/NAME` without `hub:` is on the hub only where there is no folder ORG, so that a slip in a path downloads
nothing.
"""

import importlib.util
import os
import re
from pathlib import Path
from typing import Any

from radit_jax.config import checkpoint_folder
from radit_jax.runtime.distributed import processes
from radit_jax.runtime.pretrained.fields import shown_value
from radit_jax.runtime.pretrained.gguf_file import demand_package, is_gguf, model_parts, open_gguf
from radit_jax.runtime.pretrained.package_parts import is_in_parts, joined_file

_ID = re.compile(r"(?P<repo>[\w][\w.-]*/[\w][\w.-]*)(@(?P<revision>[\w./-]+))?")
# Files without weights.
_SMALL = ["*.json", "*.txt", "*.jinja", "tokenizer.model", "README.md", "LICENSE*"]
# Weights in Meta's own form and for other runtimes, which are in folders of the same repositories.
_OTHER_FORMS = ["original/*", "onnx/*", "openvino/*"]


class UnreachedError(ValueError):
    """The hub gave no answer: what was asked for may be there or not."""


def find(source: str) -> Path:
    """The folder of the checkpoint `source`, downloaded if it is on the hub; or its GGUF file."""
    place = _on_hub(source)
    if place is None:
        return _local(source)
    repo, revision = place
    commit = _commit(source, repo, revision)
    folder = _snapshot(source, repo, commit, [*_SMALL, "*.safetensors"])
    # Torch's pickles only where there is nothing else.
    if not any(folder.rglob("*.safetensors")):
        demand_torch(source)
        folder = _snapshot(source, repo, commit, [*_SMALL, "pytorch_model*.bin"])
    return folder


def find_small(source: str) -> Path:
    """What `find` returns, but of the hub only the small files: settings, tokeniser, licence."""
    place = _on_hub(source)
    if place is None:
        return _local(source)
    repo, revision = place
    return _snapshot(source, repo, _commit(source, repo, revision), _SMALL)


def check_weights(source: str) -> None:
    """Refuse a checkpoint whose reader, torch or gguf, is not installed, before weights are downloaded."""
    place = _on_hub(source)
    if place is None and is_gguf(path := _local(source)):
        for tensor in open_gguf(path).tensors.values():
            demand_package(tensor.type.name, path)
        return
    if importlib.util.find_spec("torch") is not None:
        return
    names = _list_files(*place) if place else _names_in(_local(source))
    has_pickles = any(re.fullmatch(r"pytorch_model.*\.bin", name) for name in names)
    has_safetensors = any(name.endswith(".safetensors") for name in names)
    if has_pickles and not has_safetensors:
        demand_torch(f"checkpoint {source}")


def _names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*")]


def _list_files(repo: str, revision: str | None) -> list[str]:
    """The names of a repository's files; none where the hub does not answer."""
    from huggingface_hub import HfApi

    try:
        return HfApi().list_repo_files(repo, revision=revision)
    except Exception:  # the download of the weights will say what is wrong
        return []


def demand_torch(where: str) -> None:
    """Refuse a checkpoint that has only torch's pickles where torch is not installed."""
    if importlib.util.find_spec("torch") is None:
        raise ValueError(
            f"{where}: expected *.safetensors, or torch to read its pytorch_model.bin, got neither. "
            "pip install 'radit_jax[torch]'."
        )


def identity(source: str) -> str | None:
    """`REPOSITORY@COMMIT` of a checkpoint on the hub; None for a folder, which its content identifies."""
    place = _on_hub(source)
    if place is None:
        return None
    repo, revision = place
    return f"{repo}@{_commit(source, repo, revision)}"


def repository(source: str) -> str:
    """The repository of a checkpoint on the hub; empty for a folder."""
    place = _on_hub(source)
    return place[0] if place else ""


def content(source: str) -> tuple[str, list[Path] | None]:
    """The path whose content identifies a checkpoint that is not on the hub, and its files if not all count.

    A GGUF file is the same one wherever it lies and whatever lies next to it.
    """
    # The caller's error says what is absent.
    path = os.path.expanduser(checkpoint_folder(source))
    if not os.path.exists(path):
        return path, None
    file = _local(source)
    if not is_gguf(file):
        return path, None
    files = model_parts(file)
    return (str(file), None) if len(files) == 1 else (str(file.parent), files)


def _commit(source: str, repo: str, revision: str | None) -> str:
    """The commit in this machine's cache, so that a run goes on with the one that it began with; else the
    hub's."""
    try:
        return _snapshot(source, repo, revision, ["config.json"], local_files_only=True).name
    except ValueError:
        return _snapshot(source, repo, revision, ["config.json"]).name


def _on_hub(source: str) -> tuple[str, str | None] | None:
    """Repository and revision that `source` names; None where it names a folder."""
    is_explicit = source.startswith("hub:")
    match = _ID.fullmatch(source.removeprefix("hub:"))
    if is_explicit and match is None:
        raise ValueError(
            f"checkpoint {source}: expected hub:ORG/NAME or hub:ORG/NAME@REVISION, got another form. Write "
            "one of these."
        )
    # ORG may be a folder here, and no repository is a file.
    first = source.partition("/")[0]
    is_path = not is_explicit and (os.path.exists(first) or is_gguf(source))
    if match is None or is_path:
        return None
    return match["repo"], match["revision"]


def _local(source: str) -> Path:
    """The folder or the GGUF file that `source` names; ValueError where there is none."""
    path = checkpoint_folder(source)
    # The system itself refuses some paths.
    try:
        folder = Path(path).expanduser()
        is_folder = folder.is_dir()
        is_file = is_gguf(folder) and folder.is_file()
    except (OSError, RuntimeError, ValueError) as error:  # too long a name, no such user, a zero byte
        raise ValueError(
            f"checkpoint {shown_value(source)}: expected a folder, got {error}. Correct the path."
        ) from None
    if not is_folder and not is_file:
        expected = "a file" if is_gguf(folder) else "a folder"
        raise ValueError(
            f"checkpoint {source}: expected {expected}, got none of that name. Correct the path, or write "
            "hub:ORG/NAME for the hub's."
        )
    if source.startswith("package:") and is_in_parts(folder):
        return joined_file(folder)
    return _gguf_inside(folder) if is_folder else folder


def _gguf_inside(folder: Path) -> Path:
    """The only GGUF model in a folder without another checkpoint; else the folder."""
    files = sorted(folder.glob("*.gguf"))
    if not files or (folder / "config.json").exists():
        return folder
    # All parts of one model, or a single file.
    if len(files) > 1 and model_parts(files[0]) != files:
        raise ValueError(
            f"checkpoint {folder}: expected one .gguf file, got {', '.join(file.name for file in files)}. "
            "Name one of them."
        )
    return files[0]


def _snapshot(
    source: str,
    repo: str,
    revision: str | None,
    patterns: list[str],
    **options: Any,
) -> Path:
    """The folder with the files of a repository's revision that match `patterns`; downloads what it lacks."""
    from huggingface_hub import errors, snapshot_download

    options |= {"allow_patterns": patterns, "ignore_patterns": _OTHER_FORMS}
    try:
        # A download may take hours, and nothing in it looks for a stop. A second one resumes it.
        with processes.stopping_at_once(f"the download of {repo}"):
            return Path(snapshot_download(repo, revision=revision, **options))
    except errors.GatedRepoError:
        raise ValueError(
            f"checkpoint {source}: expected a token that may read {repo}, which is gated, got none. Accept "
            "its licence on its page, then run `hf auth login` or set HF_TOKEN."
        ) from None
    except errors.RepositoryNotFoundError:
        raise ValueError(
            f"checkpoint {source}: expected a folder or a repository of the hub, got neither. Correct the "
            "name, or run `hf auth login` if it is private."
        ) from None
    except errors.RevisionNotFoundError:
        raise ValueError(
            f"checkpoint {source}: expected a revision of {repo}, got {revision}. Name another."
        ) from None
    except OSError as error:  # of the network, the hub or the disk; the first line says which
        reason = str(error).partition("\n")[0].removeprefix("Got: ")
        raise UnreachedError(
            f"checkpoint {source}: expected a folder or an answer of the hub, got "
            f"{reason}. Connect, or name a folder that holds a copy of {repo}."
        ) from None
