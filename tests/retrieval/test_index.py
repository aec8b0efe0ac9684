import logging
import subprocess
import sys

import numpy as np
import pytest

from radit_jax.command_line import run_stage
from radit_jax.retrieval import exact as exact_module
from radit_jax.retrieval import index as index_module
from radit_jax.retrieval.embeddings import Embeddings
from radit_jax.retrieval.exact import ExactIndex
from radit_jax.retrieval.index import ScannIndex, build_index, load_index, neighbour_recall
from radit_jax.retrieval.ranking import split
from radit_jax.retrieval.scann import ScannShard
from radit_jax.runtime.storage.stage_folder import StageFolder

SMALL = 3000  # chunks


def clustered(num: int, width: int, seed: int = 0) -> np.ndarray:
    """Unit vectors around one centre for every 30."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(num // 30, width))
    vectors = centres[rng.integers(len(centres), size=num)] + 0.7 * rng.normal(size=(num, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def near(embeddings: np.ndarray, num: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    noise = 0.1 * rng.normal(size=(num, embeddings.shape[1]))
    return (embeddings[rng.integers(len(embeddings), size=num)] + noise).astype(np.float32)


def brute_force(embeddings, queries, k, exclude=None):
    """The definition: every product in float64, rounded once, then a stable sort by score and row."""
    scores = (queries.astype(np.float64) @ embeddings.T.astype(np.float64)).astype(np.float32)
    if exclude is not None:
        scores[np.flatnonzero(exclude >= 0), exclude[exclude >= 0]] = -np.inf
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return rows, np.take_along_axis(scores, rows, axis=1)


def assert_same(found, wanted):
    np.testing.assert_array_equal(found[0], wanted[0])
    np.testing.assert_array_equal(found[1], wanted[1])


@pytest.fixture(scope="module")
def embeddings():
    return clustered(SMALL, 32)


@pytest.fixture(scope="module")
def queries(embeddings):
    return near(embeddings, 60, seed=1)


@pytest.fixture(scope="module")
def scann_index(embeddings):
    pytest.importorskip("scann")
    return build_index(embeddings, near(embeddings, 100, seed=2), kind="scann", target_recall=0.95)


@pytest.fixture(scope="module")
def sharded_index(embeddings):
    """Three trees over mapped parts whose bounds are not the shards'."""
    pytest.importorskip("scann")
    parts = Embeddings([embeddings[:700], embeddings[700:1500], embeddings[1500:]])
    return build_index(parts, near(embeddings, 100, seed=2), kind="scann", shard_size=1100)


@pytest.fixture(params=["exact", "scann", "sharded"])
def index(request, embeddings):
    return (
        ExactIndex(embeddings)
        if request.param == "exact"
        else request.getfixturevalue(f"{request.param}_index")
    )


@pytest.fixture
def folder(tmp_path):
    return StageFolder(tmp_path / "index" / "0123456789ab")


# ---- exact search ----


@pytest.mark.parametrize("k", [1, 10, SMALL])
def test_exact_search_is_the_definition(embeddings, queries, k):
    assert_same(ExactIndex(embeddings).search(queries, k), brute_force(embeddings, queries, k))


def test_exact_search_does_not_depend_on_its_blocks(embeddings, queries, monkeypatch):
    wanted = brute_force(embeddings, queries, 10)
    monkeypatch.setattr(exact_module, "_QUERY_BLOCK", 7)
    monkeypatch.setattr(exact_module, "_CHUNK_BLOCK", 64)
    assert_same(ExactIndex(embeddings).search(queries, 10), wanted)


def test_equal_scores_are_ordered_by_row(embeddings, queries, monkeypatch):
    monkeypatch.setattr(exact_module, "_CHUNK_BLOCK", 1000)
    repeated = np.concatenate([embeddings] * 4)
    rows, scores = ExactIndex(repeated).search(queries, 12)
    best, _ = brute_force(embeddings, queries, 3)
    np.testing.assert_array_equal(rows, (best[:, :, None] + SMALL * np.arange(4)).reshape(-1, 12))
    assert (scores[:, 0] == scores[:, 3]).all()


def test_an_encoder_that_says_the_same_of_everything_is_searched_too():
    rows, scores = ExactIndex(np.ones((500, 8), np.float32)).search(np.ones((3, 8), np.float32), 4)
    np.testing.assert_array_equal(rows, [[0, 1, 2, 3]] * 3)
    np.testing.assert_array_equal(scores, np.full((3, 4), 8))


def test_scores_near_zero_and_negative_ones_are_kept_in_order():
    embeddings = np.array([[-1.0], [-3.0], [-2.0], [0.0]], np.float32)
    rows, scores = ExactIndex(embeddings).search(np.array([[1.0], [-1.0], [0.0]], np.float32), 4)
    np.testing.assert_array_equal(rows, [[3, 0, 2, 1], [1, 2, 0, 3], [0, 1, 2, 3]])
    np.testing.assert_array_equal(scores[0], [0, -1, -2, -3])


def test_exact_search_takes_the_rows_of_parts_as_those_of_one_array(embeddings, queries):
    parts = Embeddings(np.array_split(embeddings, 7))
    assert_same(ExactIndex(parts).search(queries, 10), brute_force(embeddings, queries, 10))


# ---- all ----


def test_the_answer_has_int32_rows_and_float32_scores_highest_first(index, queries):
    rows, scores = index.search(queries, 5)
    assert rows.dtype == np.int32 and scores.dtype == np.float32
    assert rows.shape == scores.shape == (60, 5)
    assert (np.diff(scores, axis=1) <= 0).all()


def test_scores_are_the_products_of_the_stored_embeddings(index, embeddings, queries):
    rows, scores = index.search(queries, 5)
    products = np.einsum("qd,qkd->qk", queries.astype(np.float64), embeddings[rows].astype(np.float64))
    np.testing.assert_array_equal(scores, products.astype(np.float32))


def test_one_query_alone_gets_what_it_gets_among_others(index, queries):
    together = index.search(queries, 5)
    alone = [index.search(queries[i : i + 1], 5) for i in range(60)]
    assert_same([np.concatenate(part) for part in zip(*alone, strict=True)], together)


def test_queries_get_the_same_in_batches_of_any_size(index, embeddings):
    many = near(embeddings, 500, seed=4)
    together = index.search(many, 5)
    for size in (11, 97, 131):
        parts = [index.search(many[i : i + size], 5) for i in range(0, 500, size)]
        assert_same([np.concatenate(part) for part in zip(*parts, strict=True)], together)


def test_the_excluded_row_is_not_returned_and_the_next_one_moves_up(index, queries):
    rows, scores = index.search(queries, 6)
    exclude = rows[:, 0].copy()
    exclude[::2] = -1
    found, found_scores = index.search(queries, 5, exclude)
    first = (exclude >= 0).astype(int)
    for query, start in enumerate(first):
        np.testing.assert_array_equal(found[query], rows[query, start : start + 5])
        np.testing.assert_array_equal(found_scores[query], scores[query, start : start + 5])


def test_an_excluded_row_that_was_not_among_the_best_changes_nothing(index, queries):
    rows, scores = index.search(queries, 5)
    unseen = np.array([np.setdiff1d(np.arange(100), row)[0] for row in rows])
    assert_same(index.search(queries, 5, unseen), (rows, scores))


def test_no_queries_get_no_chunks(index, queries):
    rows, scores = index.search(queries[:0], 5)
    assert rows.shape == scores.shape == (0, 5)


@pytest.mark.parametrize("k", [0, SMALL + 1])
def test_more_chunks_than_the_corpus_has_are_an_error(index, queries, k):
    message = rf"index: expected 1 to 3000 chunks a query of a corpus of 3000, got {k}\. Lower the number"
    with pytest.raises(ValueError, match=message):
        index.search(queries, k)


def test_the_whole_corpus_cannot_be_had_without_a_row_of_it(index, queries):
    with pytest.raises(ValueError, match="expected 1 to 2999 chunks a query of a corpus of 3000, got 3000"):
        index.search(queries, SMALL, np.zeros(60, int))
    index.search(queries, SMALL, np.full(60, -1))


def test_a_saved_index_finds_the_same(index, embeddings, queries, folder):
    index.save(folder)
    loaded = load_index(folder, embeddings)
    assert type(loaded) is type(index) and loaded.facts == index.facts
    assert_same(loaded.search(queries, 10), index.search(queries, 10))


def test_an_index_of_other_embeddings_is_refused(index, embeddings, folder):
    index.save(folder)
    remedy = f"Delete it and run {run_stage('index')}"
    message = f"expected an index of 2999 chunks, got one of 3000. {remedy}"
    with pytest.raises(ValueError, match=message):
        load_index(folder, embeddings[:-1])


# ---- ScaNN ----


def test_scann_reaches_the_recall_that_it_is_tuned_to(scann_index, embeddings, queries):
    wanted, _ = brute_force(embeddings, queries, 10)
    assert scann_index.facts["recall@10"] >= 0.95
    assert neighbour_recall(scann_index.search(queries, 10)[0], wanted) >= 0.95


def test_scann_searches_more_leaves_for_a_higher_recall(embeddings):
    pytest.importorskip("scann")
    noise = np.random.default_rng(0).normal(size=(50, 32)).astype(np.float32)  # hard: near no cluster
    few, many = (
        build_index(embeddings, noise, kind="scann", target_recall=recall).facts for recall in (0.3, 0.99)
    )
    assert few["leaves_to_search"] < many["leaves_to_search"]
    assert 0.3 <= few["recall@10"] < 0.99 <= many["recall@10"]


def test_scann_searches_no_leaf_more_than_the_recall_needs(embeddings):
    pytest.importorskip("scann")
    noise = np.random.default_rng(0).normal(size=(200, 32)).astype(np.float32)
    wanted, _ = brute_force(embeddings, noise, 10)
    index = build_index(embeddings, noise, kind="scann", target_recall=0.8)
    for fewer, reached in ((0, True), (1, False)):
        index.facts["leaves_to_search"] -= fewer
        recalls = [
            neighbour_recall(*pair)
            for pair in zip(*(x[:, None] for x in (index.search(noise, 10).rows, wanted)), strict=True)
        ]
        assert (np.mean(recalls) - 2 * np.std(recalls) / np.sqrt(200) >= 0.8) == reached


def test_scann_tuned_to_perfection_is_exact(embeddings, queries):
    pytest.importorskip("scann")
    index = build_index(embeddings, queries, kind="scann", target_recall=1.0)
    assert index.facts["recall@10"] == 1.0
    assert_same(index.search(queries, 10), brute_force(embeddings, queries, 10))


def test_two_builds_and_any_number_of_threads_find_the_same(scann_index, embeddings, queries):
    again = build_index(embeddings, near(embeddings, 100, seed=2), kind="scann", target_recall=0.95)
    assert again.facts == scann_index.facts
    assert_same(again.search(queries, 10), scann_index.search(queries, 10))
    again._trees[0]._searcher.set_num_threads(1)
    assert_same(again.search(queries, 10), scann_index.search(queries, 10))


def test_queries_whose_leaves_hold_too_few_chunks_are_searched_exactly(embeddings, queries):
    pytest.importorskip("scann")
    index = build_index(embeddings, queries, kind="scann", target_recall=0.1)
    index.facts["leaves_to_search"] = 1  # about 37 chunks
    assert_same(index.search(queries, 1000), brute_force(embeddings, queries, 1000))


def test_scann_keeps_its_log_to_itself():
    pytest.importorskip("scann")
    code = """
import numpy as np
from radit_jax.retrieval.index import build_index as build
vectors = np.random.default_rng(0).normal(size=(200, 8)).astype(np.float32)
build(vectors, vectors, kind="scann")
"""
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ("", "")


# ---- shards ----


def test_a_corpus_is_split_into_shards_of_like_size():
    assert split(8, 3) == [range(2), range(2, 5), range(5, 8)]
    assert split(2, 3) == [range(0), range(1), range(1, 2)]


def test_shards_reach_the_recall_that_they_are_tuned_to_together(sharded_index, embeddings, queries):
    assert sharded_index.facts["shards"] == 3 and sharded_index.facts["num_leaves"] == round(1.5 * 1000**0.5)
    wanted, _ = brute_force(embeddings, queries, 10)
    assert neighbour_recall(sharded_index.search(queries, 10)[0], wanted) >= 0.95


@pytest.fixture(scope="module")
def thorough_index():
    """Three trees of 40 chunks, of which every leaf is searched."""
    pytest.importorskip("scann")
    vectors = clustered(120, 8)
    index = build_index(vectors, vectors, kind="scann", target_recall=1.0, shard_size=40)
    index.facts |= {"leaves_to_search": 9, "reorder": 120}
    return vectors, index


@pytest.mark.parametrize("k", [1, 5, 40, 60, 119])
def test_the_best_of_all_shards_are_those_of_one_index_also_where_a_shard_has_fewer(thorough_index, k):
    vectors, index = thorough_index
    queries, exclude = near(vectors, 20, seed=3), np.arange(20) * 6
    exclude[::3] = -1
    assert_same(index.search(queries, k), brute_force(vectors, queries, k))
    assert_same(index.search(queries, k, exclude), brute_force(vectors, queries, k, exclude))


def test_a_build_that_was_killed_takes_up_behind_the_shards_that_were_finished(folder, monkeypatch):
    pytest.importorskip("scann")
    vectors, built, build_tree = clustered(120, 8), [], ScannShard.build

    def build_one(some):
        built.append(some)
        if len(built) == 3:
            raise KeyboardInterrupt
        return build_tree(some)

    monkeypatch.setattr(ScannShard, "build", build_one)
    with pytest.raises(KeyboardInterrupt):
        build_index(vectors, vectors, kind="scann", shard_size=40, folder=folder)
    index = build_index(vectors, vectors, kind="scann", shard_size=40, folder=folder)
    index.save(folder)
    np.testing.assert_array_equal(np.concatenate(built), np.concatenate([vectors, vectors[80:]]))
    whole = build_index(vectors, vectors, kind="scann", shard_size=40)
    assert index.facts == whole.facts
    assert_same(load_index(folder, vectors).search(vectors, 10), whole.search(vectors, 10))


def test_a_tree_that_was_altered_is_refused_when_it_is_searched(sharded_index, embeddings, queries, folder):
    sharded_index.save(folder)
    (folder.path / "index" / "tree-00002-of-00003" / "dataset.npy").write_bytes(b"short")
    with pytest.raises(
        ValueError, match=r"tree-00002-of-00003: expected the \d+ bytes that were written, got \d+"
    ):
        load_index(folder, embeddings).search(queries, 5)


# ---- which index ----


@pytest.mark.parametrize(("size", "kind"), [(50, ExactIndex), (51, ScannIndex)])
def test_the_corpus_size_chooses_the_index(embeddings, queries, size, kind, monkeypatch):
    pytest.importorskip("scann")
    monkeypatch.setattr(index_module, "SMALL_CORPUS", 51)
    assert type(build_index(embeddings[:size], queries)) is kind


def test_without_scann_exact_search_serves_with_one_line_that_says_so(
    embeddings, queries, monkeypatch, caplog
):
    monkeypatch.setitem(sys.modules, "scann.scann_ops.py", None)
    with caplog.at_level(logging.WARNING):
        index = build_index(embeddings, queries, kind="scann")
    assert type(index) is ExactIndex
    assert caplog.messages == ["index: ScaNN has no package here, so exact search serves"]


def test_an_empty_corpus_is_an_error(queries):
    with pytest.raises(ValueError, match=r"index: expected at least one chunk, got 0\. Look at the corpus"):
        build_index(np.empty((0, 32), np.float32), queries)


def test_vectors_that_are_not_finite_are_an_error(index, embeddings, queries):
    broken = queries.copy()
    broken[[3, 7], 0] = np.nan, np.inf
    message = r"index: expected finite queries, got NaN or infinity in 2 of 60, the first in row 3\. Look at"
    with pytest.raises(ValueError, match=message):
        index.search(broken, 5)
    with pytest.raises(ValueError, match="index: expected finite chunks, got NaN or infinity in 2 of 60"):
        build_index(broken, queries)


def test_scann_cannot_be_tuned_without_queries(embeddings):
    pytest.importorskip("scann")
    with pytest.raises(ValueError, match="index: expected queries to tune ScaNN with, got 0"):
        build_index(embeddings, embeddings[:0], kind="scann")


@pytest.mark.parametrize(("chunks", "shard_size"), [(15, 100), (100, 16)])
def test_shards_that_are_too_small_for_scann_are_an_error(embeddings, chunks, shard_size):
    pytest.importorskip("scann")
    with pytest.raises(
        ValueError, match=r"expected shards of 16 chunks or more for ScaNN, got 1[45]\. Raise"
    ):
        build_index(embeddings[:chunks], embeddings, kind="scann", shard_size=shard_size)


def test_recall_counts_the_wanted_rows_that_were_found():
    assert neighbour_recall(np.array([[1, 2], [5, 6]]), np.array([[2, 3], [6, 5]])) == 0.75
    assert neighbour_recall(np.array([[1, 2, 3]]), np.array([[3]])) == 1.0


# ---- what strangers put into an index ----


@pytest.mark.parametrize(
    "facts",
    [[], {}, {"kind": "exact"}, {"kind": "other", "num_chunks": 3}, {"kind": "exact", "num_chunks": "3"}]
    + [{"kind": "scann", "num_chunks": 3, "shards": 0, "num_leaves": 1, "leaves_to_search": 1, "reorder": 1}],
)
def test_facts_of_another_form_are_one_error(tmp_path, facts):
    folder = StageFolder(tmp_path / "index" / ("a" * 12))
    folder.write_json(exact_module.FACTS, facts)
    with pytest.raises(ValueError, match="expected the facts of an index, got"):
        load_index(folder, np.zeros((3, 2), np.float32))


@pytest.mark.parametrize("name", ["/etc/passwd", "../secret.npy", "a/../../b", "..\\\\b"])
def test_a_tree_does_not_read_files_outside_its_folder(tmp_path, name):
    (tmp_path / "scann_assets.pbtxt").write_text(
        f'assets {{\n asset_path: "{name}"\n asset_type: DATASET_NPY\n}}\n'
    )
    with pytest.raises(ValueError, match="expected names of files inside the folder, got"):
        ScannShard.load(tmp_path)


@pytest.mark.parametrize("names", [[], ["scann_assets.pbtxt", "scann_docids.pkl"]])
def test_a_tree_is_never_unpickled_nor_guessed(tmp_path, names):
    for name in names:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"expected a tree with scann_assets\.pbtxt and no scann_docids\.pkl"
    ):
        ScannShard.load(tmp_path)
