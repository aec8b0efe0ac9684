"""R-ft's plan: the step of the towers that learn, and scoring where pairs are scored in the stage itself."""

import json
import math
from dataclasses import replace

import jax
import pytest

from radit_jax.config import (
    BaseConfig,
    BertConfig,
    DecoderConfig,
    Experiment,
    GeneratedWorld,
    Instructions,
    LastTokenConfig,
    LmConfig,
    LmFtConfig,
    OptimizerConfig,
    RetrieverConfig,
    RFtConfig,
    ScoreConfig,
)
from radit_jax.method.likelihood import continuation_log_probs
from radit_jax.method.steps import RftBatch, RftTextBatch
from radit_jax.models.flops import encoder_flops
from radit_jax.planning import deployment, resources
from radit_jax.planning.deployment import Counts, Deployment
from radit_jax.planning.embed import plan_embed
from radit_jax.planning.evaluate import plan_evaluate
from radit_jax.planning.r_ft import plan_r_ft
from radit_jax.planning.score import plan_score
from radit_jax.planning.storage import plan_base, plan_index
from radit_jax.runtime.distributed.accelerators import find_target
from radit_jax.runtime.distributed.memory import bytes_per_device

TEN_STEPS = OptimizerConfig(steps=10, peak_lr=1e-4)
LLAMA = DecoderConfig(
    vocab_size=512, hidden_size=64, num_layers=3, num_heads=4, num_kv_heads=2, head_size=16, ffn_size=96
)
BERT = BertConfig(vocab_size=500, hidden_size=32, num_layers=2, num_heads=2, ffn_size=64)
SMALL = Experiment(
    name="small",
    data=GeneratedWorld(),
    base=BaseConfig(lm=LmConfig(model=LLAMA), retriever=RetrieverConfig(model=BERT)),
    lm_ft=LmFtConfig(TEN_STEPS, batch_size=16),
    score=ScoreConfig(batch_size=8, sequence_length=128),
    r_ft=RFtConfig(TEN_STEPS, batch_size=16),
)
COUNTS = Counts(chunks=1000, chunk_words=100, examples=50, questions=10)


def at(target="h100-8", data=SMALL.data, score=SMALL.score, **settings):
    experiment = replace(SMALL, data=data, score=score, r_ft=replace(SMALL.r_ft, **settings))
    return Deployment(experiment, find_target(target), COUNTS)


def test_a_decoder_as_an_encoder_is_planned_by_its_own_shape():
    """R-ft and embedding count the decoder's layers, and a vector of its width for each chunk."""
    encoder = LastTokenConfig(LLAMA, truncate_dim=48)
    retriever = RetrieverConfig(checkpoint="somewhere", model=encoder)
    experiment = replace(SMALL, base=replace(SMALL.base, retriever=retriever))
    place = Deployment(experiment, find_target("h100-8"), COUNTS)
    assert place.embeddings == 4 * 1000 * 48
    model = place.encoder(place.mesh())
    sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(model.params)]
    attention = 2 * 64 * 64 + 2 * 64 * 32
    assert sum(sizes) == 512 * 64 + 3 * (attention + 3 * 64 * 96 + 2 * 64) + 64  # without a head
    assert plan_embed(place).flops > 0 and plan_r_ft(place).flops > 0


@pytest.fixture
def on_host(monkeypatch):
    """Eight devices of the host stand in for a slice, whose compiler is then the CPU's."""
    monkeypatch.setattr(deployment, "stand_in_devices", lambda *_: jax.devices())

    def make(**settings):
        place = at("v5p-16", **settings)
        return replace(place, target=replace(place.target, topology="cpu"))

    return make


@pytest.fixture
def calls_of(on_host, monkeypatch):
    """What a plan would compile, which it then does not."""
    planned = []
    monkeypatch.setattr(resources, "compiled_peak", lambda calls: planned.extend(calls) or 0.0)

    def calls(**settings):
        planned.clear()
        plan_r_ft(on_host(**settings))
        return list(planned)

    return calls


def scoring(calls):
    return [call for call in calls if call.function is continuation_log_probs]


def test_the_query_tower_learns_over_embeddings_and_scores_nothing(calls_of):
    (step,) = calls_of()
    state, batch = step.arguments
    assert isinstance(batch, RftBatch)
    assert batch.chunk_embeddings.shape == (16, 10, 32)
    assert jax.tree.structure(step.resident) == jax.tree.structure(state.params)


def test_both_towers_learn_over_texts_of_the_longest_chunks(calls_of):
    (step,) = calls_of(train_chunk_encoder=True)
    state, batch = step.arguments
    assert isinstance(batch, RftTextBatch)
    assert batch.chunk_tokens.shape == batch.chunk_token_mask.shape == (16, 10, 256)
    assert set(state.params) == set(step.resident) == {"query", "chunk"}


def test_both_towers_need_more_than_the_query_tower(on_host):
    both, query = (plan_r_ft(on_host(train_chunk_encoder=kind)) for kind in (True, False))
    assert both.params == 2 * query.params
    assert not both.estimated
    assert both.peak > query.peak
    assert both.held > 1.9 * query.held
    texts = 3 * encoder_flops(BERT, rows=160, length=135)  # a hundred words
    assert both.flops == pytest.approx(query.flops + 10 * texts)


def test_the_estimate_of_both_towers_is_higher_too():
    both, query = (plan_r_ft(at(train_chunk_encoder=kind)) for kind in (True, False))
    assert both.estimated
    assert both.peak - both.held == pytest.approx((query.peak - query.held) * (64 + 10 * 256) / 64)


def test_a_refresh_scores_next_to_the_whole_state(calls_of):
    step, *rest = calls_of(refresh_every=4)
    assert rest == scoring(rest)
    assert rest
    for call in rest:
        assert bytes_per_device(call.resident) == bytes_per_device(step.arguments[0]) + bytes_per_device(
            step.resident
        )
        assert call.arguments[2].tokens.shape == (8, 128)


def test_development_questions_of_instructions_are_scored_next_to_the_query_tower(calls_of):
    step, *rest = calls_of(data=Instructions(), train_chunk_encoder=True)
    assert rest == scoring(rest)
    assert rest
    assert bytes_per_device(rest[0].resident) == bytes_per_device(step.resident["query"])


def test_a_refresh_that_never_comes_scores_nothing(calls_of):
    assert not scoring(calls_of(refresh_every=10))


@pytest.mark.parametrize("target", ["slice", "h100-8"])
def test_where_scoring_takes_the_most_it_decides(on_host, target):
    rows = ScoreConfig(batch_size=512, sequence_length=128)
    place = at if target == "h100-8" else on_host
    refreshed, once = (plan_r_ft(place(score=rows, refresh_every=every)) for every in (4, 0))
    assert refreshed.peak > once.peak
    assert refreshed.held == once.held
    assert refreshed.flops == once.flops


def test_what_does_not_fit_is_told_to_lower_either_batch():
    big = plan_r_ft(at(score=ScoreConfig(batch_size=2**24), refresh_every=4))
    (fault,) = resources.check_fits(big, find_target("h100-8")).faults
    assert "r_ft.batch_size" in fault
    assert "score.batch_size" in fault


def test_a_chunk_encoder_that_learnt_embeds_and_indexes_the_corpus_again():
    again, once = at(train_chunk_encoder=True), at()
    assert plan_embed(again).flops == 2 * plan_embed(once).flops
    assert plan_embed(again).disk == 2 * plan_embed(once).disk
    assert plan_embed(again).host == plan_embed(once).host
    assert plan_index(again).disk == 2 * plan_index(once).disk
    assert plan_index(again).host == plan_index(once).host  # one is built after the other
    assert plan_evaluate(again).host == 2 * plan_evaluate(once).host  # which searches both


# ---- labels from elsewhere ----


@pytest.fixture
def labeller(tmp_path):
    """A checkpoint of four layers, where the base has three; there are no weights yet."""
    config = {"model_type": "llama", "vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 4}
    config |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 96}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return ScoreConfig(batch_size=8, sequence_length=128, language_model=str(tmp_path))


def test_a_checkpoint_that_labels_is_planned_by_its_own_shape(labeller):
    elsewhere, own = at(score=labeller), at()
    layer = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96 + 2 * 64
    scored, by_base = plan_score(elsewhere), plan_score(own)
    assert scored.params == by_base.params + layer
    assert scored.held > by_base.held
    assert scored.flops > by_base.flops
    base, without = plan_base(elsewhere), plan_base(own)
    assert base.params == without.params + scored.params
    assert base.disk == without.disk + 4 * scored.params
    assert without.held < base.held < without.held + scored.held  # one language model at a time
    halved = replace(labeller, dtype="bfloat16")  # its parameters are kept in it, and only in it
    assert plan_score(at(score=halved)).held == scored.held / 2
    assert plan_base(at(score=halved)).disk == without.disk + 2 * scored.params
    refreshed, by_base = (plan_r_ft(at(score=score, refresh_every=4)) for score in (labeller, SMALL.score))
    assert refreshed.peak > by_base.peak


def test_scores_of_a_file_are_computed_by_nobody():
    need = plan_score(at(score=replace(SMALL.score, language_model="./scores.jsonl")))
    assert (need.params, need.flops, need.seconds, need.held) == (0, 0, 0, 0)
    assert need.disk == plan_score(at()).disk > 0
