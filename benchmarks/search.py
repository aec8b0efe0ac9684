"""Search: the ten best of all sentences of the corpus for many questions at once, at recall@10 ≥ 0.95.

Every index is tuned on some of the test questions at set-up, drawn at random, to the cheapest setting that
reaches the recall there. The work is the others, and the recall that is told is theirs.
"""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks.compare import Benchmark, Contestant, Target
from benchmarks.contestant import Once, Work

K = 10
RECALL = 0.95
TUNING = 1000  # questions at most
IVF_LISTS = 1024
PROBES = (4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512, 1024)  # lists that IVF looks into
HNSW_LINKS, HNSW_BUILD = 32, 80
BREADTHS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024)  # candidates that HNSW keeps


def prepare(folder: pathlib.Path) -> Mapping[str, Any]:
    """Embeddings of sentences and questions, and the exact answers."""
    from benchmarks import inputs
    from radit_jax.retrieval.index import ExactIndex

    texts = inputs.texts()
    found = inputs.sentences(texts.passages)
    vectors = inputs.embeddings(folder.parent, "sentences", found)
    test = inputs.embeddings(folder.parent, "test", [q.question for q in texts.test])
    np.save(folder / "vectors.npy", vectors)
    drawn = np.random.default_rng(0).permutation(len(test))
    few = min(TUNING, len(test) // 2)
    tuning, queries = test[drawn[:few]], test[drawn[few:]]
    np.save(folder / "queries.npy", queries)
    np.save(folder / "tuning.npy", tuning)
    np.save(folder / "tuning-wanted.npy", ExactIndex(np.asarray(vectors)).search(tuning, K)[0])
    return {
        "inputs": texts.source,
        "vectors": len(vectors),
        "width": vectors.shape[1],
        "tuning queries": len(tuning),
        "queries": len(queries),
    }


def ours(folder: pathlib.Path) -> Once:
    """The index of the index stage: ScaNN proposes, float32 scores decide."""
    from radit_jax.retrieval.index import build_index

    index = build_index(
        np.load(folder / "vectors.npy"), np.load(folder / "tuning.npy"), kind="scann", target_recall=RECALL
    )
    return _once(folder, lambda queries: index.search(queries, K)[0])


def ours_exact(folder: pathlib.Path) -> Once:
    """Exact search in numpy's blocks."""
    from radit_jax.retrieval.index import ExactIndex

    index = ExactIndex(np.load(folder / "vectors.npy"))
    return _once(folder, lambda queries: index.search(queries, K)[0])


def faiss_flat(folder: pathlib.Path) -> Once:
    """Exact search in float32."""
    import faiss  # pyright: ignore[reportMissingImports]

    vectors = np.load(folder / "vectors.npy")
    index: Any = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    return _once(folder, lambda queries: index.search(queries, K)[1])


def faiss_ivf(folder: pathlib.Path) -> Once:
    """Inverted lists, whole vectors in them."""
    import faiss  # pyright: ignore[reportMissingImports]

    vectors = np.load(folder / "vectors.npy")
    width = vectors.shape[1]
    index: Any = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, IVF_LISTS, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add(vectors)
    _tune(folder, index, PROBES, lambda probes: setattr(index, "nprobe", probes))
    return _once(folder, lambda queries: index.search(queries, K)[1])


def faiss_hnsw(folder: pathlib.Path) -> Once:
    """A graph of neighbours."""
    import faiss  # pyright: ignore[reportMissingImports]

    vectors = np.load(folder / "vectors.npy")
    index: Any = faiss.IndexHNSWFlat(vectors.shape[1], HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = HNSW_BUILD
    index.add(vectors)
    _tune(folder, index, BREADTHS, lambda breadth: setattr(index.hnsw, "efSearch", breadth))
    return _once(folder, lambda queries: index.search(queries, K)[1])


def agreement(outputs: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
    """Each index' recall@10, against exact search."""
    wanted = outputs["FAISS flat"]
    return {f"{name}, recall@10": round(_recall(found, wanted), 4) for name, found in outputs.items()}


BENCHMARK = Benchmark(
    name="search",
    title="Search",
    unit="queries",
    contestants=(
        Contestant("radit_jax", "ours"),
        Contestant("radit_jax, exact", "ours_exact"),
        Contestant("FAISS flat", "faiss_flat"),
        Contestant("FAISS IVF", "faiss_ivf"),
        Contestant("FAISS HNSW", "faiss_hnsw"),
    ),
    prepare=prepare,
    agreement=agreement,
    targets=(Target("FAISS IVF", 1.5), Target("FAISS HNSW", 1.5), Target("FAISS flat", 20.0)),
)


def _once(folder: pathlib.Path, search: Callable[[np.ndarray], np.ndarray]) -> Once:
    queries = np.load(folder / "queries.npy")

    def once() -> Work:
        found = search(queries)
        return Work(len(queries), found)

    return once


def _tune(folder: pathlib.Path, index: Any, settings: tuple[int, ...], apply: Callable[[int], None]) -> None:
    """The first setting that reaches the recall, or the last."""
    queries, wanted = np.load(folder / "tuning.npy"), np.load(folder / "tuning-wanted.npy")
    for setting in settings:
        apply(setting)
        if _recall(index.search(queries, K)[1], wanted) >= RECALL:
            return


def _recall(found: np.ndarray, wanted: np.ndarray) -> float:
    return float((wanted[:, :, None] == found[:, None, :]).any(axis=2).mean())
