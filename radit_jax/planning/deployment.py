"""An experiment on a target: its counts, its meshes, and its models as shapes that lie where they would."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from radit_jax.config import Experiment, GeneratedWorld, Instructions
from radit_jax.models.bert import Bert
from radit_jax.models.llama import Llama
from radit_jax.runtime.distributed.accelerators import Target, stand_in_devices
from radit_jax.runtime.distributed.mesh import (
    AXES,
    abstract_sharded,
    batch_sharding,
    configure_attention,
    data_parallel_size,
    make_mesh,
    mesh_shape,
    row_layout,
)

TOKENS_PER_WORD = 1.35  # of English, in LLaMA's and BERT's vocabularies
EXAMPLE_TOKENS = 100  # of an instruction and its answer, beside its Background

INDEX_SHARE = 0.75  # of the embeddings: ScaNN's bfloat16 copy, and codes in two leaves each (SOAR)
BUILD_SHARE = 2.5  # of a shard, while its tree is built: measured with 250,000 vectors of 256


@dataclass(frozen=True)
class Counts:
    """How much there is of everything."""

    chunks: int
    chunk_words: int
    examples: int  # of R-ft
    questions: int  # of the evaluation

    @classmethod
    def of(cls, experiment: Experiment, chunks: int | None, questions: int) -> "Counts":
        """What `experiment` says, or else the caller."""
        data, r_ft = experiment.data, experiment.r_ft
        tasks = getattr(data, "train_questions", 0)
        if isinstance(data, Instructions):
            chunks, tasks = chunks or data.expected_chunks, data.expected_r_ft_tasks
        if not chunks:
            raise ValueError(
                f"plan: {experiment.name} does not say how many chunks its corpus has; give --chunks=N"
            )
        words = 24 if isinstance(data, GeneratedWorld) else data.max_words
        examples = r_ft.num_examples or round(tasks / max(1e-9, 1 - r_ft.text_fraction)) or chunks
        return cls(chunks, words, examples, questions)

    @property
    def chunk_tokens(self) -> int:
        return round(self.chunk_words * TOKENS_PER_WORD)

    @property
    def pair_tokens(self) -> int:
        """Of an example behind one of its chunks."""
        return self.chunk_tokens + EXAMPLE_TOKENS


@dataclass(frozen=True)
class Deployment:
    """What the stages of `experiment` would compute with on `target`."""

    experiment: Experiment
    target: Target
    counts: Counts

    def mesh(self, rows: int = 0) -> Any:
        """The mesh for batches of `rows` (0: of any number)."""
        if self.target.topology:
            return make_mesh(self.experiment.mesh, stand_in_devices(self.target.topology), rows=rows)
        shape = mesh_shape(self.experiment.mesh, self.target.num_chips, rows=rows)
        return AbstractMesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES))

    def llama(self, mesh: Any, dtype: str) -> tuple[Any, Any]:
        """The language model that computes in `dtype`, and its float32 parameters' shapes."""
        shape = self.experiment.base.lm.model
        if shape is None:
            raise ValueError("plan: base.lm.model is not set, needed is the shape of the checkpoint; set it")
        module, tokens = Llama(shape, dtype=jnp.dtype(dtype)), jnp.zeros((1, 8), jnp.int32)
        return module, placed(lambda key: module.init(key, tokens)["params"], mesh, jax.random.key(0))

    def fitted(self, module: Any, mesh: Any, length: int) -> Any:
        """The language model as it reads packed rows of `length`."""
        settings = self.experiment.mesh
        if self.target.topology:
            return configure_attention(module, mesh, settings, row_length=length)
        kernel = "cudnn" if settings.attention == "auto" else settings.attention
        return module.clone(attention=kernel, remat=settings.remat)  # to be estimated, not compiled

    def encoder(self, mesh: Any, dtype: str = "float32") -> tuple[Any, Any]:
        """A tower that computes in `dtype`, and its float32 parameters' shapes."""
        shape = self.experiment.base.retriever.model
        if shape is None:
            raise ValueError(
                "plan: base.retriever.model is not set, needed is the shape of the checkpoint; set it"
            )
        layout = row_layout(mesh) if self.target.topology else None
        module, tokens = Bert(shape, jnp.dtype(dtype), layout), jnp.zeros((1, 8), jnp.int32)
        make = lambda key: module.init(key, tokens, tokens == 0)["params"]  # noqa: E731
        return module, placed(make, mesh, jax.random.key(0))

    @property
    def embeddings(self) -> float:
        """Bytes of the corpus in float32."""
        shape = self.experiment.base.retriever.model
        return 4.0 * self.counts.chunks * (shape.vector_size if shape else 768)

    @property
    def embedded(self) -> int:
        """How often the corpus is embedded and indexed: anew where R-ft tunes the chunk encoder too."""
        return 1 + self.experiment.r_ft.train_chunk_encoder

    @property
    def searching(self) -> float:
        """Bytes of a host that searches its share of the index."""
        own = -(-self._shards // self.target.num_hosts) / self._shards
        return INDEX_SHARE * self.embeddings * own

    @property
    def indexing(self) -> float:
        """Bytes of a host that builds the trees of its shards one by one, and then searches them."""
        return max(self.searching, BUILD_SHARE * self.embeddings / self._shards)

    @property
    def _shards(self) -> int:
        return -(-self.counts.chunks // self.experiment.index.shard_size)


def placed(make: Callable[..., Any], mesh: Any, *arguments: Any) -> Any:
    """The shapes of what `make` gives for `arguments`, with their shardings on the mesh."""
    return abstract_sharded(jax.eval_shape(make, *arguments), mesh)


def rows_of(mesh: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    """An array's shape, its rows spread over the mesh; where they do not divide, every chip has them all."""
    sharding = (
        NamedSharding(mesh, PartitionSpec()) if shape[0] % data_parallel_size(mesh) else batch_sharding(mesh)
    )
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def texts_of(mesh: Any, rows: int, length: int) -> tuple[Any, Any]:
    """Tokens of texts and their mask."""
    return rows_of(mesh, (rows, length), jnp.int32), rows_of(mesh, (rows, length), bool)
