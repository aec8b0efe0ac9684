"""The table of `radit plan`: a row per stage, printed as soon as it is known, and the same as JSON."""

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from radit_jax.planning.deployment import Deployment
from radit_jax.planning.embed import plan_embed
from radit_jax.planning.evaluate import plan_evaluate
from radit_jax.planning.files import Reads, with_files
from radit_jax.planning.lm_ft import plan_lm_ft
from radit_jax.planning.r_ft import plan_r_ft
from radit_jax.planning.resources import Number, ResourceEstimate, check_fits
from radit_jax.planning.retrieve import plan_retrieve
from radit_jax.planning.score import plan_score
from radit_jax.planning.share import host_share
from radit_jax.planning.storage import plan_base, plan_corpus, plan_export, plan_index
from radit_jax.planning.totals import Totals
from radit_jax.runtime.distributed.accelerators import GIB

# The stages in the order in which a run makes them.
PLANNERS: dict[str, Callable[[Deployment], ResourceEstimate]] = {
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
    "peak/chip": 10,
    "FLOPs": 8,
    "at least": 9,
    "about": 9,
    "set by": 11,
    "host RAM": 11,
    "reads": 11,
    "writes": 11,
}


def estimates(
    deployment: Deployment, stages: Sequence[str], reads: Reads, *, in_bucket: bool
) -> Iterator[ResourceEstimate]:
    """What each of `stages` asks of the target, with what it has too little of. A stage can take minutes.

    `reads` says whose files each kind of stage is given.
    """
    # Nothing runs here, and libtpu need not ask the network for a TPU.
    jax.config.update("jax_platforms", "cpu")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    # Each stage is compiled only when its row is asked for.
    for stage in stages:
        need = PLANNERS[stage](deployment)
        need = with_files(need, deployment, reads, in_bucket=in_bucket)
        yield check_fits(need, deployment.target)


def heading(deployment: Deployment, origin: str) -> str:
    """The lines above the table's rows; `origin` says where the counts are from."""
    experiment, target, counts = deployment.experiment, deployment.target, deployment.counts
    chips, hosts = _count(target.num_chips, "chip"), _count(target.num_hosts, "host")
    title = f"{experiment.name} on {target.name}: {chips} on {hosts}"
    planned_for = (
        f"{counts.chunks:,} chunks of {counts.chunk_words} words, {counts.examples:,} examples for R-ft, "
        f"{counts.questions:,} questions to answer ({origin})"
    )
    return f"{title}\n{planned_for}\n{_columns('stage', list(WIDTHS))}"


def for_programs(deployment: Deployment, needs: Sequence[ResourceEstimate], totals: Totals) -> dict[str, Any]:
    """The table for programs: bytes, operations and seconds as numbers, with what they rest on."""
    rows = [dataclasses.asdict(need) | {"fits": not need.faults} for need in needs]
    price = totals.price._asdict() if totals.price else None
    sums = dataclasses.asdict(totals) | {"disk": totals.disk._asdict(), "price": price}
    return {
        "experiment": deployment.experiment.name,
        "target": deployment.target.name,
        "assumptions": dataclasses.asdict(deployment.assumptions),
        "stages": rows,
        "totals": sums | {"fits": not totals.fault},
        "share": host_share(deployment)._asdict(),
    }


def line(need: ResourceEstimate) -> str:
    """A row of the table: FLOPs and times of the whole stage, sizes in GiB, and whether it fits.

    Where a step sends something between slices, a second line says how much.
    """
    # A dash is for what a stage does not use, ~ for a peak that no compiler gave.
    mark = "~" if need.estimated else ""
    cells = [
        f"{need.params / 1e6:,.1f} M" if need.params else "-",
        _size(need.peak, mark),
        f"{need.flops:.1e}" if need.flops else "-",
        _duration(need.seconds) if need.seconds else "-",
        _duration(need.realistic) if need.realistic else "-",
        need.limit or "-",
        _size(need.host),
        _size(need.read),
        _size(need.written),
    ]
    verdict = f"does not fit: {'; '.join(need.faults)}" if need.faults else "fits"
    row = f"{_columns(need.stage, cells)} {verdict}"
    if not need.dcn:
        return row
    indent = " " * STAGE_WIDTH
    return f"{row}\n{indent} each step brings {_size(need.dcn)} into every slice over the slower network"


def summary(totals: Totals, *, in_bucket: bool) -> str:
    """The lines below the rows: time and cost, and files of the first host."""
    time = f"at least {_duration(totals.seconds)}, about {_duration(totals.realistic)}"
    spent = f"{totals.chip_hours:,.1f} chip-hours"
    if totals.price is None:
        cost = "no price is known (--prices=FILE)"
    else:
        price = totals.price
        cost = f"{totals.cost:,.0f} {price.currency} at {price.price:g} ({price.date}, {price.source})"
    # Files: what goes over the disk or the network, and what stays.
    place = "copies of the bucket" if in_bucket else "the workdir"
    kept = f"{place} {_size(totals.disk.workdir)}, downloads {_size(totals.disk.downloads)}"
    verdict = f"does not fit: {totals.fault}" if totals.fault else "fits"
    traffic = f"reads {_size(totals.read)}, writes {_size(totals.written)}"
    return f"all stages: {time}, {spent}, {cost}\na host {traffic}; on its disk {kept}: {verdict}"


def _count(number: int, noun: str) -> str:
    """`1 chip`, `8 chips`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _columns(stage: str, cells: Sequence[str]) -> str:
    """The stage's name, and the cells in columns."""
    # The name begins its column, and all else ends in its own.
    columns = [f"{stage:{STAGE_WIDTH}}"]
    for cell, width in zip(cells, WIDTHS.values(), strict=True):
        columns.append(f"{cell:>{width}}")
    return " ".join(columns)


def _size(value: Number, mark: str = "") -> str:
    """Bytes in GiB after `mark`."""
    return f"{mark}{value / GIB:,.2f} GiB" if value else "-"


def _duration(seconds: Number) -> str:
    """Hours, or minutes where it is less than one."""
    if seconds >= 3600:
        return f"{seconds / 3600:,.1f} h"
    minutes = max(0.1, seconds / 60)
    return f"{minutes:.1f} min"
