"""An index whose shards two processes have between them, against the same index of one.

The slow test has 40,000 vectors, or RADIT_INDEX_CHUNKS of them: docs/verification.md has a million.
"""

import json
import os
import pathlib

import numpy as np
import pytest
from test_index import clustered
from two_processes import run_two

from radit_jax.retrieval.embeddings import Embeddings
from radit_jax.retrieval.exact import ExactIndex
from radit_jax.retrieval.index import build_index, neighbour_recall
from radit_jax.runtime.storage.stage_folder import StageFolder

ROOT = pathlib.Path(__file__).parents[2]
PROGRAM = """
import sys
from radit_jax.runtime.distributed import processes, topology
folder, kind, port, number = sys.argv[1:]
processes.join_processes(topology.find_topology("127.0.0.1:" + port, 2, int(number)))
import numpy as np
from radit_jax.retrieval.index import build_index as build, load_index as load
from radit_jax.runtime.storage.stage_folder import StageFolder
output = StageFolder(folder + "/index/0123456789ab")
names = ("embeddings", "queries", "exclude")
embeddings, queries, exclude = (np.load(f"{folder}/{name}.npy") for name in names)
build(embeddings, queries, kind=kind, shard_size=40, folder=output).save(output)
output.finish()
loaded = load(output, embeddings)
found = [loaded.search(queries, 7, exclude), loaded.search(queries, 60)]
np.savez(f"{folder}/{kind}-{number}.npz", *[array for one in found for array in one])
processes.shutdown()
"""


@pytest.mark.parametrize("kind", ["exact", "scann"])
def test_two_processes_find_with_half_of_the_shards_each_what_one_finds(tmp_path, kind) -> None:
    pytest.importorskip("scann")
    embeddings = clustered(130, 8)  # four shards of 32 or 33
    queries, exclude = embeddings[::9] + np.float32(0.01), np.arange(15) * 9
    exclude[::2] = -1
    for name, array in (("embeddings", embeddings), ("queries", queries), ("exclude", exclude)):
        np.save(tmp_path / f"{name}.npy", array)
    run_two(PROGRAM, [str(tmp_path), kind])
    one = build_index(embeddings, queries, kind=kind, shard_size=40)
    wanted = [
        array for found in (one.search(queries, 7, exclude), one.search(queries, 60)) for array in found
    ]
    for number in (0, 1):
        with np.load(tmp_path / f"{kind}-{number}.npz") as arrays:
            for found, expected in zip(arrays.values(), wanted, strict=True):
                np.testing.assert_array_equal(found, expected)
    folder = StageFolder(tmp_path / "index" / "0123456789ab")
    trees = [f"index/tree-{number:05d}-of-00004" for number in range(4)] if kind == "scann" else []
    assert sorted(folder.manifest["files"]) == ["index/index.json", *trees]


# ---- size ----

CHUNKS = int(os.environ.get("RADIT_INDEX_CHUNKS", 40_000))
WIDTH, SHARDS, PARTS, QUERIES = 256, 4, 11, 500
MEASURED = """
import glob, json, pathlib, sys, threading, time
from radit_jax.runtime.distributed import processes, topology
folder, shards, port, number = sys.argv[1:]
processes.join_processes(topology.find_topology("127.0.0.1:" + port, 2, int(number)))
import numpy as np
from radit_jax.retrieval.embeddings import Embeddings
from radit_jax.retrieval.exact import ExactIndex
from radit_jax.retrieval.index import build_index as build
from radit_jax.runtime.distributed.mesh import gather_hosts
from radit_jax.runtime.storage.stage_folder import StageFolder

def memory():
    lines = dict(line.split(":", 1) for line in pathlib.Path("/proc/self/status").read_text().splitlines())
    return [int(lines[name].split()[0]) * 1024 for name in ("RssAnon", "VmRSS")]

def watch():
    while True:
        peaks[phase] = [max(pair) for pair in zip(peaks.get(phase, [0, 0]), memory())]
        time.sleep(0.01)

embeddings = Embeddings([np.load(name, mmap_mode="r") for name in sorted(glob.glob(folder + "/part-*.npy"))])
tuning, queries = np.load(folder + "/tuning.npy"), np.load(folder + "/queries.npy")
output = StageFolder(folder + "/index/0123456789ab")
gather_hosts(np.zeros((len(queries), 10), np.float32))
import scann
peaks, phase, before = {}, "exact search", memory()
threading.Thread(target=watch, daemon=True).start()
exact = ExactIndex(embeddings).search(queries, 10)
phase = "build and tune"
start = time.monotonic()
index = build(embeddings, tuning, kind="scann", shard_size=len(embeddings) // int(shards), folder=output)
seconds = time.monotonic() - start
phase = "search"
found = index.search(queries, 10)
time.sleep(0.1)
over = {phase: [peak - own for peak, own in zip(both, before)] for phase, both in peaks.items()}
facts = {"over": over, "before": before, "seconds": seconds, "facts": index.facts}
pathlib.Path(f"{folder}/memory-{number}.json").write_text(json.dumps(facts))
arrays = {"exact_rows": exact.rows, "exact_scores": exact.scores, "scann_rows": found.rows}
np.savez(f"{folder}/found-{number}.npz", **arrays)
processes.shutdown()
"""


def write_parts(folder: pathlib.Path) -> Embeddings:
    """Unit vectors around one centre for every 20, in files whose bounds are not the shards'."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(CHUNKS // 20, WIDTH)).astype(np.float32)
    for number, rows in enumerate(np.array_split(np.arange(CHUNKS), PARTS)):
        part = centres[rng.integers(len(centres), size=len(rows))]
        part += 1.5 * rng.standard_normal(part.shape, np.float32)
        np.save(folder / f"part-{number:02d}.npy", part / np.linalg.norm(part, axis=1, keepdims=True))
    return Embeddings([np.load(file, mmap_mode="r") for file in sorted(folder.glob("part-*.npy"))])


@pytest.mark.slow
def test_two_processes_with_two_shards_each_need_the_memory_of_one_and_find_what_one_index_finds(
    tmp_path,
) -> None:
    pytest.importorskip("scann")
    embeddings, rng = write_parts(tmp_path), np.random.default_rng(1)
    for name in ("tuning", "queries"):
        drawn = embeddings[rng.integers(CHUNKS, size=QUERIES)]
        np.save(tmp_path / f"{name}.npy", drawn + 0.05 * rng.standard_normal(drawn.shape, np.float32))
    tuning, queries = (np.load(tmp_path / f"{name}.npy") for name in ("tuning", "queries"))
    run_two(MEASURED, [str(tmp_path), str(SHARDS)])
    wanted = ExactIndex(embeddings).search(queries, 10)
    for number in (0, 1):
        with np.load(tmp_path / f"found-{number}.npz") as found:
            np.testing.assert_array_equal(found["exact_rows"], wanted.rows)
            np.testing.assert_array_equal(found["exact_scores"], wanted.scores)
            recall = neighbour_recall(found["scann_rows"], wanted.rows)
    measured = [json.loads((tmp_path / f"memory-{number}.json").read_text()) for number in (0, 1)]
    one, tuned = build_index(embeddings, tuning, kind="scann"), measured[0]["facts"]
    # Two tunings stop where they may; the same share of leaves and depth of reordering are comparable.
    leaves = round(tuned["leaves_to_search"] / tuned["num_leaves"] * one.facts["num_leaves"])
    one.facts |= {"leaves_to_search": leaves, "reorder": tuned["reorder"]}
    recall_of_one = neighbour_recall(one.search(queries, 10).rows, wanted.rows)
    shard = 4 * WIDTH * CHUNKS // SHARDS
    for number, process in enumerate(measured):
        for phase, (held, resident) in process["over"].items():
            print(
                f"process {number}, {phase}: {held / shard:.2f} shards held, {resident / shard:.2f} resident"
            )
        print(f"process {number}: {process['seconds']:.0f} s, {process['facts']}")
    print(f"recall@10 of {SHARDS} shards {recall:.4f}, of one {recall_of_one:.4f}, {one.facts}")
    assert recall >= max(0.95, recall_of_one - 0.01)
    if CHUNKS >= 1_000_000:  # a small shard is nothing beside what two processes need to meet
        assert max(held for process in measured for held, _ in process["over"].values()) < 2.5 * shard
