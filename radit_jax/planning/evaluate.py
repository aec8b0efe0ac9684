"""evaluate: prompts are read, answers decoded and scored, by two language models."""

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from radit_jax.config import EvaluateConfig, ScoreConfig
from radit_jax.evaluation.task_suite import longest_answer
from radit_jax.lm.answering import questions_per_batch
from radit_jax.lm.ensemble import STEPS_PER_CALL, pack_answers
from radit_jax.lm.prefix_sharing import (
    DevicePlacement,
    build_prefill_batch,
    prefill_batches,
    split_shared_prefixes,
)
from radit_jax.method.generation import (
    PrefillBatch,
    Stops,
    decode_steps,
    init_decode,
    prefill_shared,
    score_answers,
)
from radit_jax.models.flops import training_flops
from radit_jax.planning.deployment import Deployment, rows_of
from radit_jax.planning.estimates import activations_of, weights_of
from radit_jax.planning.resources import Call, ResourceEstimate, StageProgram, estimate, num_bytes
from radit_jax.planning.score import scoring_calls
from radit_jax.runtime.distributed.mesh import data_parallel_size, row_layout

STOPS = Stops((0, 1))  # which ones, no size depends on


def plan_evaluate(site: Deployment) -> ResourceEstimate:
    """The base and the tuned model are on the devices together, beside what a batch's prompts leave."""
    settings = site.experiment.evaluate
    settings = settings.answering(longest_answer(settings))
    length = settings.sequence_length
    packed = ScoreConfig(batch_size=settings.batch_size, sequence_length=length, dtype=settings.dtype)
    mesh = site.mesh(packed.batch_size)
    module, params = site.llama(mesh, packed.dtype)
    if site.target.topology:
        module = module.clone(layout=row_layout(mesh))
    scoring = scoring_calls(site.fitted(module, mesh, length), params, packed, mesh, beside=params)
    parts = longest(settings, mesh)
    caches = [num_bytes(prefill_shared.eval_shape(module, params, *part)) for part in parts]
    rows, usual = len(parts[0].suffixes.tokens), min(length, site.counts.pair_tokens)
    program = StageProgram(
        calls=itertools.chain(answering_calls(module, params, parts, settings), scoring),
        held=(params, params),
        flops=training_flops(
            module.config, tokens=rows * usual, attended=rows * usual * (usual + 1) / 2, targets=rows
        )
        / 3,
        traffic=(1 + settings.max_new_tokens) * weights_of(module, params, mesh),
        activations=(sum(caches) + caches[-1]) / site.target.num_chips
        + activations_of(module, mesh, max(rows, data_parallel_size(mesh)), length, training=False),
        times=5 * site.counts.questions * settings.chunks_per_answer / rows,
    )
    host = site.embedded * site.searching  # the base retriever's index, and the tuned one's
    disk = 5e3 * site.counts.questions
    return estimate("evaluate", program, params, site.target, host=host, disk=disk)


def longest(settings: EvaluateConfig, mesh: Any) -> list[PrefillBatch]:
    """The parts of the batch that takes the most memory, as shapes."""
    placement = DevicePlacement(functools.partial(_shapes, mesh), data_parallel_size=data_parallel_size(mesh))
    chunks = _chunks(settings)
    questions = questions_per_batch(chunks, settings)
    length = settings.sequence_length - settings.max_new_tokens
    if settings.ensemble == "token":
        prompts = longest_prompts(chunks * placement.num_rows(questions), length)
        return [build_prefill_batch(split_shared_prefixes(prompts), placement)]
    prompts = longest_prompts(chunks * questions, length)
    return [batch for _, batch in prefill_batches(prompts, len(prompts), placement)]


def longest_prompts(count: int, length: int) -> list[list[int]]:
    """Prompts of `length` that have prefixes of their own; but for two, which share half.

    So in the first part the slots of long tails stand behind those of long prefixes.
    """
    prompts = [[n] * length for n in range(count)]
    prompts[-1] = [*prompts[0][: -(-length // 2)], *prompts[-1][: length // 2]]
    return prompts


def answering_calls(
    module: Any, params: Any, parts: Sequence[PrefillBatch], settings: EvaluateConfig
) -> Iterator[Call]:
    """What answers a batch: each part is read and decoded, and scored when all have been.

    Of several parts the first is the widest, and while the last is decoded the others are held. A call takes
    what the one before gave, which lies where its compiler put it.
    """
    first = last = Call(prefill_shared, (module, params, *parts[0]), beside=params)
    yield first
    if others := len(parts) - 1:
        beside = (params, first.given)
        last = Call(prefill_shared, (module, params, *parts[-1]), beside=beside, results=others)
        yield last
    read = [first.given, *[last.given] * others]

    by_token, chunks, stops = settings.ensemble == "token", _chunks(settings), {"stops": STOPS}
    mixed = chunks if by_token else 1
    weights = np.zeros((len(last.given.lengths) // mixed, mixed), np.float32)
    options = {**stops, "max_new_tokens": settings.max_new_tokens}
    beginning = Call(init_decode, (last.given, weights), options, beside=(params, params, read[:-1]))
    yield beginning
    yield Call(decode_steps, (module, params, beginning.given, STEPS_PER_CALL), stops, beside=(params, read))
    if not by_token:
        answers = [[(n,) * settings.max_new_tokens for n in range(chunks)]]
        answers *= questions_per_batch(chunks, settings)
        packed = pack_answers(answers, STOPS, max_new_tokens=settings.max_new_tokens, num_answers=chunks)
        asked = np.zeros(len(first.given.lengths), np.int64)
        yield Call(
            score_answers, (module, params, first.given, packed, asked), stops, beside=(params, read[1:])
        )


def _chunks(settings: EvaluateConfig) -> int:
    """Prompts of a question."""
    return 1 if settings.ensemble == "concatenate" else settings.chunks_per_answer


def _shapes(mesh: Any, rows: Any) -> Any:
    return jax.tree.map(lambda array: rows_of(mesh, array.shape, array.dtype), rows)
