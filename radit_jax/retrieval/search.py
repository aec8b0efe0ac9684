"""From text to chunks: encoding with one tower of the dual encoder, and searching the corpus with it."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int

from radit_jax.config import MeshConfig
from radit_jax.method.losses import retrieval_log_prob
from radit_jax.models.bert import encode
from radit_jax.models.last_token import TextEncoder
from radit_jax.retrieval.embeddings import Embeddings
from radit_jax.retrieval.exact import ExcludedRows
from radit_jax.retrieval.index import Index, load_index
from radit_jax.retrieval.products import search_devices
from radit_jax.retrieval.ranking import Rows, Scores, exchange, split
from radit_jax.runtime.ahead import IN_FLIGHT, delayed, prefetched
from radit_jax.runtime.distributed import processes
from radit_jax.runtime.distributed.mesh import (
    concatenate_hosts,
    data_parallel_size,
    gather,
    make_mesh,
    own_mesh,
    put_batch,
    put_params,
    row_layout,
)
from radit_jax.runtime.monitoring.progress import Progress
from radit_jax.runtime.pretrained.model_io import Model, load_model
from radit_jax.runtime.shards import load_on_own_devices
from radit_jax.runtime.storage.stage_folder import StageFolder

BATCH_SIZE = 64  # texts that are encoded at once where no setting says otherwise
WIDTH = 16  # batches are as wide as a multiple of it: few shapes are compiled, and little is padding


@dataclass(frozen=True)
class Encoder:
    """One tower, E_q or E_d: texts to vectors."""

    model: Model
    mesh: Mesh
    own: bool = False  # it is on this process's own devices, and the others have copies of theirs

    @classmethod
    def load(cls, path: Any, mesh: MeshConfig, dtype: str = "float32") -> "Encoder":
        """The encoder in folder `path`, its parameters over the mesh of all devices."""
        return cls._load(path, mesh, dtype, own=False)

    @classmethod
    def load_copies(cls, path: Any, mesh: MeshConfig, dtype: str = "float32") -> "Encoder":
        """The same, with a copy on each process's own devices where these have room for one."""
        encoder, _ = load_on_own_devices(
            lambda own: cls._load(path, mesh, dtype, own),
            lambda encoder: encoder.model.params,
        )
        return encoder

    @classmethod
    def _load(cls, path: Any, mesh: MeshConfig, dtype: str, own: bool) -> "Encoder":
        devices = own_mesh(mesh) if own else make_mesh(mesh)
        model = load_model(path, dtype=dtype, mesh=devices, frozen=True)
        return cls(model, devices, own)

    @property
    def module(self) -> TextEncoder:
        """The network. Its activations lie on the devices of their rows."""
        return self.model.module.clone(layout=row_layout(self.mesh))

    def with_params(self, params: Any) -> "Encoder":
        """The same tower with other parameters, from wherever they are."""
        placed = put_params(params, self.mesh)
        return replace(self, model=self.model._replace(params=placed))

    def tokenize(
        self,
        texts: Sequence[str],
    ) -> tuple[Int[np.ndarray, "E T"], Bool[np.ndarray, "E T"]]:
        """Token ids and their mask, padded to the longest text; the mask is True at tokens."""
        return self.model.tokenizer.pad(self.token_ids(texts))

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of `texts` after the encoder's prompt, if it has one, cut to what the encoder reads."""
        # Some encoders, such as E5, were trained with "query: " before each query.
        tokenizer = self.model.tokenizer
        prompt = self.model.module.config.prompt
        prompted = [prompt + text for text in texts]
        return tokenizer.encode_all(prompted, tokenizer.hf.model_max_length)

    def embed(
        self,
        texts: Sequence[str],
        batch_size: int = BATCH_SIZE,
        bar: Progress | None = None,
    ) -> Float[np.ndarray, "E D"]:
        """Float32 embeddings of `texts`; batches hold texts of like length, so that little is padding."""
        (embeddings,) = self.embed_each([texts], batch_size, bar)
        return embeddings

    def embed_together(self, texts: Sequence[str]) -> Float[np.ndarray, "E D"]:
        """`embed`; processes with a copy each embed a part of the texts, and all get all."""
        if not self.own:
            return self.embed(texts)
        process, num_processes = processes.process_index_and_count()
        parts = split(len(texts), num_processes)
        rows = parts[process]
        embedded = self.embed(texts[rows.start : rows.stop])
        return concatenate_hosts(embedded, [len(part) for part in parts])

    def embed_each(
        self,
        parts: Iterable[Sequence[str]],
        batch_size: int = BATCH_SIZE,
        bar: Progress | None = None,
    ) -> Iterator[Float[np.ndarray, "E D"]]:
        """`embed` of each part.

        The devices do not wait for the host: the next part is read and tokenised meanwhile, and its first
        batches are on their way when a part is handed out.
        """
        for batch in delayed(self._dispatched(parts, batch_size), IN_FLIGHT):
            # Wait for the batch's vectors, and put them where their texts stand in the part.
            num_texts = len(batch.rows)
            batch.embeddings[batch.rows] = gather(batch.vectors)[:num_texts]
            if bar is None:
                processes.stop_if_asked("an embedding")
            else:
                bar.advance(num_texts)
            if batch.is_last:
                yield batch.embeddings

    def _dispatched(
        self,
        parts: Iterable[Sequence[str]],
        batch_size: int,
    ) -> Iterator["_Batch"]:
        """The batches of each part in order of length, dispatched to the devices when they are asked for."""
        module = self.module
        params, tokenizer = self.model.params, self.model.tokenizer

        # Round the batch up: every device gets the same number of texts.
        num_devices = data_parallel_size(self.mesh)
        texts_per_device = -(-batch_size // num_devices)
        batch_size = texts_per_device * num_devices

        for token_ids in prefetched(map(self.token_ids, parts)):
            # Sort the part's texts, so that those of a batch have like length.
            num_texts = len(token_ids)
            embeddings = np.empty((num_texts, module.config.vector_size), np.float32)
            lengths = [len(ids) for ids in token_ids]
            by_length = np.argsort(lengths, kind="stable")
            # Hand the devices a batch, always of the same number of rows.
            for start in range(0, num_texts, batch_size):
                stop = start + batch_size
                rows = by_length[start:stop]
                batch_ids = [token_ids[row] for row in rows]
                padded = tokenizer.pad(batch_ids, rows=batch_size, multiple=WIDTH)
                placed = put_batch(padded, self.mesh)
                vectors = encode_batch(module, params, *placed)
                yield _Batch(embeddings, rows, vectors, is_last=stop >= num_texts)
            if not num_texts:  # such a part is handed out too
                yield _Batch(embeddings, by_length, embeddings, is_last=True)


class _Batch(NamedTuple):
    """Texts of a part that are encoded together."""

    embeddings: Float[np.ndarray, "E D"]  # of the whole part, to be filled
    rows: Int[np.ndarray, " b"]  # of the batch's texts in their part
    vectors: Any  # on the devices, with padding after the batch's own
    is_last: bool  # whether the part has no batch after it


encode_batch: Callable[..., Any] = jax.jit(encode, static_argnums=0)


@dataclass(frozen=True)
class Searcher:
    """A query encoder over an index of chunk embeddings."""

    encoder: Encoder
    index: Index

    @classmethod
    def load(cls, inputs: Mapping[str, StageFolder], mesh: MeshConfig, copies: bool = False) -> "Searcher":
        """From a stage's inputs `retriever`, `embeddings` and `index`.

        With `copies` each of several processes has a query tower on its own devices, if there is room.
        """
        # The query tower, the chunks' embeddings, and the index over them.
        path = inputs["retriever"].verified_path("query_encoder")
        load = Encoder.load_copies if copies else Encoder.load
        encoder = load(path, mesh)
        embeddings = Embeddings.load(inputs["embeddings"])
        devices = search_devices(encoder.mesh, len(embeddings))
        return cls(encoder, load_index(inputs["index"], embeddings, devices))

    @property
    def embeddings(self) -> Embeddings:
        """The chunks' embeddings by their rows."""
        return self.index.embeddings

    def tuned(self, inputs: Mapping[str, StageFolder], mesh: MeshConfig) -> "Searcher":
        """The searcher after R-ft, from a stage's input `r_ft`.

        Where both encoders learnt, it searches the chunks as the tuned tower embeds them, from the inputs
        `r_ft_embeddings` and `r_ft_index`.
        """
        # R-ft leaves new embeddings only where it has trained the chunk tower too.
        if "r_ft_index" in inputs:
            return Searcher.load(tuned_inputs(inputs), mesh, copies=self.encoder.own)
        query_encoder = load_model(inputs["r_ft"].verified_path("query_encoder"))
        return self.with_params(query_encoder.params)

    def with_params(self, query_params: Any) -> "Searcher":
        """The same search with other parameters of the query tower."""
        encoder = self.encoder.with_params(query_params)
        return replace(self, encoder=encoder)

    def search(
        self,
        queries: Sequence[str],
        k: int,
        exclude: ExcludedRows | None = None,
    ) -> tuple[Rows, Scores]:
        """Rows and scores of each query's top k chunks, best first, without its `exclude` (−1: none)."""
        embedded = self.encoder.embed_together(queries)
        return self.index.search(embedded, k, exclude)

    def search_own(
        self,
        queries: Sequence[str],
        lengths: Sequence[int],
        k: int,
        exclude: ExcludedRows,
    ) -> tuple[Rows, Scores]:
        """`search` of this process's `queries`, while each of the others searches for its own.

        Process p has `lengths[p]` queries. `exclude` is that of all, in the order of the processes.
        """
        embedded = self.encoder.embed(queries)
        if len(lengths) == 1:
            return self.index.search(embedded, k, exclude)
        # Each searches the chunks that it has for the queries of all, and gets what is found for its own.
        of_all = concatenate_hosts(embedded, lengths)
        return exchange(self.index.search_part(of_all, k, exclude), lengths)

    def retrieve(
        self,
        queries: Sequence[str],
        k: int,
        temperature: float,
    ) -> tuple[Rows, Scores]:
        """Rows of each query's top k chunks, best first, and their log p_R."""
        rows, scores = self.search(queries, k)
        return rows, chunk_log_probs(scores, temperature)

    def score(self, queries: Sequence[str], rows: Rows) -> Scores:
        """s(q, c), Eq. 1, of given chunks."""
        embedded = self.encoder.embed(queries)
        # One query at a time, so that only its chunks are in memory.
        scores = []
        for query, query_rows in zip(embedded, rows, strict=True):
            scores.append(self.embeddings[query_rows] @ query)
        return np.stack(scores)


def chunk_log_probs(scores: Scores, temperature: float) -> Scores:
    """log p_R [Q, K] of retrieved chunks, none of which is missing; s(q, c) is divided by `temperature`."""
    # Every chunk is real.
    mask = np.ones(scores.shape, bool)
    log_probs = _log_probs(scores, mask, temperature=temperature)
    return np.asarray(log_probs)


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
