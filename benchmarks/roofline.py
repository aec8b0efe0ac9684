"""How near each path comes to what the cores can do: the rate of its matrix products against a large one's.

Only products that have to be made count (`radit_jax/models/flops.py`): no padding, and one pass over a chunk
that many questions share. The rates come from the other benchmarks' records.
"""

import datetime
import json
import pathlib
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import compare, inputs
from radit_jax.models.flops import encoder_flops, training_flops

SIZE = 2048  # of the square matrices whose product is the measure
RESULTS = pathlib.Path(__file__).parent / "results"
OURS_EMBEDDING = "radit_jax float32"


def run(cache: pathlib.Path, rounds: int) -> dict[str, Any]:
    """Operations a second of a large product, and of every path that has a record."""
    # The product is compiled before the clock runs.
    matrix = jax.random.normal(jax.random.key(0), (SIZE, SIZE))
    product = jax.jit(jnp.dot)
    product(matrix, matrix).block_until_ready()
    seconds = []
    for _ in range(max(3, rounds)):
        start = time.perf_counter()
        product(matrix, matrix).block_until_ready()
        seconds.append(time.perf_counter() - start)

    paths = {}
    for name, flops_per_unit in PATHS.items():
        path = RESULTS / f"{name}.json"
        if path.exists():
            record = json.loads(path.read_text())
            ours = next(worker for worker in record["workers"] if worker in (compare.OURS, OURS_EMBEDDING))
            flops = flops_per_unit(record["facts"], cache.absolute() / name)
            paths[name] = flops * compare.rates(record, ours).median
    return {
        "benchmark": "roofline",
        "date": datetime.date.today().isoformat(),
        "commit": compare.commit(),
        "machine": compare.machine(),
        "peak": 2 * SIZE**3 / statistics.median(seconds),
        "paths": paths,
    }


def section(record: Mapping[str, Any]) -> str:
    """A row for each path."""
    peak = record["peak"]
    rows = [f"| {name} | {rate / 1e9:.0f} | {rate / peak:.0%} |" for name, rate in record["paths"].items()]
    return "\n".join(
        (
            f"## Operations against the peak, {record['date']}",
            "",
            f"`python -m benchmarks roofline` at commit {record['commit']}, on {record['machine']['cores']} "
            f"cores of {record['machine']['cpu']}. A float32 product of {SIZE} × {SIZE} matrices makes "
            f"{peak / 1e9:.0f} GFLOP/s. What has to be computed, without padding:",
            "",
            "| path | GFLOP/s | of the peak |",
            "|---|--:|--:|",
            *rows,
        )
    )


def _scoring(facts: Mapping[str, Any], folder: pathlib.Path) -> float:
    """Operations for a pair: a third of a training step's, for nothing is differentiated."""
    pair, targets = facts["tokens a pair"], facts["answer tokens a pair"]
    tokens = pair / facts["tokens of all pairs to tokens that differ"]
    config = inputs.language_model(folder / "lm").module.config
    return training_flops(config, tokens=tokens, attended=tokens * pair / 2, targets=targets) / 3


def _lm_ft(facts: Mapping[str, Any], folder: pathlib.Path) -> float:
    """Operations for an answer token."""
    tokens, targets = facts["tokens an instance"], facts["answer tokens an instance"]
    config = inputs.language_model(folder / "lm").module.config
    return training_flops(config, tokens=tokens, attended=tokens * tokens / 2, targets=targets) / targets


def _embedding(facts: Mapping[str, Any], folder: pathlib.Path) -> float:
    """Operations for a passage."""
    config = inputs.encoder().model.module.config
    return encoder_flops(config, rows=1, length=round(facts["tokens a passage"]))


PATHS: dict[str, Callable[[Mapping[str, Any], pathlib.Path], float]] = {
    "scoring": _scoring,
    "lm_ft": _lm_ft,
    "embedding": _embedding,
}
