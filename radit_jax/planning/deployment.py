"""An experiment on a target: its counts, its meshes, and its models as shapes with their shardings."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from radit_jax.config import (
    EvaluateConfig,
    Experiment,
    GeneratedWorld,
    Instructions,
    LastTokenConfig,
    MeshConfig,
)
from radit_jax.models.attention import Kernel, why_unsupported
from radit_jax.models.bert import Bert
from radit_jax.models.decoder import DecoderLm
from radit_jax.models.frozen import frozen_shapes
from radit_jax.models.last_token import LastTokenEncoder
from radit_jax.planning.assumptions import Assumptions
from radit_jax.planning.own_data import FolderSize
from radit_jax.runtime.distributed.accelerators import Target, one_host, stand_in_devices
from radit_jax.runtime.distributed.answering_mesh import AnsweringModel, Room, answering_sizes, tokens_at_once
from radit_jax.runtime.distributed.memory import ROOM_OF_PARAMS
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
from radit_jax.runtime.pretrained.checkpoint_info import describe

TOKENS_PER_WORD = Assumptions.tokens_per_word  # unless a plan assumes another
EXAMPLE_TOKENS = 100  # of an instruction and its answer, without its Background
GENERATED_CHUNK_WORDS = 24  # of a chunk of the generated world
USUAL_VECTOR_SIZE = 768  # of BERT base, where the experiment gives no shape

INDEX_SHARE = 0.75  # of the embeddings: ScaNN's bfloat16 copy, and codes in two leaves each (SOAR)
BUILD_SHARE = 2.5  # of a shard, while its tree is built: measured with 250,000 vectors of 256


@dataclass(frozen=True)
class Counts:
    """How many chunks, words a chunk, examples and questions a run has."""

    chunks: int
    chunk_words: int
    examples: int  # of R-ft
    questions: int  # of the evaluation
    tokens_per_word: float = TOKENS_PER_WORD

    @classmethod
    def of(
        cls,
        experiment: Experiment,
        chunks: int | None,
        questions: int,
        counted: FolderSize | None = None,
    ) -> "Counts":
        """The counts of `experiment`, by its settings; `chunks`, if not None, is the number of chunks.

        `questions` is passed on. `counted` is what its own folder holds, and stands in for settings. Raises
        ValueError where nothing gives the number of chunks.
        """
        # 1) Chunks, and the tasks' examples for R-ft (0: the settings do not say how many).
        data, r_ft = experiment.data, experiment.r_ft
        num_tasks = getattr(data, "train_questions", 0)
        if counted:
            chunks = chunks or counted.chunks
            num_tasks = counted.train_questions
        if isinstance(data, Instructions):
            chunks = chunks or data.expected_chunks
            num_tasks = data.expected_r_ft_tasks
        if not chunks:
            raise ValueError(
                f"plan: expected the number of chunks of {experiment.name}'s corpus, got none. "
                "Give --chunks=N."
            )

        # 2) Words: the longest chunk counts as the usual one.
        is_generated = isinstance(data, GeneratedWorld)
        words = GENERATED_CHUNK_WORDS if is_generated else data.max_words
        if counted:
            words = counted.chunk_words

        # 3) All of R-ft's examples: tasks are a fraction of them, and the rest is cut from the corpus' own
        # text. Where no setting says how many, there is one for each chunk.
        task_fraction = max(1e-9, 1 - r_ft.corpus_text_fraction)
        examples = r_ft.num_examples or round(num_tasks / task_fraction) or chunks
        return cls(chunks, words, examples, questions)

    @property
    def chunk_tokens(self) -> int:
        """Tokens of a chunk, on average."""
        return round(self.chunk_words * self.tokens_per_word)

    @property
    def pair_tokens(self) -> int:
        """Tokens of a chunk and an example after it, on average."""
        return self.chunk_tokens + EXAMPLE_TOKENS


class PlannedModel(NamedTuple):
    """A network on a mesh, with shapes in place of its parameters."""

    module: Any  # computes in its own dtype
    params: Any  # shapes of float32 parameters, with their shardings
    mesh: Any


@dataclass(frozen=True)
class Deployment:
    """What the stages of `experiment` would compute with on `target`."""

    experiment: Experiment
    target: Target
    counts: Counts
    assumptions: Assumptions = field(default_factory=Assumptions)

    def apart(self, bytes_of_models: float) -> tuple["Deployment", int]:
        """Where a host works on shards of its own, and how many hosts do.

        Models that take more than half of a host's chips lie on those of all hosts, which then work as one.
        """
        num_hosts = self.target.num_hosts
        one = one_host(self.target)
        room = ROOM_OF_PARAMS * one.num_chips * one.chip.memory
        if num_hosts == 1 or bytes_of_models > room:
            return self, 1
        return replace(self, target=one), num_hosts

    def mesh(self, rows: int = 0) -> Any:
        """The mesh for batches of `rows` (0: of any number)."""
        return self._mesh_of(self.experiment.mesh, rows)

    def answering_mesh(
        self,
        settings: EvaluateConfig,
        rows: int = 0,
        *,
        num_models: int = 1,
        held: int = 0,
    ) -> Any:
        """`mesh` for the language model where it answers, as `runtime.distributed.answering_mesh` has it.

        A chip holds `num_models` such models, and `held` bytes of other things.
        """
        sizes = self.answering_sizes(settings, num_models=num_models, held=held)
        return self.mesh(rows) if sizes is None else self._mesh_of(sizes)

    def answering_sizes(
        self,
        settings: EvaluateConfig,
        *,
        num_models: int = 1,
        held: int = 0,
        own: bool = False,
    ) -> MeshConfig | None:
        """The sizes of `answering_mesh`; None where no slice, or host's `own` chips, has room for a copy."""
        target = self.target
        params = frozen_shapes(self.lm.params, settings.dtype)
        model = AnsweringModel.of(self.lm.module.config, params, settings.dtype)
        num_chips = len(self._devices) if target.topology else target.num_chips
        prompts = model.token_bytes * tokens_at_once(settings) / num_chips
        room = Room.of(target.chip.memory, prompts=prompts, num_models=num_models, held=held)
        if own:
            room = room._replace(without_prompts=room.with_prompts)
        return answering_sizes(
            self.experiment.mesh,
            model,
            num_devices=num_chips,
            num_slices=target.num_slices,
            room=room,
        )

    @property
    def _devices(self) -> Sequence[Any]:
        """Stand-ins for the target's chips, where there is a compiler for them."""
        return stand_in_devices(self.target.topology, self.target.num_slices)

    def _mesh_of(self, settings: MeshConfig, rows: int = 0) -> Any:
        if self.target.topology:
            return make_mesh(settings, self._devices, rows=rows)
        shape = mesh_shape(
            settings,
            self.target.num_chips,
            rows=rows,
            num_slices=self.target.num_slices,
        )
        axis_types = (AxisType.Auto,) * len(AXES)
        return AbstractMesh(shape, AXES, axis_types=axis_types)

    def llama(self, mesh: Any, dtype: str, frozen: bool = False) -> PlannedModel:
        """The language model, which computes in `dtype`; where it is `frozen` it is held in that too."""
        shape = self.experiment.base.lm.model
        if shape is None:
            raise ValueError(
                "plan: expected the checkpoint's shape in base.lm.model, got None. Set base.lm.model."
            )
        model = _decoder(shape, mesh, dtype)
        if frozen:
            model = model._replace(params=frozen_shapes(model.params, dtype))
        return model

    def labeller(self, mesh: Any) -> PlannedModel:
        """The language model that scores; the shape of a checkpoint is in its config."""
        score = self.experiment.score
        if not score.checkpoint:
            return self.llama(mesh, score.dtype, frozen=True)
        info = describe(score.checkpoint, expected="decoder")
        model = _decoder(info.config, mesh, score.dtype)
        # It is not trained, so its parameters are kept in the dtype that it computes in.
        params = jax.tree.map(lambda leaf: leaf.update(dtype=model.module.dtype), model.params)
        return model._replace(params=params)

    def fitted(self, model: PlannedModel, length: int) -> PlannedModel:
        """The language model as it reads packed rows of `length` tokens."""
        settings = self.experiment.mesh
        if self.target.topology:
            module = configure_attention(model.module, model.mesh, settings, row_length=length)
        else:
            module = model.module.clone(attention=self._kernel(model, length), remat=settings.remat)
        return model._replace(module=module)

    def _kernel(self, model: PlannedModel, length: int) -> Kernel:
        """The attention that the chips would run for rows of `length`."""
        kernel = self.experiment.mesh.attention
        if kernel != "auto":
            return kernel
        own: Kernel = "splash" if self.target.chip.kind == "tpu" else "cudnn"
        # Nothing is compiled here, so this machine's libraries do not matter.
        module = model.module
        tensor = model.mesh.shape["tensor"]
        reason = why_unsupported(
            own,
            module.config,
            dtype=module.dtype,
            row_length=length,
            tensor=tensor,
            elsewhere=True,
        )
        if reason:
            return "xla"
        return own

    def encoder(self, mesh: Any, dtype: str = "float32") -> PlannedModel:
        """A tower of the retriever, which computes in `dtype`."""
        shape = self.experiment.base.retriever.model
        if shape is None:
            raise ValueError(
                "plan: expected the checkpoint's shape in base.retriever.model, got None. "
                "Set base.retriever.model."
            )
        # Rows are pinned to their chips only where the program is compiled.
        layout = row_layout(mesh) if self.target.topology else None
        network: Any = LastTokenEncoder if isinstance(shape, LastTokenConfig) else Bert
        module = network(shape, jnp.dtype(dtype), layout)
        tokens = jnp.zeros((1, 8), jnp.int32)

        def init(key: Any) -> Any:
            return module.init(key, tokens, tokens == 0)["params"]

        # A tower that is trained computes in float32, so this one is not.
        params = placed(init, mesh, jax.random.key(0))
        return PlannedModel(module, frozen_shapes(params, dtype), mesh)

    # Shapes of whole models, whose bytes are counted where files are.

    @functools.cached_property
    def lm(self) -> PlannedModel:
        """The language model in float32."""
        return self.llama(self.mesh(), "float32")

    @property
    def lm_params(self) -> Any:
        """The language model's in float32."""
        return self.lm.params

    @functools.cached_property
    def labeller_params(self) -> Any:
        """Those of the model that scores, in the dtype in which its stage leaves them."""
        if not self.experiment.score.checkpoint:
            return self.lm_params
        return self.labeller(self.mesh()).params

    @functools.cached_property
    def tower_params(self) -> Any:
        """One tower's in float32."""
        return self.encoder(self.mesh()).params

    @property
    def embeddings(self) -> float:
        """Bytes of the corpus' embeddings in float32."""
        shape = self.experiment.base.retriever.model
        vector_size = shape.vector_size if shape else USUAL_VECTOR_SIZE
        return 4.0 * self.counts.chunks * vector_size

    @property
    def embedded(self) -> int:
        """How often the corpus is embedded and indexed: twice where R-ft tunes the chunk encoder too."""
        return 1 + self.experiment.r_ft.train_chunk_encoder

    @property
    def searching(self) -> float:
        """Bytes of a host that searches its part of the index."""
        host_share = self.shards_per_host / self.num_shards
        return INDEX_SHARE * self.embeddings * host_share

    @property
    def indexing(self) -> float:
        """Bytes of a host that builds the trees of its shards one by one, and then searches them."""
        building = BUILD_SHARE * self.embeddings / self.num_shards
        return max(self.searching, building)

    @property
    def shards_per_host(self) -> int:
        """Shards of the index that a host searches; a host has whole ones."""
        return -(-self.num_shards // self.target.num_hosts)

    @property
    def num_shards(self) -> int:
        """Shards of the index, in all hosts together."""
        return -(-self.counts.chunks // self.experiment.index.shard_size)


def _decoder(shape: Any, mesh: Any, dtype: str) -> PlannedModel:
    """A language model of that shape on the mesh."""
    module = DecoderLm(shape, dtype=jnp.dtype(dtype))
    tokens = jnp.zeros((1, 8), jnp.int32)

    def init(key: Any) -> Any:
        return module.init(key, tokens)["params"]

    params = placed(init, mesh, jax.random.key(0))
    return PlannedModel(module, params, mesh)


def placed(make: Callable[..., Any], mesh: Any, *arguments: Any) -> Any:
    """The shapes of what `make` returns for `arguments`, with their shardings on the mesh."""
    shapes = jax.eval_shape(make, *arguments)
    return abstract_sharded(shapes, mesh)


def rows_of(mesh: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    """The abstract array of `shape` with its rows spread over the mesh.

    Where the mesh does not divide the rows, every chip has all of them.
    """
    is_divisible = shape[0] % data_parallel_size(mesh) == 0
    sharding = batch_sharding(mesh) if is_divisible else NamedSharding(mesh, PartitionSpec())
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def texts_of(mesh: Any, rows: int, length: int) -> tuple[Any, Any]:
    """Abstract tokens of texts and their mask, both (rows, length)."""
    tokens = rows_of(mesh, (rows, length), jnp.int32)
    mask = rows_of(mesh, (rows, length), bool)
    return tokens, mask
