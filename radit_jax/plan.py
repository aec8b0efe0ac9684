"""Plan a run before renting anything: `python -m radit_jax.plan NAME --target=v5e-256`.

Prints a line per stage: its parameters; what a chip holds at its peak; the arithmetic, and the least time
that it takes, or the traffic between chips and their memory; a realistic time, by stated assumptions, and
what sets it; a host's memory, and the files that the first host reads and writes. Below are the sums: time,
chip-hours and their cost, and what a host's disk has to hold. `--json` gives all as numbers.

The programs are those that the stages run (`planning/`), at the experiment's batch size and length. For a TPU
they are compiled, ahead of time and without a TPU, and the compiler gives the peak. For GPUs, and with
`--estimate`, the peak is an estimate, marked by ~. Exits with 1 where something does not fit.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from radit_jax import config
from radit_jax.command_line import add_experiment_name, add_experiment_option, add_set_option, module_parser
from radit_jax.errors import ExitCode, exit_command, parse_and_run
from radit_jax.pipeline.graph import KINDS, stages
from radit_jax.pipeline.stage import reads_by_kind
from radit_jax.planning.assumptions import assume
from radit_jax.planning.prices import Price, read_prices
from radit_jax.runtime.distributed.accelerators import GB, find_target

USUAL_QUESTIONS = 1000  # to answer, where nothing says how many


def parser() -> argparse.ArgumentParser:
    """The command line of `plan`."""
    p = module_parser("plan", __doc__, print_plan_table)
    add_experiment_option(p)
    add_experiment_name(p)
    p.add_argument("--target", required=True, metavar="KIND-NUMBER", help="v5e-256, v5p-128, h100-8, …")
    p.add_argument("--hosts", type=int, default=0, metavar="N", help="all chips of N hosts of --target=KIND")
    p.add_argument("--slices", type=int, default=1, metavar="N", help="such slices of a TPU (default: 1)")
    p.add_argument("--stage", choices=KINDS, help="only this one")
    p.add_argument("--estimate", action="store_true", help="do not compile, which takes minutes a stage")
    p.add_argument("--json", action="store_true", help="bytes, operations and seconds for programs")
    # What an experiment does not say.
    p.add_argument("--workdir", default="", metavar="FOLDER", help="in gs:// or s3:// a host has copies")
    p.add_argument("--disk", type=float, metavar="GB", help="a host's (default: what comes with such hosts)")
    p.add_argument("--prices", type=Path, metavar="FILE", help="of chips (default: planning/prices.toml)")
    p.add_argument(
        "--assume",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="change what the realistic time rests on (planning/assumptions.py), as mfu=0.3",
    )
    p.add_argument("--words", type=int, metavar="N", help="of a chunk, on average (default: as --chunks)")
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
    for name in ("chunks", "words", "questions", "disk"):
        number = getattr(options, name)
        if number is not None and number < 1:
            raise ValueError(f"plan: expected --{name} >= 1, got {number}.")
    target = find_target(options.target, options.slices, options.hosts)
    if options.estimate:
        target = replace(target, topology="")
    assumptions = assume(options.assume)
    prices = read_prices(options.prices) if options.prices else read_prices()

    # 2) jax, which `--help` and wrong options do without.
    from radit_jax.planning.deployment import Deployment
    from radit_jax.planning.own_data import with_shapes

    experiment = with_shapes(experiment)
    counts, origin = _counts(experiment, options)
    counts = replace(counts, tokens_per_word=assumptions.tokens_per_word)
    deployment = Deployment(experiment, target, counts, assumptions)
    fits = _print_plan(deployment, origin, options, prices.get(target.kind))
    # 3) The answer to "does it fit?".
    return ExitCode.DONE if fits else ExitCode.ERROR


def _print_plan(deployment: Any, origin: str, options: argparse.Namespace, price: Price | None) -> bool:
    """Print the rows and the sums, or all of it as JSON; whether everything fits."""
    from radit_jax.planning import table
    from radit_jax.planning.totals import total

    kinds = [options.stage] if options.stage else KINDS
    reads = reads_by_kind(stages(deployment.experiment).values())
    in_bucket = "://" in options.workdir
    # 1) Each line is printed as soon as it is known.
    if not options.json:
        print(table.heading(deployment, origin), flush=True)
    needs = []
    for need in table.estimates(deployment, kinds, reads, in_bucket=in_bucket):
        needs.append(need)
        if not options.json:
            print(table.line(need), flush=True)
    # 2) All of them together.
    disk = None if options.disk is None else options.disk * GB
    totals = total(needs, deployment, reads, in_bucket=in_bucket, price=price, disk_bytes=disk)
    if options.json:
        print(json.dumps(table.for_programs(deployment, needs, totals), indent=1))
    else:
        print(table.summary(totals, in_bucket=in_bucket))
    return not totals.fault and not any(need.faults for need in needs)


def _counts(experiment: config.Experiment, options: argparse.Namespace) -> tuple[Any, str]:
    """The counts to plan for, and where they are from: the command line, a small folder, the settings."""
    from radit_jax.planning.deployment import Counts
    from radit_jax.planning.own_data import folder_size

    # Who names the number of chunks plans for other data than those that are here.
    counted = None if options.chunks else folder_size(experiment)
    questions = options.questions or (counted.test_questions if counted else USUAL_QUESTIONS)
    counts = Counts.of(experiment, options.chunks, questions, counted)
    if options.words:
        counts = replace(counts, chunk_words=options.words)
    origin = "counted in its folder" if counted else "by the settings"
    if options.chunks or options.questions or options.words:
        origin += " and the command line"
    return counts, origin


if __name__ == "__main__":
    exit_command(main)
