"""LM-ft: training steps over the instances (question, chunk) of some questions, only answers in the loss.

All train the same float32 weights with AdamW over the same instances in every turn. The learning rate is 0:
that is the same work, and the losses can be compared. Our packed rows and PyTorch's hold the same instances.
"""

import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.compare import Benchmark, Target, Worker
from benchmarks.worker import Once, Work

NUM_QUESTIONS = 8
CHUNKS = 3  # k̃: instances of each question
# Of a packed batch:
ROW_LENGTH = 512
ROWS = 5
PADDED = 8  # instances in a padded batch
IGNORED = -100  # transformers' label of what is not in the loss


def prepare(folder: pathlib.Path) -> Mapping[str, Any]:
    """The instances as tokens, how they are packed, and the language model in Hugging Face's form."""
    from benchmarks import inputs
    from radit_jax.data.batches.examples import question_example
    from radit_jax.data.batches.packing import fill, pack
    from radit_jax.data.batches.prefix_trees import lm_sequence

    texts = inputs.texts()
    rows = inputs.candidates(folder.parent, texts.passages, texts.train, "train")
    tokenizer = inputs.language_model(folder / "lm").tokenizer
    make = functools.partial(lm_sequence, tokenizer, max_length=ROW_LENGTH, terminator=True)
    trees = []
    for number in np.random.default_rng(1).choice(len(rows), NUM_QUESTIONS, replace=False).tolist():
        question = texts.train[number]
        example = question_example(question, question.answers[0])
        passages = [texts.passages[row] for row in rows[number, :CHUNKS]]
        trees += [make(passage, example)[0] for passage in passages]
    instances = []
    for tree in trees:
        (continuation,) = tree.continuations
        tokens = [*tree.prefix.tokens.tolist(), *continuation.tokens.tolist()]
        instances.append({"tokens": tokens, "answer": int((continuation.weights > 0).sum())})
    packed = pack(trees, row_length=ROW_LENGTH, targets_per_row=ROW_LENGTH)
    inputs.write_json(folder / "instances.json", instances)
    inputs.write_json(folder / "rows.json", packed)
    lengths = np.array([len(instance["tokens"]) for instance in instances])
    return {
        "inputs": texts.source,
        "instances": len(instances),
        "tokens an instance": float(lengths.mean()),
        "answer tokens an instance": sum(i["answer"] for i in instances) / len(instances),
        "fill of packed rows": fill(trees, packed, row_length=ROW_LENGTH),
        "fill of padded batches as they come": _padded_fill(lengths),
        "fill of padded batches by length": _padded_fill(np.sort(lengths)),
    }


def ours(folder: pathlib.Path) -> Once:
    """The step of the lm_ft stage on packed rows."""
    import jax
    import optax

    from benchmarks import inputs
    from radit_jax.config import MeshConfig
    from radit_jax.data.batches.packing import PrefixTree, concatenate_spans, span
    from radit_jax.lm.training import PackedTrees
    from radit_jax.method.steps import init_state, make_lm_step
    from radit_jax.runtime.distributed.mesh import init_sharded, make_mesh, put_batch

    model = inputs.language_model(folder / "lm")
    mesh = make_mesh(MeshConfig())
    trees = []
    for instance in _instances(folder):
        tokens, answer = instance["tokens"], instance["answer"]
        whole = concatenate_spans(span(tokens[:-answer]), span(tokens[-answer:], 1.0))
        trees.append(PrefixTree(span([]), (whole,)))
    packed = PackedTrees(trees, row_length=ROW_LENGTH, batch_size=ROWS, seed=0)
    tx = optax.adamw(0.0)
    state, shardings = init_sharded(lambda params: init_state(params, tx), mesh, model.params)
    step: Any = make_lm_step(model.module, tx, state_shardings=shardings)

    def once() -> Work:
        nonlocal state
        all_metrics = []
        for number in range(len(packed)):
            state, metrics = step(state, put_batch(packed.in_order(number), mesh))
            all_metrics.append(metrics)
        losses = [(float(m["loss"]), float(m["answer_tokens"])) for m in jax.device_get(all_metrics)]
        return _work(losses)

    return once


def torch_packed(folder: pathlib.Path) -> Once:
    """Transformers' LLaMA on the same packed rows, each instance seeing itself only, head on answer rows."""
    import torch

    model = _model(folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)
    instances = _instances(folder)
    rows = json.loads((folder / "rows.json").read_text())
    filled_rows = [[instances[i] for i in row] for row in rows]
    batches = [_packed_batch(filled_rows[start : start + ROWS]) for start in range(0, len(rows), ROWS)]

    def once() -> Work:
        losses = []
        for tokens, positions, segments, slots, targets in batches:
            ids = torch.from_numpy(tokens)
            sees = torch.from_numpy(segments[:, :, None] == segments[:, None, :]).tril()[:, None]
            hidden = model.model(ids, attention_mask=sees, position_ids=torch.from_numpy(positions))
            at_slots = hidden.last_hidden_state.reshape(-1, hidden.last_hidden_state.shape[-1])[slots]
            loss = torch.nn.functional.cross_entropy(model.lm_head(at_slots), torch.from_numpy(targets))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append((loss.item(), len(targets)))
        return _work(losses)

    return once


def hf_trainer(folder: pathlib.Path) -> Once:
    """Transformers' Trainer on padded batches, as they come."""
    return _hf_trainer(folder, by_length=False)


def hf_trainer_by_length(folder: pathlib.Path) -> Once:
    """The same on batches of like length."""
    return _hf_trainer(folder, by_length=True)


def agreement(outputs: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
    """The mean loss of an answer token over a turn."""
    return {f"{name}, nats an answer token": round(float(output), 4) for name, output in outputs.items()}


BENCHMARK = Benchmark(
    name="lm_ft",
    title="LM-ft",
    unit="answer tokens",
    workers=(
        Worker("radit_jax", "ours"),
        Worker("PyTorch, packed, head on answer rows", "torch_packed"),
        Worker("HF Trainer, padded by length", "hf_trainer_by_length"),
        Worker("HF Trainer, padded", "hf_trainer"),
    ),
    prepare=prepare,
    agreement=agreement,
    targets=(
        Target("HF Trainer, padded", 1.5),
        Target("HF Trainer, padded by length", 1.5),
        Target("PyTorch, packed, head on answer rows", 0.7),
    ),
)


def _work(losses: list[tuple[float, float]]) -> Work:
    """The answer tokens and their mean loss, from (mean loss, answer tokens) of each batch."""
    count = sum(tokens for _, tokens in losses)
    total = sum(loss * tokens for loss, tokens in losses)
    return Work(count, np.array(total / count))


def _instances(folder: pathlib.Path) -> list[dict[str, Any]]:
    """Each instance's `tokens`, and how many of the last are its `answer`."""
    return json.loads((folder / "instances.json").read_text())


def _padded_fill(lengths: np.ndarray) -> float:
    """The share of tokens in batches that are padded to their longest instance."""
    batches = [lengths[start : start + PADDED] for start in range(0, len(lengths), PADDED)]
    num_slots = sum(batch.max() * len(batch) for batch in batches)
    return float(lengths.sum() / num_slots)


def _model(folder: pathlib.Path) -> Any:
    """Transformers' LLaMA, to be trained."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder / "lm", dtype=torch.float32).train()


def _packed_batch(rows: list[list[dict[str, Any]]]) -> tuple[np.ndarray, ...]:
    """Tokens, positions, segments, the flat places that predict answers, and what they predict."""
    tokens, positions, segments = np.zeros((3, len(rows), ROW_LENGTH), np.int64)
    slots, targets = [], []
    for number, row in enumerate(rows):
        end = 0
        for segment, instance in enumerate(row, start=1):
            start, end = end, end + len(instance["tokens"])
            tokens[number, start:end] = instance["tokens"]
            positions[number, start:end] = np.arange(end - start)
            segments[number, start:end] = segment
            slots.append(number * ROW_LENGTH + np.arange(end - instance["answer"] - 1, end - 1))
            targets.append(instance["tokens"][-instance["answer"] :])
    return tokens, positions, segments, np.concatenate(slots), np.concatenate(targets)


def _hf_trainer(folder: pathlib.Path, *, by_length: bool) -> Once:
    import torch
    import transformers

    instances = _instances(folder)
    if by_length:
        instances.sort(key=lambda instance: len(instance["tokens"]))
    examples = []
    for instance in instances:
        tokens, answer = instance["tokens"], instance["answer"]
        labels = [IGNORED] * (len(tokens) - answer) + tokens[-answer:]
        examples.append({"input_ids": tokens, "labels": labels})
    counts = []
    for start in range(0, len(instances), PADDED):
        batch = instances[start : start + PADDED]
        counts.append(sum(instance["answer"] for instance in batch))

    class InOrder(transformers.Trainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return torch.utils.data.SequentialSampler(examples)

    def collate(batch: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        width = max(len(example["input_ids"]) for example in batch)
        padded = {
            name: torch.tensor([e[name] + [fill] * (width - len(e[name])) for e in batch])
            for name, fill in (("input_ids", 0), ("labels", IGNORED))
        }
        lengths = torch.tensor([len(e["input_ids"]) for e in batch])
        return {**padded, "attention_mask": (torch.arange(width)[None] < lengths[:, None]).long()}

    model = _model(folder)
    arguments = transformers.TrainingArguments(
        output_dir=str(folder / "trainer"),
        per_device_train_batch_size=PADDED,
        num_train_epochs=1,
        learning_rate=0.0,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=not torch.cuda.is_available(),
        disable_tqdm=True,
    )

    def once() -> Work:
        trainer = InOrder(model=model, args=arguments, train_dataset=examples, data_collator=collate)
        trainer.train()
        losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
        return _work(list(zip(losses, counts, strict=True)))

    return once
