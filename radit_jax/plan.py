"""Plan a run before renting anything: `python -m radit_jax.plan --experiment=… --target=v5e-256`.

Prints a line per stage: its parameters; what a chip holds between steps and at its peak; the arithmetic, the
traffic between chips and their memory, and the least time that either takes; a host's memory and the
workdir's disk. The programs are those that the stages run (`planning/`), at the experiment's batch size and
length. For a TPU they are compiled, ahead of time and without a TPU, and the compiler gives the peak. For
GPUs, and with `--estimate`, the peak is an estimate, marked by ~. Exits with 1 where something does not fit.
"""

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import replace

import jax

from radit_jax import config
from radit_jax.errors import exit_command, run_command
from radit_jax.planning.deployment import Counts, Deployment
from radit_jax.planning.embed import plan_embed
from radit_jax.planning.evaluate import plan_evaluate
from radit_jax.planning.lm_ft import plan_lm_ft
from radit_jax.planning.r_ft import plan_r_ft
from radit_jax.planning.resources import Number, ResourceEstimate, check_fits
from radit_jax.planning.retrieve import plan_retrieve
from radit_jax.planning.score import plan_score
from radit_jax.planning.storage import plan_base, plan_corpus, plan_export, plan_index
from radit_jax.runtime.distributed.accelerators import GIB, find_target

# The stages in the order in which a run makes them.
STAGES: dict[str, Callable[[Deployment], ResourceEstimate]] = {
    "corpus": plan_corpus,
    "base": plan_base,
    "embed": plan_embed,
    "index": plan_index,
    "retrieve": plan_retrieve,
    "lm_ft": plan_lm_ft,
    "score": plan_score,
    "r_ft": plan_r_ft,
    "evaluate": plan_evaluate,
    "export": plan_export,
}
STAGE_WIDTH = 9
WIDTHS = {  # of the other columns
    "parameters": 10,
    "held/chip": 10,
    "peak/chip": 10,
    "FLOPs": 9,
    "traffic": 9,
    "at least": 9,
    "host RAM": 11,
    "disk": 11,
}


def parser() -> argparse.ArgumentParser:
    """The command line of `plan`."""
    p = argparse.ArgumentParser("python -m radit_jax.plan", description=(__doc__ or "").partition("\n")[0])
    p.add_argument("--experiment", required=True, metavar="FILE", help="a Python file, as for train")
    p.add_argument("--target", required=True, metavar="KIND-NUMBER", help="v5e-256, v5p-128, h100-8, …")
    p.add_argument("--stage", choices=STAGES, help="only this one")
    p.add_argument("--estimate", action="store_true", help="do not compile, which takes minutes a stage")
    # What an experiment does not say.
    p.add_argument("--workdir", default="", metavar="FOLDER", help="in gs:// or s3:// no disk has to hold it")
    p.add_argument("--chunks", type=int, metavar="N", help="of the corpus; default: what the experiment says")
    p.add_argument("--questions", type=int, default=1000, metavar="N", help="to answer (default: 1000)")
    p.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE", dest="assignments")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = parser().parse_args(arguments)
    return run_command(lambda: print_table(options))


def print_table(options: argparse.Namespace) -> int:
    """Print the table; returns 1 where a stage does not fit, and else 0."""
    # Nothing runs here, and libtpu need not ask the network for a TPU.
    jax.config.update("jax_platforms", "cpu")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")

    experiment = config.load_experiment(options.experiment)
    experiment = config.override_settings(experiment, options.assignments)
    config.check_experiment(experiment)

    # Sizes that the experiment does not say.
    if options.questions < 1 or (options.chunks is not None and options.chunks < 1):
        raise ValueError(
            f"plan: expected --chunks and --questions >= 1, got {options.chunks} and {options.questions}."
        )
    target = find_target(options.target)
    if options.estimate:
        target = replace(target, topology="")
    counts = Counts.of(experiment, options.chunks, options.questions)
    deployment = Deployment(experiment, target, counts)

    # Each line is printed as soon as it is known: a stage can take minutes to compile.
    print(f"{experiment.name} on {target.name}: {target.num_chips} chips on {target.num_hosts} hosts")
    print(_columns("stage", list(WIDTHS)), flush=True)
    workdir_is_on_disk = "://" not in options.workdir
    all_fit = True
    for stage in [options.stage] if options.stage else STAGES:
        need = STAGES[stage](deployment)
        need = check_fits(need, target, on_disk=workdir_is_on_disk)
        all_fit &= not need.faults
        print(line(need), flush=True)
    return 0 if all_fit else 1


def line(need: ResourceEstimate) -> str:
    """A row of the table: sizes in GiB, FLOPs and traffic of the whole stage, and whether it fits."""
    # A dash is for what a stage does not use, ~ for a peak that no compiler gave.
    mark = "~" if need.estimated else ""
    cells = [
        f"{need.params / 1e6:,.1f} M" if need.params else "-",
        _size(need.held),
        _size(need.peak, mark),
        f"{need.flops:.1e}" if need.flops else "-",
        f"{need.traffic:.1e}" if need.traffic else "-",
        _duration(need.seconds) if need.seconds else "-",
        _size(need.host),
        _size(need.disk),
    ]
    verdict = f"does not fit: {'; '.join(need.faults)}" if need.faults else "fits"
    return f"{_columns(need.stage, cells)} {verdict}"


def _columns(stage: str, cells: Sequence[str]) -> str:
    """The stage's name, and the cells in columns."""
    # The name begins its column, and all else ends in its own.
    columns = [f"{stage:{STAGE_WIDTH}}"]
    for cell, width in zip(cells, WIDTHS.values(), strict=True):
        columns.append(f"{cell:>{width}}")
    return " ".join(columns)


def _size(value: Number, mark: str = "") -> str:
    """Bytes in GiB after `mark`."""
    return f"{mark}{value / GIB:.2f} GiB" if value else "-"


def _duration(seconds: Number) -> str:
    """Hours, or minutes where it is less than one."""
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} h"
    minutes = max(0.1, seconds / 60)
    return f"{minutes:.1f} min"


if __name__ == "__main__":
    exit_command(main)
