"""From text to chunks: encoding with one tower of the dual encoder, and searching the corpus with it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int

from radit_jax.config import MeshConfig
from radit_jax.method.losses import retrieval_log_prob
from radit_jax.models.bert import encode
from radit_jax.retrieval.embeddings import Embeddings
from radit_jax.retrieval.index import Index
from radit_jax.retrieval.index import load as load_index
from radit_jax.retrieval.products import search_devices
from radit_jax.runtime.mesh import gather, make_mesh, put_batch, put_params, ways
from radit_jax.runtime.models import Model, load_model
from radit_jax.runtime.progress import Progress
from radit_jax.runtime.store import StageFolder

BATCH_SIZE = 64  # texts that are encoded at once where no setting says otherwise


@dataclass(frozen=True)
class Encoder:
    """One tower, E_q or E_d: texts to vectors."""

    model: Model
    mesh: Mesh

    @classmethod
    def load(cls, path: Any, mesh: MeshConfig, dtype: str = "float32") -> "Encoder":
        devices = make_mesh(mesh)
        return cls(load_model(path, dtype=dtype, mesh=devices), devices)

    def with_params(self, params: Any) -> "Encoder":
        """The same tower with other parameters, from wherever they are."""
        return replace(self, model=self.model._replace(params=put_params(params, self.mesh)))

    def tokenize(self, texts: Sequence[str]) -> tuple[Int[np.ndarray, "E T"], Bool[np.ndarray, "E T"]]:
        """Token ids and their mask, padded to the longest text."""
        tokenizer = self.model.tokenizer
        return tokenizer.pad(tokenizer.encode_all(texts, tokenizer.hf.model_max_length))

    def embed(
        self, texts: Sequence[str], batch_size: int = BATCH_SIZE, bar: Progress | None = None
    ) -> Float[np.ndarray, "E D"]:
        """Float32 embeddings of `texts`; batches hold texts of like length, so that little is padding."""
        module, params, tokenizer = self.model
        ids = tokenizer.encode_all(texts, tokenizer.hf.model_max_length)
        batch_size = -(-batch_size // ways(self.mesh)) * ways(self.mesh)  # every device has its part
        by_length = np.argsort([len(row) for row in ids], kind="stable")
        embeddings = np.empty((len(texts), module.config.hidden_size), np.float32)
        for start in range(0, len(texts), batch_size):
            some = by_length[start : start + batch_size]
            batch = tokenizer.pad([ids[i] for i in some], rows=batch_size)
            tokens, mask = put_batch(batch, self.mesh)
            embeddings[some] = gather(encode_batch(module, params, tokens, mask))[: len(some)]
            if bar is not None:
                bar.advance(len(some))
        return embeddings


encode_batch: Callable[..., Any] = jax.jit(encode, static_argnums=0)


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
    return np.asarray(retrieval_log_prob(jnp.asarray(scores), jnp.ones(scores.shape, bool), temperature))


def tuned_inputs(inputs: Mapping[str, StageFolder]) -> Mapping[str, StageFolder]:
    """Chunk encoder, embeddings and index after R-ft: those before it, unless both encoders learnt."""
    if "r_ft_index" not in inputs:
        return inputs
    return {
        "retriever": inputs["r_ft"],
        "embeddings": inputs["r_ft_embeddings"],
        "index": inputs["r_ft_index"],
    }
