"""Embedding a corpus: passages to MiniLM's vectors, in float32 and in bfloat16.

End to end, strings become vectors, and both sides sort by length. With equal shapes both sides get the same
padded batches of tokens, and only the networks are compared.
"""

import json
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks.compare import Benchmark, Target, Worker
from benchmarks.worker import Once, Work

NUM_PASSAGES = 128  # drawn
ROWS = 32  # of the batches that both sides get
MULTIPLE = 16  # their widths are multiples of it
BATCH_SIZES = (16, 32, 64)  # end to end, each side takes its fastest of these


def prepare(folder: pathlib.Path) -> Mapping[str, Any]:
    """The passages as texts and as batches of tokens, and MiniLM in sentence-transformers' form."""
    from benchmarks import inputs
    from radit_jax.runtime.pretrained.hf_export import export_hf

    texts = inputs.texts()
    drawn = np.random.default_rng(2).choice(len(texts.passages), NUM_PASSAGES, replace=False)
    passages = [texts.passages[row] for row in drawn.tolist()]
    model = inputs.encoder().model
    export_hf(folder / "minilm", model)
    ids = model.tokenizer.encode_all(passages, model.tokenizer.hf.model_max_length)
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    batches = {}
    for start in range(0, len(ids), ROWS):
        rows = order[start : start + ROWS]
        tokens, mask = model.tokenizer.pad([ids[i] for i in rows], multiple=MULTIPLE)
        batches |= {f"{start:05d}-rows": rows, f"{start:05d}-tokens": tokens, f"{start:05d}-mask": mask}
    np.savez(folder / "batches.npz", **batches)
    inputs.write_json(folder / "passages.json", passages)
    tokens = sum(map(len, ids))
    return {
        "inputs": texts.source,
        "passages": len(passages),
        "tokens a passage": tokens / len(ids),
        "positions of equal shapes to tokens": sum(mask.size for *_, mask in _batches(folder)) / tokens,
    }


def ours_float32(folder: pathlib.Path) -> Once:
    """The encoder of the embed stage."""
    return _ours(folder, "float32")


def ours_bfloat16(folder: pathlib.Path) -> Once:
    """The same with `embed.dtype=bfloat16`."""
    return _ours(folder, "bfloat16")


def ours_equal_float32(folder: pathlib.Path) -> Once:
    """Our network alone."""
    return _ours_equal(folder, "float32")


def ours_equal_bfloat16(folder: pathlib.Path) -> Once:
    """The same with `embed.dtype=bfloat16`."""
    return _ours_equal(folder, "bfloat16")


def _encoder(dtype: str) -> Any:
    from benchmarks import inputs

    encoder = inputs.encoder()
    module = encoder.model.module.clone(dtype=np.dtype(dtype))
    return type(encoder)(encoder.model._replace(module=module), encoder.mesh)


def _ours(folder: pathlib.Path, dtype: str) -> Once:
    encoder, passages = _encoder(dtype), _passages(folder)
    return _at_the_fastest_size(lambda batch_size: encoder.embed(passages, batch_size))


def _ours_equal(folder: pathlib.Path, dtype: str) -> Once:
    from radit_jax.retrieval.search import encode_batch

    module, params, _ = _encoder(dtype).model
    return _on_batches(folder, lambda tokens, mask: np.asarray(encode_batch(module, params, tokens, mask)))


def theirs_float32(folder: pathlib.Path) -> Once:
    """`SentenceTransformer.encode`."""
    return _theirs(folder, "float32")


def theirs_bfloat16(folder: pathlib.Path) -> Once:
    """The same in bfloat16."""
    return _theirs(folder, "bfloat16")


def torch_equal_float32(folder: pathlib.Path) -> Once:
    """Transformers' BertModel alone."""
    return _torch_equal(folder, "float32")


def torch_equal_bfloat16(folder: pathlib.Path) -> Once:
    """The same in bfloat16."""
    return _torch_equal(folder, "bfloat16")


def _theirs(folder: pathlib.Path, dtype: str) -> Once:
    import torch
    from sentence_transformers import SentenceTransformer

    options = {"dtype": getattr(torch, dtype)}
    model = SentenceTransformer(str(folder / "minilm"), device="cpu", model_kwargs=options)
    passages = _passages(folder)

    def embed(batch_size: int) -> np.ndarray:
        vectors = model.encode(passages, batch_size=batch_size, show_progress_bar=False)
        return np.asarray(vectors, np.float32)

    return _at_the_fastest_size(embed)


def _at_the_fastest_size(embed: Callable[[int], np.ndarray]) -> Once:
    """`embed` with the batch size that makes its second turn the fastest."""

    def seconds(batch_size: int) -> float:
        embed(batch_size)  # compiles and warms up
        start = time.perf_counter()
        embed(batch_size)
        return time.perf_counter() - start

    fastest = min(BATCH_SIZES, key=seconds)

    def once() -> Work:
        vectors = embed(fastest)
        return Work(len(vectors), vectors)

    return once


def _torch_equal(folder: pathlib.Path, dtype: str) -> Once:
    import torch
    from transformers import AutoModel

    loaded: Any = AutoModel.from_pretrained(folder / "minilm", dtype=getattr(torch, dtype))
    model = loaded.eval()

    @torch.inference_mode()
    def network(tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
        ids, seen = torch.tensor(tokens).long(), torch.tensor(mask)
        hidden = model(ids, attention_mask=seen.long()).last_hidden_state.float()
        mean = (hidden * seen[:, :, None]).sum(1) / seen.sum(1, keepdim=True)
        return torch.nn.functional.normalize(mean).numpy()

    return _on_batches(folder, network)


def _on_batches(folder: pathlib.Path, network: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Once:
    batches = _batches(folder)

    def once() -> Work:
        vectors = np.concatenate([network(tokens, mask) for _, tokens, mask in batches])
        rows = np.concatenate([rows for rows, _, _ in batches])
        return Work(len(rows), vectors[np.argsort(rows)])

    return once


def agreement(outputs: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
    """How far the vectors' cosines with those of PyTorch in float32 fall below 1, at most."""
    reference = outputs["PyTorch float32, equal shapes"]
    return {
        f"{name}, 1 − cosine at most": float(1 - (output * reference).sum(axis=1).min())
        for name, output in outputs.items()
        if output is not reference
    }


BENCHMARK = Benchmark(
    name="embedding",
    title="Embedding passages",
    unit="passages",
    workers=(
        Worker("radit_jax bfloat16", "ours_bfloat16"),
        Worker("sentence-transformers bfloat16", "theirs_bfloat16"),
        Worker("radit_jax float32", "ours_float32"),
        Worker("sentence-transformers float32", "theirs_float32"),
        Worker("radit_jax bfloat16, equal shapes", "ours_equal_bfloat16"),
        Worker("PyTorch bfloat16, equal shapes", "torch_equal_bfloat16"),
        Worker("radit_jax float32, equal shapes", "ours_equal_float32"),
        Worker("PyTorch float32, equal shapes", "torch_equal_float32"),
    ),
    prepare=prepare,
    agreement=agreement,
    targets=(
        Target("sentence-transformers bfloat16", 1.1, "radit_jax bfloat16"),
        Target("sentence-transformers float32", 1.1, "radit_jax float32"),
        Target("PyTorch bfloat16, equal shapes", 0.9, "radit_jax bfloat16, equal shapes"),
        Target("PyTorch float32, equal shapes", 0.9, "radit_jax float32, equal shapes"),
    ),
)


def _passages(folder: pathlib.Path) -> list[str]:
    return json.loads((folder / "passages.json").read_text())


def _batches(folder: pathlib.Path) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Rows of the passages, tokens and mask of each."""
    stored = np.load(folder / "batches.npz")
    names = sorted({name.partition("-")[0] for name in stored})
    return [(stored[f"{n}-rows"], stored[f"{n}-tokens"], stored[f"{n}-mask"]) for n in names]
