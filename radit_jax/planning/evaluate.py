"""evaluate: prompts are read, answers decoded and scored, by two language models."""

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from radit_jax.config import EvaluateConfig, ScoreConfig
from radit_jax.evaluation.questions import longest_answer
from radit_jax.evaluation.systems import SYSTEMS
from radit_jax.lm.answer_rows import scoring_batches
from radit_jax.lm.answering import questions_per_batch
from radit_jax.lm.ensemble import STEPS_PER_CALL
from radit_jax.lm.prefix_sharing import (
    DevicePlacement,
    build_prefill_batch,
    prefill_batches,
    split_shared_prefixes,
)
from radit_jax.method.answer_scoring import score_answers
from radit_jax.method.generation import (
    PrefillBatch,
    Stops,
    decode_steps,
    init_decode,
    prefill_shared,
)
from radit_jax.models.flops import attended_pairs, training_flops
from radit_jax.planning.deployment import Deployment, PlannedModel, rows_of
from radit_jax.planning.estimates import activations_of, dcn_bytes, ici_bytes, weights_of
from radit_jax.planning.resources import (
    Call,
    Number,
    ResourceEstimate,
    StageProgram,
    estimate,
    in_parts,
    num_bytes,
)
from radit_jax.planning.score import scoring_calls
from radit_jax.runtime.distributed.answering_mesh import for_each_process
from radit_jax.runtime.distributed.mesh import data_parallel_size, row_layout

STOPS = Stops((0, 1))  # no size depends on which ids these are
DISK_BYTES_PER_QUESTION = 5e3  # its predictions in all systems


def plan_evaluate(deployment: Deployment) -> ResourceEstimate:
    """The base and the tuned model are on the devices together, with what a batch's prompts leave.

    Hosts answer shards of the questions, each on its own chips.
    """
    settings = deployment.experiment.evaluate
    one = deployment.llama(deployment.mesh(), settings.dtype, frozen=True)
    place, num_parts = deployment.apart(2 * num_bytes(one.params))
    if num_parts > 1 and not _has_room(place, for_each_process(settings, num_parts)):
        place, num_parts = deployment, 1
    settings = for_each_process(settings, num_parts)
    mesh = place.answering_mesh(settings, settings.batch_size, num_models=2)
    model = place.llama(mesh, settings.dtype, frozen=True)
    # A host has its part of a batch, and every copy of the model as many rows of it.
    unit = data_parallel_size(mesh)
    rows = -(-settings.batch_size // (num_parts * unit)) * unit
    settings = replace(settings, batch_size=rows)
    params = model.params
    num_questions = deployment.counts.questions
    num_answered = len(SYSTEMS) * num_questions / num_parts
    program = answering_program(place, settings, model, held=params, num_questions=num_answered)
    program = in_parts(program, num_parts)
    # The base retriever's index, and the tuned one's where it has another.
    host = deployment.embedded * deployment.searching
    disk = DISK_BYTES_PER_QUESTION * num_questions
    return estimate("evaluate", program, params, deployment, host=host, disk=disk)


def _has_room(host: Deployment, settings: EvaluateConfig) -> bool:
    """Whether a host's own chips hold both models with the prompts that it answers together."""
    # A setting may ask for copies on more chips than a host has.
    if host.target.num_chips % host.experiment.mesh.answering_tensor:
        return False
    return host.answering_sizes(settings, num_models=2, own=True) is not None


def answering_program(
    deployment: Deployment,
    settings: EvaluateConfig,
    model: PlannedModel,
    *,
    held: Any,
    num_questions: Number,
    scores_pairs: bool = True,
) -> StageProgram:
    """The program that answers questions with `model`, and where it `scores_pairs`, (example, chunk) pairs.

    `held` are the shapes of what stays on the devices besides `model`: the parameters of other models. The
    caches of a batch's prompts come on top, and are counted here. A turn is one prefill batch.
    """
    settings = settings.answering(longest_answer(settings))
    length = settings.sequence_length
    packed = ScoreConfig(batch_size=settings.batch_size, sequence_length=length, dtype=settings.dtype)
    mesh = model.mesh
    if deployment.target.topology:
        model = model._replace(module=model.module.clone(layout=row_layout(mesh)))

    # 1) The calls: answering the longest prompts, then scoring.
    parts = longest(settings, mesh)
    answering = answering_calls(model, parts, settings, held=held)
    scoring: Iterable[Call] = ()
    if scores_pairs:
        row_model = deployment.fitted(model, length)
        scoring = scoring_calls(row_model, packed, resident=held)

    # 2) Memory where nothing is compiled: the caches of all parts, those of the last part a second time,
    # because decoding works on a copy, and the activations of a forward pass. Bytes per chip.
    caches = []
    for part in parts:
        prefilled = prefill_shared.eval_shape(model.module, model.params, *part)
        caches.append(num_bytes(prefilled))
    cache_bytes = (sum(caches) + caches[-1]) / deployment.target.num_chips
    rows = len(parts[0].suffixes.tokens)
    rows_read = max(rows, data_parallel_size(mesh))
    activations = activations_of(model, rows_read, length, training=False)

    # 3) One turn answers `rows` prompts of usual length. It reads the weights for every token.
    usual_length = min(length, deployment.counts.pair_tokens)
    tokens = rows * usual_length
    shape = model.module.config
    attended = attended_pairs(shape, sequences=rows, length=usual_length)
    step_flops = training_flops(shape, tokens=tokens, attended=attended, targets=rows)
    passes = 1 + settings.max_new_tokens
    num_prompts = num_questions * settings.chunks_per_answer
    return StageProgram(
        calls=itertools.chain(answering, scoring),
        held=(model.params, held),
        flops=step_flops / 3,  # the forward pass's
        traffic=passes * weights_of(model),
        activations=cache_bytes + activations,
        times=num_prompts / rows,
        dcn=dcn_bytes(model, deployment.target.num_slices, passes=passes),
        ici=ici_bytes(model, passes=passes, tokens=tokens + rows * settings.max_new_tokens),
        host_seconds=num_prompts * deployment.assumptions.lay_out_pair,
    )


def longest(settings: EvaluateConfig, mesh: Any) -> list[PrefillBatch]:
    """The parts of the batch that takes the most memory, as shapes."""
    placement = _placement(mesh)
    num_prompts = _prompts_per_question(settings)
    num_questions = questions_per_batch(num_prompts, settings)
    length = settings.sequence_length - settings.max_new_tokens
    if settings.ensemble == "token":
        # Mixing by token decodes all prompts of a batch in one part.
        num_rows = placement.num_rows(num_questions)
        prompts = longest_prompts(num_prompts * num_rows, length)
        return [build_prefill_batch(split_shared_prefixes(prompts), placement)]

    # Mixing by answer decodes one prompt in a row, in parts of limited size.
    prompts = longest_prompts(num_prompts * num_questions, length)
    batches = prefill_batches(prompts, len(prompts), placement)
    return [batch for _, batch in batches]


def longest_prompts(count: int, length: int) -> list[list[int]]:
    """`count` prompts of `length` tokens whose prefixes differ, except for two that share half.

    So the first part has both the widest prefixes and the widest suffixes.
    """
    prompts = [[token] * length for token in range(count)]
    shared_half = prompts[0][: -(-length // 2)]
    own_half = prompts[-1][: length // 2]
    prompts[-1] = shared_half + own_half
    return prompts


def answering_calls(
    model: PlannedModel,
    parts: Sequence[PrefillBatch],
    settings: EvaluateConfig,
    *,
    held: Any,
) -> Iterator[Call]:
    """The calls that answer a batch: each part is read and decoded, and all are scored at the end.

    Only calls that could set the peak are made: `parts` have one size, except that the first is the widest,
    so one prefill stands for all after it, and one decoding, with all other caches there, for all.

    `held` is on the devices all the while, besides the model that answers. A call takes the results of the
    one before, with the shardings that its compiler chose.
    """
    module, params, _ = model

    # 1) Prefill the first part and the last; the devices keep the caches of all.
    first = last = Call(prefill_shared, (module, params, *parts[0]), resident=held)
    yield first
    num_others = len(parts) - 1
    if num_others:
        resident = (held, first.given)
        last = Call(prefill_shared, (module, params, *parts[-1]), resident=resident, results=num_others)
        yield last
    prefilled = [first.given] + [last.given] * num_others

    # 2) Decode the last part: an answer for each prompt, or by token one for each question.
    by_token = settings.ensemble == "token"
    num_prompts = _prompts_per_question(settings)
    stops = {"stops": STOPS}
    num_mixed = num_prompts if by_token else 1
    num_answers = len(last.given.lengths) // num_mixed
    weights = np.zeros((num_answers, num_mixed), np.float32)  # log p_R, of any values
    options = {**stops, "max_new_tokens": settings.max_new_tokens}
    others = prefilled[:-1]
    init = Call(init_decode, (last.given, weights), options, resident=(params, held, others))
    yield init
    decode_arguments = (module, params, init.given, STEPS_PER_CALL)
    yield Call(decode_steps, decode_arguments, stops, resident=(held, prefilled))
    if by_token or num_prompts == 1:
        return

    # 3) Score candidates after the prompts of the first part, where each chunk gave another answer. The rows
    # of all batches have one size.
    placement = _placement(model.mesh)
    distinct = [(token,) * settings.max_new_tokens for token in range(num_prompts - 1)]
    batch = next(
        scoring_batches(
            [distinct] * len(first.given.lengths),
            STOPS,
            max_new_tokens=settings.max_new_tokens,
            num_answers=num_prompts,
            placement=placement,
        )
    )
    score_arguments = (module, params, first.given, batch.prompts, placement.put_rows(batch.answers))
    yield Call(score_answers, score_arguments, stops, resident=(held, prefilled[1:]))


def _placement(mesh: Any) -> DevicePlacement:
    """Rows spread over the mesh, as shapes."""
    return DevicePlacement(functools.partial(_shapes, mesh), data_parallel_size=data_parallel_size(mesh))


def _prompts_per_question(settings: EvaluateConfig) -> int:
    """One for each chunk, or one with all of them."""
    return 1 if settings.ensemble == "concatenate" else settings.chunks_per_answer


def _shapes(mesh: Any, rows: Any) -> Any:
    """The abstract arrays of a tree of host arrays, their rows spread over the mesh."""

    def shape_of(array: Any) -> Any:
        return rows_of(mesh, array.shape, array.dtype)

    return jax.tree.map(shape_of, rows)
