"""The score stage's shards, of which one run takes up what another leaves, and labels from elsewhere."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from exact import assert_stored
from small import QUESTIONS
from two_processes import run_two

from radit_jax.config import LmConfig, MeshConfig, OptimizerConfig, RFtConfig, ScoreConfig
from radit_jax.data.artifacts.corpus import Corpus
from radit_jax.data.artifacts.lsr_scores import Scores
from radit_jax.data.artifacts.retrieved import Retrieved
from radit_jax.data.artifacts.scores_file import score_records
from radit_jax.data.batches.examples import question_example
from radit_jax.lm.scoring import PairScorer
from radit_jax.runtime import row_parts
from radit_jax.runtime.pretrained.hf_export import export_hf
from radit_jax.runtime.pretrained.model_io import load_model, save_model
from radit_jax.runtime.storage.workdir import Workdir
from radit_jax.stages import base, r_ft, score

ROWS = np.array([[0, 1], [1, 2], [2, 8], [3, 0]])


@pytest.fixture
def folders(inputs, tmp_path):
    """The stage's inputs: those of the small world, and what was retrieved."""
    retrieved = Workdir(tmp_path).folder("retrieve", "r")
    examples = [question_example(question, question.answers[0]) for question in QUESTIONS["train"]]
    Retrieved(examples, ROWS, np.zeros(ROWS.shape, np.float32)).save(retrieved, "train")
    retrieved.finish()
    return {**inputs, "retrieved": retrieved}


@pytest.fixture
def run(folders, tmp_path):
    """Runs the stage into a folder of that name, in shards of that size."""

    def run_into(name, shard_size=100, dtype="float32", **changed):
        settings = ScoreConfig(batch_size=8, sequence_length=64, shard_size=shard_size, dtype=dtype)
        output = Workdir(tmp_path).folder("score", name)
        facts = score.run({**folders, **changed}, output, score=settings, mesh=MeshConfig())
        output.finish(**facts)
        return facts, Scores.load(output)

    return run_into


@pytest.mark.usefixtures("exact_scorers")
def test_a_killed_run_loses_its_shard_alone_and_ends_with_the_scores_of_all_at_once(run, monkeypatch):
    facts, whole = run("whole", 100)
    sizes, real = [], PairScorer.score_each

    def killed_after_one(self, parts, *rest):
        yield next(real(self, parts, *rest))
        raise KeyboardInterrupt

    def counted(self, parts, *rest):
        for scores in real(self, parts, *rest):
            sizes.append(len(scores.truncated))
            yield scores

    monkeypatch.setattr(PairScorer, "score_each", killed_after_one)
    with pytest.raises(KeyboardInterrupt):
        run("shards", 4)
    monkeypatch.setattr(PairScorer, "score_each", counted)
    _, again = run("shards", 4)
    assert sizes == [4, 4]  # four examples, each under two chunks and under none: 12 pairs
    assert (facts["pairs"], facts["truncated"]) == (12, 1)
    assert_stored(again.answer_log_probs, whole.answer_log_probs)
    assert_stored(again.no_chunk_log_probs, whole.no_chunk_log_probs)
    np.testing.assert_array_equal(again.token_counts, whole.token_counts)
    np.testing.assert_array_equal(again.truncated, whole.truncated)


PROGRAM = """
import json, sys
from radit_jax.runtime.distributed import processes, topology
corpus, lm, retrieved, home, port, number = sys.argv[1:]
processes.join_processes(topology.find_topology("127.0.0.1:" + port, 2, int(number)))
from radit_jax.config import MeshConfig, ScoreConfig
from radit_jax.data.artifacts.chunks import Chunks
from radit_jax.runtime import row_parts
from radit_jax.runtime.storage.stage_folder import StageFolder
from radit_jax.stages import score

row_parts.ROWS_PER_PART = 2
read, written, files = set(), [], []
def noting(method, note):
    return lambda self, value, *rest: (note(value), method(self, value, *rest))[1]
Chunks.take = noting(Chunks.take, lambda rows: read.update(map(int, rows)))
StageFolder._write = noting(StageFolder._write, written.append)
StageFolder.read = noting(StageFolder.read, files.append)

output = StageFolder(home)
inputs = {"corpus": StageFolder(corpus), "lm": StageFolder(lm), "retrieved": StageFolder(retrieved)}
settings = ScoreConfig(batch_size=8, sequence_length=64, shard_size=4)
facts = score.run(inputs, output, score=settings, mesh=MeshConfig())
output.finish(**facts)
print(json.dumps({"facts": facts, "read": sorted(read), "written": written, "files": files}))
processes.shutdown()
"""


def test_two_processes_score_shards_of_their_own_and_what_one_scores(run, folders, tmp_path, monkeypatch):
    facts, whole = run("whole", 4)
    together = Workdir(tmp_path / "together").folder("score", "together")
    # Four examples in two parts.
    monkeypatch.setattr(row_parts, "ROWS_PER_PART", 2)
    retrieved = Workdir(tmp_path / "together").folder("retrieve", "parts")
    Retrieved.load(folders["retrieved"], "train").save(retrieved, "train")
    retrieved.finish()
    paths = [str(folder.home) for folder in (folders["corpus"], folders["lm"], retrieved)]
    said = [
        json.loads(printed.splitlines()[-1]) for printed in run_two(PROGRAM, [*paths, str(together.home)])
    ]
    files = [f"pairs-{number:05d}-of-00003" for number in range(3)]
    # Twelve pairs in the order of chunks: four without any; two of 0 and of 1; two of 2, one of 3 and of 8.
    assert said[0]["written"] == [files[0], files[2], "scores-00000-of-00002.npz"]
    assert said[1]["written"] == [files[1], "scores-00001-of-00002.npz"]
    assert said[0]["read"] == [2, 3, 8] and said[1]["read"] == [0, 1]
    # A file is read by one of them, and both have what is in it.
    for number, own in ((0, [files[0], files[2]]), (1, [files[1]])):
        of_part = [f"train-{number:05d}-of-00002.jsonl", f"train-{number:05d}-of-00002.npz"]
        assert said[number]["files"] == [*of_part, *own]
    for name in ("examples", "pairs", "truncated", "scorer"):
        assert said[0]["facts"][name] == said[1]["facts"][name] == facts[name]
    scores = Scores.load(together)
    np.testing.assert_allclose(scores.answer_log_probs, whole.answer_log_probs, rtol=0, atol=1e-5)
    np.testing.assert_allclose(scores.no_chunk_log_probs, whole.no_chunk_log_probs, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(scores.token_counts, whole.token_counts)
    np.testing.assert_array_equal(scores.truncated, whole.truncated)


def made_base(tmp_path, name, lm, **how):
    """The folder of a base language model."""
    output = Workdir(tmp_path).folder("base", name)
    output.finish(**base.run_lm({}, output, lm=lm, seed=0, mesh=MeshConfig(), **how))
    return output


def test_a_checkpoint_labels_as_its_model_does_as_the_base_in_our_form_and_in_hugging_faces(
    run, lm, tmp_path
):
    facts, own = run("own")
    other = lm._replace(params=jax.tree.map(lambda leaf: leaf * np.float32(1.25), lm.params))
    save_model(tmp_path / "ours", other)
    export_hf(tmp_path / "theirs", other)
    as_base = Workdir(tmp_path).folder("base", "other")
    save_model(as_base.path / "lm", other)
    as_base.commit("lm")
    as_base.finish()
    _, wanted = run("as_base", lm=as_base)
    assert not np.array_equal(wanted.answer_log_probs, own.answer_log_probs), "the test needs other labels"
    for form in ("ours", "theirs"):
        labeller = made_base(tmp_path, form, LmConfig(checkpoint=str(tmp_path / form)))
        labelled, scores = run(form, lm=labeller)
        assert labelled["scorer"] == str(tmp_path / form)
        np.testing.assert_array_equal(scores.answer_log_probs, wanted.answer_log_probs)
        np.testing.assert_array_equal(scores.no_chunk_log_probs, wanted.no_chunk_log_probs)
    assert facts["scorer"] == "base"


def test_a_labeller_in_bfloat16_is_kept_in_it_and_labels_as_its_float32_copy(run, lm, tmp_path):
    half = lm._replace(params=jax.tree.map(lambda leaf: leaf.astype("bfloat16").astype("float32"), lm.params))
    save_model(tmp_path / "ours", half)
    export_hf(tmp_path / "theirs", half, dtype="bfloat16")
    checkpoint = LmConfig(checkpoint=str(tmp_path / "theirs"))
    _, wanted = run("whole", dtype="bfloat16", lm=made_base(tmp_path, "whole", checkpoint))
    for form in ("ours", "theirs"):
        checkpoint = LmConfig(checkpoint=str(tmp_path / form))
        labeller = made_base(tmp_path, form, checkpoint, dtype="bfloat16")
        params = load_model(labeller.verified_path("lm")).params
        assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"bfloat16"}
        _, scores = run(form, dtype="bfloat16", lm=labeller)
        np.testing.assert_array_equal(scores.answer_log_probs, wanted.answer_log_probs)


def test_scores_of_a_file_are_the_target_of_r_ft_bit_by_bit_as_those_that_were_exported(
    run, folders, tmp_path
):
    _, scored = run("scored")
    retrieved, chunks = Retrieved.load(folders["retrieved"], "train"), Corpus(folders["corpus"]).chunks
    records = score_records(retrieved, scored, scored.answer_log_probs, chunks, "base")
    file = tmp_path / "scores.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    output = Workdir(tmp_path).folder("score", "imported")
    facts = score.run_imported(folders, output, file=str(file), mesh=MeshConfig())
    assert (facts["examples"], facts["pairs"], facts["truncated"], facts["scorer"]) == (4, 8, 1, "base")
    assert facts["origin"] == {
        "role": "labels",
        "name": "base",
        "licence": "",
        "source": "",
        "hub_id": "",
    }
    imported = Scores.load(output)
    for name, array in dataclasses.asdict(scored).items():
        np.testing.assert_array_equal(getattr(imported, name), array)
    # Both forms of the language model's score, of which one divides by the number of tokens.
    for form in ("sum_log_prob", "token_geomean"):
        settings = RFtConfig(OptimizerConfig(steps=1, peak_lr=1e-2), tau=0.25, lm_score=form)
        one, other = (r_ft.target_log_probs(scores, settings, 0.1) for scores in (scored, imported))
        assert one.tobytes() == other.tobytes()
        assert (one != one[:, :1]).any(), "the test needs chunks that are told apart"
