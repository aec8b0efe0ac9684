"""Publish the exported models on the hub: `python -m radit_jax.push ORG/NAME --workdir=runs/tiny`.

Each model becomes a repository: ORG/NAME-lm, ORG/NAME-retriever and, where LM-ft trained adapters,
ORG/NAME-lm-adapter. They are private unless --public says otherwise. `--dry-run` shows the files, their sizes
and the model cards, and sends nothing. The token is the one that `hf auth login` or HF_TOKEN sets.
"""

import argparse
import contextlib
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from etils import epath

from radit_jax.command_line import module_parser, run_stage
from radit_jax.errors import exit_command, parse_and_run
from radit_jax.runtime.storage.entries import SIDECAR_SUFFIX, files_under, link_or_copy
from radit_jax.runtime.storage.top_level_folder import TopLevelFolder
from radit_jax.serving.command import add_export, find_export
from radit_jax.text.model_cards import card_for_repository
from radit_jax.text.printable import printable

# The folder of each model in an export, and what ends the name of its repository.
MODELS = {"hf/lm": "lm", "hf/retriever": "retriever", "hf/lm_adapter": "lm-adapter"}
CARD = "README.md"
_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


@dataclass(frozen=True)
class Upload:
    """A model of an export, and the repository that it goes to."""

    folder: epath.Path
    repository: str
    files: dict[str, epath.Path]  # by name, the card left out
    card: str  # as the repository's page will show it

    @property
    def size(self) -> int:
        """Bytes of all files and the card."""
        sizes = [file.stat().length for file in self.files.values()]
        return sum(sizes) + len(self.card.encode())


def parser() -> argparse.ArgumentParser:
    """The command line of `push`."""
    p = module_parser("push", __doc__, push_command)
    p.add_argument("name", metavar="ORG/NAME", help="what the names of the repositories begin with")
    add_export(p)
    p.add_argument(
        "--models",
        default="",
        metavar="NAMES",
        help=f"some of {','.join(MODELS.values())} (default: all that are there)",
    )
    p.add_argument("--public", action="store_true", help="anyone may read the repositories")
    p.add_argument("--message", default="Upload with radit_jax", help="of the commit")
    p.add_argument("--dry-run", action="store_true", help="show what would be sent, and send nothing")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    return parse_and_run(parser(), arguments)


def push_command(options: argparse.Namespace) -> None:
    """Send the models that the options name, or show them.

    Raises ValueError where there is no export in Hugging Face's form, or the hub does not take it.
    """
    export = find_export(options)
    # 1) What would be sent; a dry run ends after that.
    uploads = planned_uploads(export, options.name, options.models)
    visibility = "public" if options.public else "private"
    for upload in uploads:
        print(f"{upload.repository} ({visibility}): {upload.size / 1e6:,.2f} MB from {upload.folder}")
        show_files(upload)
        warn_of_name(upload)
        if options.dry_run:
            print(f"\n{printable_lines(upload.card)}")
    if options.dry_run:
        print("dry run: nothing was sent")
        return
    # 2) Send it.
    for url in send(uploads, is_private=not options.public, message=options.message):
        print(url)


def planned_uploads(export: TopLevelFolder, name: str, models: str = "") -> list[Upload]:
    """What goes to which repository: `models`, comma-separated, or all that the export has.

    Raises ValueError for a name that the hub would not take, and for models that are not there. What a run
    wrote is verified; files that a person put next to it, such as a licence, are sent too.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"push: expected ORG/NAME, got {name!r}. Write an account of the hub, and a name.")
    if export.holds("hf/query_encoder"):
        raise ValueError(
            f"push: expected both encoders in hf/retriever, got the layout of an earlier version in "
            f"{export.home}. Delete it, and run {run_stage('export')}."
        )
    # 1) The models that are there, and those that are asked for.
    there = {suffix: folder for folder, suffix in MODELS.items() if export.holds(folder)}
    asked = models.split(",") if models else list(there)
    missing = [suffix for suffix in asked if suffix not in there]
    if missing or not there:
        what = missing[0] if missing else "a model in hf/"
        raise ValueError(
            f"push: expected an export with {what}, got {', '.join(there) or 'none'} in {export.home}. "
            "Export with export.hf=true, or name others with --models."
        )
    # 2) Their files, and their cards as the hub will show them.
    uploads = []
    for suffix in asked:
        # All of the folder, also what the manifest does not list.
        folder = export.verified_path(there[suffix])
        repository = f"{name}-{suffix}"
        files = {str(file.relative_to(folder)): file for file in files_under(folder) if _is_sent(file)}
        # The card is rewritten, so it is no file to be sent as it is.
        card = files.pop(CARD, None)
        text = card.read_text() if card else ""
        uploads.append(
            Upload(folder, repository, files, card_for_repository(text, there[suffix], repository))
        )
    return uploads


def _is_sent(file: epath.Path) -> bool:
    # Neither a system's hidden files, nor the sidecars that a kill may leave.
    return not file.name.startswith(".") and not file.name.endswith(SIDECAR_SUFFIX)


def warn_of_name(upload: Upload) -> None:
    """Say where a model made of Llama 3 or 4 has a name that its licence does not allow."""
    is_of_llama = re.search(r"^license: llama[34]", upload.card, re.MULTILINE) is not None
    name = upload.repository.rpartition("/")[2]
    if is_of_llama and not name.startswith("Llama"):
        print(
            f"warning: {upload.repository}: its licence asks for a name that begins with “Llama”. Push it as "
            f"Llama-{name.removesuffix('-lm')}.",
            file=sys.stderr,
        )


def show_files(upload: Upload) -> None:
    """Print each file with its size."""
    sizes = {name: file.stat().length for name, file in upload.files.items()}
    # Its size as it will be sent.
    sizes[CARD] = len(upload.card.encode())
    for name, size in sorted(sizes.items()):
        print(f"  {size / 1e3:>12,.1f} kB  {printable(name)}")


def printable_lines(text: str) -> str:
    """`text` line by line without control characters; people may edit a card."""
    return "\n".join(map(printable, text.splitlines()))


def send(uploads: Sequence[Upload], *, is_private: bool, message: str) -> Iterator[str]:
    """Upload each model in one commit; the address of each, once it is there."""
    from huggingface_hub import HfApi

    # Ask who we are first: a wrong token is said before gigabytes are sent.
    api = HfApi()
    with _naming_the_hub("log in"):
        api.whoami()
    for upload in uploads:
        with _naming_the_hub(f"write {upload.repository}"), tempfile.TemporaryDirectory() as scratch:
            # `upload_folder` takes a folder as it is, so one is made of names for the same files.
            staged = epath.Path(scratch)
            _stage(upload, staged)
            api.create_repo(upload.repository, private=is_private, exist_ok=True)
            commit: Any = api.upload_folder(
                repo_id=upload.repository,
                folder_path=str(staged),
                commit_message=message,
            )
        yield str(commit.repo_url)


def _stage(upload: Upload, staged: epath.Path) -> None:
    """Lay out what is sent: the model's files, and the card of its repository."""
    for name, file in upload.files.items():
        link_or_copy(file, staged / name)
    (staged / CARD).write_text(upload.card)


@contextlib.contextmanager
def _naming_the_hub(what: str) -> Iterator[None]:
    """Turn an error of the hub or the network into one that says what to do."""
    from huggingface_hub import errors as hub_errors

    # Its HTTPError is that of the client which its version uses, and it does not list it.
    errors: Any = hub_errors
    # huggingface_hub looks for the token itself, wherever a person has put it.
    try:
        yield
    except errors.LocalTokenNotFoundError:
        raise ValueError(
            "push: expected a token of the hub that may write, got none. "
            "Run `hf auth login`, or set HF_TOKEN."
        ) from None
    # An answer that refuses, and then no answer at all: the first kind is one of the second.
    except errors.HfHubHTTPError as error:
        reason = _first_line(error)
        raise ValueError(
            f"push: expected the hub to let this account {what}, got {reason}. Log in with an account that "
            "may, or name another ORG."
        ) from None
    except (errors.HTTPError, OSError) as error:
        reason = _first_line(error)
        raise ValueError(
            f"push: expected an answer of the hub, got {reason}. Connect, and run the same command again."
        ) from None


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__


if __name__ == "__main__":
    exit_command(main)
