"""What the scripts would run, frozen; and the supervisor and a pod, with commands that only pretend."""

import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import jsonschema
import pytest
import yaml

LAUNCH = pathlib.Path(__file__).parents[2] / "launch"
GOLDEN = pathlib.Path(__file__).parent / "golden"
TPU = "--name=radit --zone=us-west4-a"
TRAINING = "--stage=all --experiment=experiments/radit_7b.py --set 'data.corpus=a file'"

# The name of a golden file, and the command whose --dry-run it holds.
COMMANDS = {
    "tpu_create": f"tpu.sh create {TPU} --type=v5p-128 --project=lab --bucket=gs://bucket",
    "tpu_create_queued": f"tpu.sh create {TPU} --type=v5litepod-16 --spot=yes --queued=yes --network=own",
    "tpu_create_slices": f"tpu.sh create {TPU} --type=v5litepod-16 --slices=2",
    "tpu_create_disk": f"tpu.sh create {TPU} --type=v5litepod-8 --data-disk=projects/p/zones/z/disks/d",
    "tpu_setup": f"tpu.sh setup {TPU}",
    "tpu_setup_data": f"tpu.sh setup {TPU} --data=gs://bucket/data --data-disk=projects/p/zones/z/disks/d",
    "tpu_resume_slices": f"tpu.sh resume {TPU} --type=v5p-16 --slices=2 --workdir=gs://b/7b -- --stage=all",
    "tpu_run": f"tpu.sh run {TPU} --workdir=gs://bucket/7b -- {TRAINING}",
    "tpu_run_scratch": f"tpu.sh run {TPU} --workdir=gs://bucket/7b --scratch=/dev/shm/radit -- {TRAINING}",
    "tpu_tail": f"tpu.sh tail {TPU}",
    "tpu_resume": f"tpu.sh resume {TPU} --type=v6e-8 --queued=yes --workdir=gs://bucket/7b -- {TRAINING}",
    "tpu_delete": f"tpu.sh delete {TPU}",
    "tpu_delete_queued": f"tpu.sh delete {TPU} --queued=yes",
    "slurm_submit": f"slurm.sh submit --workdir=/lab/7b --nodes=4 --partition=gpu --account=a -- {TRAINING}",
    "slurm_submit_each_gpu": "slurm.sh submit --workdir=/lab/7b --gpus=4 --each-gpu=yes -- --stage=all",
    "slurm_submit_container": "slurm.sh submit --workdir=/lab/7b --container=radit.sif --runtime=apptainer "
    "--grace=600 -- --stage=all",
    "slurm_tail": "slurm.sh tail --job=7",
    "slurm_cancel": "slurm.sh cancel --job=7",
    "gke_create": "gke.sh create --cluster=c --zone=z --machine=m --topology=4x4 --hosts=4 --spot=yes",
    "gke_create_slices": "gke.sh create --cluster=c --zone=z --machine=m --topology=4x4 --hosts=4 --slices=2",
    "gke_create_gpu": "gke.sh create --kind=gpu --cluster=c --zone=z-a --location=z --machine=a3-highgpu-8g "
    "--accelerator=nvidia-h100-80gb --chips=8 --hosts=2 --disk=500",
    "gke_build_gpu": "gke.sh build --kind=gpu --image=host/project/radit",
    "gke_submit_gpu": "gke.sh submit --kind=gpu --image=host/project/radit --accelerator=nvidia-h100-80gb "
    "--hosts=2 --chips=8 --workdir=gs://bucket/7b -- --stage=all",
    "gke_build": "gke.sh build --image=host/project/radit",
    "gke_submit": "gke.sh submit --image=host/project/radit --accelerator=tpu-v5-lite-podslice "
    f"--topology=4x4 --hosts=4 --workdir=gs://bucket/7b -- {TRAINING}",
    "gke_tail": "gke.sh tail",
    "gke_delete": "gke.sh delete",
    "supervise": "supervise.sh --workdir=gs://bucket/7b -- launch/tpu.sh resume --name=radit",
}


def run(command: str | list[str], **options) -> subprocess.CompletedProcess[str]:
    script, *words = shlex.split(command) if isinstance(command, str) else command
    return subprocess.run(["bash", LAUNCH / script, *words], capture_output=True, text=True, **options)


def dry(command: str) -> str:
    before, dashes, training = command.partition(" -- ")
    shown = run(f"{before} --dry-run{dashes}{training}")
    assert shown.returncode == 0, shown.stderr
    return shown.stdout.replace(str(LAUNCH.parent), "CHECKOUT")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_dry_run_shows_what_would_run(name: str) -> None:
    assert dry(COMMANDS[name]) == (GOLDEN / f"{name}.txt").read_text()


@pytest.mark.parametrize("name", ["gke_submit", "gke_submit_gpu"])
def test_a_rendered_jobset_has_fields_and_values_that_jobsets_have(name: str) -> None:
    schema = json.loads((LAUNCH.parent / "tests" / "launch" / "jobset_schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    rendered = dry(COMMANDS[name]).partition("--filename=-\n")[2]
    jobset = yaml.safe_load(rendered)
    jsonschema.validate(jobset, schema)
    # Pods have the name that the failure policy speaks of.
    (job,) = jobset["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    rules = [rule for rule in spec["podFailurePolicy"]["rules"] if "onExitCodes" in rule]
    codes = {rule["action"]: rule["onExitCodes"]["values"] for rule in rules}
    assert codes == {"Ignore": [75], "FailJob": [2]}  # stopped; a wrong command line
    assert {rule["onExitCodes"]["containerName"] for rule in rules} == {container["name"]}


def test_no_golden_file_is_left_over() -> None:
    assert {file.stem for file in GOLDEN.iterdir()} == set(COMMANDS)


def test_the_scripts_have_no_fault_that_shellcheck_knows() -> None:
    beside_python = f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    shellcheck = shutil.which("shellcheck", path=beside_python)
    if shellcheck is None:
        pytest.skip("no shellcheck; pip install -e '.[test]' brings one")
    scripts = [*LAUNCH.glob("*.sh"), LAUNCH.parent / ".ci" / "run"]
    found = subprocess.run([shellcheck, "-x", *scripts], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("tpu.sh create --name=radit", "--zone is needed"),
        (f"tpu.sh start {TPU}", "no command start; there are create, setup"),
        (f"tpu.sh run {TPU} --workdirs=gs://b", "no option --workdirs; there are name zone"),
        (f"tpu.sh run {TPU} --spot", "expected --NAME=VALUE, --spot=yes for example, got --spot"),
        (f"tpu.sh run {TPU} --workdir=runs/7b", "--workdir: expected gs://BUCKET/FOLDER, since hosts share"),
        (f"tpu.sh create {TPU} --type=v5p-128 --data-disk=d", "--data-disk: expected a slice of one host"),
        ("slurm.sh submit --nodes=2", "--workdir is needed"),
        ("gke.sh create --kind=cpu", "--kind: expected tpu or gpu, got cpu"),
        ("supervise.sh --workdir=w", "expected a command behind --, got none"),
        (
            f"tpu.sh run {TPU} '--workdir=gs://b\nc'",
            "expected options without line ends and control characters",
        ),
        ("gke.sh submit -- '--set=a\tb'", "expected options without line ends and control characters"),
    ],
)
def test_a_wrong_option_is_named_before_anything_runs(command: str, message: str) -> None:
    refused = run(command)
    assert refused.returncode == 2
    assert message in refused.stderr


# ---- a pod that is this machine ----


def test_a_run_on_a_pod_ends_as_its_training_does(tmp_path: pathlib.Path) -> None:
    """gcloud's ssh is a shell in a folder that stands for a host; the training prints what it was given."""
    host = tmp_path / "host" / "radit_jax"
    (host / ".venv" / "bin").mkdir(parents=True)
    remember = f"echo $RADIT_JOIN_TOKEN > {tmp_path / 'token'}"
    program(host / ".venv" / "bin" / "python", f'{remember}; printf "<%s>" "$@"; exit 3')
    program(
        tmp_path / "gcloud",
        f'for word in "$@"; do case $word in --command=*) cd {host.parent}; '
        'exec bash -c "${word#--command=}" ;; esac; done; exit 1',
    )
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    ended = run(f"""tpu.sh run {TPU} --workdir=gs://b/w -- --set "x=it's $HOME" """, env=environment)
    assert ended.returncode == 3, ended.stderr
    given = "<-m><radit_jax.train><--workdir=gs://b/w><--set><x=it's $HOME>"
    assert ended.stdout.endswith(given)
    token = (tmp_path / "token").read_text().strip()
    assert re.fullmatch(r"[0-9a-f]{32}", token) and token not in ended.stdout


def resume(folder: pathlib.Path, *said: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """How `resume` ended where gcloud says these states in turn, and what else gcloud was asked to do."""
    states = folder / "states"
    states.write_text("\n".join(said) + "\n")
    program(
        folder / "gcloud",
        f'case " $* " in *" describe "*) ;; *) echo "$*" >> {folder / "asked"}; exit 0 ;; esac\n'
        f"now=$(head -n 1 {states})\n"
        f"sed -i 1d {states}\n"
        "case $now in\n"
        '  gone) echo "ERROR: NOT_FOUND: no such resource" >&2 ;;\n'
        '  broken) echo "python3: command not found" >&2 ;;\n'
        '  lost) echo "no route to host" >&2 ;;\n'
        '  *) echo "$now"; exit 0 ;;\n'
        "esac\n"
        "exit 1",
    )
    for name in ("git", "sleep"):
        program(folder / name, "exit 0")
    options = f"{TPU} --queued=yes --type=v5litepod-16 --workdir=gs://b/w -- --stage=all"
    ended = run(f"tpu.sh resume {options}", env=os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"})
    asked = (folder / "asked").read_text().splitlines() if (folder / "asked").exists() else []
    return ended, [line.split()[3] for line in asked if line.startswith("compute tpus ")]


def test_a_request_that_waits_in_the_queue_keeps_its_place_over_a_failure_of_the_network(
    tmp_path: pathlib.Path,
) -> None:
    ended, asked = resume(tmp_path, "ACCEPTED", "WAITING_FOR_RESOURCES", "lost", "PROVISIONING", "ACTIVE")
    assert ended.returncode == 0, ended.stderr
    assert "radit is WAITING_FOR_RESOURCES" in ended.stdout
    assert asked == ["scp", "ssh", "ssh", "ssh"]


def test_what_gcloud_does_not_find_is_created_and_what_it_cannot_say_is_an_error(
    tmp_path: pathlib.Path,
) -> None:
    ended, asked = resume(tmp_path, "gone", "ACTIVE")
    assert ended.returncode == 0, ended.stderr
    assert asked == ["create", "scp", "ssh", "ssh", "ssh"]
    (tmp_path / "asked").unlink()
    ended, asked = resume(tmp_path, *["lost"] * 5)
    assert (ended.returncode, asked) == (2, [])
    assert "no route to host" in ended.stderr and "run the same command again" in ended.stderr


def test_a_program_that_gcloud_does_not_find_is_no_machine_that_it_does_not_find(
    tmp_path: pathlib.Path,
) -> None:
    ended, asked = resume(tmp_path, *["broken"] * 5)
    assert (ended.returncode, asked) == (2, [])
    assert "command not found" in ended.stderr


def test_machines_preempted_while_they_are_made_are_made_anew_by_the_next_resume(
    tmp_path: pathlib.Path,
) -> None:
    ended, asked = resume(tmp_path, "CREATING", "CREATING", "PREEMPTED")
    assert (ended.returncode, asked) == (75, [])
    assert "radit is PREEMPTED" in ended.stderr
    ended, asked = resume(tmp_path, "PREEMPTED", "ACTIVE")
    assert ended.returncode == 0, ended.stderr
    assert asked == ["delete", "create", "scp", "ssh", "ssh", "ssh"]


def test_machines_that_are_not_to_be_had_are_no_failure(tmp_path: pathlib.Path) -> None:
    program(tmp_path / "gcloud", 'echo "ERROR: There is no more capacity in the zone" >&2; exit 1')
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    ended = run(f"tpu.sh create {TPU} --type=v5litepod-16", env=environment)
    assert ended.returncode == 75 and "no more capacity" in ended.stderr
    program(tmp_path / "gcloud", 'echo "ERROR: permission denied" >&2; exit 1')
    assert run(f"tpu.sh create {TPU} --type=v5litepod-16", env=environment).returncode == 1


def program(path: pathlib.Path, script: str) -> None:
    path.write_text(f"#!/usr/bin/env bash\n{script}\n")
    path.chmod(0o755)


# ---- a job of SLURM that is this machine ----


def job(folder: pathlib.Path, training: str) -> tuple[subprocess.Popen[str], pathlib.Path]:
    """A job whose `srun` runs the training here; the file has what scontrol was asked."""
    asked = folder / "asked"
    checkout = folder / "checkout"
    (checkout / ".venv" / "bin").mkdir(parents=True)
    (checkout / "launch").symlink_to(LAUNCH)
    program(checkout / ".venv" / "bin" / "python", training)
    # Options come first, then the command. A signal goes to all processes of a task.
    program(
        folder / "srun",
        f'echo "$@" >> {asked}\n'
        "while [[ $1 == --* ]]; do shift; done\n"
        '"$@" &\n'
        "task=$!\n"
        "trap 'kill -TERM $task $(pgrep -P $task)' TERM\n"
        "code=0\n"
        "while kill -0 $task 2>/dev/null; do code=0; wait $task || code=$?; done\n"
        "exit $code",
    )
    program(folder / "scontrol", f'echo "scontrol $*" >> {asked}')
    program(folder / "sleep", "exit 0")
    environment = os.environ | {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "SLURM_CPUS_ON_NODE": "16",
        "SLURM_JOB_ID": "7",
    }
    words = ["bash", "launch/slurm_job.sh", f"--workdir={folder}", "--tasks=2", "--", "--stage=all"]
    return subprocess.Popen(words, cwd=checkout, env=environment, text=True, stderr=subprocess.PIPE), asked


def test_a_jobs_tasks_have_their_share_of_the_node(tmp_path: pathlib.Path) -> None:
    ran, asked = job(tmp_path, "exit 0")
    assert ran.wait(20) == 0
    assert asked.read_text().startswith(
        "--kill-on-bad-exit=1 --cpus-per-task=8 --cpu-bind=none --mem=0 --export=ALL bash -c"
    )
    assert "-m radit_jax.train" in asked.read_text() and "scontrol" not in asked.read_text()
    ran.communicate()


def test_a_job_whose_time_ends_saves_and_goes_into_the_queue_again(tmp_path: pathlib.Path) -> None:
    up = tmp_path / "up"
    # The training is the shell's child, and gets the signal as srun's tasks do. It ends by itself, too.
    waiting = f"trap 'exit 75' TERM; touch {up}; for _ in {{1..400}}; do {shutil.which('sleep')} 0.05; done"
    program(tmp_path / "wait_for_term", waiting)
    ran, asked = job(tmp_path, f"exec {tmp_path / 'wait_for_term'}")
    deadline = time.monotonic() + 20
    while not up.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    ran.send_signal(signal.SIGTERM)
    assert ran.wait(20) == 75
    assert asked.read_text().splitlines()[-1] == "scontrol requeue 7"
    ran.communicate()


# ---- the supervisor ----


def supervise(
    folder: pathlib.Path, script: str, *options: str
) -> tuple[subprocess.CompletedProcess[str], int]:
    """How it ended when `script` was supervised, and how often that ran."""
    counted = f"echo >> {folder / 'runs'}; n=$(wc -l < {folder / 'runs'}); {script}"
    workdir = folder / "workdir"
    (workdir / "lm_ft").mkdir(parents=True, exist_ok=True)
    words = ["supervise.sh", f"--workdir={workdir}", "--wait=0", "--longest-wait=0", *options]
    ended = run([*words, "--", "bash", "-c", counted], cwd=workdir)
    return ended, len((folder / "runs").read_text().splitlines())


def test_what_succeeds_runs_once(tmp_path: pathlib.Path) -> None:
    ended, runs = supervise(tmp_path, "exit 0")
    assert (ended.returncode, runs, ended.stderr) == (0, 1, "")


def test_what_is_preempted_runs_again(tmp_path: pathlib.Path) -> None:
    ended, runs = supervise(tmp_path, "[ $n = 3 ] || exit 143")
    assert (ended.returncode, runs) == (0, 3)
    assert "exit code 143; again in 0 s (failure 2 of 5 without progress)" in ended.stderr


def test_failures_without_progress_end_with_the_commands_exit_code(tmp_path: pathlib.Path) -> None:
    ended, runs = supervise(tmp_path, "touch lm_ft/metrics.jsonl; exit 7", "--failures=3")
    assert (ended.returncode, runs) == (7, 3)
    assert "supervise: exit code 7, and no progress in 3 runs; giving up" in ended.stderr


def test_progress_starts_the_count_anew(tmp_path: pathlib.Path) -> None:
    committed = "[ $n -gt 4 ] || touch lm_ft/shard-$n.sha256; exit 1"
    ended, runs = supervise(tmp_path, committed, "--failures=3")
    # Runs 1 to 4 commit something; 4 is the first failure since, 5 and 6 the second and third.
    assert (ended.returncode, runs) == (1, 6)


def test_a_stop_is_no_failure_however_often_it_comes(tmp_path: pathlib.Path) -> None:
    ended, runs = supervise(tmp_path, "[ $n = 8 ] || exit 75", "--failures=2")
    assert (ended.returncode, runs) == (0, 8)
    assert "exit code 75; again in 0 s (failure 0 of 2 without progress)" in ended.stderr


def test_progress_in_a_bucket_is_seen_without_the_clouds_own_program(tmp_path: pathlib.Path) -> None:
    """Python lists the bucket: here a stand-in, which says what each run has committed."""
    (tmp_path / "runs").touch()
    checkout = tmp_path / "checkout"
    (checkout / ".venv" / "bin").mkdir(parents=True)
    shutil.copytree(LAUNCH, checkout / "launch")
    listing = f"n=$(wc -l < {tmp_path / 'runs'}); seq -f 'lm_ft/%g.sha256' $((n < 4 ? n : 4))"
    program(checkout / ".venv" / "bin" / "python", listing)
    words = ["--workdir=gs://bucket/run", "--wait=0", "--longest-wait=0", "--failures=3"]
    command = ["bash", checkout / "launch" / "supervise.sh", *words, "--"]
    counted = f"echo >> {tmp_path / 'runs'}; exit 1"
    # All that the supervisor takes, and no gcloud.
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("bash", "dirname", "env", "grep", "seq", "sleep", "sort", "wc"):
        (programs / name).symlink_to(str(shutil.which(name)))
    environment = os.environ | {"PATH": str(programs)}
    ended = subprocess.run([*command, "bash", "-c", counted], env=environment, capture_output=True, text=True)
    # As on a disk: runs 1 to 4 commit something.
    assert (ended.returncode, len((tmp_path / "runs").read_text())) == (1, 6)


def test_the_pause_doubles_up_to_the_longest(tmp_path: pathlib.Path) -> None:
    program(tmp_path / "sleep", f"echo $1 >> {tmp_path / 'pauses'}")
    words = ["supervise.sh", f"--workdir={tmp_path}", "--longest-wait=30", "--failures=5", "--", "false"]
    assert run(words, env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}).returncode == 1
    assert (tmp_path / "pauses").read_text().split() == ["10", "20", "30", "30"]


def test_a_signal_goes_to_the_command_and_nothing_is_started_again(tmp_path: pathlib.Path) -> None:
    script = (
        f"trap 'echo saved > {tmp_path}/saved; exit 0' TERM; touch {tmp_path}/up; sleep 30 & wait; sleep 30"
    )
    words = ["bash", str(LAUNCH / "supervise.sh"), f"--workdir={tmp_path}", "--", "bash", "-c", script]
    with subprocess.Popen(words, stderr=subprocess.DEVNULL) as supervisor:
        while not (tmp_path / "up").exists():
            time.sleep(0.02)
        supervisor.send_signal(signal.SIGTERM)
        assert supervisor.wait(10) == 0
    assert (tmp_path / "saved").exists()
