"""What R-ft has learnt after equal wall seconds: MRR@10 over a whole corpus, on questions not trained on.

All start from MiniLM's first four layers and learn from the same questions. Ours and sentence-transformers'
`DistillKLDivLoss` have an oracle as teacher, which prefers chunks that hold an answer; fed-rag's trainer
computes its own scores, with a language model of drawn weights. The peers keep the ten candidates of the
untrained encoder; ours retrieves new ones during training, as `r_ft.refresh_every` does. The seconds are
those of training, with compiling and retrieving, without evaluation. Where a trainer changes the encoder of
chunks, the corpus is embedded again, and the seconds of that are reported separately.
"""

import json
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks import compare
from benchmarks.compare import Benchmark, Worker
from benchmarks.worker import Once, Work

SECONDS = 120.0
BATCH = 64  # queries
MOST_STEPS = 1000
TEXT_BATCH = 8  # of queries whose chunks are encoded too: more take too much memory
SCORED_BATCH = 4  # of queries whose chunks are scored too
PEAK, WARMUP, TEMPERATURE = 1e-4, 20, 0.05
REFRESH_EVERY = 30  # steps of ours; chosen of 30 and 60 on train questions 5,000 to 6,500
QUERY_LENGTH, NUM_LAYERS, K = 64, 4, 10
OURS, BASE = compare.OURS, "not trained"
CHUNKS_TOO = "sentence-transformers, DistillKLDivLoss"  # its one encoder is that of chunks as well


def run(cache: pathlib.Path, rounds: int) -> dict[str, Any]:
    """The record: each system trained once, whatever `rounds` is, and judged on all questions."""
    record = compare.run(_BENCHMARK, cache, 0)
    folder = cache.absolute() / _BENCHMARK.name
    test = _read(folder)["test"]
    again = {CHUNKS_TOO: _embed_again(folder)} if CHUNKS_TOO in record["workers"] else {}
    hits = {name: _hits(folder, name) for name in (BASE, *record["workers"])}
    return {
        **record,
        "seconds of embedding anew": again,
        "judged": _judged(hits, [question["group"] for question in test]),
        "change": {name: _change(folder, name) for name in hits},
    }


def section(record: Mapping[str, Any]) -> str:
    """A row for each system, and by how much ours is above it."""
    from benchmarks import tables

    rows = [
        "| | queries seen | embedding anew | largest change of a weight | MRR@10 | recall@1 "
        "| MRR@10 of ours above it |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name, told in record["judged"].items():
        seen = record["workers"].get(name, {}).get("first", {}).get("units", 0)
        gain = "" if told["gain"] is None else _interval(told["gain"], "+.3f")
        change, recall = f"{record['change'][name]:.2g}", f"{told['recall@1']:.3f}"
        seconds = f"{again:.0f} s" if (again := record["seconds of embedding anew"].get(name)) else ""
        rows.append(
            f"| {name} | {seen:,.0f} | {seconds} | {change} | {_interval(told['mrr'])} | {recall} | {gain} |"
        )
    return "\n\n".join((tables.heading(_BENCHMARK, record), "\n".join(rows))) + "\n"


def prepare(folder: pathlib.Path) -> Mapping[str, Any]:
    """Texts, vectors, candidates with the oracle's judgement, the four layers, and an LM for who scores."""
    from benchmarks import inputs
    from radit_jax.retrieval.exact import ExactIndex
    from radit_jax.runtime.pretrained.hf_export import export_hf

    encoder, texts = inputs.encoder(NUM_LAYERS), inputs.texts()
    train, test = texts.train[:5000], texts.test[:1000]
    export_hf(folder / _folder(BASE), encoder.model)
    inputs.language_model(folder / "lm")
    vectors = inputs.embeddings(folder.parent, f"passages-{NUM_LAYERS}-layers", texts.passages, NUM_LAYERS)
    rows, _ = ExactIndex(np.asarray(vectors)).search(encoder.embed([line.question for line in train]), K)
    np.save(folder / "vectors.npy", vectors)
    told = {"passages": texts.passages, "train": list(map(_plain, train)), "test": list(map(_plain, test))}
    inputs.write_json(folder / "texts.json", told)
    np.savez(folder / "signal.npz", rows=rows, log_probs=Oracle(told["passages"], told["train"])(rows))
    return {
        "inputs": texts.source,
        "teacher": "an oracle",
        "seconds": SECONDS,
        "passages": len(texts.passages),
        "questions to learn from": len(train),
        "to be judged by": len(test),
    }


class Oracle:
    """log p_LSR of a teacher who knows the answers: 2 nats more for each chunk that holds one."""

    def __init__(self, passages: Sequence[str], questions: Sequence[Mapping[str, Any]]) -> None:
        self._passages, self._questions = passages, questions
        self._known: dict[tuple[int, int], bool] = {}

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Of each question's chunks, [Q, K]; what was asked before is remembered, as a run's scores are."""
        scores = 2.0 * np.array([[self._holds(n, row) for row in own] for n, own in enumerate(rows.tolist())])
        return (scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))).astype(np.float32)

    def _holds(self, number: int, row: int) -> bool:
        from radit_jax.text.metrics import contains_answer

        if (number, row) not in self._known:
            holds = contains_answer(self._passages[row], self._questions[number]["answers"])
            self._known[number, row] = holds
        return self._known[number, row]


def ours(folder: pathlib.Path) -> Once:
    """The step of the r_ft stage, and its rounds of candidates."""
    from radit_jax.config import OptimizerConfig
    from radit_jax.data.batches.order import shuffled
    from radit_jax.method.optimizers import make_optimizer
    from radit_jax.method.steps import RftBatch, init_state, make_r_ft_step
    from radit_jax.retrieval.exact import ExactIndex
    from radit_jax.retrieval.tuning import PackedQueries
    from radit_jax.runtime.distributed.mesh import init_sharded, put_batch
    from radit_jax.runtime.pretrained.hf_export import export_hf

    encoder, texts, signal = _encoder(folder, BASE), _read(folder), np.load(folder / "signal.npz")
    vectors = np.load(folder / "vectors.npy", mmap_mode="r")
    asked = [question["question"] for question in texts["train"]]
    numbers = shuffled(len(asked), batch_size=BATCH, seed=0)
    ids = encoder.model.tokenizer.encode_all(asked, QUERY_LENGTH)
    tx = make_optimizer(OptimizerConfig(steps=10**9, peak_lr=PEAK, warmup_steps=WARMUP))

    def once() -> Work:
        start, taken = time.perf_counter(), 0
        rows, log_probs = signal["rows"], signal["log_probs"]
        index, oracle = ExactIndex(vectors), Oracle(texts["passages"], texts["train"])
        queries = PackedQueries.fit(ids, map(numbers, range(MOST_STEPS)), unit=1)
        state, shardings = init_sharded(lambda p: init_state(p, tx), encoder.mesh, encoder.model.params)
        step: Any = make_r_ft_step(encoder.module, tx, temperature=TEMPERATURE, state_shardings=shardings)
        while taken < MOST_STEPS and time.perf_counter() - start < SECONDS:
            if taken and taken % REFRESH_EVERY == 0:
                rows, _ = index.search(encoder.with_params(state.params).embed(asked), K)
                log_probs = oracle(rows)
            some = numbers(taken)
            arrays = queries.batch(some), vectors[rows[some]], log_probs[some], rows[some] >= 0
            state, metrics = step(state, RftBatch(*put_batch(arrays, encoder.mesh)))
            metrics["loss"].block_until_ready()
            taken += 1
        export_hf(folder / _folder(OURS), encoder.model._replace(params=state.params))
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
    asked = [question["question"] for question in texts["train"]]
    dataset = Dataset.from_dict({"query": asked, **columns, "label": signal["log_probs"].tolist()})
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
    pairs = {
        "query": [q["question"] for q in texts["train"]],
        "response": [q["answers"][0] for q in texts["train"]],
    }
    dataset = Dataset.from_dict(pairs)
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
    """A callback that ends training after the step in which the seconds are over."""
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
    workers=(
        Worker(OURS, "ours"),
        # Its trainer wants `datasets`, which fed-rag's environment has.
        Worker(CHUNKS_TOO, "distill", environment=".venv-fed-rag"),
        Worker("fed-rag", "fed_rag", environment=".venv-fed-rag"),
    ),
    prepare=prepare,
    agreement=lambda outputs: {"steps of " + name: int(output) for name, output in outputs.items()},
)


def _embed_again(folder: pathlib.Path) -> float:
    """The seconds that the encoder trained on both sides takes to embed the passages."""
    passages, encoder = _read(folder)["passages"], _encoder(folder, CHUNKS_TOO)
    module = encoder.model.module.clone(dtype=np.dtype("bfloat16"))
    start = time.perf_counter()
    vectors = type(encoder)(encoder.model._replace(module=module), encoder.mesh).embed(passages)
    np.save(folder / "vectors-again.npy", vectors)
    return time.perf_counter() - start


def _hits(folder: pathlib.Path, name: str) -> np.ndarray:
    """Which of the ten chunks that a system's encoder finds for each question hold an answer."""
    from radit_jax.retrieval.exact import ExactIndex
    from radit_jax.text.metrics import contains_answer

    texts, encoder = _read(folder), _encoder(folder, name)
    vectors = np.load(folder / ("vectors-again.npy" if name == CHUNKS_TOO else "vectors.npy"))
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
    from radit_jax.runtime.distributed.mesh import make_mesh
    from radit_jax.runtime.pretrained.model_io import load_pretrained

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
