"""export: the tuned models in one folder, with everything that answering a question takes.

export/README.md                              the model card
export/lm/  query_encoder/  chunk_encoder/    models, for radit_jax.load
export/base_query_encoder/                    the untuned query encoder, to compare with
export/chunks.array_record  embeddings-*  index/  answering.json
export/hf/lm/                                 for transformers and vLLM
export/hf/lm_adapter/                         LM-ft's adapters for PEFT, where it trained adapters
export/hf/retriever/                          both encoders, one model for sentence-transformers
export/runs/{base,r_ft}.trec  qrels.trec      what both query encoders retrieve for the evaluated questions
export/lsr_scores.jsonl                       Eq. 4's scores, for another run and FlagEmbedding
"""

import functools
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from radit_jax.config import EvaluateConfig, ExportConfig, MeshConfig
from radit_jax.data.artifacts.chunks import Chunks
from radit_jax.data.artifacts.corpus import SPLITS, Corpus
from radit_jax.data.artifacts.lsr_scores import Scores
from radit_jax.data.artifacts.retrieved import Retrieved
from radit_jax.data.artifacts.scores_file import score_records
from radit_jax.method import losses
from radit_jax.retrieval.index import index_files
from radit_jax.retrieval.search import Searcher, tuned_inputs
from radit_jax.runtime.distributed import processes
from radit_jax.runtime.distributed.mesh import make_mesh
from radit_jax.runtime.pretrained.hf_export import ADAPTERS, export_hf
from radit_jax.runtime.pretrained.licences import origins_of_run
from radit_jax.runtime.pretrained.model_io import Model, load_model
from radit_jax.runtime.pretrained.router import TOWERS, write_router
from radit_jax.runtime.storage.stage_folder import StageFolder, StageInputs
from radit_jax.runtime.storage.top_level_folder import TopLevelFolder
from radit_jax.text.card import model_card
from radit_jax.text.exchange import trec_qrels, trec_run
from radit_jax.text.model_cards import CardFacts, adapter_card, lm_card, retriever_card

RETRIEVER = "hf/retriever"  # both encoders, one model for sentence-transformers
# Each model's folder in our own form, and in others'.
MODELS = {
    "lm": "hf/lm",
    "query_encoder": f"{RETRIEVER}/{TOWERS['query']}",
    "chunk_encoder": f"{RETRIEVER}/{TOWERS['chunk']}",
}
# Each model that others load, with what writes its card.
CARDS = {"hf/lm": lm_card, RETRIEVER: retriever_card, ADAPTERS: adapter_card}


def run(
    inputs: StageInputs,
    output: TopLevelFolder,
    *,
    evaluate: EvaluateConfig,
    temperature: float,
    lm_score: losses.LmScoreForm,
    tau: float,
    export: ExportConfig,
    mesh: MeshConfig,
) -> dict[str, Any]:
    """Copy the models and the searchable corpus into one folder that needs nothing else."""
    # 1) The models.
    output.clear()
    searched = tuned_inputs(inputs)
    output.copy_from(inputs["lm_ft"], "lm")
    output.copy_from(inputs["r_ft"], "query_encoder")
    output.copy_from(searched["retriever"], "chunk_encoder")
    output.copy_from(inputs["retriever"], "query_encoder", to="base_query_encoder")
    for name in (*MODELS, "base_query_encoder"):
        output.commit_each(name)

    # 2) What is searched, and how questions are answered.
    output.copy_from(inputs["corpus"], "chunks.array_record")
    for name in searched["embeddings"].manifest["files"]:
        output.copy_from(searched["embeddings"], name)
    for name in index_files(searched["index"]):
        output.copy_from(searched["index"], name)
    how = {"evaluate": asdict(evaluate), "temperature": temperature, "both_encoders": "r_ft_index" in inputs}
    output.write_json("answering.json", how)

    # 3) For others: the model card, what was retrieved, the scores, the models in their forms.
    results = inputs["evaluated"].read_json("results.json") if export.measured else None
    made_of = ("base_lm", "retriever", "scores", "corpus")
    origins = origins_of_run(*(inputs[name].manifest for name in made_of))
    card = model_card(origins, results)
    output.write("README.md", card.encode())
    if export.run_depth:
        # The corpus' own questions have no split `official` or `hidden`: those are KILT's.
        split = evaluate.split if evaluate.split in SPLITS else "test"
        _write_runs(inputs, output, split, export.run_depth, mesh)
    if export.lsr_scores:
        _write_lsr_scores(inputs, output, lm_score, tau)
    if not export.hf:
        return {"largest_errors": {}}
    facts = CardFacts(
        origins,
        results,
        lm_settings=inputs["lm_ft"].manifest.get("settings", {}),
        retriever_settings=inputs["r_ft"].manifest.get("settings", {}),
    )
    return {"largest_errors": _publish(output, inputs["lm_ft"], export, facts)}


def _publish(
    output: TopLevelFolder, lm_ft: StageFolder, export: ExportConfig, facts: CardFacts
) -> dict[str, float]:
    """Write hf/; the largest error of each model's parameters, read back."""
    shard_bytes = int(export.shard_gigabytes * 1e9)

    def write(folder: str, model: Model) -> float:
        return export_hf(output.path / folder, model, dtype=export.dtype, shard_bytes=shard_bytes)

    # 1) Each model. The host that writes has whole models on its devices.
    errors = {}
    models = {}
    local_mesh = make_mesh(MeshConfig(), jax.local_devices())
    for name, folder in MODELS.items():
        model = load_model(output.verified_path(name), mesh=local_mesh)
        write_model = functools.partial(write, folder, model)
        errors[name] = processes.on_process_zero(folder, write_model)
        models[name] = model._replace(params=None)

    # 2) What makes one model of the two towers.
    towers = {side: models[name].module.config for side, name in TOWERS.items()}
    processes.on_process_zero(RETRIEVER, lambda: write_router(output.path / RETRIEVER, towers))
    folders = ["hf/lm", RETRIEVER]
    if ADAPTERS in lm_ft.manifest["files"]:
        output.copy_from(lm_ft, ADAPTERS)
        output.verified_path(ADAPTERS)
        folders.append(ADAPTERS)

    # 3) Their cards, and each file by itself, so that a person may put others next to it.
    facts = replace(facts, reads_chat=models["lm"].tokenizer.chat is not None)
    for folder in folders:
        card = CARDS[folder](facts, folder)
        write_card = functools.partial(_write_card, output, folder, card)
        processes.on_process_zero(f"{folder}/README.md", write_card)
        output.commit(folder)
        output.commit_each(folder, deep=True)
    return errors


def _write_card(output: TopLevelFolder, folder: str, card: str) -> None:
    (output.path / folder / "README.md").write_text(card)


def _write_runs(
    inputs: StageInputs, output: TopLevelFolder, split: str, depth: int, mesh: MeshConfig
) -> None:
    """What the base and the tuned query encoder retrieve for a split's questions, and its gold chunks."""
    corpus = Corpus(inputs["corpus"])
    questions = corpus.questions(split)
    texts = [question.question for question in questions]
    depth = min(depth, len(corpus.chunks))
    base = Searcher.load(inputs, mesh)
    # TREC's files name chunks by their ids.
    searchers = {"base": base, "r_ft": base.tuned(inputs, mesh)}
    for tag, searcher in searchers.items():
        chunk_rows, scores = searcher.search(texts, depth)
        chunk_at = corpus.chunks.by_row(chunk_rows)
        lines = []
        for question, rows, row_scores in zip(questions, chunk_rows.tolist(), scores.tolist(), strict=True):
            ids = [chunk_at[row].id for row in rows]
            lines.append(trec_run(question.id, ids, row_scores, tag))
        output.write(f"runs/{tag}.trec", "".join(lines).encode())
    # Questions without a gold chunk are in the runs, but not judged.
    qrels = [trec_qrels(question.id, question.gold_chunks) for question in questions]
    output.write("runs/qrels.trec", "".join(qrels).encode())


def _write_lsr_scores(
    inputs: StageInputs, output: TopLevelFolder, form: losses.LmScoreForm, tau: float
) -> None:
    """Eq. 4's scores before the softmax, of every training example and its chunks (`scores_file`)."""

    def write() -> None:
        # A line at a time: the passages of all examples may be more than fits into memory.
        with (output.path / "lsr_scores.jsonl").open("w") as file:
            for record in _lsr_records(inputs, form, tau):
                file.write(json.dumps(record, ensure_ascii=False) + "\n")

    processes.on_process_zero("lsr_scores.jsonl", write)
    output.commit("lsr_scores.jsonl")


def _lsr_records(inputs: StageInputs, form: losses.LmScoreForm, tau: float) -> Iterator[dict[str, Any]]:
    """The line of each example, with the exponents of Eq. 4: a softmax makes p_LSR of them."""
    retrieved = Retrieved.load(inputs["retrieved"], "train")
    scores = Scores.load(inputs["scores"])
    log_probs = jnp.asarray(scores.answer_log_probs)
    token_counts = jnp.asarray(scores.answer_token_counts)
    exponents = np.asarray(losses.lm_score(log_probs, token_counts, form=form)) / tau
    scorer = inputs["scores"].manifest.get("scorer", "unknown")  # an earlier version did not say
    return score_records(retrieved, scores, exponents, Chunks(inputs["corpus"]), scorer)
