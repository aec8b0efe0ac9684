"""R-ft: training steps on questions and their ten chunks each, MiniLM as the query encoder.

Ours and the bare loop in PyTorch train the query encoder over frozen vectors of the chunks, with Eq. 5 as
printed and AdamW, from the same weights over the same batches; their losses of the first turn are compared.
sentence-transformers' trainer does what it does with such data: in each step it encodes the chunks again with
the encoder that learns, and it uses its own `DistillKLDivLoss`.

The teacher's scores are drawn: normal ones, and 2 more for a chunk that holds an answer.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.compare import Benchmark, Target, Worker
from benchmarks.worker import Once, Work

# Of a turn over frozen vectors:
BATCH = 64
STEPS = 8
# Of a turn that encodes the chunks (larger batches take too much memory):
TEXT_BATCH = 4
TEXT_STEPS = 4
QUERY_LENGTH = 64
TEMPERATURE = 0.05  # of p_R
PEAK, B1, B2, EPS, CLIP = 1e-4, 0.9, 0.95, 1e-8, 1.0  # AdamW, without decay


def prepare(folder: pathlib.Path) -> Mapping[str, Any]:
    """Questions as tokens and as texts, their chunks, the teacher's scores, and MiniLM for the peers."""
    from benchmarks import inputs
    from radit_jax.runtime.pretrained.hf_export import export_hf
    from radit_jax.text.metrics import contains_answer

    texts = inputs.texts()
    candidates = inputs.candidates(folder.parent, texts.passages, texts.train, "train")
    rng = np.random.default_rng(3)
    drawn = rng.choice(len(texts.train), BATCH * STEPS, replace=False)
    questions = [texts.train[number] for number in drawn.tolist()]
    rows = candidates[drawn]
    passages, holds_answer = [], []
    for question, chunk_rows in zip(questions, rows.tolist(), strict=True):
        question_passages = [texts.passages[row] for row in chunk_rows]
        passages.append(question_passages)
        holds_answer.append([contains_answer(passage, question.answers) for passage in question_passages])
    scores = rng.standard_normal(rows.shape) + 2.0 * np.array(holds_answer)
    log_probs = (scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))).astype(np.float32)
    model = inputs.encoder().model
    export_hf(folder / "minilm", model)
    ids = model.tokenizer.encode_all([question.question for question in questions], QUERY_LENGTH)
    tokens, mask = model.tokenizer.pad(ids)
    np.save(folder / "vectors.npy", inputs.embeddings(folder.parent, "passages", texts.passages))
    np.savez(folder / "steps.npz", tokens=tokens, mask=mask, rows=rows, log_probs=log_probs)
    count = TEXT_BATCH * TEXT_STEPS
    written = [{"query": q.question, "passages": p} for q, p in zip(questions, passages, strict=True)]
    inputs.write_json(folder / "texts.json", written[:count])
    return {
        "inputs": texts.source,
        "queries of a turn": len(questions),
        "chunks of each": rows.shape[1],
        "tokens a query": float(mask.sum(axis=1).mean()),
        "longest of a batch": float(mask.sum(axis=1).reshape(-1, BATCH).max(axis=1).mean()),
    }


def ours(folder: pathlib.Path) -> Once:
    """The step of the r_ft stage over mapped vectors."""
    from benchmarks import inputs
    from radit_jax.config import OptimizerConfig
    from radit_jax.method.optimizers import make_optimizer
    from radit_jax.method.steps import RftBatch, init_state, make_r_ft_step
    from radit_jax.retrieval.tuning import PackedQueries
    from radit_jax.runtime.distributed.mesh import init_sharded, put_batch

    encoder, (tokens, mask, rows, log_probs) = inputs.encoder(), _steps(folder)
    vectors = np.load(folder / "vectors.npy", mmap_mode="r")
    ids = [row[seen].tolist() for row, seen in zip(tokens, mask, strict=True)]
    queries = PackedQueries.fit(ids, [range(len(ids))[some] for some in _batches()], unit=1)
    tx = make_optimizer(OptimizerConfig(steps=10**9, peak_lr=PEAK, b1=B1, b2=B2, clip_norm=CLIP))
    state, shardings = init_sharded(lambda p: init_state(p, tx), encoder.mesh, encoder.model.params)
    step: Any = make_r_ft_step(encoder.module, tx, temperature=TEMPERATURE, state_shardings=shardings)
    first: list[float] = []

    def once() -> Work:
        nonlocal state, first
        told = []
        for some in _batches():
            packed = queries.batch(range(len(ids))[some])
            arrays = packed, vectors[rows[some]], log_probs[some], rows[some] >= 0
            state, metrics = step(state, RftBatch(*put_batch(arrays, encoder.mesh)))
            told.append(metrics["loss"])
        first = first or [float(loss) for loss in told]
        told[-1].block_until_ready()
        return Work(BATCH * STEPS, np.array(first))

    return once


def torch_frozen(folder: pathlib.Path) -> Once:
    """A bare loop over frozen vectors: BertModel, the KL, clipping, fused AdamW."""
    import torch
    from transformers import AutoModel

    loaded: Any = AutoModel.from_pretrained(folder / "minilm", dtype=torch.float32, add_pooling_layer=False)
    model = loaded.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=PEAK, betas=(B1, B2), eps=EPS, weight_decay=0.0, fused=True
    )
    tokens, mask, rows, log_probs = _steps(folder)
    vectors = np.load(folder / "vectors.npy", mmap_mode="r")
    first: list[float] = []

    def loss_of(some: slice) -> Any:
        width = int(mask[some].sum(axis=1).max())
        seen = torch.tensor(mask[some, :width])
        hidden = model(torch.tensor(tokens[some, :width]).long(), seen.long()).last_hidden_state
        mean = (hidden * seen[:, :, None]).sum(1) / seen.sum(1, keepdim=True)
        queries = torch.nn.functional.normalize(mean)
        scores = torch.einsum("bd,bkd->bk", queries, torch.tensor(vectors[rows[some]]))
        ours = torch.log_softmax(scores / TEMPERATURE, dim=1)
        return (ours.exp() * (ours - torch.tensor(log_probs[some]))).sum(1).mean()

    def once() -> Work:
        nonlocal first
        told = []
        for some in _batches():
            optimizer.zero_grad(set_to_none=True)
            loss = loss_of(some)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            told.append(loss.item())
        first = first or told
        return Work(BATCH * STEPS, np.array(first))

    return once


def trainer(folder: pathlib.Path) -> Once:
    """SentenceTransformerTrainer with DistillKLDivLoss."""
    from datasets import Dataset  # pyright: ignore[reportMissingImports]
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.losses import DistillKLDivLoss

    read = json.loads((folder / "texts.json").read_text())
    log_probs = _steps(folder)[3]
    columns = {
        f"passage_{k}": [line["passages"][k] for line in read] for k in range(len(read[0]["passages"]))
    }
    dataset = Dataset.from_dict(
        {"query": [line["query"] for line in read], **columns, "label": log_probs[: len(read)].tolist()}
    )
    model = SentenceTransformer(str(folder / "minilm"), device="cpu")
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder / "trainer"),
        per_device_train_batch_size=TEXT_BATCH,
        max_steps=TEXT_STEPS,
        learning_rate=PEAK,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )

    def once() -> Work:
        told = SentenceTransformerTrainer(
            model=model,
            args=arguments,
            train_dataset=dataset,
            loss=DistillKLDivLoss(model, student_temperature=TEMPERATURE, teacher_temperature=1.0),
        ).train()
        return Work(len(read), np.array([told.training_loss]))

    return once


def agreement(outputs: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
    """Losses of the first turn: of its first step, and of the others, which tell of the updates."""
    ours, theirs = outputs["radit_jax"], outputs["PyTorch, frozen vectors"]
    apart = np.abs(ours - theirs)
    return {
        "loss of the first step": float(ours[0]),
        "of the last": float(ours[-1]),
        "difference to PyTorch's in the first": float(apart[0]),
        "at most": float(apart.max()),
    }


BENCHMARK = Benchmark(
    name="r_ft",
    title="R-ft",
    unit="queries",
    workers=(
        Worker("radit_jax", "ours"),
        Worker("PyTorch, frozen vectors", "torch_frozen"),
        # The trainer wants `datasets`, which fed-rag's environment has.
        Worker("sentence-transformers' trainer", "trainer", environment=".venv-fed-rag"),
    ),
    prepare=prepare,
    agreement=agreement,
    targets=(Target("sentence-transformers' trainer", 40.0), Target("PyTorch, frozen vectors", 0.9)),
)


def _batches() -> list[slice]:
    return [slice(start, start + BATCH) for start in range(0, BATCH * STEPS, BATCH)]


def _steps(folder: pathlib.Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, mask, the chunks' rows and the teacher's log-probabilities of all queries."""
    stored = np.load(folder / "steps.npz")
    return stored["tokens"], stored["mask"], stored["rows"], stored["log_probs"]
