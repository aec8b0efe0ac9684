"""Choices under the four rules, against transformers' LLaMA on torch, one sequence at a time."""

from dataclasses import replace

import families
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import assert_stored, in_float64, torch_in_float64, torch_model_in_float64
from scipy.special import logsumexp
from small import CHUNKS, LONG

from radit_jax.config import MeshConfig, ScoreConfig
from radit_jax.data.artifacts.chunks import Chunks
from radit_jax.data.batches.few_shot import Shot
from radit_jax.data.eval_tasks.registry import EVAL_TASKS
from radit_jax.data.eval_tasks.task import Choice, EvalExample
from radit_jax.evaluation import multiple_choice
from radit_jax.evaluation.multiple_choice import choose
from radit_jax.lm.answering import Retrieval
from radit_jax.lm.scoring import NO_CHUNK, PairScorer
from radit_jax.models.decoder import DecoderLm
from radit_jax.runtime.distributed.mesh import make_mesh, put_params
from radit_jax.runtime.pretrained.hf_weights import load_decoder
from radit_jax.runtime.pretrained.model_io import Model
from radit_jax.text.prompts import background

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("float64")


def item(prompt, *answers):
    return EvalExample(
        prompt, prompt, choices=tuple(Choice(answer, prompt, f" {answer}") for answer in answers), label=0
    )


ITEMS = [
    item("Question: Who built Elm Tower?\nAnswer:", "Ada Finch", "Bo", "a very long list of builders"),
    item("Question: Where is Jay Tower?\nAnswer:", "Tarn", "in the old town of Upton", "Rusk", "Quay"),
    item("Is it a tower?", "yes", "no"),
    EvalExample(
        "w",
        "Ed Swift built it because ",
        choices=(
            Choice("Ed", "Ed saw Bo because Ed", " was at the tower."),
            Choice("Bo", "Ed saw Bo because Bo", " was at the tower."),
        ),
        label=0,
    ),
]
ROWS = np.array([[1, 0], [6, NO_CHUNK], [2, 3], [4, 5]])
WEIGHTS = np.log(np.tile(np.float32([0.6, 0.4]), (4, 1)))


@pytest.fixture(scope="module")
def hf(lm):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=lm.tokenizer.vocab_size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        initializer_range=0.4,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def scorer(hf, lm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hf")
    hf.float().save_pretrained(folder)
    torch_model_in_float64(hf)
    config, params = load_decoder(folder)
    devices = make_mesh(MeshConfig())
    with jax.enable_x64(True):
        params = put_params(in_float64(params), devices)
    model = Model(DecoderLm(config, dtype=jnp.float64), params, lm.tokenizer)
    return PairScorer(model, devices, ScoreConfig(batch_size=8, sequence_length=128))


def log_prob(hf, tokenizer, before, scored):
    """log p(scored | before), by one pass of the torch model over their ids."""
    context = [tokenizer.bos_id, *(token for text in before for token in tokenizer.encode(text))]
    return log_prob_after(hf, context, tokenizer.encode(scored))


def log_prob_after(hf, context, answer):
    with torch_in_float64():
        logits = hf(torch.tensor([context + answer])).logits[0].double()
    log_probs = torch.log_softmax(logits, dim=-1)
    return sum(log_probs[len(context) - 1 + i, token].item() for i, token in enumerate(answer))


def by_torch(hf, tokenizer, rule, asked, texts=((),), weights=(1.0,), shot=()):
    """An item's scores: each background's probabilities mixed, and then the rule."""
    mixed = [
        logsumexp(
            [log_prob(hf, tokenizer, (*shot, *text, choice.prompt), choice.scored) for text in texts],
            b=weights,
        )
        for choice in asked.choices
    ]
    if rule == "per_character":
        return [
            value / len(choice.scored.strip()) for value, choice in zip(mixed, asked.choices, strict=True)
        ]
    if rule == "nll_compl":
        priors = [log_prob(hf, tokenizer, ("Answer:",), choice.scored) for choice in asked.choices]
        return [value - prior for value, prior in zip(mixed, priors, strict=True)]
    return mixed


@pytest.mark.parametrize("rule", ["sum", "per_character", "nll_compl"])
def test_each_rule_scores_and_chooses_as_transformers_does(hf, scorer, rule):
    found, counts = choose(scorer, ITEMS, rule)
    for asked, chosen in zip(ITEMS, found, strict=True):
        expected = by_torch(hf, scorer.model.tokenizer, rule, asked)
        assert_stored(chosen.scores, expected, np.abs(chosen.log_probs).max())
        assert chosen.choice == int(np.argmax(expected))
    assert counts == {"shots_dropped": 0, "truncated": 0}


def test_in_a_chat_the_assistant_says_the_choice(hf, scorer):
    tokenizer = families.in_chat(scorer.model.tokenizer)
    in_chat = replace(scorer, model=scorer.model._replace(tokenizer=tokenizer))
    found, _ = choose(in_chat, ITEMS, "nll_compl")

    def by_hand(prompt, scored):
        asked = [{"role": "user", "content": prompt}]
        context = tokenizer.hf.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
        return log_prob_after(hf, context, tokenizer.encode(scored))

    for asked, chosen in zip(ITEMS, found, strict=True):
        expected = [by_hand(c.prompt, c.scored) - by_hand("Answer:", c.scored) for c in asked.choices]
        assert_stored(chosen.scores, expected, np.abs(chosen.log_probs).max())


def test_the_rules_choose_differently(scorer):
    chosen = {
        rule: [c.choice for c in choose(scorer, ITEMS, rule)[0]]
        for rule in ("sum", "per_character", "nll_compl")
    }
    assert len(set(map(tuple, chosen.values()))) == 3


def test_retrieved_chunks_are_mixed_by_equation_2_before_the_rule(hf, scorer, inputs):
    retrieval = Retrieval(Chunks(inputs["corpus"]), ROWS, WEIGHTS)
    found, _ = choose(scorer, ITEMS, "per_character", retrieval=retrieval)
    for asked, rows, chosen in zip(ITEMS, ROWS.tolist(), found, strict=True):
        texts = [() if row == NO_CHUNK else (background(CHUNKS[row].passage),) for row in rows]
        expected = by_torch(hf, scorer.model.tokenizer, "per_character", asked, texts, (0.6, 0.4))
        assert_stored(chosen.scores, expected, np.abs(chosen.log_probs).max())


def test_concatenated_chunks_are_one_background_of_a_choice(hf, scorer, inputs):
    retrieval = Retrieval(Chunks(inputs["corpus"]), ROWS, WEIGHTS)
    found, _ = choose(scorer, ITEMS, "sum", retrieval=retrieval, concatenate=True)
    for asked, rows, chosen in zip(ITEMS, ROWS.tolist(), found, strict=True):
        joined = background("\n".join(CHUNKS[row].passage for row in rows if row != NO_CHUNK))
        expected = by_torch(hf, scorer.model.tokenizer, "sum", asked, ((joined,),))
        assert_stored(chosen.scores, expected, np.abs(chosen.log_probs).max())


def test_shots_stand_before_the_question_and_what_does_not_fit_is_counted(hf, scorer, inputs, monkeypatch):
    monkeypatch.setattr(multiple_choice, "ITEMS_PER_BLOCK", 3)
    shot = Shot(None, "Is it a town?", " no")
    far = Shot("Tarn " * 200, "Is it a town?", " no")
    found, counts = choose(scorer, ITEMS, "sum", shots=[(far, shot)] * 4)
    for asked, chosen in zip(ITEMS, found, strict=True):
        text = ("Is it a town? no", "\n\n")
        expected = by_torch(hf, scorer.model.tokenizer, "sum", asked, shot=text)
        assert_stored(chosen.scores, expected, np.abs(chosen.log_probs).max())
    assert counts == {"shots_dropped": 5, "truncated": 0}  # once a prompt, of which the last item has two
    retrieval = Retrieval(Chunks(inputs["corpus"]), np.full((4, 1), LONG), np.zeros((4, 1), np.float32))
    short = replace(scorer, settings=replace(scorer.settings, sequence_length=80))
    assert choose(short, ITEMS, "sum", retrieval=retrieval)[1]["truncated"] == 5


def test_choices_that_do_not_fit_one_row_are_scored_in_several(hf, scorer):
    long = item("Which list?", *(" ".join(["Tower"] * count + ["end"]) for count in (30, 70, 32)))
    [chosen], _ = choose(scorer, [long], "sum")
    expected = by_torch(hf, scorer.model.tokenizer, "sum", long)
    assert_stored(chosen.scores, expected, np.abs(chosen.log_probs).max())


def test_a_task_without_choices_is_refused(scorer):
    with pytest.raises(ValueError, match="choose: expected items with choices, got one without"):
        choose(scorer, [EvalExample("q", "Who?")], "sum")


def test_real_boolq_and_piqa_are_chosen_as_transformers_does(hf, scorer, shared_data):
    """The first items whose passages are short enough for a quick test, by the tasks' own rule."""
    scorer = replace(scorer, settings=replace(scorer.settings, sequence_length=384))
    for name in ("boolq", "piqa"):
        task = EVAL_TASKS[name]
        encode = scorer.model.tokenizer.encode
        items = [
            i
            for i in task.load(shared_data / "raw", "official")[:400]
            if len(encode(i.prompt)) + max(len(encode(c.scored)) for c in i.choices) < 383
        ][:6]
        assert len(items) == 6
        found, _ = choose(scorer, items, task.scoring_rule)
        for asked, chosen in zip(items, found, strict=True):
            expected = by_torch(hf, scorer.model.tokenizer, task.scoring_rule, asked)
            assert_stored(chosen.scores, expected, np.abs(chosen.log_probs).max())
            assert chosen.choice == int(np.argmax(expected))
