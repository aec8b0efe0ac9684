"""Plan a run before renting anything: `python -m radit_jax.plan NAME --target=v5e-256`.

Prints a line per stage: its parameters; what a chip holds between steps and at its peak; the arithmetic, the
traffic between chips and their memory, and the least time that either takes; a host's memory and the
workdir's disk. The programs are those that the stages run (`planning/`), at the experiment's batch size and
length. For a TPU they are compiled, ahead of time and without a TPU, and the compiler gives the peak. For
GPUs, and with `--estimate`, the peak is an estimate, marked by ~. Exits with 1 where something does not fit.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from radit_jax import config
from radit_jax.command_line import add_experiment_name, add_experiment_option, add_set_option, module_parser
from radit_jax.errors import ExitCode, exit_command, parse_and_run
from radit_jax.pipeline.graph import KINDS
from radit_jax.runtime.distributed.accelerators import find_target

USUAL_QUESTIONS = 1000  # to answer, where nothing says how many


def parser() -> argparse.ArgumentParser:
    """The command line of `plan`."""
    p = module_parser("plan", __doc__, print_plan_table)
    add_experiment_option(p)
    add_experiment_name(p)
    p.add_argument("--target", required=True, metavar="KIND-NUMBER", help="v5e-256, v5p-128, h100-8, …")
    p.add_argument("--slices", type=int, default=1, metavar="N", help="such slices of a TPU (default: 1)")
    p.add_argument("--stage", choices=KINDS, help="only this one")
    p.add_argument("--estimate", action="store_true", help="do not compile, which takes minutes a stage")
    p.add_argument("--json", action="store_true", help="bytes, operations and seconds for programs")
    # What an experiment does not say.
    p.add_argument("--workdir", default="", metavar="FOLDER", help="in gs:// or s3:// no disk has to hold it")
    p.add_argument(
        "--chunks", type=int, metavar="N", help="default: counted in a small folder, else as the settings say"
    )
    p.add_argument(
        "--questions", type=int, metavar="N", help="to answer (default: counted in a small folder, else 1000)"
    )
    add_set_option(p)
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    return parse_and_run(parser(), arguments)


def print_plan_table(options: argparse.Namespace) -> int:
    """Print the table; the exit code says whether every stage fits."""
    # 1) What is to be planned, and for which machines.
    experiment = config.load_experiment(options.experiment)
    experiment = config.override_settings(experiment, options.set)
    config.check_experiment(experiment)
    # Sizes that the experiment does not say.
    for name in ("chunks", "questions"):
        number = getattr(options, name)
        if number is not None and number < 1:
            raise ValueError(f"plan: expected --{name} >= 1, got {number}.")
    target = find_target(options.target, options.slices)
    if options.estimate:
        target = replace(target, topology="")

    # 2) jax, which `--help` and wrong options do without.
    from radit_jax.planning import table
    from radit_jax.planning.own_data import with_shapes

    experiment = with_shapes(experiment)
    counts, origin = _counts(experiment, options)
    stages = [options.stage] if options.stage else KINDS
    on_disk = "://" not in options.workdir
    # 3) Each line is printed as soon as it is known.
    if not options.json:
        print(table.heading(experiment, target, counts, origin), flush=True)
    needs = []
    for need in table.estimates(experiment, target, counts, stages, on_disk=on_disk):
        needs.append(need)
        if not options.json:
            print(table.line(need), flush=True)
    if options.json:
        rows = [table.row_for_programs(need) for need in needs]
        print(json.dumps({"experiment": experiment.name, "target": target.name, "stages": rows}, indent=1))
    # 4) The answer to "does it fit?".
    return ExitCode.ERROR if any(need.faults for need in needs) else ExitCode.DONE


def _counts(experiment: config.Experiment, options: argparse.Namespace) -> tuple[Any, str]:
    """The counts to plan for, and where they are from: the command line, a small folder, the settings."""
    from radit_jax.planning.deployment import Counts
    from radit_jax.planning.own_data import folder_size

    # Who names the number of chunks plans for other data than those that are here.
    counted = None if options.chunks else folder_size(experiment)
    questions = options.questions or (counted.test_questions if counted else USUAL_QUESTIONS)
    counts = Counts.of(experiment, options.chunks, questions, counted)
    origin = "counted in its folder" if counted else "by the settings"
    if options.chunks or options.questions:
        origin += " and the command line"
    return counts, origin


if __name__ == "__main__":
    exit_command(main)
