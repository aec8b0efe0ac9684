"""The adapter to vLLM against a stand-in for what it uses of vLLM, which computes with a network of ours.

vLLM itself has never run here.
"""

import sys
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from exact import assert_stored
from uncached import MODULE, PROMPTS, STOPS, next_log_probs, sharp_params

from radit_jax.config import EvaluateConfig
from radit_jax.data.batches.few_shot import FewShotPrompt
from radit_jax.lm import answering, vllm_engine
from radit_jax.lm.answering import AnsweringEngine, JaxEngine, Prompts, Retrieval, generate_answers
from radit_jax.lm.ensemble import AnswerCandidate
from radit_jax.lm.vllm_engine import VllmEngine
from radit_jax.method.generation import Stops
from radit_jax.runtime.pretrained.model_io import Model

pytestmark = pytest.mark.usefixtures("float64")
SETTINGS = EvaluateConfig(max_new_tokens=4, sequence_length=20)


@dataclass
class SamplingParams:
    """The fields that the adapter sets, with vLLM's defaults."""

    temperature: float = 1.0
    max_tokens: int = 16
    stop_token_ids: Any = None
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    detokenize: bool = True
    logprobs: int | None = None
    prompt_logprobs: int | None = None


class StandIn:
    """`vllm.LLM` as far as `generate` goes: greedy, with log-probabilities by uncached passes."""

    def __init__(self, params):
        self.params = params
        self.asked: list[SamplingParams] = []

    def generate(self, requests, sampling: SamplingParams, use_tqdm: bool):
        assert sampling.temperature == 0 and not sampling.detokenize and not use_tqdm
        self.asked.append(sampling)
        return [self.respond(request["prompt_token_ids"], sampling) for request in requests]

    def respond(self, prompt, sampling):
        # 1) Nothing is known of the first token; of others their own probability.
        prompt_logprobs = None
        if sampling.prompt_logprobs is not None:
            assert sampling.prompt_logprobs == 0
            prompt_logprobs = [None]
            for place in range(1, len(prompt)):
                entry = self.entries(prompt[:place], [prompt[place]])
                prompt_logprobs.append(entry)
        # 2) Tokens until a stop, which is left out unless it is asked for.
        tokens, logprobs = [], []
        while len(tokens) < sampling.max_tokens:
            following = next_log_probs(self.params, [*prompt, *tokens])
            token = int(following.argmax())
            logprobs.append(self.entries([*prompt, *tokens], range(len(following))))
            is_stop = token in (sampling.stop_token_ids or ())
            if not is_stop or sampling.include_stop_str_in_output:
                tokens.append(token)
            if is_stop:
                break
        whole = logprobs if sampling.logprobs == -1 else None
        return SimpleNamespace(
            prompt_logprobs=prompt_logprobs,
            outputs=[SimpleNamespace(token_ids=tokens, logprobs=whole)],
        )

    def entries(self, before, tokens):
        following = next_log_probs(self.params, list(before))
        return {token: SimpleNamespace(logprob=float(following[token])) for token in tokens}


@pytest.fixture
def ends(monkeypatch):
    """Answers end by these ids, whatever the tokeniser has: the network's vocabulary is smaller."""

    def end_by(alone, closing=()):
        monkeypatch.setattr(answering, "stops_of", lambda tokenizer: Stops(alone, closing))

    end_by(STOPS)
    return end_by


def prompts_of(texts, weights):
    return Prompts([[FewShotPrompt(text, 0, False) for text in row] for row in texts], np.log(weights))


@pytest.mark.parametrize(("alone", "closing"), [(STOPS, ()), ((1,), (2,))], ids=["alone", "closing"])
def test_vllm_gives_the_candidates_and_probabilities_of_our_own_engine(alone, closing, ends, lm):
    """Answers that end by a terminator, by a closing piece, and by their length."""
    ends(alone, closing)
    params, tokenizer = sharp_params(), lm.tokenizer
    weights = np.array([[0.5, 0.3], [0.9, 0.1], [0.2, 0.8]], np.float32)
    prompts = prompts_of([PROMPTS[:2], PROMPTS[2:], [PROMPTS[3], PROMPTS[0]]], weights)
    theirs = VllmEngine(StandIn(params), SamplingParams, tokenizer)
    ours = JaxEngine(Model(MODULE, params, tokenizer))
    assert isinstance(theirs, AnsweringEngine) and isinstance(ours, AnsweringEngine)
    expected = ours.candidates(prompts, SETTINGS)
    for found, wanted in zip(theirs.candidates(prompts, SETTINGS), expected, strict=True):
        for one, other in zip(found, wanted, strict=True):
            assert (one.tokens, one.num_tokens, one.is_cut) == (other.tokens, other.num_tokens, other.is_cut)
            assert_stored(one.log_prob, other.log_prob)
            assert_stored(one.log_probs, other.log_probs)
    lengths = {len(candidate.tokens) for candidates in expected for candidate in candidates}
    assert 4 in lengths and min(lengths) < 4


def test_every_prompt_is_read_for_its_answer_and_again_for_each_candidate(ends, lm):
    engine = VllmEngine(StandIn(sharp_params()), SamplingParams, lm.tokenizer)
    engine.candidates(prompts_of([PROMPTS[:2]], np.array([[0.5, 0.5]])), SETTINGS)
    greedy, scoring = engine.llm.asked
    assert (greedy.max_tokens, greedy.stop_token_ids, greedy.ignore_eos) == (4, [1, 2], True)
    assert (scoring.max_tokens, scoring.prompt_logprobs, scoring.logprobs) == (1, 0, -1)


def test_tokens_of_several_prompts_are_not_mixed(lm):
    engine = VllmEngine(None, None, lm.tokenizer)
    by_token = EvaluateConfig(max_new_tokens=4, ensemble="token")
    with pytest.raises(ValueError, match="^evaluate.ensemble: expected answer or concatenate with vLLM"):
        engine.candidates(prompts_of([PROMPTS[:1]], np.ones((1, 1))), by_token)


def test_vllm_loads_a_folder_with_our_tokeniser_and_without_ends_of_its_own(monkeypatch):
    vllm: Any = ModuleType("vllm")
    vllm.LLM, vllm.SamplingParams = lambda folder, **options: (folder, options), SamplingParams
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    monkeypatch.setattr(vllm_engine, "stored_tokenizer", lambda folder: f"tokeniser of {folder}")
    engine = VllmEngine.load("hf/lm", tensor_parallel_size=2)
    options = {"max_logprobs": -1, "generation_config": "vllm", "tensor_parallel_size": 2}
    assert engine == (("hf/lm", options), SamplingParams, "tokeniser of hf/lm")


def test_questions_are_answered_by_any_engine(lm):
    class Fixed:
        """Answers every question with one candidate."""

        tokenizer = lm.tokenizer

        def candidates(self, prompts, settings):
            tokens = tuple(lm.tokenizer.encode(" Hob Crane"))
            candidate = AnswerCandidate(tokens, 0.0, len(tokens), log_probs=(0.0,))
            return [[candidate] for _ in prompts.questions]

    settings = EvaluateConfig(max_new_tokens=8, sequence_length=64)
    answers, _ = generate_answers(Fixed(), ["Q: Who?\nA:"], Retrieval.none(1), settings)
    assert answers[0][0].text == "Hob Crane" and answers[0][0].probability == 1.0
