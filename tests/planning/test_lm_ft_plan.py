"""LM-ft's plan: the training step, and KILT's development questions where they select the checkpoint."""

from dataclasses import replace

import jax
import pytest

from radit_jax.config import (
    BaseConfig,
    BertConfig,
    DecoderConfig,
    EvaluateConfig,
    Experiment,
    GeneratedWorld,
    LmConfig,
    LmFtConfig,
    LoraConfig,
    OptimizerConfig,
    RetrieverConfig,
    RFtConfig,
)
from radit_jax.data.eval_tasks.registry import KILT_DEVELOPMENT, find_task
from radit_jax.method.generation import decode_steps, prefill_shared
from radit_jax.method.likelihood import continuation_log_probs
from radit_jax.planning import deployment, lm_ft, resources
from radit_jax.planning.deployment import Counts, Deployment
from radit_jax.planning.lm_ft import num_validations, plan_lm_ft
from radit_jax.planning.resources import num_bytes, num_parameters
from radit_jax.runtime.distributed.accelerators import find_target
from radit_jax.runtime.distributed.memory import bytes_per_device

LLAMA = DecoderConfig(
    vocab_size=512, hidden_size=64, num_layers=3, num_heads=4, num_kv_heads=2, head_size=16, ffn_size=96
)
BERT = BertConfig(vocab_size=500, hidden_size=32, num_layers=2, num_heads=2, ffn_size=64)
OPTIMIZER = OptimizerConfig(steps=10, peak_lr=1e-4)
COUNTS = Counts(chunks=1000, chunk_words=100, examples=50, questions=10)
ON_KILT = {"select": "kilt_dev", "select_folder": "kilt", "select_questions": 7, "validate_every": 4}
LORA = LoraConfig(rank=2)


def at(target="h100-8", **settings):
    """A plan's place; prompts and answers are so long that answering takes more memory than a step."""
    experiment = Experiment(
        name="small",
        data=GeneratedWorld(),
        base=BaseConfig(lm=LmConfig(model=LLAMA), retriever=RetrieverConfig(model=BERT)),
        lm_ft=LmFtConfig(OPTIMIZER, batch_size=8, sequence_length=64, **settings),
        r_ft=RFtConfig(OPTIMIZER),
        evaluate=EvaluateConfig(sequence_length=256, max_new_tokens=4, prompts_per_batch=64, batch_size=32),
    )
    return Deployment(experiment, find_target(target), COUNTS)


@pytest.fixture
def calls_of(monkeypatch):
    """What a plan for a TPU would compile, which it then does not: of each program its calls."""
    programs = []
    monkeypatch.setattr(deployment, "stand_in_devices", lambda *_: jax.devices())
    monkeypatch.setattr(resources, "compiled_peak", lambda calls: programs.append(calls) or 0.0)

    def calls(**settings):
        programs.clear()
        place = at("v5p-16", **settings)
        plan_lm_ft(replace(place, target=replace(place.target, topology="cpu")))
        return programs

    return calls


@pytest.mark.parametrize("lora", [LoraConfig(), LORA], ids=["whole", "lora"])
def test_selection_by_kilt_asks_for_the_memory_of_the_answers(lora):
    plain, on_kilt = plan_lm_ft(at(lora=lora)), plan_lm_ft(at(lora=lora, **ON_KILT))
    assert on_kilt.peak > plain.peak
    assert on_kilt.seconds > plain.seconds
    assert on_kilt.host == at().searching > plain.host == 0
    assert (on_kilt.params, on_kilt.held, on_kilt.disk) == (plain.params, plain.held, plain.disk)


def test_short_prompts_leave_the_peak_to_the_training_step():
    site = at(**ON_KILT)
    short = replace(site.experiment.evaluate, sequence_length=16, prompts_per_batch=1, chunks_per_answer=1)
    small = replace(site, experiment=replace(site.experiment, evaluate=short))
    assert plan_lm_ft(small).peak == plan_lm_ft(at()).peak


def test_the_state_waits_on_the_devices_while_the_network_in_training_answers(calls_of):
    (step,), answering = calls_of(**ON_KILT)
    prefill = next(iter(answering))
    assert prefill.function is prefill_shared
    initial = step.resident
    # A copy of the parameters answers, which is whole on each of eight chips.
    assert num_parameters(prefill.arguments[1]) == num_parameters(initial)
    assert bytes_per_device(prefill.arguments[1]) == num_bytes(initial)
    # The parameters, Adam's two moments, and the parameters that training began with; three counts of steps.
    assert num_parameters(prefill.resident) == 4 * num_parameters(initial) + 3


def test_a_copy_is_on_as_many_chips_as_the_training_state_leaves_room_on():
    """Half of what is left is for the copy, where the prompts take little of it."""
    place = at("h100-8", **ON_KILT)
    whole = num_bytes(place.lm_params)
    settings = replace(place.experiment.evaluate, prompts_per_batch=1, chunks_per_answer=1)

    def tensor_of(free):
        chip = replace(place.target.chip, memory=whole + free)
        small = replace(place, target=replace(place.target, chip=chip))
        return small.answering_mesh(settings, held=int(whole)).shape["tensor"]

    # Norms are whole on every chip: they are a little more than nothing. The heads of keys are two.
    assert [tensor_of(2 * whole), tensor_of(1.1 * whole)] == [1, 2]
    assert tensor_of(0.5 * whole) == 8
    assert tensor_of(0.1 * whole) == place.mesh().shape["tensor"]


def test_adapters_answer_over_the_frozen_parameters_which_lie_there_twice(calls_of):
    (step,), answering = calls_of(lora=LORA, **ON_KILT)
    prefill = next(iter(answering))
    state, _, frozen = step.arguments
    assert num_parameters(prefill.arguments[1]) == num_parameters(frozen) + num_parameters(state.params)
    assert num_bytes(prefill.resident) == num_bytes(state) + num_bytes(frozen)
    shardings = [leaf.sharding for leaf in jax.tree.leaves(prefill.arguments[1])]
    assert all(shardings)


def test_quantised_parameters_answer_as_they_are(calls_of):
    pytest.importorskip("qwix")
    (step,), answering = calls_of(lora=replace(LORA, quantize="int4"), **ON_KILT)
    state, _, frozen = step.arguments
    prefill = next(iter(answering))
    # The scaled B of every adapter is new, all else is there already.
    assert num_bytes(prefill.arguments[1]) == num_bytes(frozen) + num_bytes(state.params)


@pytest.mark.parametrize(
    ("steps", "every", "validated"),
    [(10, 4, [0, 4, 8, 10]), (10, 5, [0, 5, 10]), (10, 0, [10]), (1, 3, [0, 1]), (10, 100, [0, 10])],
)
def test_validations_are_counted_as_training_makes_them(steps, every, validated):
    settings = LmFtConfig(replace(OPTIMIZER, steps=steps), validate_every=every)
    assert num_validations(settings) == len(validated)


def test_questions_are_counted_for_every_task_and_validation(monkeypatch):
    asked = []
    answering = lm_ft.answering_program

    def spy(*arguments, num_questions, **settings):
        asked.append(num_questions)
        return answering(*arguments, num_questions=num_questions, **settings)

    monkeypatch.setattr(lm_ft, "answering_program", spy)
    plan_lm_ft(at(**ON_KILT))
    assert asked == [4 * 6 * 7]  # validations, tasks, questions of a task


def test_no_pair_is_scored_for_tasks_that_are_generated(calls_of):
    _, answering = calls_of(**ON_KILT)
    assert continuation_log_probs not in [call.function for call in answering]
    assert all(find_task(name).generates for name in KILT_DEVELOPMENT)


def test_decoding_holds_the_optimizer_too(calls_of):
    (step,), answering = calls_of(**ON_KILT)
    decoding = next(call for call in answering if call.function is decode_steps)
    moments = num_bytes(step.arguments[0].opt_state)
    assert num_bytes(decoding.resident) > moments
