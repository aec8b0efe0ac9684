"""From text to chunks: encoding with one tower of the dual encoder, and searching the corpus with it."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int

from radit_jax.config import MeshConfig
from radit_jax.method.losses import retrieval_log_prob
from radit_jax.models.bert import Bert, encode
from radit_jax.retrieval.embeddings import Embeddings
from radit_jax.retrieval.index import Index
from radit_jax.retrieval.index import load_index as load_index
from radit_jax.retrieval.products import search_devices
from radit_jax.runtime.distributed import processes
from radit_jax.runtime.distributed.mesh import (
    data_parallel_size,
    gather,
    make_mesh,
    put_batch,
    put_params,
    row_layout,
)
from radit_jax.runtime.monitoring.progress import Progress
from radit_jax.runtime.pretrained.model_io import Model, load_model
from radit_jax.runtime.storage.stage_folder import StageFolder

BATCH_SIZE = 64  # texts that are encoded at once where no setting says otherwise
WIDTH = 16  # what the widths of their batches are multiples of: few shapes are compiled, little is padding
IN_FLIGHT = 2  # batches that the devices have been given beyond the one that is waited for
T = TypeVar("T")


@dataclass(frozen=True)
class Encoder:
    """One tower, E_q or E_d: texts to vectors."""

    model: Model
    mesh: Mesh

    @classmethod
    def load(cls, path: Any, mesh: MeshConfig, dtype: str = "float32") -> "Encoder":
        devices = make_mesh(mesh)
        return cls(load_model(path, dtype=dtype, mesh=devices), devices)

    @property
    def module(self) -> Bert:
        """The network, whose activations stay with the rows of their devices."""
        return self.model.module.clone(layout=row_layout(self.mesh))

    def with_params(self, params: Any) -> "Encoder":
        """The same tower with other parameters, from wherever they are."""
        return replace(self, model=self.model._replace(params=put_params(params, self.mesh)))

    def tokenize(self, texts: Sequence[str]) -> tuple[Int[np.ndarray, "E T"], Bool[np.ndarray, "E T"]]:
        """Token ids and their mask, padded to the longest text."""
        return self.model.tokenizer.pad(self.token_ids(texts))

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of `texts` behind the encoder's prompt, if it has one, cut to what the encoder reads."""
        tokenizer, prompt = self.model.tokenizer, self.model.module.config.prompt
        return tokenizer.encode_all([prompt + text for text in texts], tokenizer.hf.model_max_length)

    def embed(
        self, texts: Sequence[str], batch_size: int = BATCH_SIZE, bar: Progress | None = None
    ) -> Float[np.ndarray, "E D"]:
        """Float32 embeddings of `texts`; batches hold texts of like length, so that little is padding."""
        (embeddings,) = self.embed_each([texts], batch_size, bar)
        return embeddings

    def embed_each(
        self, parts: Iterable[Sequence[str]], batch_size: int = BATCH_SIZE, bar: Progress | None = None
    ) -> Iterator[Float[np.ndarray, "E D"]]:
        """`embed` of each part. The devices do not wait for the host: the next part is read and tokenised
        meanwhile, and its first batches are on their way when a part is handed out."""
        for batch in _behind(self._encoded(parts, batch_size), IN_FLIGHT):
            batch.embeddings[batch.rows] = gather(batch.vectors)[: len(batch.rows)]
            if bar is None:
                processes.stop_if_asked("an embedding")
            else:
                bar.advance(len(batch.rows))
            if batch.is_last:
                yield batch.embeddings

    def _encoded(self, parts: Iterable[Sequence[str]], batch_size: int) -> Iterator["_Batch"]:
        """The batches of each part in order of length, dispatched when they are asked for."""
        module, (_, params, tokenizer) = self.module, self.model
        batch_size = -(-batch_size // data_parallel_size(self.mesh)) * data_parallel_size(
            self.mesh
        )  # every device has its part
        for ids in _ahead(map(self.token_ids, parts)):
            embeddings = np.empty((len(ids), module.config.vector_size), np.float32)
            by_length = np.argsort([len(row) for row in ids], kind="stable")
            for start in range(0, len(ids), batch_size):
                rows = by_length[start : start + batch_size]
                padded = tokenizer.pad([ids[i] for i in rows], rows=batch_size, multiple=WIDTH)
                vectors = encode_batch(module, params, *put_batch(padded, self.mesh))
                yield _Batch(embeddings, rows, vectors, start + batch_size >= len(ids))
            if not ids:
                yield _Batch(embeddings, by_length, embeddings, is_last=True)


class _Batch(NamedTuple):
    """Texts of a part that are encoded together."""

    embeddings: Float[np.ndarray, "E D"]  # of the whole part, to be filled
    rows: Int[np.ndarray, " b"]  # the batch's, in it
    vectors: Any  # on the devices, with padding behind them
    is_last: bool  # of its part


encode_batch: Callable[..., Any] = jax.jit(encode, static_argnums=0)


def _ahead(items: Iterable[T]) -> Iterator[T]:
    """`items`, the next of which is made in a thread while one is used."""
    rest = iter(items)
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, rest, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, rest, None)
            yield item


def _behind(items: Iterable[T], count: int) -> Iterator[T]:
    """`items`, each when `count` more have been made.

    >>> made = (print("made", number) or number for number in range(3))
    >>> for number in _behind(made, 1):
    ...     print("used", number)
    made 0
    made 1
    used 0
    made 2
    used 1
    used 2
    """
    waiting: deque[T] = deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > count:
            yield waiting.popleft()
    yield from waiting


@dataclass(frozen=True)
class Searcher:
    """A query encoder over an index of chunk embeddings."""

    encoder: Encoder
    index: Index

    @classmethod
    def load(cls, inputs: Mapping[str, StageFolder], mesh: MeshConfig) -> "Searcher":
        """From a stage's inputs `retriever`, `embeddings` and `index`."""
        encoder = Encoder.load(inputs["retriever"].check("query_encoder"), mesh)
        embeddings = Embeddings.load(inputs["embeddings"])
        devices = search_devices(encoder.mesh, len(embeddings))
        return cls(encoder, load_index(inputs["index"], embeddings, devices))

    @property
    def embeddings(self) -> Embeddings:
        """The chunks' embeddings by their rows."""
        return self.index.embeddings

    def tuned(self, inputs: Mapping[str, StageFolder], mesh: MeshConfig) -> "Searcher":
        """The searcher after R-ft, of a stage's input `r_ft`; where both encoders learnt, over the chunks
        embedded anew, its inputs `r_ft_embeddings` and `r_ft_index`."""
        if "r_ft_index" in inputs:
            return Searcher.load(tuned_inputs(inputs), mesh)
        return self.with_params(load_model(inputs["r_ft"].check("query_encoder")).params)

    def with_params(self, query_params: Any) -> "Searcher":
        return replace(self, encoder=self.encoder.with_params(query_params))

    def search(
        self, queries: Sequence[str], k: int, exclude: Int[np.ndarray, " Q"] | None = None
    ) -> tuple[Int[np.ndarray, "Q K"], Float[np.ndarray, "Q K"]]:
        """Rows and scores of each query's top k chunks, best first, without its `exclude` (−1: none)."""
        return self.index.search(self.encoder.embed(queries), k, exclude)

    def retrieve(
        self, queries: Sequence[str], k: int, temperature: float
    ) -> tuple[Int[np.ndarray, "Q K"], Float[np.ndarray, "Q K"]]:
        """Rows of each query's top k chunks, best first, and their log p_R."""
        rows, scores = self.search(queries, k)
        return rows, chunk_log_probs(scores, temperature)

    def score(self, queries: Sequence[str], rows: Int[np.ndarray, "Q K"]) -> Float[np.ndarray, "Q K"]:
        """s(q, c), Eq. 1, of given chunks."""
        embedded = self.encoder.embed(queries)
        return np.stack([self.embeddings[found] @ query for query, found in zip(embedded, rows, strict=True)])


def chunk_log_probs(scores: Float[np.ndarray, "Q K"], temperature: float) -> Float[np.ndarray, "Q K"]:
    """log p_R of retrieved chunks, of which none is missing."""
    return np.asarray(_log_probs(scores, np.ones(scores.shape, bool), temperature=temperature))


_log_probs: Callable[..., Any] = jax.jit(retrieval_log_prob, static_argnames="temperature")


def tuned_inputs(inputs: Mapping[str, StageFolder]) -> Mapping[str, StageFolder]:
    """Chunk encoder, embeddings and index after R-ft: those before it, unless both encoders learnt."""
    if "r_ft_index" not in inputs:
        return inputs
    return {
        "retriever": inputs["r_ft"],
        "embeddings": inputs["r_ft_embeddings"],
        "index": inputs["r_ft_index"],
    }
