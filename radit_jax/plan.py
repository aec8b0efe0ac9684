"""What a run needs, before anything is rented: `python -m radit_jax.plan --experiment=… --target=v5e-256`.

A line per stage: parameters; what a chip holds between steps, and at its peak; arithmetic, traffic between
chips and their memory, and the time below which no machine of the kind can do either; a host's memory and the
workdir's disk. A stage's program is the one that it runs, at the experiment's batch and length. For a TPU it
is compiled, ahead of time and without one, and the peak is the compiler's; for GPUs the peak is an estimate,
marked by ~. Exits with 1 where something does not fit.
"""

import argparse
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from radit_jax import config
from radit_jax.config import Experiment, GeneratedWorld, Instructions, LmFtConfig
from radit_jax.runtime.targets import GIB, Target, find_target, stand_in_devices

Number = float | int
TOKENS_PER_WORD = 1.35  # of English, in LLaMA's and BERT's vocabularies
BYTES_PER_WORD = 6.0
EXAMPLE_TOKENS = 100  # of an instruction and its answer, beside its Background


@dataclass(frozen=True)
class Program:
    """What a stage computes again and again."""

    step: Any  # jit-compiled
    arguments: Sequence[Any]  # shapes with shardings; the module where it is static
    held: Any  # those of them that stay on the devices
    flops: Number  # of a step, on all chips
    traffic: Number  # bytes that a chip must at least read and write in a step
    activations: Number  # bytes of a chip beside what is held: an estimate, for where nothing is compiled
    times: Number  # steps
    remedy: str  # what to set where a chip's memory is too small


@dataclass(frozen=True)
class Need:
    """What a stage asks of the target, in bytes, operations and seconds."""

    stage: str
    params: int = 0
    held: Number = 0.0  # of a chip, between steps
    peak: Number = 0.0  # of a chip
    estimated: bool = False  # is `peak`
    flops: Number = 0.0  # of the whole stage
    traffic: Number = 0.0  # of the whole stage
    seconds: Number = 0.0  # of the whole stage, at least
    host: Number = 0.0  # of a host's memory
    disk: Number = 0.0  # of the workdir
    remedy: str = ""  # what to set where a chip's memory is too small
    faults: tuple[str, ...] = ()


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


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser("python -m radit_jax.plan", description=(__doc__ or "").partition("\n")[0])
    p.add_argument("--experiment", required=True, metavar="FILE", help="a Python file, as for train")
    p.add_argument("--target", required=True, metavar="KIND-NUMBER", help="v5e-256, v5p-128, h100-8, …")
    p.add_argument("--stage", choices=STAGES, help="only this one")
    p.add_argument("--workdir", default="", metavar="FOLDER", help="in gs:// or s3:// no disk has to hold it")
    p.add_argument("--chunks", type=int, metavar="N", help="of the corpus; default: what the experiment says")
    p.add_argument("--questions", type=int, default=1000, metavar="N", help="to answer (default: 1000)")
    p.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE", dest="assignments")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing runs here, and no TPU is looked for
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    try:
        experiment = config.override(config.load(options.experiment), options.assignments)
        target = find_target(options.target)
        counts = Counts.of(experiment, options.chunks, options.questions)
        print(f"{experiment.name} on {target.name}: {target.num_chips} chips on {target.num_hosts} hosts")
        print(HEADER, flush=True)
        needs = []
        for stage in [options.stage] if options.stage else STAGES:
            need = STAGES[stage](Site(experiment, target, counts))
            needs.append(judged(need, target, on_disk="://" not in options.workdir))
            print(line(needs[-1]), flush=True)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return int(any(need.faults for need in needs))


# ---- the table ----

HEADER = (
    f"{'stage':9} {'parameters':>10} {'held/chip':>10} {'peak/chip':>10} {'FLOPs':>9} {'traffic':>9} "
    f"{'at least':>9} {'host RAM':>9} {'disk':>9}"
)


def line(need: Need) -> str:
    """A row of the table: sizes in GiB, FLOPs and traffic of the whole stage, and whether it fits."""

    def size(value: Number, mark: str = "") -> str:
        return f"{mark}{value / GIB:.2f} GiB" if value else "-"

    cells = (
        f"{need.params / 1e6:,.1f} M" if need.params else "-",
        size(need.held),
        size(need.peak, "~" if need.estimated else ""),
        f"{need.flops:.1e}" if need.flops else "-",
        f"{need.traffic:.1e}" if need.traffic else "-",
        _duration(need.seconds) if need.seconds else "-",
        size(need.host),
        size(need.disk),
    )
    widths = (10, 10, 10, 9, 9, 9, 11, 11)
    verdict = f"does not fit: {'; '.join(need.faults)}" if need.faults else "fits"
    return " ".join([f"{need.stage:9}", *(f"{c:>{w}}" for c, w in zip(cells, widths, strict=True)), verdict])


def _duration(seconds: Number) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{max(0.1, seconds / 60):.1f} min"


# ---- the stages ----


@dataclass(frozen=True)
class Site:
    """An experiment on a target: the shapes that its stages compute with, where they would lie."""

    experiment: Experiment
    target: Target
    counts: Counts

    def mesh(self, rows: int = 0) -> Any:
        """The stage's mesh: for a language model with batches of `rows`, or an encoder's."""
        from jax.sharding import AbstractMesh, AxisType

        from radit_jax.runtime.mesh import AXES, make_mesh, mesh_shape

        if self.target.topology:
            return make_mesh(self.experiment.mesh, stand_in_devices(self.target.topology), rows=rows)
        shape = mesh_shape(self.experiment.mesh, self.target.num_chips, rows=rows)
        return AbstractMesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES))

    def llama(self, mesh: Any, dtype: str, length: int) -> tuple[Any, Any]:
        """The language model as it computes rows of `length`, and its float32 parameters' shapes."""
        import jax
        import jax.numpy as jnp

        from radit_jax.models.llama import Llama
        from radit_jax.runtime.mesh import fit_module

        shape = self.experiment.base.lm.model
        if shape is None:
            raise ValueError("plan: base.lm.model is not set, needed is the shape of the checkpoint; set it")
        module, tokens = Llama(shape, dtype=jnp.dtype(dtype)), jnp.zeros((1, 8), jnp.int32)
        params = _placed(lambda key: Llama(shape).init(key, tokens)["params"], mesh, jax.random.key(0))
        settings = self.experiment.mesh
        if self.target.topology:
            module = fit_module(module, mesh, settings, row_length=length)
        else:  # nothing is compiled
            kernel = "cudnn" if settings.attention == "auto" else settings.attention
            module = module.clone(attention=kernel, remat=settings.remat)
        return module, params

    def encoder(self, mesh: Any, dtype: str = "float32") -> tuple[Any, Any]:
        """A tower and its parameters' shapes."""
        import jax
        import jax.numpy as jnp

        from radit_jax.models.bert import Bert

        shape = self.experiment.base.retriever.model
        if shape is None:
            raise ValueError(
                "plan: base.retriever.model is not set, needed is the shape of the checkpoint; set it"
            )
        module, tokens = Bert(shape, dtype=jnp.dtype(dtype)), jnp.zeros((1, 8), jnp.int32)
        make = lambda key: module.init(key, tokens, tokens == 0)["params"]  # noqa: E731
        return module, _placed(make, mesh, jax.random.key(0))

    @property
    def embeddings(self) -> float:
        """Bytes of the corpus in float32."""
        shape = self.experiment.base.retriever.model
        return 4.0 * self.counts.chunks * (shape.hidden_size if shape else 768)


def plan_corpus(site: Site) -> Need:
    disk = site.counts.chunks * site.counts.chunk_words * BYTES_PER_WORD
    return Need("corpus", disk=disk)


def plan_base(site: Site) -> Need:
    """A checkpoint is read a layer at a time, straight to its shards."""
    mesh = site.mesh(site.experiment.score.batch_size)
    _, params = site.llama(mesh, "float32", site.experiment.score.sequence_length)
    _, tower = site.encoder(mesh)
    layer = max(_bytes(leaf) / leaf.shape[0] for leaf in _leaves(params) if len(leaf.shape) == 3)
    held, count = _share(params) + 2 * _share(tower), _count(params) + 2 * _count(tower)
    disk = _bytes(params) + 2 * _bytes(tower)
    host = 1.3 * layer + GIB / 4
    return Need("base", count, held, held, host=host, disk=disk, remedy="a larger slice")


def plan_embed(site: Site) -> Need:
    import jax

    from radit_jax.models.bert import encode
    from radit_jax.models.flops import encoder_flops
    from radit_jax.runtime.mesh import ways

    settings, mesh = site.experiment.embed, site.mesh()
    length = site.experiment.base.retriever.chunk_length
    rows = -(-settings.batch_size // ways(mesh)) * ways(mesh)
    module, params = site.encoder(mesh, settings.dtype)
    program = Program(
        jax.jit(encode, static_argnums=0),
        (module, params, *_texts(mesh, rows, length)),
        params,
        encoder_flops(module.config, rows=rows, length=min(length, site.counts.chunk_tokens)),
        _weights(module, params, mesh),
        rows / ways(mesh) * length * 8 * module.config.ffn_size,
        site.counts.chunks / rows,
        "embed.batch_size",
    )
    host = site.embeddings / site.counts.chunks * settings.shard_size
    return _need("embed", program, params, site.target, host=host, disk=site.embeddings)


def plan_index(site: Site) -> Need:
    """The float32 embeddings are in every host's memory, and ScaNN's hashes of them, about a tenth."""
    return Need("index", host=1.1 * site.embeddings, disk=0.1 * site.embeddings)


def plan_lm_ft(site: Site) -> Need:
    from radit_jax.models.flops import training_flops

    settings = site.experiment.lm_ft
    rows, length = settings.batch_size, settings.sequence_length
    mesh = site.mesh(settings.rows_at_a_time)
    module, params = site.llama(mesh, settings.dtype, length)
    step, state, frozen = _lm_step(module, params, settings, mesh)
    flops = training_flops(
        module.config,
        tokens=rows * length,
        attended=rows * length * (length + 1) / 2,
        targets=rows * length,
        lora=settings.lora,
    )
    passes = 3 if module.remat == "none" else 4
    program = Program(
        step,
        (state, _lm_batch(mesh, rows, length, length), *frozen),
        (state, frozen),
        flops,
        passes * _weights(module, params, mesh) * settings.accumulate_steps + 2 * _share(state),
        _share(state.params) + _activations(module, mesh, settings.rows_at_a_time, length, training=True),
        settings.optimizer.steps,
        "lm_ft.accumulate_steps, mesh.remat=full, lm_ft.lora.rank or a larger slice",
    )
    kept = 2 * (_bytes(state) + _bytes(params))  # two checkpoints, the best and the result
    return _need("lm_ft", program, params, site.target, disk=kept)


def _lm_step(module: Any, params: Any, settings: LmFtConfig, mesh: Any) -> tuple[Any, Any, tuple[Any, ...]]:
    """LM-ft's step, its state's shapes, and those of the parameters that stay, of which there may be none."""
    import jax

    from radit_jax.method.steps import init_state, make_lm_step, make_optimizer
    from radit_jax.models.lora import init_adapters, quantized

    tx, lora = make_optimizer(settings.optimizer), settings.lora
    if not lora.rank:
        state, frozen, options = _placed(lambda tree: init_state(tree, tx), mesh, params), (), {}
    else:
        adapters = lambda tree: init_adapters(tree, lora, jax.random.key(0))  # noqa: E731
        state = _placed(lambda tree: init_state(adapters(tree), tx), mesh, params)
        if lora.quantize != "none":
            params = _placed(lambda tree: quantized(tree, lora), mesh, params)
        frozen, options = (params,), {"lora": lora}
    step = make_lm_step(
        module, tx, accumulate_steps=settings.accumulate_steps, state_shardings=_shardings(state), **options
    )
    return step, state, frozen


def plan_score(site: Site) -> Need:
    import jax

    from radit_jax.method.lm import branch_log_probs
    from radit_jax.models.flops import training_flops

    settings = site.experiment.score
    rows, length = settings.batch_size, settings.sequence_length
    mesh = site.mesh(rows)
    module, params = site.llama(mesh, settings.dtype, length)
    pair = min(length, site.counts.chunk_tokens + EXAMPLE_TOKENS)
    per_row, num_pairs = length // pair, site.counts.examples * (site.experiment.retrieve.num_chunks + 1)
    forward = training_flops(
        module.config,
        tokens=rows * per_row * pair,
        attended=rows * per_row * pair * (pair + 1) / 2,
        targets=rows * per_row * EXAMPLE_TOKENS / 2,
    )
    program = Program(
        jax.jit(branch_log_probs, static_argnums=(0, 3)),
        (module, params, _lm_batch(mesh, rows, length, length // 2), length // 2),
        params,
        forward / 3,
        _weights(module, params, mesh),
        _activations(module, mesh, rows, length, training=False),
        num_pairs / (rows * per_row),
        "score.batch_size",
    )
    return _need("score", program, params, site.target, host=32.0 * num_pairs, disk=16.0 * num_pairs)


def plan_r_ft(site: Site) -> Need:
    import jax.numpy as jnp

    from radit_jax.method.steps import RftBatch, init_state, make_optimizer, make_r_ft_step
    from radit_jax.models.flops import encoder_flops
    from radit_jax.runtime.mesh import ways

    settings, mesh = site.experiment.r_ft, site.mesh()
    rows, length = settings.batch_size, site.experiment.base.retriever.query_length
    tokens = rows * length
    module, params = site.encoder(mesh)
    k, width = site.experiment.retrieve.num_chunks, module.config.hidden_size
    tx = make_optimizer(settings.optimizer)
    state = _placed(lambda tree: init_state(tree, tx), mesh, params)
    step = make_r_ft_step(module, tx, temperature=settings.temperature, state_shardings=_shardings(state))
    of_chunks = ((rows, k, width), jnp.float32), ((rows, k), jnp.float32), ((rows, k), bool)
    batch = RftBatch(*_texts(mesh, rows, length), *(_rows(mesh, *spec) for spec in of_chunks))
    program = Program(
        step,
        (state, batch),
        state,
        3 * encoder_flops(module.config, rows=rows, length=length),
        3 * _weights(module, params, mesh) + 2 * _share(state),
        tokens / ways(mesh) * module.config.num_layers * 16 * (4 * width + module.config.ffn_size),
        settings.optimizer.steps,
        "r_ft.batch_size",
    )
    kept = 2 * (_bytes(state) + _bytes(params))
    return _need("r_ft", program, params, site.target, host=1.1 * site.embeddings, disk=kept)


def plan_evaluate(site: Site) -> Need:
    """Reading the prompts of a batch, each behind one chunk: their cache is what fills a chip."""
    import jax
    import jax.numpy as jnp

    from radit_jax.method.decode import prefill
    from radit_jax.models.flops import training_flops

    settings = site.experiment.evaluate
    rows, length = settings.prompts_per_batch, settings.sequence_length
    mesh = site.mesh(rows)
    module, params = site.llama(mesh, "float32", length)
    pairs = rows * length * (length + 1) / 2
    shape = module.config
    cache = 2 * 4 * rows * length * shape.num_layers * shape.num_kv_heads * shape.head_size
    program = Program(
        jax.jit(prefill, static_argnums=0),
        (module, params, _rows(mesh, (rows, length), jnp.int32), _rows(mesh, (rows,), jnp.int32)),
        params,
        training_flops(shape, tokens=rows * length, attended=pairs, targets=rows) / 3,
        (1 + settings.max_new_tokens) * _weights(module, params, mesh),
        cache / site.target.num_chips + _activations(module, mesh, rows, length, training=False),
        5 * site.counts.questions * settings.chunks_per_answer / rows,
        "evaluate.prompts_per_batch or evaluate.sequence_length",
    )
    disk = 5e3 * site.counts.questions
    return _need("evaluate", program, params, site.target, host=1.1 * site.embeddings, disk=disk)


def plan_export(site: Site) -> Need:
    """Our form of the models and Hugging Face's, chunks and their embeddings."""
    mesh = site.mesh(site.experiment.score.batch_size)
    _, params = site.llama(mesh, "float32", site.experiment.score.sequence_length)
    _, tower = site.encoder(mesh)
    count = _count(params) + 3 * _count(tower)
    copies = 4 + site.experiment.export.hf * {"float32": 4, "bfloat16": 2}[site.experiment.export.dtype]
    host = max(_bytes(leaf) for leaf in _leaves(params)) + GIB / 4
    disk = count * copies + site.embeddings + plan_corpus(site).disk
    return Need("export", count, host=host, disk=disk)


STAGES: dict[str, Callable[[Site], Need]] = {
    "corpus": plan_corpus,
    "base": plan_base,
    "embed": plan_embed,
    "index": plan_index,
    "lm_ft": plan_lm_ft,
    "score": plan_score,
    "r_ft": plan_r_ft,
    "evaluate": plan_evaluate,
    "export": plan_export,
}


# ---- from a program to what it needs ----


def _need(
    stage: str, program: Program, params: Any, target: Target, *, host: Number = 0, disk: Number = 0
) -> Need:
    """Compile `program` for the target, or estimate, and hold the result against what the target has."""
    held, estimated = _share(program.held), target.chip.kind != "tpu"
    peak = held + program.activations if estimated else compiled_peak(program.step, program.arguments)
    flops, traffic = program.flops * program.times, program.traffic * program.times * target.num_chips
    seconds = max(flops / target.chip.flops, traffic / target.chip.bandwidth) / target.num_chips
    return Need(
        stage, _count(params), held, peak, estimated, flops, traffic, seconds, host, disk, program.remedy
    )


def compiled_peak(step: Any, arguments: Sequence[Any]) -> float:
    """The bytes of a chip that the compiler gives the program, or would have to, where it refuses."""
    import jax

    try:
        memory = step.lower(*arguments).compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        asked = re.search(r"([0-9.]+)G[^0-9]*(exceeds|of|\()", str(error))
        return float(asked[1]) * GIB if asked else math.inf
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return 1.0 * memory.argument_size_in_bytes + memory.temp_size_in_bytes + outputs


def judged(need: Need, target: Target, *, on_disk: bool) -> Need:
    """`need` with what the target has too little of; a workdir in a bucket is on no disk."""
    chip = target.chip
    limits = (
        (need.peak, chip.memory, f"set {need.remedy}"),
        (need.host, chip.host_memory, "a host has {:.0f} GiB of memory: take hosts that have more"),
        (need.disk * on_disk, chip.host_disk, "a host has {:.0f} GiB of disk: --workdir in a bucket"),
    )
    faults = (cure.format(most / GIB) for came, most, cure in limits if came > most)
    return replace(need, faults=tuple(faults))


def _activations(module: Any, mesh: Any, rows: int, length: int, *, training: bool) -> float:
    """Bytes of a chip for a LLaMA's activations, about: what layers keep, and what the widest one needs."""
    from radit_jax.method.lm import SLOTS
    from radit_jax.models.flops import projection_shapes
    from radit_jax.runtime.mesh import ways

    shape, tensor = module.config, mesh.shape["tensor"]
    tokens, width = rows / ways(mesh) * length, module.dtype.itemsize
    wide = (3 * shape.ffn_size + 4 * shape.num_heads * shape.head_size) / tensor
    layer = tokens * (4 * shape.hidden_size + wide) * width
    kept = {"full": 1, "dots": 3, "none": 6}[module.remat] * shape.hidden_size
    kept += 0 if module.remat == "full" else wide
    kept = tokens * kept * width * shape.num_layers if training else 0.0
    scores = 0.0
    if module.attention == "xla":
        scores = rows / ways(mesh) * shape.num_heads / tensor * length**2 * 4 * (2 if training else 1)
    logits = rows / ways(mesh) * SLOTS * shape.vocab_size * 4 / tensor * (3 if training else 1)
    gathered = 2 * 2 * sum(map(math.prod, projection_shapes(shape).values())) / tensor * width
    return kept + 2 * layer + scores + logits + gathered


def _weights(module: Any, params: Any, mesh: Any) -> float:
    """Bytes that a chip reads to use every parameter once, in the dtype that it computes in."""
    import jax.numpy as jnp

    return _count(params) * jnp.dtype(module.dtype).itemsize / mesh.shape["tensor"]


# ---- shapes ----


def _placed(make: Callable[..., Any], mesh: Any, *arguments: Any) -> Any:
    """The shapes of what `make` gives for `arguments`, with their shardings on the mesh."""
    import jax

    from radit_jax.runtime.mesh import tree_shardings

    shapes = jax.eval_shape(make, *arguments)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        tree_shardings(shapes, mesh),
    )


def _shardings(tree: Any) -> Any:
    import jax

    return jax.tree.map(lambda leaf: leaf.sharding, tree)


def _rows(mesh: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    import jax

    from radit_jax.runtime.mesh import batch_sharding

    return jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(mesh))


def _texts(mesh: Any, rows: int, length: int) -> tuple[Any, Any]:
    """Tokens and their mask."""
    import jax.numpy as jnp

    return _rows(mesh, (rows, length), jnp.int32), _rows(mesh, (rows, length), bool)


def _lm_batch(mesh: Any, rows: int, length: int, targets: int) -> Any:
    """Rows without branches, in which every token may be a target."""
    import jax.numpy as jnp

    from radit_jax.method.lm import LmBatch

    tokens, slots = (_rows(mesh, (rows, width), jnp.int32) for width in (length, targets))
    weights = _rows(mesh, (rows, targets), jnp.float32)
    return LmBatch(tokens, tokens, tokens, None, slots, slots, weights, slots)


def _leaves(tree: Any) -> list[Any]:
    import jax

    return jax.tree.leaves(tree)


def _count(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in _leaves(tree))


def _bytes(tree: Any) -> float:
    return float(sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in _leaves(tree)))


def _share(tree: Any) -> float:
    """The bytes of a tree that one chip holds."""
    return 1.0 * sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in _leaves(tree)
    )


if __name__ == "__main__":
    sys.exit(main())
