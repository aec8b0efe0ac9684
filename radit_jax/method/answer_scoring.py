"""Scoring given answers after prompts that have been read: the jitted half of choosing among candidates.

    answer_log_probs, score_answers   `Prefilled` and candidates (`PackedAnswers`) → log p_LM(y | prompt)
    mix_over_chunks                   log p_LM(y | c∘x) of every chunk → log p_LM(y | x, C'), Eq. 2
    continuation_log_likelihood       prompts with their answers → Eq. 2, and whether decoding would give them

The candidates of a prompt are continuations of it: they share its keys and values, and do not see each other.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from radit_jax.method.generation import Prefilled, Stops, apply_lm
from radit_jax.method.likelihood import entries_of
from radit_jax.method.losses import ensemble_log_prob
from radit_jax.models.attention import wide
from radit_jax.models.decoder import DecoderLm

STOP = -1  # as a target: any of the ids in `Stops.alone`
NOTHING = -2  # as a target: an unused slot

LOGITS_PER_PART = 2**24  # of the slots whose logits exist at the same time: 64 MiB in float32
MIN_SLOTS_PER_PART = 64  # fewer would keep neither a CPU nor an accelerator busy


class PackedAnswers(NamedTuple):
    """Up to U candidate answers in each of R rows, end to end in C slots as continuations of a prompt.

    Answers (5, 6) and (7,), where `max_new_tokens` is more than 2:

        first_targets    5  7               predicted by the prompt's last token
        tokens           5  6     7    0
        offsets          0  1     0    0    positions after the prompt
        continuation_ids 1  1     2    0    0 is an unused slot
        targets          6  STOP  STOP NOTHING
    """

    tokens: Int[Array, "R C"]
    offsets: Int[Array, "R C"]
    continuation_ids: Int[Array, "R C"]
    targets: Int[Array, "R C"]
    first_targets: Int[Array, "R U"]


@functools.partial(jax.jit, static_argnames=("module", "stops"))
def score_answers(
    module: DecoderLm,
    params: Any,
    prefilled: Prefilled,
    prompts: Int[Array, "W r"],
    answers: PackedAnswers,
    *,
    stops: Stops,
) -> Float[Array, "R U"]:
    """`answer_log_probs` of R = W · r rows, each after one of the prompts that were read.

    In each of W device groups, `prompts` are the prompts' numbers; several rows may follow one prompt.
    """
    rows = prefilled.take(prompts)
    return answer_log_probs(module, params, rows, answers, stops=stops, num_groups=len(prompts))


def answer_log_probs(
    module: DecoderLm,
    params: Any,
    prefilled: Prefilled,
    answers: PackedAnswers,
    *,
    stops: Stops,
    num_groups: int = 1,
) -> Float[Array, "R U"]:
    """log p_LM(y | prompt) of each candidate in nats, with its terminator; 0 where there is no candidate.

    The prompts are in `num_groups` groups, one for each set of devices that shares rows.
    """
    # Read the answers as continuations of the prompts; unused slots are padding.
    positions = prefilled.lengths[:, None] + answers.offsets
    is_used = answers.continuation_ids > 0
    hidden, _ = apply_lm(
        module,
        params,
        "extend",
        answers.tokens,
        positions,
        segment_ids=is_used.astype(jnp.int32),
        continuation_ids=answers.continuation_ids,
        cache=prefilled.cache,
    )

    # The parts below share what the head multiplies by.
    head = apply_lm(module, params, "head_kernel")

    def log_probs_of(
        hidden: Float[Array, "W p D"],
        targets: Int[Array, "W p"],
    ) -> Float[Array, "W p"]:
        logits = apply_lm(module, params, "logits", hidden, head)
        return _target_log_probs(logits, targets, stops)

    # The prompt's last token predicts an answer's first; each token predicts the next, or the terminator.
    first = _target_log_probs(prefilled.logits[:, None], answers.first_targets, stops)
    part_size = max(MIN_SLOTS_PER_PART, LOGITS_PER_PART // module.config.vocab_size)
    later = _by_used_slots(log_probs_of, hidden, answers.targets, num_groups, part_size)

    # Sum by continuation. Number 0 collects the unused slots and is dropped.
    num_answers = first.shape[1]
    sum_by_answer = functools.partial(jax.ops.segment_sum, num_segments=num_answers + 1)
    sums = jax.vmap(sum_by_answer)(later, answers.continuation_ids)
    return first + sums[:, 1:]


def _by_used_slots(
    log_probs: Callable[..., Float[Array, "W p"]],
    hidden: Float[Array, "R C D"],
    targets: Int[Array, "R C"],
    num_groups: int,
    part_size: int,
) -> Float[Array, "R C"]:
    """`log_probs` of the used slots, `part_size` of a group at a time, and 0 elsewhere.

    Most slots are empty, since the rows are as long as the longest, and the head is most of a small model.
    """
    num_rows, num_slots, width = hidden.shape
    slots_per_group = num_rows * num_slots // num_groups
    if slots_per_group <= part_size:
        return log_probs(hidden, targets)

    # 1) In each group, order the used slots before the empty ones.
    hidden = hidden.reshape(num_groups, slots_per_group, width)
    by_group = targets.reshape(num_groups, slots_per_group)
    is_empty = by_group == NOTHING
    order = jnp.argsort(is_empty, axis=1, stable=True)

    # 2) Go through as many parts as the fullest group has. The last one may overlap the one before it.
    num_used = (slots_per_group - is_empty.sum(axis=1)).max()
    num_parts = -(-num_used // part_size)

    def add_part(
        part: Int[Array, ""],
        found: Float[Array, "W s"],
    ) -> Float[Array, "W s"]:
        start = part * part_size
        slots = jax.lax.dynamic_slice_in_dim(order, start, part_size, axis=1)
        part_hidden = jnp.take_along_axis(hidden, slots[:, :, None], axis=1)
        part_targets = jnp.take_along_axis(by_group, slots, axis=1)
        part_found = log_probs(part_hidden, part_targets)
        return jax.lax.dynamic_update_slice_in_dim(found, part_found, start, axis=1)

    found = jnp.zeros(by_group.shape, wide(hidden.dtype))
    found = jax.lax.fori_loop(0, num_parts, add_part, found)

    # 3) Back to the places of the slots.
    places = jnp.argsort(order, axis=1)
    found = jnp.take_along_axis(found, places, axis=1)
    return found.reshape(num_rows, num_slots)


def _target_log_probs(
    logits: Float[Array, "R C V"],
    targets: Int[Array, "R U"],
    stops: Stops,
) -> Float[Array, "R U"]:
    """Each target's log-probability in nats: of all terminators for STOP, 0 for NOTHING.

    C is U, or 1 where the same position predicts all targets of a row.
    """
    ids = jnp.maximum(targets, 0)  # any id will do for STOP and NOTHING
    of_targets = entries_of(logits, ids)
    alone = jnp.array(stops.alone, jnp.int32)
    of_stops = jax.nn.logsumexp(logits[..., alone], axis=-1)

    # Logits become log-probabilities.
    scores = jnp.where(targets == STOP, of_stops, of_targets)
    log_probs = scores - jax.nn.logsumexp(logits, axis=-1)
    return jnp.where(targets == NOTHING, 0.0, log_probs)


@jax.jit
def mix_over_chunks(
    log_probs: Float[Array, "B K U"],
    retrieval_log_probs: Float[Array, "B K"],
) -> Float[Array, "B U"]:
    """Eq. 2 for B questions, each with U candidate answers; log p_R = −inf says that there is no chunk."""
    over_answers = jax.vmap(ensemble_log_prob, in_axes=(2, None, None), out_axes=1)
    chunk_mask = jnp.isfinite(retrieval_log_probs)
    return over_answers(log_probs, retrieval_log_probs, chunk_mask)


def continuation_log_likelihood(
    module: DecoderLm,
    params: Any,
    tokens: Int[Array, "B K T"],
    slots: Int[Array, "B K A"],
    targets: Int[Array, "B A"],
    used: Bool[Array, "B A"],
    retrieval_log_probs: Float[Array, "B K"],
) -> tuple[Float[Array, " B"], Bool[Array, " B"]]:
    """log p(y | x, C') of given answers, Eq. 2, in nats, and whether greedy decoding would give them.

    `tokens[b, k]` is question b's prompt under chunk k, then its answer, then padding. `targets[b]` is the
    answer; `slots[b, k]` are the positions that predict it, `used` its real entries. Greedy decoding is that
    of the mixture at token level.
    """
    # Read all prompts as rows of one batch, and take the states that predict the answers.
    num_questions, num_chunks, length = tokens.shape
    hidden = apply_lm(module, params, "hidden", tokens.reshape(-1, length))
    hidden = hidden.reshape(num_questions, num_chunks, length, -1)
    at_slots = jnp.take_along_axis(hidden, slots[..., None], axis=2)
    logits = apply_lm(module, params, "logits", at_slots)
    log_probs = jax.nn.log_softmax(logits)
    of_targets = entries_of(log_probs, targets[:, None])
    of_targets = jnp.where(used[:, None], of_targets, 0.0)

    # log p_R plus log p of the targets before each position: the unnormalised weights of the mixture there.
    up_to_target = jnp.cumsum(of_targets, axis=2)
    weights = retrieval_log_probs[:, :, None] + up_to_target - of_targets
    weighted = weights[..., None] + log_probs
    mixed = jax.nn.logsumexp(weighted, axis=1)
    is_most_probable = jnp.argmax(mixed, axis=-1) == targets
    is_greedy = jnp.all(is_most_probable | ~used, axis=1)

    # Eq. 2 over whole answers.
    joint_log_probs = retrieval_log_probs + of_targets.sum(axis=2)
    return jax.nn.logsumexp(joint_log_probs, axis=1), is_greedy
