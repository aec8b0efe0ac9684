"""The table of `radit plan`: a row per stage, printed as soon as it is known, and the same as JSON."""

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from radit_jax.config import Experiment
from radit_jax.planning.deployment import Counts, Deployment
from radit_jax.planning.embed import plan_embed
from radit_jax.planning.evaluate import plan_evaluate
from radit_jax.planning.lm_ft import plan_lm_ft
from radit_jax.planning.r_ft import plan_r_ft
from radit_jax.planning.resources import Number, ResourceEstimate, check_fits
from radit_jax.planning.retrieve import plan_retrieve
from radit_jax.planning.score import plan_score
from radit_jax.planning.storage import plan_base, plan_corpus, plan_export, plan_index
from radit_jax.runtime.distributed.accelerators import GIB, Target

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
    "held/chip": 10,
    "peak/chip": 10,
    "FLOPs": 9,
    "traffic": 9,
    "at least": 9,
    "host RAM": 11,
    "disk": 11,
}


def estimates(
    experiment: Experiment, target: Target, counts: Counts, stages: Sequence[str], *, on_disk: bool
) -> Iterator[ResourceEstimate]:
    """What each of `stages` asks of `target`, with what it has too little of. A stage can take minutes."""
    # Nothing runs here, and libtpu need not ask the network for a TPU.
    jax.config.update("jax_platforms", "cpu")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    # Each stage is compiled only when its row is asked for.
    deployment = Deployment(experiment, target, counts)
    for stage in stages:
        need = PLANNERS[stage](deployment)
        yield check_fits(need, target, on_disk=on_disk)


def heading(experiment: Experiment, target: Target, counts: Counts, origin: str) -> str:
    """The lines above the table's rows; `origin` says where the counts are from."""
    title = f"{experiment.name} on {target.name}: {target.num_chips} chips on {target.num_hosts} hosts"
    planned_for = (
        f"{counts.chunks:,} chunks of {counts.chunk_words} words, {counts.examples:,} examples for R-ft, "
        f"{counts.questions:,} questions to answer ({origin})"
    )
    return f"{title}\n{planned_for}\n{_columns('stage', list(WIDTHS))}"


def row_for_programs(need: ResourceEstimate) -> dict[str, Any]:
    """A row for programs: bytes, operations and seconds as numbers."""
    return dataclasses.asdict(need) | {"fits": not need.faults}


def line(need: ResourceEstimate) -> str:
    """A row of the table: sizes in GiB, FLOPs and traffic of the whole stage, and whether it fits.

    Where a step sends something between slices, a second line says how much.
    """
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
    row = f"{_columns(need.stage, cells)} {verdict}"
    if not need.dcn:
        return row
    indent = " " * STAGE_WIDTH
    return f"{row}\n{indent} each step brings {_size(need.dcn)} into every slice over the slower network"


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
