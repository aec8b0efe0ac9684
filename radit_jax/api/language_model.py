"""A language model over retrieved chunks: scoring answers, answering, and LM-ft."""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from radit_jax.api.inputs import AnyChunk, AnyModel, ChunkTable, Hit, as_model, check_lengths
from radit_jax.api.training import Training, passing_folder, private_params
from radit_jax.config import EvaluateConfig, LoraConfig, MeshConfig, ScoreConfig
from radit_jax.data.artifacts.retrieved import Retrieved
from radit_jax.data.batches.examples import question_example
from radit_jax.data.batches.prefix_trees import answer_token_count
from radit_jax.data.records import Example, Question
from radit_jax.lm.answering import Answer, AnsweringEngine, JaxEngine, Retrieval, generate_answers
from radit_jax.lm.scoring import PairScorer, every_pair
from radit_jax.lm.training import LmTraining, PackedTrees, train_lm
from radit_jax.models.lora import merge_adapters
from radit_jax.runtime.distributed.answering_mesh import AnsweringModel, answering_mesh, tokens_at_once
from radit_jax.runtime.distributed.mesh import put_params, row_layout
from radit_jax.runtime.pretrained.model_io import Model
from radit_jax.stages.lm_ft import instances
from radit_jax.text.prompts import question_prompt


class PairLogProbs(NamedTuple):
    """What `losses.lsr_log_prob` takes, for Q questions with K chunks at most."""

    answer_log_probs: Float[Array, "Q K"]  # log p_LM(y | c∘x) in nats, without a terminator
    answer_token_counts: Int[Array, " Q"]
    chunk_mask: Bool[Array, "Q K"]  # False where a question has fewer chunks


def score_pairs(
    lm: AnyModel,
    questions: Sequence[str],
    chunks: Sequence[Sequence[AnyChunk]],
    answers: Sequence[str],
    *,
    batch_size: int = 16,
    sequence_length: int = 512,
) -> PairLogProbs:
    """How likely the language model finds each question's answer after each of its chunks: Eq. 4's scores.

    `chunks[i]` are the chunks of question i; None in the place of one is the question alone. A chunk that
    several questions have is read once. `batch_size` is rows of `sequence_length` tokens; a chunk that is too
    long for its row is cut. ValueError for an example that no row holds.
    """
    check_lengths(questions=questions, chunks=chunks, answers=answers)
    # 1) The model on all devices, and what it reads.
    model = as_model(lm)
    table = ChunkTable.of(chunks)
    examples = _examples(questions, answers)
    settings = ScoreConfig(batch_size=batch_size, sequence_length=sequence_length)
    scorer = PairScorer.of(model, settings, MeshConfig())
    # 2) Score the pairs that are there, as the score stage does.
    pairs = every_pair(table.rows)[table.mask.ravel()]
    scores = scorer.score(examples, pairs, table.chunks)
    # 3) Back to a row per question.
    log_probs = np.zeros(table.rows.shape, np.float32)
    log_probs[table.mask] = scores.answer_log_probs
    counts = [answer_token_count(model.tokenizer, example) for example in examples]
    return PairLogProbs(jnp.asarray(log_probs), jnp.asarray(counts, jnp.int32), jnp.asarray(table.mask))


def answer_from_chunks(
    lm: AnyModel | AnsweringEngine,
    questions: Sequence[str],
    chunks: Sequence[Sequence[AnyChunk]] | None = None,
    log_probs: Any = None,
    *,
    max_new_tokens: int = 16,
    sequence_length: int = 512,
    ensemble: Literal["answer", "token", "concatenate"] = "answer",
) -> list[list[Answer]]:
    """Each question's answers with their probabilities under Eq. 2, the best first.

    `chunks[i]` are the chunks of question i, as many for each; without any the model answers by itself.
    `lm` may be another engine than ours (`lm.vllm_engine.VllmEngine`).
    `log_probs`, [Q, K], are their log p_R: by default those of a search, or else all chunks weigh the same.
    """
    check_lengths(questions=questions, chunks=questions if chunks is None else chunks)
    # 1) The model on all devices, unless an engine has it.
    settings = EvaluateConfig(
        max_new_tokens=max_new_tokens, sequence_length=sequence_length, ensemble=ensemble
    )
    engine = lm if isinstance(lm, AnsweringEngine) else JaxEngine(_on_all_devices(as_model(lm), settings))
    # 2) What answers, as `evaluate` and `ask` do.
    prompts = [question_prompt(question) for question in questions]
    answers, _ = generate_answers(engine, prompts, _retrieval(len(questions), chunks, log_probs), settings)
    return answers


def _on_all_devices(model: Model, settings: EvaluateConfig) -> Model:
    """The model in the layout in which it answers."""
    answering = AnsweringModel.of(model.module.config, model.params, model.module.dtype)
    mesh = answering_mesh(MeshConfig(), answering, num_tokens=tokens_at_once(settings))
    module = model.module.clone(layout=row_layout(mesh))
    return Model(module, put_params(model.params, mesh), model.tokenizer)


def _retrieval(num_questions: int, chunks: Sequence[Sequence[AnyChunk]] | None, log_probs: Any) -> Retrieval:
    """The chunks as answering takes them, with their weights."""
    if chunks is None:
        return Retrieval.none(num_questions)
    # The chunks of a search are as many for each question.
    table = ChunkTable.of(chunks)
    if not table.mask.all() or not table.mask.size:
        raise ValueError(
            f"chunks: expected as many for every question, got {sorted(set(map(len, chunks)))}. "
            "Search with one k."
        )
    # Their weights: the caller's, or each chunk's own.
    if log_probs is None:
        by_question = []
        for found in chunks:
            by_question.append([_log_prob(chunk, len(found)) for chunk in found])
        log_probs = by_question
    weights = np.asarray(log_probs, np.float32)
    if weights.shape != table.rows.shape:
        raise ValueError(
            f"log_probs: expected one of each chunk, {table.rows.shape}, got {weights.shape}. Pass [Q, K]."
        )
    return Retrieval(table.chunks, table.rows, weights)


def _log_prob(chunk: AnyChunk, num_chunks: int) -> float:
    """A chunk's log p_R where a search gave it one, else that of one among equals."""
    return chunk.log_prob if isinstance(chunk, Hit) else -math.log(num_chunks)


def tune_lm(
    lm: AnyModel,
    questions: Sequence[str],
    chunks: Sequence[Sequence[AnyChunk]],
    answers: Sequence[str],
    training: Training,
    *,
    sequence_length: int = 512,
    lora_rank: int = 0,
) -> Model:
    """LM-ft, Eq. 3: the language model after learning each answer under each of its question's chunks.

    A batch is rows of `sequence_length` tokens, packed. With `lora_rank` adapters learn and are merged. The
    parameters after the last step are returned, and `lm` stays as it is. An experiment chooses the best step
    on development questions.
    """
    check_lengths(questions=questions, chunks=chunks, answers=answers)
    model = as_model(lm)
    # 1) One instance for each question and chunk.
    table = ChunkTable.of(chunks)
    retrieved = Retrieved(_examples(questions, answers), table.rows, np.zeros(table.rows.shape, np.float32))
    trees, _ = instances(retrieved, table.chunks, model.tokenizer, sequence_length)
    packed = PackedTrees(
        trees, row_length=sequence_length, batch_size=training.batch_size, seed=training.seed
    )

    # 2) Training, on parameters of its own.
    lora = LoraConfig(rank=lora_rank)
    params = private_params(model.params)
    with passing_folder("tune_lm") as folder:
        trained, _ = train_lm(
            "tune_lm",
            model.module,
            params,
            packed.shuffled,
            folder,
            training=LmTraining(
                training.optimizer, MeshConfig(), checkpoint_every=0, lora=lora, seed=training.seed
            ),
        )
    # 3) Adapters become part of the kernels.
    if lora_rank:
        trained = merge_adapters(model.params, trained, lora)
    return model._replace(params=trained)


def _examples(questions: Sequence[str], answers: Sequence[str]) -> list[Example]:
    """Each question with its answer."""
    examples = []
    # An error names an example by its number.
    for number, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        record = Question(str(number), question, (answer,))
        examples.append(question_example(record, answer))
    return examples
