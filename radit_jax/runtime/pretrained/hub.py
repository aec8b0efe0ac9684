"""Where a checkpoint lies: a folder, one inside an installed package, or a snapshot of a hub's repository.

    /models/llama   ~/llama   ./llama   runs/llama      a folder
    package:NAME/FOLDER                                 inside an installed package
    hub:ORG/NAME    hub:ORG/NAME@REVISION   ORG/NAME    on the hub

`ORG/NAME` without `hub:` is the hub's only where no folder ORG is here: a slip in a path is no download.
"""

import importlib.util
import os
import re
from pathlib import Path
from typing import Any

from radit_jax.config import checkpoint_folder
from radit_jax.runtime.distributed import processes
from radit_jax.runtime.pretrained.fields import shown_value

_ID = re.compile(r"(?P<repo>[\w][\w.-]*/[\w][\w.-]*)(@(?P<revision>[\w./-]+))?")
# Weights in Meta's own form and for other runtimes lie in folders of the same repositories.
_SMALL = ["*.json", "*.txt", "*.jinja", "tokenizer.model", "README.md", "LICENSE*"]
_OTHER_FORMS = ["original/*", "onnx/*", "openvino/*"]


def find(source: str) -> Path:
    """The folder of the checkpoint `source`, fetched from the hub where it names one of its repositories."""
    if (place := _on_hub(source)) is None:
        return _local(source)
    repo, commit = place[0], _commit(source, *place)
    folder = _snapshot(source, repo, commit, [*_SMALL, "*.safetensors"])
    if not any(folder.rglob("*.safetensors")):
        demand_torch(source)
        folder = _snapshot(source, repo, commit, [*_SMALL, "pytorch_model*.bin"])
    return folder


def find_small(source: str) -> Path:
    """The folder of the checkpoint `source` with its small files at least: settings, tokeniser, licence."""
    if (place := _on_hub(source)) is None:
        return _local(source)
    return _snapshot(source, place[0], _commit(source, *place), _SMALL)


def check_weights(source: str) -> None:
    """Refuse a checkpoint that torch is needed for and not here, before its weights are fetched or read."""
    if importlib.util.find_spec("torch") is not None:
        return
    if (place := _on_hub(source)) is None:
        names = [path.name for path in _local(source).rglob("*")]
    else:
        names = _listed(*place)
    pickled = any(re.fullmatch(r"pytorch_model.*\.bin", name) for name in names)
    if pickled and not any(name.endswith(".safetensors") for name in names):
        demand_torch(f"checkpoint {source}")


def _listed(repo: str, revision: str | None) -> list[str]:
    """The names of a repository's files; none where the hub does not tell them."""
    from huggingface_hub import HfApi

    try:
        return HfApi().list_repo_files(repo, revision=revision)
    except Exception:  # who fetches the weights says what is wrong
        return []


def demand_torch(where: str) -> None:
    """Refuse a checkpoint that has torch's pickles only, where torch is not installed."""
    if importlib.util.find_spec("torch") is None:
        raise ValueError(
            f"{where}: expected *.safetensors, or torch to read its pytorch_model.bin, got neither. "
            "pip install 'radit_jax[torch]'."
        )


def identity(source: str) -> str | None:
    """Repository and commit of a checkpoint on the hub; None for a folder, which its content identifies."""
    if (place := _on_hub(source)) is None:
        return None
    return f"{place[0]}@{_commit(source, *place)}"


def _commit(source: str, repo: str, revision: str | None) -> str:
    """The commit at hand, so that what a run began with it goes on with; else the hub's."""
    try:
        return _snapshot(source, repo, revision, ["config.json"], local_files_only=True).name
    except ValueError:
        return _snapshot(source, repo, revision, ["config.json"]).name


def _on_hub(source: str) -> tuple[str, str | None] | None:
    """Repository and revision, where `source` names such."""
    explicit = source.startswith("hub:")
    match = _ID.fullmatch(source.removeprefix("hub:"))
    if explicit and match is None:
        raise ValueError(
            f"checkpoint {source}: expected hub:ORG/NAME or hub:ORG/NAME@REVISION, got another form. Correct "
            "it."
        )
    if match is None or not (explicit or not os.path.exists(source.partition("/")[0])):
        return None
    return match["repo"], match["revision"]


def _local(source: str) -> Path:
    path = checkpoint_folder(source)
    try:
        folder = Path(path).expanduser()
        found = folder.is_dir()
    except (OSError, RuntimeError, ValueError) as error:  # too long a name, no such user, a zero byte
        raise ValueError(
            f"checkpoint {shown_value(source)}: expected a folder, got {error}. Correct the path."
        ) from None
    if not found:
        raise ValueError(
            f"checkpoint {source}: expected a folder, got none of that name. Correct the path, or write "
            "hub:ORG/NAME for the hub's."
        )
    return folder


def _snapshot(source: str, repo: str, revision: str | None, patterns: list[str], **options: Any) -> Path:
    """The folder with those files of a repository's revision that `patterns` name."""
    from huggingface_hub import errors, snapshot_download

    options |= {"allow_patterns": patterns, "ignore_patterns": _OTHER_FORMS}
    try:
        # A download of hours has no place of ours to look at a signal, and goes on where it ended.
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
        raise ValueError(
            f"checkpoint {source}: expected a folder or an answer of the hub, got "
            f"{str(error).partition(chr(10))[0]}. Connect, or name a folder that holds a copy of {repo}."
        ) from None
