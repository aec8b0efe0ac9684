"""lm_ft: Eq. 3. The language model learns to answer with a retrieved chunk before each instruction.

Every (example, chunk) pair is an instance of its own, and so is an example under its gold context. The loss
is on the answer's tokens and `<eos>` only.

With LoRA the folder has the adapters in PEFT's form, and the language model into which they are merged. With
QLoRA they learn over quantised kernels, and are merged into the original ones.
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from radit_jax.config import EvaluateConfig, LmFtConfig, MeshConfig, ProfileConfig
from radit_jax.data.artifacts.chunks import Chunks
from radit_jax.data.artifacts.retrieved import Retrieved
from radit_jax.data.batches.packing import PrefixTree
from radit_jax.data.batches.prefix_trees import lm_sequence
from radit_jax.data.records import ChunkReader
from radit_jax.evaluation.questions import load_tasks, without_too_long
from radit_jax.evaluation.task_suite import kilt_validation, retrieve_for_task
from radit_jax.lm.training import LmTraining, LmValidation, PackedTrees, train_lm
from radit_jax.models.frozen import is_frozen
from radit_jax.models.lora import merge_adapters, quantized
from radit_jax.retrieval.search import Searcher
from radit_jax.runtime.distributed import processes
from radit_jax.runtime.distributed.mesh import gather, make_mesh
from radit_jax.runtime.pretrained.hf_export import ADAPTERS, export_peft
from radit_jax.runtime.pretrained.model_io import Model, count_parameters, load_model, save_model
from radit_jax.runtime.storage.stage_folder import StageFolder, StageInputs


def run(
    inputs: StageInputs,
    output: StageFolder,
    *,
    lm_ft: LmFtConfig,
    seed: int,
    mesh: MeshConfig,
    profile: ProfileConfig | None = None,
    evaluate: EvaluateConfig | None = None,
    temperature: float = 1.0,
) -> dict[str, Any]:
    """Fine-tune the base language model; the checkpoint that is the best in `lm_ft.select` is kept.

    `evaluate` are the settings of the tasks that `lm_ft.select=kilt_dev` asks, None elsewhere.
    """
    # 1) The model and its instances; QLoRA learns over quantised kernels.
    started = time.monotonic()
    devices = make_mesh(mesh, rows=lm_ft.rows_at_a_time)
    model = _load(inputs["lm"], lm_ft, evaluate, devices)
    train_trees, num_truncated = _packed_instances(inputs, "train", model.tokenizer, lm_ft, seed)
    dev_trees, _ = _packed_instances(inputs, "dev", model.tokenizer, lm_ft, seed)

    # 2) Training; without KILT's tasks, validation is on the development instances alone.
    validate_on_tasks = None
    if evaluate is not None:
        validate_on_tasks = _kilt_validation(
            inputs, model, lm_ft.rows_at_a_time, evaluate, temperature, seed, mesh
        )
    trained, facts = train_lm(
        "lm_ft",
        model.module.clone(rounds_head_gradient=lm_ft.round_head_gradient),
        model.params,
        train_trees.shuffled,
        output,
        training=LmTraining(
            lm_ft.optimizer,
            mesh,
            checkpoint_every=lm_ft.checkpoint_every,
            accumulate_steps=lm_ft.accumulate_steps,
            lora=lm_ft.lora,
            seed=seed,
            profile=profile,
        ),
        validation=LmValidation(
            dev_trees, every=lm_ft.validate_every, select=lm_ft.select, more_figures=validate_on_tasks
        ),
        started=started,
    )

    # 3) The tuned model, and its adapters where it has some.
    if lm_ft.lora.rank:
        facts["adapter_parameters"] = count_parameters(trained)
        _export_adapters(output, trained, lm_ft, inputs["lm"])
        # The adapters are merged into the stored kernels: those they learnt over may be quantised.
        stored_params = load_model(inputs["lm"].verified_path("lm"), mesh=devices).params
        trained = merge_adapters(stored_params, trained, lm_ft.lora)
    save_model(output.path / "lm", model._replace(params=trained))
    output.commit("lm")
    num_rows_seen = lm_ft.optimizer.steps * lm_ft.batch_size
    facts["times_seen"] = round(num_rows_seen / len(train_trees.rows), 2)
    facts["truncated_chunks"] = num_truncated
    return {**train_trees.facts, **facts}


def _load(lm: StageFolder, lm_ft: LmFtConfig, evaluate: EvaluateConfig | None, devices: Mesh) -> Model:
    """The model that is tuned, or that adapters learn over."""
    model = load_model(
        lm.verified_path("lm"),
        dtype=lm_ft.dtype,
        mesh=devices,
        frozen=is_frozen(lm_ft, evaluate),
    )
    if lm_ft.lora.quantize == "none":
        return model
    return model._replace(params=quantized(model.params, lm_ft.lora))


def _packed_instances(
    inputs: StageInputs,
    split: str,
    tokenizer: Any,
    lm_ft: LmFtConfig,
    seed: int,
) -> tuple[PackedTrees, int]:
    """The instances of a split in rows, and how many of their chunks were cut to fit."""
    retrieved = Retrieved.load(inputs["retrieved"], split)
    # Validation may be on some of the dev examples only.
    if split == "dev" and lm_ft.validate_examples:
        drawn = np.random.default_rng([seed, 4]).permutation(len(retrieved.examples))
        places = np.sort(drawn[: lm_ft.validate_examples])
        retrieved = retrieved.take(places)
    chunks = Chunks(inputs["corpus"])
    trees, num_truncated = instances(retrieved, chunks, tokenizer, lm_ft.sequence_length)
    # Shuffled, so that the instances of an example spread over rows.
    order = np.random.default_rng([seed, 2]).permutation(len(trees))
    packed = PackedTrees(
        [trees[number] for number in order],
        row_length=lm_ft.sequence_length,
        batch_size=lm_ft.batch_size,
        seed=seed,
    )
    return packed, num_truncated


def _export_adapters(output: StageFolder, adapters: Any, lm_ft: LmFtConfig, base: StageFolder) -> None:
    """Write LoRA's adapters in PEFT's form."""
    # All processes gather what is spread over their devices, and process 0 writes it.
    whole_adapters = jax.tree.map(gather, adapters)

    def write() -> None:
        export_peft(output.path / ADAPTERS, whole_adapters, lm_ft.lora, _base_name(base))

    processes.on_process_zero("lm_ft's adapters", write)
    output.commit(ADAPTERS)


def _base_name(base: StageFolder) -> str:
    """What others may know the untuned language model by; "" where it was trained from scratch."""
    return base.manifest.get("origin", {}).get("name", "")


def _kilt_validation(
    inputs: StageInputs,
    model: Model,
    batch_size: int,
    evaluate: EvaluateConfig,
    temperature: float,
    seed: int,
    mesh: MeshConfig,
) -> Callable[[Any], dict[str, float]]:
    """What a checkpoint is chosen by: KILT's development tasks, asked as `evaluate` will ask its tasks."""
    tasks = [without_too_long(task, model.tokenizer, evaluate) for task in load_tasks(evaluate, seed=seed)]
    # The retriever does not change while the language model learns, so it is asked once.
    searcher = Searcher.load(inputs, mesh, copies=True)
    chunks = Chunks(inputs["corpus"])
    retrieved = [retrieve_for_task(task, searcher, chunks, evaluate, temperature) for task in tasks]
    return kilt_validation(tasks, retrieved, model, mesh, evaluate, batch_size=batch_size)


def instances(
    retrieved: Retrieved, chunks: ChunkReader, tokenizer: Any, max_length: int
) -> tuple[list[PrefixTree], int]:
    """One tree per (example, chunk), and how many chunks were cut to fit.

    An example with a Background of its own is one instance under it; where that is "", under no Background.
    """
    # Each chunk is read once, however many examples retrieved it.
    rows = np.unique(retrieved.chunk_rows[retrieved.chunk_rows >= 0])
    passages = [chunk.passage for chunk in chunks.take(rows)]
    passage_at = dict(zip(rows.tolist(), passages, strict=True))

    # Every example gives one instance per Background.
    trees, num_truncated = [], 0
    for example, chunk_rows in zip(retrieved.examples, retrieved.chunk_rows.tolist(), strict=True):
        if example.background is None:
            backgrounds = [passage_at[row] for row in chunk_rows if row >= 0]
        else:
            backgrounds = [example.background or None]
        for background in backgrounds:
            tree, truncated = lm_sequence(
                tokenizer, background, example, max_length=max_length, terminator=True
            )
            trees.append(tree)
            num_truncated += truncated
    return trees, num_truncated
