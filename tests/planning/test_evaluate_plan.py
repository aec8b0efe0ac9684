"""What is compiled for the plan is what answering calls, with the shapes of its longest prompts."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from radit_jax.config import EvaluateConfig, MeshConfig, load_experiment
from radit_jax.data.batches.few_shot import FewShotPrompt
from radit_jax.evaluation.questions import longest_answer
from radit_jax.lm import answering, ensemble, prefix_sharing
from radit_jax.planning import evaluate
from radit_jax.planning.deployment import Counts, Deployment, PlannedModel
from radit_jax.planning.resources import ResourceEstimate
from radit_jax.runtime.distributed.accelerators import find_target
from radit_jax.runtime.distributed.mesh import make_mesh, put_params, row_layout

SETTINGS = EvaluateConfig(chunks_per_answer=2, max_new_tokens=3, sequence_length=130, prompts_per_batch=24)
FUNCTIONS = ("prefill_shared", "init_decode", "decode_steps", "score_answers")


@pytest.fixture
def spread(lm):
    """The language model over eight devices, by rows and by heads."""
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    return lm._replace(module=lm.module.clone(layout=row_layout(mesh)), params=put_params(lm.params, mesh))


def on_a_device(leaf):
    """What a device has of an argument."""
    if not hasattr(leaf, "shape"):
        return leaf if callable(leaf) else type(leaf)
    sharding = getattr(leaf, "sharding", None)
    return (sharding.shard_shape(leaf.shape) if sharding else leaf.shape), np.dtype(leaf.dtype)


def described(name, arguments, options):
    return name, tuple(map(on_a_device, jax.tree.leaves(arguments))), tuple(sorted(options))


def slots(call):
    """Tokens that a device reads."""
    return sum(np.prod(shape) for shape, dtype in call[1][-5:] if dtype == np.int32)


@pytest.mark.parametrize("mixing", ["answer", "token", "concatenate"])
def test_a_plan_compiles_what_answering_its_longest_prompts_calls(spread, monkeypatch, mixing):
    settings = replace(SETTINGS, ensemble=mixing)
    monkeypatch.setattr(prefix_sharing, "PROMPTS_PER_PREFILL", 8)
    mesh, run, names = make_mesh(MeshConfig(fsdp=4, tensor=2)), set(), {}
    model = PlannedModel(spread.module, spread.params, mesh)
    parts = evaluate.longest(settings, mesh)
    calls = evaluate.answering_calls(model, parts, settings, held=spread.params)
    planned = [(call.function, call.arguments, call.options) for call in calls]

    def spy(name, function):
        def call(*arguments, **options):
            run.add(described(name, arguments, options))
            return function(*arguments, **options)

        return call

    for name in FUNCTIONS:
        names[getattr(ensemble, name)] = name
        monkeypatch.setattr(ensemble, name, spy(name, getattr(ensemble, name)))
    k = 1 if mixing == "concatenate" else 2
    texts = evaluate.longest_prompts(24, 127)
    questions = [[FewShotPrompt(text, 0, False) for text in texts[n : n + k]] for n in range(0, 24, k)]
    prompts = answering.Prompts(questions, np.zeros((24 // k, k), np.float32))
    answering.JaxEngine(spread).candidates(prompts, settings)
    planned = {described(names[function], *rest) for function, *rest in planned}
    assert planned <= run
    assert {name for name, *_ in planned} == {name for name, *_ in run}
    widest = max((call for call in run if call[0] == "prefill_shared"), key=slots)
    assert widest in planned


@pytest.mark.parametrize(("name", "copies", "tensor"), [("h100-64", 1, 8), ("v5e-256", 8, 32)])
def test_the_largest_model_answers_in_copies_and_no_weight_crosses(monkeypatch, name, copies, tensor):
    """65B twice in bfloat16: 261 GB on a node of H100s, whose half is 316, or 32 chips for a copy of both."""
    planned = []

    def estimate(stage, program, *_, **__):
        planned.append(program)
        return ResourceEstimate(stage)

    monkeypatch.setattr(evaluate, "estimate", estimate)
    experiment = load_experiment("radit_65b")
    counts = Counts.of(experiment, 37_000_000, 1000)
    evaluate.plan_evaluate(Deployment(experiment, replace(find_target(name), topology=""), counts))
    [program] = planned
    sharding = program.held[0]["model"]["layers"]["mlp"]["up_proj"]["kernel"].sharding
    assert dict(sharding.mesh.shape) == {"replica": copies, "fsdp": 1, "tensor": tensor}
    assert program.dcn == 0
    # Two sums a layer, scattered and then gathered, of 8192 numbers in two bytes, for each token of a copy.
    settings = experiment.evaluate.answering(longest_answer(experiment.evaluate))
    length = min(settings.sequence_length, counts.pair_tokens) + settings.max_new_tokens
    a_token = 4 * 80 * 8192 * 2 * (1 - 1 / tensor)
    # 60 prompts at once are 7 for each of eight nodes, and so one question's 10.
    rows_of_a_copy = 10 if name == "h100-64" else prefix_sharing.PROMPTS_PER_PREFILL / copies
    assert program.ici == pytest.approx(rows_of_a_copy * length * a_token)
