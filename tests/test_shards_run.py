"""Embed, retrieve, score and evaluate by four processes, against one, with what each reads and writes (slow).

RADIT_SHARD_CHUNKS is the number of passages; docs/log.md has what was measured.
"""

import json
import os
import pathlib
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from ports import free_port

from radit_jax.config import (
    BaseConfig,
    BertConfig,
    DecoderConfig,
    Experiment,
    GeneratedWorld,
    LmConfig,
    LmFtConfig,
    OptimizerConfig,
    RetrieverConfig,
    RFtConfig,
)
from radit_jax.data.artifacts.corpus import CorpusData, write_corpus
from radit_jax.data.artifacts.lsr_scores import Scores
from radit_jax.data.artifacts.retrieved import Retrieved
from radit_jax.data.records import Chunk, Question
from radit_jax.models.bert import Bert
from radit_jax.models.decoder import DecoderLm
from radit_jax.planning.deployment import Counts, Deployment
from radit_jax.planning.embed import plan_embed
from radit_jax.planning.files import opened, with_files
from radit_jax.runtime.distributed.accelerators import find_target
from radit_jax.runtime.pretrained.model_io import Model, save_model
from radit_jax.runtime.pretrained.tokenizer_training import train_bpe, train_wordpiece
from radit_jax.runtime.storage.stage_folder import StageFolder
from radit_jax.runtime.storage.workdir import Workdir
from radit_jax.selfcheck.tiny_models import random_params

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[1]
CHUNKS = int(os.environ.get("RADIT_SHARD_CHUNKS", 20_000))
QUESTIONS = CHUNKS // 40
SHARD = max(64, CHUNKS // 32)
# What each of four processes may have 1.3 times a quarter of; docs/verification.md says why not the rest.
SHARED = (
    ("embed", "written"),
    ("embed", "read"),
    ("embed", "chunks"),
    ("retrieve", "written"),
    ("retrieve", "read"),
    ("retrieve", "chunks"),
    ("score", "written"),
    ("score", "read"),
    ("score", "chunks"),
    ("evaluate", "read"),
)
PROGRAM = """
import collections, json, os, pathlib, sys, time
folder, count, last, port, number = sys.argv[1:]
from radit_jax.runtime.distributed import processes, topology
if int(count) > 1:
    place = topology.find_topology("127.0.0.1:" + port, int(count), int(number))
    processes.join_processes(place)
from radit_jax.config import EmbedConfig, EvaluateConfig, IndexConfig, MeshConfig, ScoreConfig
from radit_jax.data.artifacts import chunks
from radit_jax.runtime import row_parts
from radit_jax.runtime.storage import hashes, open_files
from radit_jax.runtime.storage.stage_folder import StageFolder
from radit_jax.retrieval.embeddings import Embeddings
from radit_jax.evaluation import corpus_questions
from radit_jax.retrieval import candidates
from radit_jax.stages import embed, evaluate, index, retrieve, score

# Shards small enough that each of four processes has some.
corpus_questions.ANSWERS_PER_SHARD = 8
corpus_questions.PAIRS_PER_SHARD = 64
candidates.EXAMPLES_PER_SHARD = max(4, int(os.environ["CHUNKS"]) // 1000)
row_parts.ROWS_PER_PART = max(4, int(os.environ["CHUNKS"]) // 500)

stage = ""
counts = collections.defaultdict(lambda: {"written": 0, "read": 0, "verified": 0, "chunks": 0, "opened": []})

def count_of(method, note):
    def counted(*arguments):
        result = method(*arguments)
        note(counts[stage], arguments, result)
        return result
    return counted

def written(counts, arguments, result):
    counts["written"] += len(arguments[2])
    kill = os.environ.get("KILL", "").split()
    if kill == [stage, number]:
        os._exit(9)  # before it is committed

def read(counts, arguments, result):
    counts["read"] += len(result)

def read_chunks(counts, arguments, result):
    counts["chunks"] += len(result)
    counts["read"] += sum(len(chunk.text.encode()) for chunk in result)

def opened(counts, arguments, result):
    counts["opened"].append(arguments[1])

def verified(counts, arguments, result):
    counts["verified"] += os.path.getsize(arguments[0])

def blocks(method):
    def counted(*arguments):
        for start, block in method(*arguments):
            counts[stage]["read"] += block.nbytes
            yield start, block
    return counted

write = StageFolder._write
def counted_write(self, name, data):
    written(counts[stage], (self, name, data), None)
    write(self, name, data)
StageFolder._write = counted_write
StageFolder.read = count_of(StageFolder.read, read)
chunks.Chunks._read = count_of(chunks.Chunks._read, read_chunks)
open_files.MappedArrays.__getitem__ = count_of(open_files.MappedArrays.__getitem__, opened)
hashes._read_and_hash = count_of(hashes._read_and_hash, verified)
Embeddings.blocks = blocks(Embeddings.blocks)

home = pathlib.Path(folder)
folders = {name: StageFolder(home / name / ("a" * 12)) for name in ("corpus", "lm", "retriever")}
names = ("embed", "index", "retrieve", "score", "evaluate")
made = {name: StageFolder(home / name / ("b" * 12)) for name in names}
mesh, shard = MeshConfig(), int(os.environ["SHARD"])
base = {**folders, "embeddings": made["embed"], "index": made["index"]}
reads = {"num_chunks": 4, "corpus_text_fraction": 0.2, "text_tokens": 4, "num_examples": 0}
reads |= {"max_length": 96, "seed": 0}
stages = {
    "embed": lambda out: embed.run(
        folders, out, embed=EmbedConfig(batch_size=256, shard_size=shard), mesh=mesh
    ),
    "index": lambda out: index.run(base, out, index=IndexConfig(kind="exact"), mesh=mesh),
    "retrieve": lambda out: retrieve.run_r_ft(base, out, mesh=mesh, **reads),
    "score": lambda out: score.run(
        {**folders, "retrieved": made["retrieve"]},
        out,
        score=ScoreConfig(batch_size=32, sequence_length=96, shard_size=max(8, shard // 10)),
        mesh=mesh,
    ),
    "evaluate": lambda out: evaluate.run(
        {**base, "base_lm": folders["lm"], "lm_ft": folders["lm"], "r_ft": folders["retriever"]},
        out,
        evaluate=EvaluateConfig(
            chunks_per_answer=2,
            sequence_length=96,
            batch_size=16,
            prompts_per_batch=32,
            bootstrap_samples=100,
            answered_questions=32,
        ),
        temperature=0.1,
        seed=0,
        mesh=mesh,
    ),
}
for stage, make in stages.items():
    start = time.monotonic()
    if not made[stage].complete:
        try:
            made[stage].finish(**make(made[stage]))
        except ValueError as error:
            print(error, flush=True)
            os._exit(1)  # jax would wait for the process that is gone
    counts[stage]["seconds"] = time.monotonic() - start
    if stage == last:
        break
counts.pop("", None)
print(json.dumps(counts))
processes.shutdown()
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A corpus of short passages, a random encoder of two layers of 64, and a random language model."""
    path = tmp_path_factory.mktemp("shards") / "base"
    rng = np.random.default_rng(0)
    words = np.array([f"{a}{b}" for a in "bcdfghjklmnprstv" for b in ("an", "el", "ir", "os", "um", "ay")])

    def text(number: int) -> str:
        drawn = words[rng.integers(len(words), size=20)]
        return f"Place {number} is {' '.join(drawn)}."

    chunks = [Chunk(f"c{number}", f"Place {number}", text(number)) for number in range(CHUNKS)]

    def question(number: int) -> Question:
        answer = chunks[number].text.split()[3]
        return Question(f"q{number}", f"What is Place {number}?", (answer,), (f"c{number}",))

    numbers = rng.permutation(CHUNKS)[: QUESTIONS + 150].tolist()
    questions = {
        "train": list(map(question, numbers[:QUESTIONS])),
        "dev": list(map(question, numbers[QUESTIONS : QUESTIONS + 100])),
        "test": list(map(question, numbers[QUESTIONS + 100 :])),
    }
    workdir = Workdir(path)
    folders = {name: workdir.folder(name, "a" * 12) for name in ("corpus", "lm", "retriever")}
    write_corpus(folders["corpus"], CorpusData(chunks, questions), chunks_per_file=SHARD)
    sample = [chunk.passage for chunk in chunks[:2000]]
    lm_tokenizer, encoder_tokenizer = train_bpe(sample, 512), train_wordpiece(sample, 512)
    encoder_tokenizer.hf.model_max_length = 64
    decoder = DecoderLm(
        DecoderConfig(
            vocab_size=lm_tokenizer.vocab_size,
            hidden_size=16,
            num_layers=1,
            num_heads=2,
            num_kv_heads=2,
            head_size=8,
            ffn_size=32,
        )
    )
    tower = Bert(
        BertConfig(
            vocab_size=encoder_tokenizer.vocab_size,
            hidden_size=64,
            num_layers=2,
            num_heads=2,
            ffn_size=128,
            max_length=64,
            pooling="mean",
            normalize=True,
        )
    )
    tokens = jnp.zeros((1, 4), jnp.int32)
    encoder = Model(tower, random_params(tower, tokens, tokens == 0), encoder_tokenizer)
    for folder, name, model in (
        ("lm", "lm", Model(decoder, random_params(decoder, tokens), lm_tokenizer)),
        ("retriever", "query_encoder", encoder),
        ("retriever", "chunk_encoder", encoder),
    ):
        save_model(folders[folder].path / name, model)
        folders[folder].commit(name)
    folders["corpus"].finish(chunks=CHUNKS)
    folders["lm"].finish()
    folders["retriever"].finish()
    return path


def run(base: pathlib.Path, name: str, count: int, last: str = "evaluate", kill: str = "") -> list[dict]:
    """The stages up to `last` by so many processes, in a workdir next to `base`; what each counted."""
    workdir = base.with_name(name)
    workdir.mkdir(exist_ok=True)
    for stage in ("corpus", "lm", "retriever"):
        if not (workdir / stage).exists():
            (workdir / stage).symlink_to(base / stage)
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        "JAX_COMPILATION_CACHE_DIR": str(base.with_name("compiled")),
        "RADIT_JOIN_SECONDS": "300",
        "SHARD": str(SHARD),
        "CHUNKS": str(CHUNKS),
        "KILL": kill,
    }
    arguments = [str(workdir), str(count), last, str(free_port())]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *arguments, str(number)],
            env=environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(count)
    ]
    printed = [process.communicate()[0] for process in started]
    codes = [process.returncode for process in started]
    if kill:
        assert sorted(codes) == [1, 1, 1, 9], printed
        assert all("is gone" in text for text, code in zip(printed, codes, strict=True) if code == 1), printed
        return []
    assert codes == [0] * count, "\n".join(printed)
    return [json.loads(text.splitlines()[-1]) for text in printed]


def folder_of(base: pathlib.Path, name: str, stage: str) -> StageFolder:
    return StageFolder(base.with_name(name) / stage / ("b" * 12))


@pytest.fixture(scope="module")
def counted(base: pathlib.Path) -> tuple[dict, list[dict]]:
    """What one process counts, and each of four."""
    (one,) = run(base, "one", 1)
    return one, run(base, "four", 4)


def test_four_processes_make_what_one_makes(base: pathlib.Path, counted: tuple[dict, list[dict]]) -> None:
    assert counted
    one, four = ({stage: folder_of(base, name, stage) for stage in counted[0]} for name in ("one", "four"))
    for name in one["embed"].manifest["files"]:
        arrays = [folders["embed"].map_arrays([name])[0] for folders in (one, four)]
        np.testing.assert_allclose(*arrays, rtol=0, atol=2e-6)
    retrieved = [Retrieved.load(folders["retrieve"], "train") for folders in (one, four)]
    assert retrieved[0].examples == retrieved[1].examples
    rows = [of_run.chunk_rows for of_run in retrieved]
    assert (rows[0] == rows[1]).mean() > 0.999  # vectors that differ in their last bits may change near ties
    same = (rows[0] == rows[1]).all(axis=1)
    scores = [Scores.load(folders["score"]) for folders in (one, four)]
    for name in ("answer_log_probs", "no_chunk_log_probs"):
        of_runs = [getattr(of_run, name)[same] for of_run in scores]
        np.testing.assert_allclose(*of_runs, rtol=0, atol=1e-4)
    results = [folders["evaluate"].read_json("results.json") for folders in (one, four)]
    for system, figures in results[0]["systems"].items():
        for name, figure in figures.items():
            assert abs(figure["value"] - results[1]["systems"][system][name]["value"]) < 0.04


def test_each_of_four_reads_and_writes_its_share(counted: tuple[dict, list[dict]]) -> None:
    one, four = counted
    for stage, alone in one.items():
        seconds = [round(process[stage]["seconds"], 1) for process in four]
        for what in ("written", "read", "chunks", "verified"):
            shares = [round(process[stage][what] / max(1, alone[what]), 3) for process in four]
            print(f"{stage} {what}: alone {alone[what]}, of four {shares}")
        print(f"{stage}: {alone['seconds']:.1f} s alone, {seconds} s of four")
    for process in four:
        for stage, what in SHARED:
            assert process[stage][what] <= 1.3 * one[stage][what] / 4, (stage, what)
    # Each shard of embeddings is written by one.
    assert sum(process["embed"]["written"] for process in four) == one["embed"]["written"]
    # Where chunks are searched, each opens the embeddings of its own rows.
    opened = [set(process["retrieve"]["opened"]) for process in four]
    num_files = len(set(one["retrieve"]["opened"]))
    assert max(map(len, opened)) <= 1.3 * num_files / 4 + 1


def test_a_plan_for_four_hosts_counts_what_four_processes_counted(counted: tuple[dict, list[dict]]) -> None:
    _, four = counted
    # 1) The plan: the encoder's vectors of 64 numbers, on four hosts.
    lm = DecoderConfig(
        vocab_size=512, hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=2, head_size=8, ffn_size=32
    )
    bert = BertConfig(vocab_size=512, hidden_size=64, num_layers=2, num_heads=2, ffn_size=128)
    optimizer = OptimizerConfig(steps=1, peak_lr=1e-4)
    experiment = Experiment(
        name="shards",
        data=GeneratedWorld(),
        base=BaseConfig(lm=LmConfig(model=lm), retriever=RetrieverConfig(model=bert)),
        lm_ft=LmFtConfig(optimizer),
        r_ft=RFtConfig(optimizer),
    )
    counts = Counts(chunks=CHUNKS, chunk_words=24, examples=QUESTIONS, questions=50)
    plan = Deployment(experiment, find_target("h100-32"), counts)
    need = with_files(plan_embed(plan), plan, {}, in_bucket=False)
    searched = opened(plan, "embed/retriever", "retrieve", in_bucket=False)

    # 2) What each process counted: bytes written, records read, and bytes of the files that it searched.
    for process in four:
        assert process["embed"]["written"] == pytest.approx(need.written, rel=0.2)
        assert process["embed"]["chunks"] == pytest.approx(CHUNKS / plan.target.num_hosts, rel=0.2)
        files = set(process["retrieve"]["opened"])
        # With few files a process has a part of one more.
        file = SHARD * 64 * 4
        assert len(files) * file == pytest.approx(searched, rel=0.2, abs=file)


@pytest.mark.parametrize(("stage", "shards"), [("embed", "embeddings-"), ("score", "pairs-")])
def test_a_killed_process_costs_its_shard_alone(
    base: pathlib.Path, counted: tuple[dict, list[dict]], stage: str, shards: str
) -> None:
    """The three others finish theirs of the turn, and two processes make the rest."""
    name = f"killed-{stage}"
    workdir = base.with_name(name)
    workdir.mkdir()
    if stage == "score":
        for earlier in ("embed", "index", "retrieve"):
            (workdir / earlier).symlink_to(base.with_name("four") / earlier)
    run(base, name, 4, last=stage, kill=f"{stage} 2")

    # What is committed stays as it is.
    folder = pathlib.Path(folder_of(base, name, stage).path)
    committed = [path.with_suffix("") for path in folder.glob(f"{shards}*.sha256")]
    changed = {path: path.stat().st_mtime_ns for path in committed}
    assert len(changed) == 3
    run(base, name, 2, last=stage)
    assert {path: path.stat().st_mtime_ns for path in committed} == changed
    one, again = folder_of(base, "one", stage), folder_of(base, name, stage)
    assert one.manifest["files"].keys() == again.manifest["files"].keys()
