"""Every command of README and docs is run as it stands (slow), or the reason is given why it is not."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
# In the order in which a newcomer reads them: later commands use what earlier ones leave.
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/tutorials/*.md")), *sorted(ROOT.glob("docs/**/*.md"))]
BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)

# What a command has in it, and why it is not run here.
NOT_RUN = {
    "pip install": "it installs; tests/test_wheel.py does",
    "pytest": "it is this",
    "radit demo": "the first thing that these tests run",
    "radit serve": "it runs until a signal; tests/serving starts and asks it",
    "gs://": "it needs a bucket; tests/test_buckets.py has one on the loopback",
    "launch/": "it rents machines; tests/launch reads what it would do",
    "radit push ORG/NAME --workdir=runs/tiny\n": "it needs the hub; tests/test_push.py has a fake one",
    "tensorboard": "another program, which runs until it is stopped",
    "WANDB_PROJECT": "it needs the network",
    "MLFLOW_TRACKING_URI": "it needs a server",
    "--tasks piqa": "it fetches a dataset",
    "evaluate.tasks=": "it needs the tasks' official files",
    "wiki_small": "it needs real text, and takes an hour",
    "radit run radit_llama32_1b --set": "it needs a GPU",
    "--target=v5e": "it needs the TPU's compiler; tests/planning has it",
}
MAY_SAY_NO = ("radit run radit_", "radit plan", "python -m radit_jax.plan")  # files are missing, or no room


def commands() -> list[str]:
    """Every command once, each on one line, without its comment."""
    found = []
    for page in PAGES:
        for block in BLOCK.findall(page.read_text()):
            for line in block.replace("\\\n", " ").splitlines():
                command = re.sub(r"\s+# .*|^#.*", "", line).strip()
                found.append(re.sub(r" +", " ", command))
    return list(dict.fromkeys(filter(None, found)))


def reason(command: str) -> str | None:
    """Why a command is not run here."""
    for part, why in NOT_RUN.items():
        if part in command + "\n":
            return why
    return None


def test_no_reason_is_left_of_a_command_that_is_gone() -> None:
    everything = "".join(command + "\n" for command in commands())
    assert not [part for part in NOT_RUN if part not in everything]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A newcomer's folder: the demo's run, a copy of it, documents with questions, and two models."""
    folder = tmp_path_factory.mktemp("newcomer")
    (folder / "bin").mkdir()
    for name, words in {"radit": "-m radit_jax", "python": ""}.items():
        script = folder / "bin" / name
        script.write_text(f'#!/bin/sh\nexec {sys.executable} -W ignore {words} "$@"\n')
        script.chmod(0o755)
    assert run("radit demo", folder) == 0
    shutil.copytree(folder / "runs" / "tiny", folder / "runs" / "tiny-3")

    # The demo's models are somebody's own checkpoints.
    export = folder / "runs" / "tiny" / "export" / "hf"
    shutil.copytree(export / "lm", folder / "my-llama")
    shutil.copytree(export / "retriever" / "query_encoder", folder / "my-encoder")
    write_documents(folder / "mydocs")
    return folder


def write_documents(folder: pathlib.Path) -> None:
    """Eighty passages of one fact each, and a question about each."""
    folder.mkdir()
    passages, questions = [], []
    for number in range(80):
        year = 1800 + number
        text = f"Mill number {number} stands by the river. It was built in {year} and still grinds wheat."
        passages.append({"id": f"m{number}", "title": f"Mill {number}", "text": text})
        question = {"id": f"q{number}", "question": f"When was mill number {number} built?"}
        questions.append(question | {"answers": [str(year)], "positive_passage_ids": [f"m{number}"]})
    for name, records in {"passages.jsonl": passages, "questions.jsonl": questions}.items():
        lines = [json.dumps(record) + "\n" for record in records]
        (folder / name).write_text("".join(lines))


def run(command: str, folder: pathlib.Path) -> int:
    """The exit code of a command as it stands, in a shell; what it said is in `said` in the folder."""
    environment = os.environ | {
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
    }
    # A test writes to no place of the system, and the checkout is elsewhere.
    command = command.replace("/srv/radit", "runs").replace("/var/log/", "")
    command = command.replace("experiments/", f"{ROOT}/experiments/")
    with (folder / "said").open("w") as said:
        ended = subprocess.run(
            ["bash", "-c", command],
            cwd=folder,
            env=environment,
            input="n\n",
            stdout=said,
            stderr=subprocess.STDOUT,
            text=True,
        )
    return ended.returncode


@pytest.mark.slow
@pytest.mark.parametrize("command", commands())
def test_a_command_of_the_docs_runs(command: str, folder: pathlib.Path) -> None:
    why = reason(command)
    if why:
        pytest.skip(why)
    code = run(command, folder)
    may_say_no = command.startswith(MAY_SAY_NO)
    said = (folder / "said").read_text()
    assert code == 0 or (may_say_no and code == 1), said
    assert "Traceback" not in said
