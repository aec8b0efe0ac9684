"""Search: the ten best of all sentences of the corpus for many questions at once, at recall@10 ≥ 0.95.

At set-up every index is tuned on some of the test questions, drawn at random: it takes the cheapest setting
that reaches the recall on them. The work is to search for the other questions, and the recall is of those.
"""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks.compare import Benchmark, Target, Worker
from benchmarks.worker import Once, Work

K = 10
RECALL = 0.95
MAX_TUNING = 1000  # questions
IVF_LISTS = 1024
PROBES = (4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512, 1024)  # lists that IVF looks into
HNSW_LINKS = 32
HNSW_BUILD = 80
BREADTHS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024)  # candidates that HNSW keeps


def prepare(folder: pathlib.Path) -> Mapping[str, Any]:
    """Embeddings of sentences and questions, and the exact answers."""
    from benchmarks import inputs
    from radit_jax.retrieval.index import ExactIndex

    texts = inputs.texts()
    sentences = inputs.sentences(texts.passages)
    vectors = inputs.embeddings(folder.parent, "sentences", sentences)
    questions = [question.question for question in texts.test]
    test = inputs.embeddings(folder.parent, "test", questions)
    np.save(folder / "vectors.npy", vectors)

    # Part the questions, and find the nearest sentences of those to tune with.
    drawn = np.random.default_rng(0).permutation(len(test))
    num_tuning = min(MAX_TUNING, len(test) // 2)
    tuning = test[drawn[:num_tuning]]
    queries = test[drawn[num_tuning:]]
    nearest = ExactIndex(np.asarray(vectors)).search(tuning, K).rows
    np.save(folder / "queries.npy", queries)
    np.save(folder / "tuning.npy", tuning)
    np.save(folder / "tuning-nearest.npy", nearest)
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
        np.load(folder / "vectors.npy"),
        np.load(folder / "tuning.npy"),
        kind="scann",
        target_recall=RECALL,
    )
    return _once(folder, lambda queries: index.search(queries, K).rows)


def ours_exact(folder: pathlib.Path) -> Once:
    """Exact search in numpy's blocks."""
    from radit_jax.retrieval.index import ExactIndex

    index = ExactIndex(np.load(folder / "vectors.npy"))
    return _once(folder, lambda queries: index.search(queries, K).rows)


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
    """Each index's recall@10, against exact search."""
    nearest = outputs["FAISS flat"]
    return {f"{name}, recall@10": round(_recall(found, nearest), 4) for name, found in outputs.items()}


BENCHMARK = Benchmark(
    name="search",
    title="Search",
    unit="queries",
    workers=(
        Worker("radit_jax", "ours"),
        Worker("radit_jax, exact", "ours_exact"),
        Worker("FAISS flat", "faiss_flat"),
        Worker("FAISS IVF", "faiss_ivf"),
        Worker("FAISS HNSW", "faiss_hnsw"),
    ),
    prepare=prepare,
    agreement=agreement,
    targets=(Target("FAISS IVF", 1.5), Target("FAISS HNSW", 1.5), Target("FAISS flat", 20.0)),
)


def _once(folder: pathlib.Path, search: Callable[[np.ndarray], np.ndarray]) -> Once:
    """The search for all queries; the output is the rows that it finds."""
    queries = np.load(folder / "queries.npy")

    def once() -> Work:
        rows = search(queries)
        return Work(len(queries), rows)

    return once


def _tune(
    folder: pathlib.Path,
    index: Any,
    settings: tuple[int, ...],
    apply: Callable[[int], None],
) -> None:
    """Apply the first setting that reaches the recall, or the last."""
    queries = np.load(folder / "tuning.npy")
    nearest = np.load(folder / "tuning-nearest.npy")
    for setting in settings:
        apply(setting)
        _, rows = index.search(queries, K)
        if _recall(rows, nearest) >= RECALL:
            return


def _recall(found: np.ndarray, nearest: np.ndarray) -> float:
    """The share of the nearest rows that are among the found ones."""
    is_same = nearest[:, :, None] == found[:, None, :]
    return float(is_same.any(axis=2).mean())
