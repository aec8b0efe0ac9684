"""Train with RA-DIT: `python -m radit_jax.train --stage=r_ft` runs what r_ft depends on, then r_ft.

python -m radit_jax.train --stage=all                                    # the tiny experiment, minutes
python -m radit_jax.train --stage=all --experiment=wiki_small --set data.folder=PATH
python -m radit_jax.train --stage=all --dry-run                          # what is done, what would run, why
"""

import argparse
import contextlib
import os
from collections.abc import Iterator, Sequence
from textwrap import fill
from typing import Any

from radit_jax import config
from radit_jax.command_line import TINY, CommandParser, add_experiment_option, add_set_option, spelled
from radit_jax.errors import exit_command, parse_and_run
from radit_jax.pipeline import graph
from radit_jax.pipeline.past_times import past_seconds
from radit_jax.pipeline.run_log import recorded
from radit_jax.pipeline.runner import Run
from radit_jax.pipeline.stage import Stage
from radit_jax.pipeline.work_ahead import work_ahead
from radit_jax.report.writing import try_report
from radit_jax.runtime.distributed import processes, topology
from radit_jax.runtime.distributed.devices import prepare_devices
from radit_jax.runtime.monitoring.progress import end_stages
from radit_jax.runtime.monitoring.time_left import TimeLeft
from radit_jax.runtime.monitoring.trackers import check_trackers
from radit_jax.runtime.storage import locks
from radit_jax.runtime.storage.entries import bytes_freed
from radit_jax.runtime.storage.open_files import raise_file_limit
from radit_jax.runtime.storage.workdir import Workdir

SECONDS_WORTH_A_REQUEST = 1.0  # of compilation: programs that took less are not kept in a bucket
PUBLISHED = ("results.json", "predictions*.jsonl", "kilt-*.jsonl")  # files of evaluate, for people


def parser() -> argparse.ArgumentParser:
    """The command line, frozen by tests/test_train.py."""
    p = CommandParser(
        "python -m radit_jax.train",
        description=(__doc__ or "").partition("\n")[0],
        parents=[experiment_options(), host_options()],
    )
    # How much of it.
    p.add_argument(
        "--stage", default="all", metavar="NAME", help=", ".join(graph.KINDS) + " or all (default)"
    )
    # What is done instead of running.
    p.add_argument("--dry-run", action="store_true", help="say what is done and what would run, and stop")
    p.add_argument(
        "--prune", action="store_true", help="delete, after asking, what the settings no longer name"
    )
    p.set_defaults(run=run_stages)
    return p


def experiment_options(default: str | None = str(TINY)) -> argparse.ArgumentParser:
    """What is run, and where its files are: the options of every command that takes an experiment.

    Without a `default`, an experiment that is not named is the one of the workdir's last run.
    """
    p = argparse.ArgumentParser(add_help=False)
    # A variant is a setting or two away from one that is there.
    add_experiment_option(p, default)
    p.add_argument("--workdir", metavar="FOLDER", help="gs:// or s3:// too; default: runs/EXPERIMENT")
    p.add_argument("--scratch", metavar="FOLDER", help="for copies of a bucket; default: ~/.cache/radit_jax")
    add_set_option(p)
    return p


def host_options() -> argparse.ArgumentParser:
    """Who else takes part."""
    p = argparse.ArgumentParser(add_help=False)
    several = p.add_argument_group(
        "several processes, where neither SLURM nor a TPU says it (runtime/distributed/processes.py)"
    )
    several.add_argument("--coordinator", metavar="HOST:PORT", help="a free port on process 0's host")
    several.add_argument("--num-processes", type=int, metavar="N", help="1: this host alone, whatever it is")
    several.add_argument("--process-id", type=int, metavar="I", help="0 to N-1")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    return parse_and_run(parser(), arguments)


def run_stages(options: argparse.Namespace) -> None:
    """Do what the command line asks for, and leave the other processes in an orderly way."""
    raise_file_limit()
    try:
        with processes.handling_signals():
            start(options)
    finally:
        processes.shutdown()


def start(options: argparse.Namespace) -> None:
    """Do what the command line asks for, in this process or together with the other ones."""
    # 1) Refuse wrong settings before anything is written.
    experiment, workdir = open_workdir(options)
    workdir.check_free(experiment.name, getattr(options, "log_file", None) or "")
    check_trackers()
    if options.dry_run:
        workdir.check_writable()
        print_plan(Run(experiment, workdir, plan_only=True), options.stage)
        return

    # 2) Run, with the other processes where there are any. jax starts after this.
    device_settings = prepare_devices()
    join_program(options, workdir)
    with only_first_prints():
        if device_settings:
            print(device_settings)
        run_together(experiment, workdir, options)


def open_workdir(options: argparse.Namespace) -> tuple[config.Experiment, Workdir]:
    """The experiment that the options name, with its settings checked, and its workdir."""
    experiment = config.load_experiment(options.experiment)
    experiment = config.override_settings(experiment, options.set)
    check_folders(options)
    config.check_experiment(experiment)
    return experiment, Workdir(options.workdir or f"runs/{experiment.name}", options.scratch)


def check_folders(options: argparse.Namespace) -> None:
    """Refuse a --workdir or --scratch that names no folder; a wrong address is refused when it is opened."""
    folders = {"--workdir": options.workdir, "--scratch": options.scratch}
    for option, path in folders.items():
        if path is not None and not path.strip():
            raise ValueError(f"{option}: expected a folder, got {path!r}. Name one, or leave the option out.")
    if "://" in (options.scratch or ""):
        raise ValueError(f"--scratch: expected a folder of this machine, got {options.scratch!r}. Name one.")


def run_together(experiment: config.Experiment, workdir: Workdir, options: argparse.Namespace) -> None:
    """Make the stages, or prune the workdir, while process 0 holds the workdir's lock."""
    run = Run(experiment, workdir)
    run.needed(options.stage)  # an unknown stage is an error before anything is written
    with contextlib.ExitStack() as held:
        processes.on_process_zero("the lock", lambda: held.enter_context(workdir.lock()))
        workdir.claim(experiment.name)
        if options.prune:
            processes.on_process_zero("prune", lambda: prune(run))
        else:
            execute(run, options.stage)
            if options.stage == "all":
                processes.on_process_zero("the report", lambda: try_report(workdir.path, options.scratch))


def join_program(options: argparse.Namespace, workdir: Workdir) -> None:
    """Join the other processes of the program, if there are any, before work that takes long."""
    place = topology.find_topology(options.coordinator, options.num_processes, options.process_id)
    if place:
        check_scratch(options.workdir, options.scratch)
        shared_folder = None if workdir.in_bucket else str(workdir.path)
        processes.join_processes(place, shared_folder)


@contextlib.contextmanager
def only_first_prints() -> Iterator[None]:
    """Of several processes, let only process 0 print progress; any process prints its errors."""
    if processes.is_process_zero():
        yield
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def check_scratch(workdir: str | None, scratch: str | None) -> None:
    """Refuse several hosts that would each save a part of a model where the others do not see it."""
    if (workdir or "").startswith("s3://") and not scratch:
        raise ValueError(
            f"--workdir={workdir}: expected --scratch with several hosts on s3://, got none. "
            "Name a folder on a shared filesystem, in which they save a model together, or use gs://."
        )


def execute(run: Run, kind: str) -> None:
    """Run what `kind` needs and lacks, then publish and show the results."""
    # 1) Find what is missing. Process 0 decides, so that all processes make the same stages.
    names = processes.on_process_zero("the plan", lambda: [stage.name for stage in run.missing(kind)])
    missing = [run.stages[name] for name in names]

    # 2) Drop the checkpoints of finished stages. Another role may have the same folder.
    unfinished = {run.folders[name].home for name in names}
    for stage in run.needed(kind):
        if run.folders[stage.name].home not in unfinished:
            run.drop_checkpoints(stage)

    # 3) Check the files that stages will read, then make the stages.
    if missing:
        processes.on_process_zero("the checkpoints", run.check_checkpoints)
        processes.on_process_zero("the weights", lambda: run.check_weights(missing))
        processes.on_process_zero("the tasks", lambda: run.check_tasks(missing))
        processes.on_process_zero("the scores", lambda: run.check_scores(missing))
        ahead = work_ahead(run.experiment, missing)
        if ahead:
            print(ahead)
        prepare_jax(run.workdir)
        make_stages(run, missing)
    end_stages()

    # 4) Show what there is to see.
    if kind == "score":
        show_signal(run)
    if not missing:
        print(f"{kind}: everything is current in {run.workdir.path}")
    if kind in ("evaluate", "all"):
        processes.on_process_zero("the results", lambda: publish_results(run))


def make_stages(run: Run, stages: Sequence[Stage]) -> None:
    """Make `stages` in their order, and say how long the whole run takes where earlier runs tell it."""
    from radit_jax.runtime.monitoring.compilation import announcing_compilation  # jax

    names = [stage.name for stage in stages]
    with recorded(run.experiment, run.workdir.path, names) as runs, announcing_compilation():
        time_left = TimeLeft(past_seconds(runs))
        for number, stage in enumerate(stages, 1):
            run.check_corpus()
            seconds = run.make(stage, f"{number}/{len(stages)}", time_left)
            run.evict(stages[number:])
            # The next run with the same work is told its time from these.
            if seconds:
                runs[-1]["seconds"][stage.name] = seconds


def prepare_jax(workdir: Workdir) -> None:
    """Let jax keep compiled programs between runs, in the workdir.

    On a disk it keeps all, also those that compile in a moment, because a stage has a hundred of these:
    a stage that resumes compiles nothing again. In a bucket it keeps those that cost more than a request, and
    a machine that takes the place of another one finds them.
    """
    import jax

    if workdir.in_bucket:
        default_cache, least_seconds = os.fspath(workdir.path / "compiled"), SECONDS_WORTH_A_REQUEST
    else:
        default_cache, least_seconds = os.path.abspath(workdir.path / "compiled"), 0.0
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", default_cache)
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", least_seconds)
    jax.devices()  # a wrong JAX_PLATFORMS is an error here, and not in the middle of a stage


def publish_results(run: Run) -> None:
    """Put the current run's results at the workdir's top and under their name, and print what they say."""
    from radit_jax.text.results_table import results_table
    from radit_jax.text.verdict import learnt_nothing, signal_in_words, verdict, what_may_help

    folder = run.folders["evaluate"]
    # At the top are the last results, in results/ those of all questions that were ever asked.
    name = f"results/{run.experiment.evaluate.results_name}"
    run.workdir.publish(folder, PUBLISHED, name)
    run.workdir.publish(folder, PUBLISHED)

    # In words first, then in figures.
    best_steps, dev_mrr, signal = _training_facts(run)
    results = folder.read_json("results.json")
    predictions = folder.read_jsonl("predictions.jsonl") if folder.has("predictions.jsonl") else ()
    print(f"\n{fill(verdict(results, predictions, best_steps, dev_mrr), 80)}\n")
    print(results_table(results))
    if signal:
        print(f"\n{fill(signal_in_words(signal), 80)}")

    # What can be done next.
    print(f"\nresults: {run.workdir.path / 'results.json'}, and in {name}/")
    if learnt_nothing(best_steps):
        advice = "; ".join(what_may_help(best_steps, dev_mrr, run.experiment.r_ft))
        print(fill(f"next: {advice}", 80, subsequent_indent="      "))
    elif results["systems"] if "systems" in results else results["average"]:
        command = spelled(f'ask "QUESTION" --workdir={run.workdir.path}')
        print(f"next: {command}")


def _training_facts(run: Run) -> tuple[dict[str, int], float | None, dict[str, Any] | None]:
    """The step that each training kept, R-ft's MRR there, and the diagnostics of R-ft's last labels."""
    best_steps: dict[str, int] = {}
    dev_mrr = None
    signals = []
    for name in ("lm_ft", "r_ft"):
        folder = run.folders[name]
        facts = folder.manifest if folder.complete else {}
        if "best_step" in facts:
            best_steps[name] = facts["best_step"]
        dev_mrr = facts.get("dev_mrr@10")
        signals += facts.get("signal", [])
    return best_steps, dev_mrr, signals[-1] if signals else None


def show_signal(run: Run) -> None:
    """Print the diagnostics of the scores under the present settings of R-ft."""
    from radit_jax.data.artifacts.corpus import Corpus
    from radit_jax.data.artifacts.lsr_scores import Scores
    from radit_jax.data.artifacts.retrieved import Retrieved
    from radit_jax.lm.lsr_diagnostics import report

    retrieved = Retrieved.load(run.folders["retrieve/r_ft"], "train")
    scores = Scores.load(run.folders["score"])
    corpus, e = Corpus(run.folders["corpus"]), run.experiment
    report(corpus, retrieved, scores, e.r_ft, e.retrieve.temperature)


def print_plan(run: Run, kind: str) -> None:
    """Print each stage that `kind` depends on, as done or as what would run and why, then missing files."""
    # Of stages that share a folder only the first is missing.
    missing = {stage.name for stage in run.missing(kind)}
    for stage in run.needed(kind):
        folder = run.folders[stage.name]
        if stage.name in missing:
            print(f"would run  {stage.name:22} {run.why(stage)}")
        else:
            print(f"done       {stage.name:22} {folder.home}")
    for problem in run.absent.values():
        print(f"missing    {problem}")
    holder = locks.holder(run.workdir.path)
    if holder:
        print(f"in use by  {holder}")

    # Raise the errors that a run would begin with.
    run.check_checkpoints()
    would_run = [run.stages[name] for name in sorted(missing)]
    run.check_weights(would_run)
    run.check_tasks(would_run)
    run.check_scores(would_run)
    for line in run.look_at_data(would_run):
        print(line)
    if run.folders["corpus"].complete:
        run.check_corpus()

    # A run would end with the first file that is missing; a hub that does not answer may do so later.
    files = sorted(run.absent.keys() - run.unreached)
    if files:
        raise ValueError(
            f"--dry-run: expected all that a run reads, got no {' and no '.join(files)}. Put there what is "
            "missing, or name another."
        )


def prune(run: Run) -> None:
    """Delete the outputs that the current settings do not name, after asking for each."""
    current = list(run.folders.values())
    # A person decides on each, and may stop in between.
    for folder in run.workdir.superseded(current):
        (freed,) = bytes_freed([folder.home])
        print(f"{folder.home}: {freed / 1e6:,.1f} MB")
        try:
            with processes.stopping_at_once("the question"):
                answer = input("delete it? [y/N] ")
        except EOFError:
            raise ValueError(
                f"--prune: expected an answer on {folder.home}, got the end of the input. Use a terminal."
            ) from None
        if answer.strip().lower() == "y":
            folder.clear()


if __name__ == "__main__":
    exit_command(main)
