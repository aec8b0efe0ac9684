"""Cost against size: what 2, 4 and 8 times as much costs, in CPU-seconds, path by path.

A linear path has slope 1 in the plot; a smaller slope is better. The work of each size is done once before it
is measured, so that nothing is compiled while the clock runs.
"""

import datetime
import pathlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks import compare, inputs

TIMES = (1, 2, 4, 8)
PLOT = compare.ROOT / "docs" / "cost.svg"
Cost = Callable[[], object]  # to be measured


class Path(NamedTuple):
    """A path of the system whose cost is measured."""

    name: str
    grows: str  # what grows, and from which size
    work: Callable[[pathlib.Path, int], Cost]  # the work at so many times that size


def run(cache: pathlib.Path, rounds: int) -> dict[str, Any]:
    """CPU-seconds of every path at every size: medians of the rounds."""
    folder = cache.absolute() / "size"
    folder.mkdir(parents=True, exist_ok=True)
    costs: dict[str, list[float]] = {}
    for path in PATHS:
        costs[path.name] = [_cpu_seconds(path.work(folder, times), rounds) for times in TIMES]
        print(f"size {path.name}: {', '.join(f'{cost:.2f}' for cost in costs[path.name])} CPU-s", flush=True)
    return {
        "benchmark": "size",
        "date": datetime.date.today().isoformat(),
        "commit": compare.commit(),
        "machine": compare.machine(),
        "cpu_seconds": costs,
    }


def section(record: Mapping[str, Any]) -> str:
    """The costs with their slopes; the plot is drawn again."""
    _plot(record)
    machine = record["machine"]
    rows = [
        f"| {path.name} | {path.grows} | {' | '.join(f'{cost:.3g}' for cost in costs)} | {slope(costs):.2f} |"
        for path in PATHS
        if (costs := record["cpu_seconds"].get(path.name))
    ]
    return "\n".join(
        (
            f"## Cost against size, {record['date']}",
            "",
            f"`python -m benchmarks size` at commit {record['commit']}; {machine['cores']} cores of "
            f"{machine['cpu']}. CPU-seconds; the slope is that of the logarithms, 1 is linear.",
            "",
            "| path | what grows | 1 × | 2 × | 4 × | 8 × | slope |",
            "|---|---|--:|--:|--:|--:|--:|",
            *rows,
            "",
            f"![CPU-seconds against size]({PLOT.name})",
        )
    )


def slope(costs: Sequence[float]) -> float:
    """By how much the logarithm of the cost rises with that of the size.

    >>> round(slope([3.0, 6.0, 12.0, 24.0]), 6), round(slope([1.0, 4.0, 16.0, 64.0]), 6)
    (1.0, 2.0)
    """
    return float(np.polyfit(np.log(TIMES[: len(costs)]), np.log(costs), 1)[0])


def _embedding(folder: pathlib.Path, times: int) -> Cost:
    encoder, passages = inputs.encoder(), inputs.texts().passages[: 64 * times]
    return lambda: encoder.embed(passages)


def _building(folder: pathlib.Path, times: int) -> Cost:
    from radit_jax.retrieval.index import build_index

    vectors, queries = clustered_vectors(4000 * times), clustered_vectors(200, seed=1)
    return lambda: build_index(vectors, queries, kind="scann")


def _searching(folder: pathlib.Path, times: int) -> Cost:
    from radit_jax.retrieval.index import build_index

    index = build_index(clustered_vectors(4000 * times), clustered_vectors(200, seed=1), kind="scann")
    queries = clustered_vectors(2000, seed=2)
    return lambda: index.search(queries, 10)


def _searching_exactly(folder: pathlib.Path, times: int) -> Cost:
    from radit_jax.retrieval.index import ExactIndex

    index, queries = ExactIndex(clustered_vectors(4000 * times)), clustered_vectors(1000, seed=2)
    return lambda: index.search(queries, 10)


def _scoring(folder: pathlib.Path, times: int) -> Cost:
    """So many questions on each of a few chunks."""
    from radit_jax.config import MeshConfig, ScoreConfig
    from radit_jax.data.batches.packing import PrefixTree, Span, concatenate_spans, span
    from radit_jax.lm.scoring import PairScorer
    from radit_jax.runtime.distributed.mesh import make_mesh

    settings = ScoreConfig(batch_size=2, sequence_length=512)
    scorer = PairScorer(inputs.language_model(folder / "lm"), make_mesh(MeshConfig()), settings)
    draw = np.random.default_rng(0)

    def question() -> Span:
        return concatenate_spans(span(draw.integers(3, 8000, 20)), span(draw.integers(3, 8000, 6), 1.0))

    trees = [
        PrefixTree(span(draw.integers(3, 8000, 160)), tuple(question() for _ in range(times)))
        for _ in range(8)
    ]
    return lambda: scorer.score_trees(trees)


def _training(folder: pathlib.Path, times: int) -> Cost:
    """The same tokens in rows that are so many times as long."""
    import jax
    import optax

    from radit_jax.config import MeshConfig
    from radit_jax.data.batches.packing import PrefixTree, Span, concatenate_spans, span
    from radit_jax.lm.training import PackedTrees
    from radit_jax.method.steps import init_state, make_lm_step
    from radit_jax.runtime.distributed.mesh import init_sharded, make_mesh, put_batch

    model, mesh = inputs.language_model(folder / "lm"), make_mesh(MeshConfig())
    length, draw = 256 * times, np.random.default_rng(0)

    def whole() -> Span:
        context, answer = draw.integers(3, 8000, length - 16), draw.integers(3, 8000, 16)
        return concatenate_spans(span(context), span(answer, 1.0))

    trees = [PrefixTree(span([]), (whole(),)) for _ in range(8 // times)]
    packed = PackedTrees(trees, row_length=length, batch_size=8 // times, seed=0)
    tx = optax.adamw(0.0)
    state, shardings = init_sharded(lambda params: init_state(params, tx), mesh, model.params)
    step: Any = make_lm_step(model.module, tx, state_shardings=shardings)

    def cost() -> object:
        nonlocal state
        state, _ = step(state, put_batch(packed.in_order(0), mesh))
        return jax.block_until_ready(state)

    return cost


def _answering(folder: pathlib.Path, times: int) -> Cost:
    """So many questions, each under ten prompts of its own."""
    from radit_jax.lm.answering import stops_of
    from radit_jax.lm.ensemble import DecodeOptions, answer_questions

    model, draw = inputs.language_model(folder / "lm"), np.random.default_rng(0)
    prompts = [[draw.integers(3, 8000, 60) for _ in range(10)] for _ in range(times)]
    weights = np.full((times, 10), -np.log(10), np.float32)
    options = DecodeOptions(max_new_tokens=8, stops=stops_of(model.tokenizer))
    return lambda: answer_questions(model.module, model.params, prompts, weights, options)


PATHS = (
    Path("embedding", "passages, from 64", _embedding),
    Path("building the index", "vectors of 384, from 4,000", _building),
    Path("search, ScaNN", "vectors, from 4,000, for 2,000 queries", _searching),
    Path("search, exact", "vectors, from 4,000, for 1,000 queries", _searching_exactly),
    Path("LSR scoring", "questions on each of 8 chunks, from 1", _scoring),
    Path("LM-ft", "length of rows, from 256, of the same 2,048 tokens", _training),
    Path("Eq. 2", "questions with ten chunks each, from 1", _answering),
)


def clustered_vectors(count: int, seed: int = 0) -> np.ndarray:
    """Unit vectors in a thousand clusters, which are the same for every seed."""
    centers = np.random.default_rng(100).normal(size=(1000, 384))
    draw = np.random.default_rng(seed)
    found = centers[draw.integers(0, 1000, count)] + draw.normal(size=(count, 384))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def _cpu_seconds(cost: Cost, rounds: int) -> float:
    """The median over the rounds, after one turn that compiles."""
    cost()
    seconds = []
    for _ in range(rounds):
        start = time.process_time()
        cost()
        seconds.append(time.process_time() - start)
    return statistics.median(seconds)


def _plot(record: Mapping[str, Any]) -> None:
    import matplotlib  # pyright: ignore[reportMissingImports]

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "cost"  # equal records give equal files
    import matplotlib.pyplot as plt  # pyright: ignore[reportMissingImports]

    figure, axes = plt.subplots(figsize=(6.4, 4.4))
    for path in PATHS:
        if costs := record["cpu_seconds"].get(path.name):
            axes.plot(TIMES, np.array(costs) / costs[0], marker="o", label=path.name)
    axes.plot(TIMES, TIMES, color="gray", linestyle=":", label="linear")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(TIMES, [f"{times} ×" for times in TIMES])
    axes.set_yticks(TIMES, [f"{times} ×" for times in TIMES])
    axes.set_xlabel("size")
    axes.set_ylabel("CPU-seconds against those of the smallest")
    axes.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(PLOT, metadata={"Date": None})
    plt.close(figure)
