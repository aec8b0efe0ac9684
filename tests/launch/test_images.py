"""What others start: images, SkyPilot's file, and the workflows. Read here, and run elsewhere."""

import pathlib
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from radit_jax import cli

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yaml"))
# SkyPilot's reference of the file, as far as this one uses it.
SKY_FIELDS = {"name", "num_nodes", "resources", "envs", "secrets", "workdir", "setup", "run"}
SKY_RESOURCES = {"accelerators", "use_spot", "disk_size", "job_recovery"}


def test_the_dockerfile_has_no_fault_that_hadolint_knows() -> None:
    hadolint = shutil.which("hadolint", path=str(pathlib.Path(sys.executable).parent))
    assert hadolint, "pip install -e '.[test]' brings hadolint"
    found = subprocess.run([hadolint, LAUNCH / "Dockerfile"], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def test_an_image_for_each_kind_of_machine_installs_extras_that_exist() -> None:
    text = (LAUNCH / "Dockerfile").read_text()
    assert re.findall(r"^FROM base AS (\w+)$", text, re.MULTILINE) == ["cpu", "cuda", "tpu"]
    project = (ROOT / "pyproject.toml").read_text()
    for extras in re.findall(r"'\.\[([\w,]+)\]'", text):
        for extra in extras.split(","):
            assert re.search(rf"^{extra} = \[", project, re.MULTILINE), extra


def test_what_the_images_copy_is_in_the_checkout() -> None:
    for words in re.findall(r"^COPY (.*) \S+$", (LAUNCH / "Dockerfile").read_text(), re.MULTILINE):
        for path in words.split():
            assert (ROOT / path).exists(), path


def test_skypilots_file_has_fields_that_skypilot_has() -> None:
    task = yaml.safe_load((LAUNCH / "sky.yaml").read_text())
    assert set(task) == SKY_FIELDS
    assert set(task["resources"]) == SKY_RESOURCES
    assert task["resources"]["job_recovery"]["strategy"] in ("EAGER_NEXT_REGION", "FAILOVER")
    # What has to be given on the command line is null.
    assert task["envs"]["WORKDIR"] is None and task["secrets"]["RADIT_JOIN_TOKEN"] is None


def test_skypilots_hosts_start_radit_with_the_arguments_as_they_were_quoted(tmp_path: pathlib.Path) -> None:
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    stand_in = tmp_path / ".venv" / "bin" / "radit"
    stand_in.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$RADIT_JOIN_SECONDS" "$@"\n')
    stand_in.chmod(0o755)
    task = yaml.safe_load((LAUNCH / "sky.yaml").read_text())
    environment = {
        "WORKDIR": "gs://lab/run",
        "ARGUMENTS": "radit_7b --set 'data.corpus=a file'",
        "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
        "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NODE_RANK": "1",
        "PATH": "/usr/bin:/bin",
    }
    ended = subprocess.run(
        ["bash", "-c", task["run"]], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    seconds, command, *words = ended.stdout.splitlines()
    assert (seconds, command) == ("900", "run")
    options = cli.parser("run").parse_args(["run", *words])
    assert (options.experiment, options.set) == ("radit_7b", ["data.corpus=a file"])
    assert (options.coordinator, options.num_processes, options.process_id) == ("10.0.0.1:8476", 2, 1)
    assert options.workdir == "gs://lab/run"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_runs_commands_that_exist_on_runners_with_permissions(path: pathlib.Path) -> None:
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert job["runs-on"] and job["timeout-minutes"] <= 90
    for command in radit_commands(workflow):
        cli.parser(command[0]).parse_args(command)


def radit_commands(workflow: dict[str, Any]) -> Iterator[list[str]]:
    """The arguments of each `radit` that a workflow runs."""
    for job in workflow["jobs"].values():
        for step in job["steps"]:
            for line in step.get("run", "").splitlines():
                words = shlex.split(line, comments=True)
                if words and words[0].endswith("bin/radit"):
                    yield words[1:]


def test_the_wheels_workflow_runs_the_demo() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "wheel.yaml").read_text())
    assert "demo" in [command[0] for command in radit_commands(workflow)]
