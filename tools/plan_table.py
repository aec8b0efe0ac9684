"""The table of `docs/howto/plan.md`: `python tools/plan_table.py` writes it again.

It plans the paper's three sizes over its two corpora, without compiling, and holds no number of its own.
"""

import pathlib
import sys
from collections.abc import Iterator
from dataclasses import replace

from radit_jax import config
from radit_jax.pipeline.graph import KINDS, stages
from radit_jax.pipeline.stage import reads_by_kind
from radit_jax.planning import table
from radit_jax.planning.deployment import Counts, Deployment
from radit_jax.planning.share import host_share
from radit_jax.planning.totals import total
from radit_jax.runtime.distributed.accelerators import GIB, find_target

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "howto" / "plan.md"
BEGIN, END = "<!-- Written by `python tools/plan_table.py`. -->\n", "<!-- end of the table -->"
MODELS = ("7b", "13b", "65b")
CHUNKS = (37_000_000, 399_000_000)
TARGETS = ("v5e-256", "h100-64")
WORDS = 82  # of a chunk, on average
QUESTIONS = 20_000  # of all tasks to evaluate on
HEAD = (
    "| model | chunks | on | at least | about | chip-hours | longest stage | host reads | its disk | fits |\n"
    "|---|--:|---|--:|--:|--:|---|--:|--:|---|\n"
)
SHARE_HEAD = (
    "| machines, hosts | text | vectors | vectors a chip | embedding | products of the search |\n"
    "|---|--:|--:|--:|--:|--:|\n"
)
SHARE_TARGETS = ("h200-8", "h100-64", "v5e-256")


def row(model: str, chunks: int, name: str) -> str:
    """One plan as a row of the table."""
    experiment = config.load_experiment(f"radit_{model}")
    target = replace(find_target(name), topology="")  # nothing is compiled
    counts = replace(Counts.of(experiment, chunks, QUESTIONS), chunk_words=WORDS)
    deployment = Deployment(experiment, target, counts)
    reads = reads_by_kind(stages(experiment).values())
    # 1) The stages, and all of them together.
    needs = list(table.estimates(deployment, KINDS, reads, in_bucket=True))
    totals = total(needs, deployment, reads, in_bucket=True)
    # 2) What takes the longest, and what does not fit.
    longest = max(needs, key=lambda need: need.realistic)
    lacking = [need.stage for need in needs if need.faults]
    if totals.fault:
        lacking.append("disk")
    cells = (
        model.upper(),
        f"{chunks // 10**6}M",
        name,
        f"{totals.seconds / 3600:,.0f} h",
        f"{totals.realistic / 3600:,.0f} h",
        f"{totals.chip_hours:,.0f}",
        f"{longest.stage} {longest.realistic / 3600:,.0f} h ({longest.limit})",
        f"{totals.read / GIB:,.0f} GiB",
        f"{totals.disk.total / GIB:,.0f} GiB",
        f"not {', '.join(lacking)}" if lacking else "yes",
    )
    return f"| {' | '.join(cells)} |\n"


def share_row(name: str) -> str:
    """A host's share of the larger corpus."""
    experiment = config.load_experiment("radit_7b")
    target = replace(find_target(name), topology="")
    counts = replace(Counts.of(experiment, CHUNKS[-1], QUESTIONS), chunk_words=WORDS)
    share = host_share(Deployment(experiment, target, counts))
    cells = (
        f"{name}, {target.num_hosts}",
        f"{share.text / GIB:,.1f} GiB",
        f"{share.embeddings / GIB:,.1f} GiB",
        f"{share.resident / GIB:,.1f} GiB",
        f"{share.embedding_seconds / 60:,.1f} min",
        f"{share.search_seconds / 60:,.1f} min",
    )
    return f"| {' | '.join(cells)} |\n"


def rows() -> Iterator[str]:
    """All plans, the sizes of a model and a corpus next to each other."""
    for model in MODELS:
        for chunks in CHUNKS:
            for name in TARGETS:
                yield row(model, chunks, name)


def main() -> None:
    """Put the table into the page."""
    # 1) The rows, which take a minute.
    shares = "".join(map(share_row, SHARE_TARGETS))
    plans = "".join(rows())
    # 2) The page around them.
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}{SHARE_HEAD}{shares}\n{HEAD}{plans}{END}{after}")


if __name__ == "__main__":
    sys.exit(main())
