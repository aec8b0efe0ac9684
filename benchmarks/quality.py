"""What R-ft has learnt after equal wall seconds: MRR@10 over a whole corpus, on questions of no training.

All start from MiniLM's first four layers, on the same questions with the same ten candidates. Ours and
sentence-transformers' `DistillKLDivLoss` learn from the same teacher; fed-rag's trainer scores for itself,
with the same language model. Seconds are those of training, compilation included, and not those of
evaluation. A trainer that changes the encoder of chunks has the corpus embedded anew.

The teacher is the language model of a finished run of `experiments/wiki_small.py`, whose workdir `RADIT_RUN`
names. Without one it is an oracle: chunks that hold an answer are the good ones.
"""

import json
import os
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks import compare
from benchmarks.compare import Benchmark, Contestant
from benchmarks.contestant import Once, Work

SECONDS = 120.0
BATCH = 64  # queries
MOST_STEPS = 5000
TEXT_BATCH = 8  # of queries whose chunks are encoded too: more take too much memory
SCORED_BATCH = 4  # of queries whose chunks are scored too
PEAK, WARMUP, TEMPERATURE = 1e-4, 20, 0.05
QUERY_LENGTH, NUM_LAYERS, K = 64, 4, 10
OURS, BASE = compare.OURS, "not trained"
CHUNKS_TOO = "sentence-transformers, DistillKLDivLoss"  # its one encoder is that of chunks as well


class Signal(NamedTuple):
    """What there is to learn: questions, their candidates, and the teacher's judgement of them."""

    source: str
    teacher: str
    passages: list[str]
    vectors: np.ndarray  # of the passages, [C, D]
    queries: list[str]
    answers: list[str]
    rows: np.ndarray  # of each query's candidates, [Q, K]
    log_probs: np.ndarray  # log p_LSR of them
    test: list[dict[str, Any]]  # question, answers, group


def run(cache: pathlib.Path, rounds: int) -> dict[str, Any]:
    """The record: each system trained once, whatever `rounds` is, and judged on all questions."""
    record = compare.run(_BENCHMARK, cache, 0)
    folder = cache.absolute() / _BENCHMARK.name
    test = _read(folder)["test"]
    hits = {name: _hits(folder, name) for name in (BASE, *record["contestants"])}
    return {
        **record,
        "judged": _judged(hits, [question["group"] for question in test]),
        "change": {name: _change(folder, name) for name in hits},
    }


def section(record: Mapping[str, Any]) -> str:
    """A row for each system, and by how much ours is above it."""
    from benchmarks import tables

    rows = [
        "| | queries seen | largest change of a weight | MRR@10 | recall@1 | MRR@10 of ours above it |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, told in record["judged"].items():
        seen = record["contestants"].get(name, {}).get("first", {}).get("units", 0)
        gain = "" if told["gain"] is None else _interval(told["gain"], "+.3f")
        change, recall = f"{record['change'][name]:.2g}", f"{told['recall@1']:.3f}"
        rows.append(f"| {name} | {seen:,.0f} | {change} | {_interval(told['mrr'])} | {recall} | {gain} |")
    return "\n\n".join((tables.heading(_BENCHMARK, record), "\n".join(rows))) + "\n"


def prepare(folder: pathlib.Path) -> Mapping[str, Any]:
    """The signal, the four layers for the peers, and the language model for the one that scores."""
    from benchmarks import inputs
    from radit_jax.runtime.models import load_model
    from radit_jax.runtime.publish import publish

    finished = os.environ.get("RADIT_RUN")
    encoder = inputs.encoder(NUM_LAYERS)
    publish(folder / _folder(BASE), encoder.model)
    if finished:
        signal = _of_run(pathlib.Path(finished), encoder)
        (path,) = pathlib.Path(finished).glob("lm_ft/*/lm")
        publish(folder / "lm", load_model(path))
    else:
        signal = _of_oracle(folder, encoder)
        inputs.language_model(folder / "lm")
    np.savez(folder / "signal.npz", rows=signal.rows, log_probs=signal.log_probs)
    np.save(folder / "vectors.npy", signal.vectors)
    texts = {name: getattr(signal, name) for name in ("passages", "queries", "answers", "test")}
    inputs.write_json(folder / "texts.json", texts)
    return {
        "inputs": signal.source,
        "teacher": signal.teacher,
        "seconds": SECONDS,
        "passages": len(signal.passages),
        "questions to learn from": len(signal.queries),
        "to be judged by": len(signal.test),
    }


def _of_run(workdir: pathlib.Path, encoder: Any) -> Signal:
    """What a run of the experiment has left."""
    from experiments.wiki_small import experiment
    from radit_jax.data.corpus import Corpus
    from radit_jax.data.retrieved import Retrieved
    from radit_jax.data.scores import Scores
    from radit_jax.retrieval.embeddings import Embeddings
    from radit_jax.runtime.store import StageFolder
    from radit_jax.stages.r_ft import target_log_probs

    def folders(stage: str) -> list[StageFolder]:
        return [StageFolder(path.parent) for path in sorted(workdir.glob(f"{stage}/*/manifest.json"))]

    try:
        (corpus,), (score,), (embed,) = map(folders, ("corpus", "score", "embed"))
    except ValueError as error:
        raise ValueError(
            f"quality: {workdir} has no stage corpus, score or embed, or several of one; name in RADIT_RUN "
            "the workdir of one finished run of experiments/wiki_small.py"
        ) from error
    scores = Scores.load(score)
    retrieved = (Retrieved.load(folder, "train") for folder in folders("retrieve"))
    examples = next(r.examples for r in retrieved if np.array_equal(r.chunk_rows, scores.chunk_rows))
    vectors = Embeddings.load(embed)[np.arange(embed.manifest["chunks"])]
    queries = [example.query for example in examples]
    again = np.einsum("qd,qkd->qk", encoder.embed(queries[:64]), vectors[scores.chunk_rows[:64]])
    assert np.allclose(again, scores.retrieval_scores[:64], atol=0.01), "the run has another retriever"
    return Signal(
        source="wiki",
        teacher="the language model of wiki_small",
        passages=[chunk.passage for chunk in Corpus(corpus).chunks],
        vectors=vectors,
        queries=queries,
        answers=[example.answer.strip() for example in examples],
        rows=scores.chunk_rows,
        log_probs=target_log_probs(scores, experiment().r_ft),
        test=[_plain(question) for question in Corpus(corpus).questions("test")],
    )


def _of_oracle(folder: pathlib.Path, encoder: Any) -> Signal:
    """Without a language model: 2 nats more for each candidate that holds an answer."""
    from benchmarks import inputs
    from radit_jax.retrieval.exact import ExactIndex
    from radit_jax.text.metrics import contains_answer

    texts = inputs.texts()
    train, test = texts.train[:5000], texts.test[:1000]
    vectors = inputs.embeddings(folder.parent, f"passages-{NUM_LAYERS}-layers", texts.passages, NUM_LAYERS)
    queries = [question.question for question in train]
    rows, _ = ExactIndex(np.asarray(vectors)).search(encoder.embed(queries), K)
    holds = [
        [contains_answer(texts.passages[row], question.answers) for row in own]
        for question, own in zip(train, rows.tolist(), strict=True)
    ]
    scores = 2.0 * np.array(holds, np.float32)
    return Signal(
        source=texts.source,
        teacher="an oracle",
        passages=texts.passages,
        vectors=np.asarray(vectors),
        queries=queries,
        answers=[question.answers[0] for question in train],
        rows=rows,
        log_probs=scores - np.log(np.exp(scores).sum(axis=1, keepdims=True)),
        test=[_plain(question) for question in test],
    )


def ours(folder: pathlib.Path) -> Once:
    """The step of the r_ft stage."""
    from radit_jax.config import OptimizerConfig
    from radit_jax.data.order import shuffled
    from radit_jax.method.steps import RftBatch, init_state, make_optimizer, make_r_ft_step
    from radit_jax.runtime.mesh import init_sharded, put_batch
    from radit_jax.runtime.publish import publish
    from radit_jax.stages.r_ft import Queries

    encoder, texts, signal = _encoder(folder, BASE), _read(folder), np.load(folder / "signal.npz")
    rows, log_probs = signal["rows"], signal["log_probs"]
    vectors = np.load(folder / "vectors.npy", mmap_mode="r")
    tokenizer = encoder.model.tokenizer
    numbers = shuffled(len(rows), batch_size=BATCH, seed=0)
    ids = tokenizer.encode_all(texts["queries"], QUERY_LENGTH)
    queries = Queries.fit(ids, map(numbers, range(MOST_STEPS)), unit=1)
    tx = make_optimizer(OptimizerConfig(steps=10**9, peak_lr=PEAK, warmup_steps=WARMUP))

    def once() -> Work:
        state, shardings = init_sharded(lambda p: init_state(p, tx), encoder.mesh, encoder.model.params)
        step: Any = make_r_ft_step(encoder.module, tx, temperature=TEMPERATURE, state_shardings=shardings)
        taken, start = 0, time.perf_counter()
        while taken < MOST_STEPS and time.perf_counter() - start < SECONDS:
            some = numbers(taken)
            arrays = queries.batch(some), vectors[rows[some]], log_probs[some], rows[some] >= 0
            state, metrics = step(state, RftBatch(*put_batch(arrays, encoder.mesh)))
            metrics["loss"].block_until_ready()
            taken += 1
        publish(folder / _folder(OURS), encoder.model._replace(params=state.params))
        return Work(taken * BATCH, np.array(taken))

    return once


def distill(folder: pathlib.Path) -> Once:
    """SentenceTransformerTrainer with DistillKLDivLoss."""
    from datasets import Dataset  # pyright: ignore[reportMissingImports]
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
    from sentence_transformers.sentence_transformer.losses import DistillKLDivLoss

    texts, signal = _read(folder), np.load(folder / "signal.npz")
    passages, rows = texts["passages"], signal["rows"].tolist()
    columns = {f"passage_{k}": [passages[own[k]] for own in rows] for k in range(K)}
    dataset = Dataset.from_dict({"query": texts["queries"], **columns, "label": signal["log_probs"].tolist()})
    model = SentenceTransformer(str(folder / _folder(BASE)), device="cpu")

    def once() -> Work:
        trainer = SentenceTransformerTrainer(
            model=model,
            args=_arguments(folder, TEXT_BATCH),
            train_dataset=dataset,
            loss=DistillKLDivLoss(model, student_temperature=TEMPERATURE, teacher_temperature=1.0),
        )
        trainer.add_callback(_stop())
        trainer.train()
        model.save(str(folder / _folder(CHUNKS_TOO)))
        return Work(trainer.state.global_step * TEXT_BATCH, np.array(trainer.state.global_step))

    return once


def fed_rag(folder: pathlib.Path) -> Once:
    """fed-rag's trainer, with a collator made here.

    The one that its HuggingFaceTrainerForLSR makes lacks what sentence-transformers 6 asks of a collator.
    """
    from datasets import Dataset  # pyright: ignore[reportMissingImports]
    from fed_rag import RAGConfig, RAGSystem  # pyright: ignore[reportMissingImports]
    from fed_rag.data_collators.huggingface import (  # pyright: ignore[reportMissingImports]
        DataCollatorForLSR,
    )
    from fed_rag.data_structures import KnowledgeNode  # pyright: ignore[reportMissingImports]
    from fed_rag.generators.huggingface import HFPretrainedModelGenerator  # pyright: ignore[reportMissingImports]
    from fed_rag.knowledge_stores import InMemoryKnowledgeStore  # pyright: ignore[reportMissingImports]
    from fed_rag.retrievers.huggingface import HFSentenceTransformerRetriever  # pyright: ignore[reportMissingImports]
    from fed_rag.trainers.huggingface.lsr import (  # pyright: ignore[reportMissingImports]
        LSRSentenceTransformerTrainer,
    )

    texts, vectors = _read(folder), np.load(folder / "vectors.npy")
    retriever = HFSentenceTransformerRetriever(
        model_name=str(folder / _folder(BASE)), load_model_kwargs={"device": "cpu"}
    )
    nodes = [
        KnowledgeNode(embedding=vector.tolist(), node_type="text", text_content=passage)
        for vector, passage in zip(vectors, texts["passages"], strict=True)
    ]
    system = RAGSystem(
        generator=HFPretrainedModelGenerator(model_name=str(folder / "lm")),
        retriever=retriever,
        knowledge_store=InMemoryKnowledgeStore.from_nodes(nodes),
        rag_config=RAGConfig(top_k=K),
    )
    dataset = Dataset.from_dict({"query": texts["queries"], "response": texts["answers"]})
    unused = {"preprocess_fn": dict, "router_mapping": {}, "prompts": None}
    collator = DataCollatorForLSR(rag_system=system, **unused)

    def once() -> Work:
        trainer = LSRSentenceTransformerTrainer(
            model=retriever.encoder,
            args=_arguments(folder, SCORED_BATCH),
            data_collator=collator,
            train_dataset=dataset,
        )
        trainer.add_callback(_stop())
        trainer.train()
        retriever.encoder.save(str(folder / _folder("fed-rag")))
        taken = trainer.state.global_step
        return Work(taken * SCORED_BATCH, np.array(taken))

    return once


def _arguments(folder: pathlib.Path, batch: int) -> Any:
    from sentence_transformers import SentenceTransformerTrainingArguments

    return SentenceTransformerTrainingArguments(
        output_dir=str(folder / "trainer"),
        per_device_train_batch_size=batch,
        num_train_epochs=100,
        learning_rate=PEAK,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=WARMUP,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        remove_unused_columns=False,
    )


def _stop() -> Any:
    """A callback that ends training behind the step in which the seconds are over."""
    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.start = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop = time.perf_counter() - self.start >= SECONDS

    return Stop()


_BENCHMARK = Benchmark(
    name="quality",
    title="Held-out quality of R-ft at equal seconds",
    unit="queries",
    contestants=(
        Contestant(OURS, "ours"),
        # Its trainer wants `datasets`, which fed-rag's environment has.
        Contestant(CHUNKS_TOO, "distill", environment=".venv-fed-rag"),
        Contestant("fed-rag", "fed_rag", environment=".venv-fed-rag"),
    ),
    prepare=prepare,
    agreement=lambda outputs: {"steps of " + name: int(output) for name, output in outputs.items()},
)


def _hits(folder: pathlib.Path, name: str) -> np.ndarray:
    """Which of the ten chunks that a system's encoder finds for each question hold an answer."""
    from radit_jax.retrieval.exact import ExactIndex
    from radit_jax.text.metrics import contains_answer

    texts, encoder = _read(folder), _encoder(folder, name)
    vectors = np.load(folder / "vectors.npy")
    if name == CHUNKS_TOO:
        module = encoder.model.module.clone(dtype=np.dtype("bfloat16"))
        vectors = type(encoder)(encoder.model._replace(module=module), encoder.mesh).embed(texts["passages"])
    queries = encoder.embed([question["question"] for question in texts["test"]])
    rows, _ = ExactIndex(vectors).search(queries, K)
    return np.array(
        [
            [contains_answer(texts["passages"][row], question["answers"]) for row in own]
            for question, own in zip(texts["test"], rows.tolist(), strict=True)
        ]
    )


def _change(folder: pathlib.Path, name: str) -> float:
    """By how much training moved the weight that it moved most."""
    import jax

    before, after = (_encoder(folder, each).model.params for each in (BASE, name))
    return max(jax.tree.leaves(jax.tree.map(lambda a, b: float(abs(a - b).max()), before, after)))


def _judged(hits: Mapping[str, np.ndarray], groups: Sequence[str]) -> dict[str, Any]:
    from radit_jax.text.metrics import reciprocal_ranks
    from radit_jax.text.statistics import bootstrap_interval, paired_gain

    ranks = {name: reciprocal_ranks(found) for name, found in hits.items()}
    return {
        name: {
            "mrr": bootstrap_interval(ranks[name], groups, seed=0),
            "recall@1": float(found[:, 0].mean()),
            "gain": paired_gain(ranks[OURS], ranks[name], groups, seed=0)
            if name != OURS and OURS in ranks
            else None,
        }
        for name, found in hits.items()
    }


def _encoder(folder: pathlib.Path, name: str) -> Any:
    from radit_jax.config import MeshConfig
    from radit_jax.retrieval.search import Encoder
    from radit_jax.runtime.mesh import make_mesh
    from radit_jax.runtime.models import load_pretrained

    return Encoder(load_pretrained(str(folder / _folder(name))), make_mesh(MeshConfig()))


def _folder(name: str) -> str:
    return name.partition(",")[0].replace(" ", "-")


def _read(folder: pathlib.Path) -> dict[str, Any]:
    return json.loads((folder / "texts.json").read_text())


def _plain(question: Any) -> dict[str, Any]:
    return {
        "question": question.question,
        "answers": list(question.answers),
        "group": question.group or question.id,
    }


def _interval(figure: Mapping[str, float], form: str = ".3f") -> str:
    return f"{figure['value']:{form}} [{figure['low']:{form}}, {figure['high']:{form}}]"
