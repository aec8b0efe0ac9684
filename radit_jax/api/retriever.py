"""Searching passages with a dual encoder: a finished run's, or one over a list of passages."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from radit_jax.api.inputs import AnyChunk, AnyModel, Hit, as_chunk, as_model, check_lengths
from radit_jax.command_line import spelled
from radit_jax.config import MeshConfig
from radit_jax.data.artifacts.chunks import Chunks
from radit_jax.data.records import ChunkList, ChunkReader
from radit_jax.retrieval.exact import ExactIndex
from radit_jax.retrieval.products import search_devices
from radit_jax.retrieval.search import Encoder, Searcher, chunk_log_probs
from radit_jax.runtime.distributed.mesh import make_mesh
from radit_jax.runtime.pretrained.model_io import load_model
from radit_jax.runtime.storage.top_level_folder import TopLevelFolder


def finished_export(run: str | os.PathLike[str]) -> TopLevelFolder:
    """The export of the workdir `run`, or `run` itself where it is one; ValueError where there is none."""
    # A workdir has its export inside; an export may be anywhere.
    for folder in (f"{os.fspath(run)}/export", os.fspath(run)):
        export = TopLevelFolder(folder)
        if export.complete and "answering.json" in export.manifest["files"]:
            return export
    raise ValueError(
        f"{run}: expected a workdir with a finished export, or an export, got neither. "
        f"Run `{spelled(f'export --workdir={run}')}`."
    )


@dataclass(frozen=True)
class Retriever:
    """A query encoder over the vectors of passages; p_R has the temperature of the run."""

    searcher: Searcher
    chunks: ChunkReader
    temperature: float = 1.0

    @classmethod
    def load(cls, run: str | os.PathLike[str], *, tuned: bool = True) -> "Retriever":
        """The retriever of a finished run: its workdir or its export, on a disk or in a bucket.

        With `tuned=False` the query encoder is the one before R-ft. ValueError where there is no such export.
        """
        # 1) The export has everything in one folder, and says p_R's temperature.
        export = finished_export(run)
        answering = export.read_json("answering.json")
        folders = {"retriever": export, "embeddings": export, "index": export}
        searcher = Searcher.load(folders, MeshConfig())
        # 2) The same search with the untuned parameters.
        if not tuned:
            # Vectors that both encoders learnt do not fit the untuned one.
            if answering.get("both_encoders"):
                raise ValueError(
                    f"{run}: expected vectors of the untuned chunk encoder, got those of the tuned one. "
                    "Load it with tuned=True."
                )
            base = load_model(export.verified_path("base_query_encoder"))
            searcher = searcher.with_params(base.params)
        return cls(searcher, Chunks(export), answering["temperature"])

    @classmethod
    def embed(
        cls,
        query_encoder: AnyModel,
        chunk_encoder: AnyModel,
        chunks: Sequence[AnyChunk],
        *,
        temperature: float = 1.0,
    ) -> "Retriever":
        """A retriever over a list of passages, which are embedded now and searched exactly."""
        check_lengths(chunks=chunks)
        # 1) The passages, in the callers' order: a row is a place in the list.
        records = tuple(as_chunk(chunk, number) for number, chunk in enumerate(chunks))
        if not records:
            raise ValueError("chunks: expected passages to search, got none. Pass at least one.")
        mesh = make_mesh(MeshConfig())
        # 2) Both towers, each with its own prompt and length.
        query_tower = _encoder(query_encoder, mesh)
        chunk_tower = _encoder(chunk_encoder, mesh)
        # 3) Their vectors, and exact search over them.
        vectors = chunk_tower.embed([chunk.passage for chunk in records])
        index = ExactIndex(vectors, search_devices(mesh, len(vectors)))
        return cls(Searcher(query_tower, index), ChunkList(records), temperature)

    def with_query_encoder(self, query_encoder: AnyModel) -> "Retriever":
        """The same passages and vectors, searched with another query encoder, as R-ft leaves one."""
        encoder = _encoder(query_encoder, self.searcher.encoder.mesh)
        return replace(self, searcher=replace(self.searcher, encoder=encoder))

    def search(self, queries: Sequence[str], k: int = 10) -> list[list[Hit]]:
        """Each query's k best chunks, the best first; fewer where there are not so many."""
        check_lengths(queries=queries)
        if not queries:
            return []
        # 1) Rows of chunks, s(q, c) and log p_R.
        k = min(k, len(self.searcher.embeddings))
        rows, scores = self.searcher.search(queries, k)
        log_probs = chunk_log_probs(scores, self.temperature)
        # 2) The chunks themselves, each read once.
        distinct = np.unique(rows)
        chunk_at = dict(zip(distinct.tolist(), self.chunks.take(distinct), strict=True))
        # 3) A list of hits for each query.
        found = []
        for query in range(len(queries)):
            values = zip(rows[query].tolist(), scores[query].tolist(), log_probs[query].tolist(), strict=True)
            found.append([Hit(chunk_at[row], row, score, log_prob) for row, score, log_prob in values])
        return found

    def vectors(self, hits: Sequence[Sequence[Hit]]) -> Float[np.ndarray, "Q K D"]:
        """The stored vectors of the chunks that were found, as many for each query."""
        rows = []
        for found in hits:
            rows.append([hit.row for hit in found])
        return self.searcher.embeddings[np.array(rows)]

    def embed_queries(self, queries: Sequence[str]) -> Float[np.ndarray, "Q D"]:
        """The query encoder's vectors."""
        check_lengths(queries=queries)
        return self.searcher.encoder.embed(queries)

    def as_langchain(self, k: int = 10) -> Any:
        """A LangChain retriever; `pip install 'radit_jax[integrations]'`."""
        from radit_jax.api.integrations import langchain_retriever

        return langchain_retriever(self, k)

    def as_llama_index(self, k: int = 10) -> Any:
        """A LlamaIndex retriever; `pip install 'radit_jax[integrations]'`."""
        from radit_jax.api.integrations import llama_index_retriever

        return llama_index_retriever(self, k)


def _encoder(model: AnyModel, mesh: Any) -> Encoder:
    """A tower on the devices of `mesh`."""
    loaded = as_model(model)
    return Encoder(loaded, mesh).with_params(loaded.params)
