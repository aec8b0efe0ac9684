"""LSR scoring: log p_LM(y | c∘x) of all pairs with a chunk of a sample.

A question's chunks are MiniLM's top ten. All pairs of a drawn chunk are scored, so that in the sample a chunk
has as many questions as in the whole corpus. The peers score pairs in batches of like length.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from benchmarks.compare import Benchmark, Target, Worker
from benchmarks.worker import Once, Work

NUM_CHUNKS = 16  # drawn
SEQUENCE_LENGTH = 512
BATCH = 8  # pairs that PyTorch reads together


Continuation = tuple[list[int], int]  # its tokens, and how many of the last are scored
Tree = tuple[list[int], list[Continuation]]  # a prefix with its continuations


class Pair(NamedTuple):
    """One pair as tokens; the last `answer` tokens are scored."""

    tokens: list[int]
    answer: int


def prepare(folder: pathlib.Path) -> Mapping[str, Any]:
    """The pairs as token trees and as texts, and the language model in Hugging Face's form."""
    from benchmarks import inputs
    from radit_jax.data.batches.examples import question_example
    from radit_jax.data.batches.prefix_trees import shared_sequences
    from radit_jax.text.prompts import background

    texts = inputs.texts()
    rows = inputs.candidates(folder.parent, texts.passages, texts.train, "train")
    tokenizer = inputs.language_model(folder / "lm").tokenizer
    trees: list[Tree] = []
    written: list[dict[str, str]] = []
    for row in np.random.default_rng(0).choice(np.unique(rows), NUM_CHUNKS, replace=False).tolist():
        passage = texts.passages[row]
        asked = [texts.train[number] for number in np.flatnonzero((rows == row).any(axis=1)).tolist()]
        examples = [question_example(question, question.answers[0]) for question in asked]
        for shared in shared_sequences(tokenizer, passage, examples, max_length=SEQUENCE_LENGTH):
            trees.append(_plain(shared.sequence))
            own = [examples[number] for number in shared.examples]
            written += [{"prompt": background(passage) + e.prompt, "answer": e.answer} for e in own]
    inputs.write_json(folder / "trees.json", trees)
    inputs.write_json(folder / "texts.json", written)
    pairs = _pairs(folder)
    distinct = sum(
        len(prefix) + sum(len(tokens) for tokens, _ in continuations) for prefix, continuations in trees
    )
    tokens = sum(len(pair.tokens) for pair in pairs)
    return {
        "inputs": texts.source,
        "pairs": len(pairs),
        "tokens a pair": tokens / len(pairs),
        "answer tokens a pair": sum(pair.answer for pair in pairs) / len(pairs),
        "tokens of all pairs to tokens that differ": tokens / distinct,
    }


def ours(folder: pathlib.Path) -> Once:
    """Trees: each chunk is read once, its questions are continuations."""
    return _ours(folder, _trees(folder))


def ours_apart(folder: pathlib.Path) -> Once:
    """Each pair reads its own copy of its chunk: what is left of the lead is the speed of a token."""
    trees: list[Tree] = []
    for prefix, continuations in _trees(folder):
        trees += [(prefix, [continuation]) for continuation in continuations]
    return _ours(folder, trees)


def _ours(folder: pathlib.Path, plain_trees: list[Tree]) -> Once:
    """The scorer of the score stage."""
    from benchmarks import inputs
    from radit_jax.config import MeshConfig, ScoreConfig
    from radit_jax.data.batches.packing import PrefixTree, concatenate_spans, span
    from radit_jax.lm.scoring import PairScorer
    from radit_jax.runtime.distributed.mesh import make_mesh

    settings = ScoreConfig(batch_size=2, sequence_length=SEQUENCE_LENGTH)
    scorer = PairScorer(inputs.language_model(folder / "lm"), make_mesh(MeshConfig()), settings)
    trees = []
    for prefix, continuations in plain_trees:
        spans = []
        for tokens, answer in continuations:
            spans.append(concatenate_spans(span(tokens[:-answer]), span(tokens[-answer:], 1.0)))
        trees.append(PrefixTree(span(prefix), tuple(spans)))

    def once() -> Work:
        log_probs = scorer.score_trees(trees)
        return Work(len(log_probs), log_probs)

    return once


def torch_answer_rows(folder: pathlib.Path) -> Once:
    """Transformers' LLaMA in batches, its head on the rows that predict answers."""
    return _torch(folder, answer_rows=True)


def torch_full_logits(folder: pathlib.Path) -> Once:
    """The same with logits of every position."""
    return _torch(folder, answer_rows=False)


def fed_rag(folder: pathlib.Path) -> Once:
    """fed-rag's scoring of a prompt and a target, one at a time as its collator does."""
    from fed_rag.generators.huggingface import (  # pyright: ignore[reportMissingImports]
        HFPretrainedModelGenerator,
    )

    generator = HFPretrainedModelGenerator(model_name=str(folder / "lm"))
    texts = json.loads((folder / "texts.json").read_text())[:64]  # its rate does not depend on how many

    def once() -> Work:
        probs = [generator.compute_target_sequence_proba(t["prompt"], t["answer"]) for t in texts]
        return Work(len(probs), np.log([float(prob) for prob in probs]))

    return once


def agreement(outputs: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
    """The largest differences of a pair's log-probability to that of PyTorch with full logits."""
    reference = outputs["PyTorch, full logits"]
    told: dict[str, Any] = {
        f"{name}, largest difference in nats": float(np.abs(output - reference).max())
        for name, output in outputs.items()
        if len(output) == len(reference) and output is not reference
    }
    if "fed-rag" in outputs:
        own = outputs["fed-rag"]
        told["fed-rag, median difference (it reads the logits behind each answer token)"] = float(
            np.median(np.abs(own - reference[: len(own)]))
        )
    return told


BENCHMARK = Benchmark(
    name="scoring",
    title="LSR scoring",
    unit="pairs",
    workers=(
        Worker("radit_jax", "ours"),
        Worker("radit_jax, chunks not shared", "ours_apart"),
        Worker("PyTorch, head on answer rows", "torch_answer_rows"),
        Worker("PyTorch, full logits", "torch_full_logits"),
        Worker("fed-rag", "fed_rag", environment=".venv-fed-rag"),
    ),
    prepare=prepare,
    agreement=agreement,
    targets=(Target("PyTorch, head on answer rows", 2.0), Target("fed-rag", 5.0)),
)


def _trees(folder: pathlib.Path) -> list[Tree]:
    return json.loads((folder / "trees.json").read_text())


def _pairs(folder: pathlib.Path) -> list[Pair]:
    """Every pair, tree after tree."""
    pairs = []
    for prefix, continuations in _trees(folder):
        pairs += [Pair(prefix + tokens, answer) for tokens, answer in continuations]
    return pairs


def _plain(tree: Any) -> Tree:
    continuations = [
        (continuation.tokens.tolist(), int((continuation.weights > 0).sum()))
        for continuation in tree.continuations
    ]
    return tree.prefix.tokens.tolist(), continuations


def _torch(folder: pathlib.Path, *, answer_rows: bool) -> Once:
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder / "lm", dtype=torch.float32).eval()
    pairs = _pairs(folder)
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i].tokens))

    @torch.inference_mode()
    def once() -> Work:
        found = np.zeros(len(pairs))
        for start in range(0, len(order), BATCH):
            some = order[start : start + BATCH]
            own = [pairs[i] for i in some]
            width = max(len(pair.tokens) for pair in own)
            ids = torch.zeros((len(own), width), dtype=torch.long)
            mask = torch.zeros_like(ids)
            for row, pair in enumerate(own):
                ids[row, : len(pair.tokens)] = torch.tensor(pair.tokens)
                mask[row, : len(pair.tokens)] = 1
            # The head of the rows that predict answers, or of all rows.
            states = model.model(ids, attention_mask=mask).last_hidden_state
            logits = None if answer_rows else model.lm_head(states)
            for row, (number, pair) in enumerate(zip(some, own, strict=True)):
                end = len(pair.tokens)
                rows = slice(end - pair.answer - 1, end - 1)
                predicted = model.lm_head(states[row, rows]) if logits is None else logits[row, rows]
                targets = ids[row, end - pair.answer : end]
                found[number] = torch.log_softmax(predicted, -1).gather(1, targets[:, None]).sum().item()
        return Work(len(pairs), found)

    return once
