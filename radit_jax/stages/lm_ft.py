"""lm_ft: Eq. 3. The language model learns to answer with a retrieved chunk before each instruction.

Every (example, chunk) pair is an instance of its own, and so is an example under its gold context; the loss
is on the answer's tokens and `<eos>` only.

With LoRA the folder has the adapters in PEFT's form beside the language model, in which they are merged;
with QLoRA they learnt over quantised kernels, and are merged into the whole ones.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from radit_jax.config import EvaluateConfig, LmFtConfig, MeshConfig, ProfileConfig
from radit_jax.data.artifacts.corpus import Chunks, Corpus
from radit_jax.data.artifacts.retrieved import Retrieved
from radit_jax.data.batches.packing import PrefixTree
from radit_jax.data.batches.prefix_trees import lm_sequence
from radit_jax.evaluation.task_suite import kilt_validation, load_tasks, retrieve_for_task, without_too_long
from radit_jax.lm.training import LmTraining, LmValidation, PackedTrees, train_lm
from radit_jax.models.lora import merge_adapters, quantized
from radit_jax.retrieval.search import Searcher
from radit_jax.runtime.distributed import processes
from radit_jax.runtime.distributed.mesh import gather, make_mesh
from radit_jax.runtime.pretrained.hf_export import ADAPTERS, export_peft
from radit_jax.runtime.pretrained.model_io import Model, count_parameters, load_model, save_model
from radit_jax.runtime.storage.stage_folder import StageFolder


def run(
    inputs: Mapping[str, StageFolder],
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
    started = time.monotonic()
    devices = make_mesh(mesh, rows=lm_ft.rows_at_a_time)
    model = load_model(inputs["lm"].verified_path("lm"), dtype=lm_ft.dtype, mesh=devices)
    if lm_ft.lora.quantize != "none":
        model = model._replace(params=quantized(model.params, lm_ft.lora))
    chunks = Corpus(inputs["corpus"]).chunks
    packed, truncated = {}, {}
    for split in ("train", "dev"):
        retrieved = Retrieved.load(inputs["retrieved"], split)
        trees, truncated[split] = instances(retrieved, chunks, model.tokenizer, lm_ft.sequence_length)
        order = np.random.default_rng([seed, 2]).permutation(len(trees))
        packed[split] = PackedTrees(
            [trees[i] for i in order],
            row_length=lm_ft.sequence_length,
            batch_size=lm_ft.batch_size,
            seed=seed,
        )
    validate = None
    if evaluate is not None:
        validate = _validation(inputs, model, lm_ft.rows_at_a_time, evaluate, temperature, seed, mesh)
    trained, facts = train_lm(
        "lm_ft",
        model.module,
        model.params,
        packed["train"].shuffled,
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
            packed["dev"], every=lm_ft.validate_every, select=lm_ft.select, more_figures=validate
        ),
        started=started,
    )
    if lm_ft.lora.rank:
        facts["adapter_parameters"] = count_parameters(trained)
        adapters = jax.tree.map(gather, trained)
        processes.on_process_zero(
            "lm_ft's adapters",
            lambda: export_peft(output.path / ADAPTERS, adapters, lm_ft.lora, _base_name(inputs["lm"])),
        )
        output.commit(ADAPTERS)
        # As they are on disk: those that were trained over may be quantised.
        whole = load_model(inputs["lm"].verified_path("lm"), mesh=devices).params
        trained = merge_adapters(whole, trained, lm_ft.lora)
    save_model(output.path / "lm", model._replace(params=trained))
    output.commit("lm")
    seen = lm_ft.optimizer.steps * lm_ft.batch_size / len(packed["train"].rows)
    facts |= {"times_seen": round(seen, 2), "truncated_chunks": truncated["train"]}
    return {**packed["train"].facts, **facts}


def _base_name(base: StageFolder) -> str:
    """What others may know the untuned language model by; "" where it was trained from scratch."""
    return base.manifest.get("origin", {}).get("name", "")


def _validation(
    inputs: Mapping[str, StageFolder],
    model: Model,
    batch_size: int,
    evaluate: EvaluateConfig,
    temperature: float,
    seed: int,
    mesh: MeshConfig,
) -> Callable[[Any], dict[str, float]]:
    """What a checkpoint is selected by: KILT's development tasks, asked as `evaluate` will ask its tasks."""
    loaded = load_tasks(evaluate, seed=seed)
    trials = [without_too_long(trial, model.tokenizer, evaluate) for trial in loaded]
    searcher, chunks = Searcher.load(inputs, mesh), Chunks(inputs["corpus"])
    found = [retrieve_for_task(trial, searcher, chunks, evaluate, temperature) for trial in trials]
    return kilt_validation(trials, found, model, mesh, evaluate, batch_size=batch_size)


def instances(
    retrieved: Retrieved, chunks: Chunks, tokenizer: Any, max_length: int
) -> tuple[list[PrefixTree], int]:
    """One tree per (example, chunk), −1 being no chunk, and how many chunks were cut to fit.

    An example with a Background of its own is one instance, under that; under none where it is "".
    """
    wanted = np.unique(retrieved.chunk_rows[retrieved.chunk_rows >= 0])
    passages = dict(zip(wanted.tolist(), (chunk.passage for chunk in chunks.take(wanted)), strict=True))
    trees, num_truncated = [], 0
    for example, rows in zip(retrieved.examples, retrieved.chunk_rows.tolist(), strict=True):
        found = [passages[row] for row in rows if row >= 0]
        for passage in found if example.background is None else [example.background or None]:
            tree, truncated = lm_sequence(tokenizer, passage, example, max_length=max_length, terminator=True)
            trees.append(tree)
            num_truncated += truncated
    return trees, num_truncated
