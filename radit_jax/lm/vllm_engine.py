"""Answering with vLLM in the place of our own decoding. It has never run: no machine of ours had vLLM.

Its test has a stand-in for the small part of vLLM's interface that is used here: `LLM.generate` over token
ids, and of `SamplingParams` what greedy decoding and log-probabilities take.

    1. each prompt's greedy answer                        `stop_token_ids`
    2. every unique answer after each prompt              `prompt_logprobs` of the answer's tokens
    3. and that it ends there, by any of its terminators  `logprobs` of the token after it

So an answer has the probability that `lm/ensemble.py` gives it, but for the rounding of other kernels.
"""

import importlib
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from radit_jax.config import EvaluateConfig
from radit_jax.lm.answer_rows import outcome, strip_terminator, unique_answers
from radit_jax.lm.answering import Prompts, decode_options
from radit_jax.lm.ensemble import CandidatesByQuestion, rank_candidates
from radit_jax.method.answer_scoring import STOP
from radit_jax.method.generation import Answer, Stops, TokenIds
from radit_jax.runtime.pretrained.model_io import stored_tokenizer
from radit_jax.runtime.pretrained.tokenizers import Tokenizer

WHOLE_VOCABULARY = -1  # as a number of log-probabilities


class VllmEngine(NamedTuple):
    """A language model that vLLM serves in this process, as an `AnsweringEngine`."""

    llm: Any  # vllm.LLM, which may give the log-probabilities of its whole vocabulary
    sampling_params: Any  # the class vllm.SamplingParams
    tokenizer: Tokenizer

    @classmethod
    def load(cls, folder: str, **options: Any) -> "VllmEngine":
        """The model in Hugging Face's form in `folder`, such as an export's `hf/lm`.

        `options` are those of `vllm.LLM`, for example `tensor_parallel_size`.
        """
        vllm = importlib.import_module("vllm")
        # Defaults in a checkpoint's generation_config.json would add ends of their own.
        llm = vllm.LLM(folder, max_logprobs=WHOLE_VOCABULARY, generation_config="vllm", **options)
        return cls(llm, vllm.SamplingParams, stored_tokenizer(folder))

    def candidates(self, prompts: Prompts, settings: EvaluateConfig) -> CandidatesByQuestion:
        """Each question's greedy answers under its chunks, all scored under all chunks, the best first."""
        if settings.ensemble == "token":
            raise ValueError(
                "evaluate.ensemble: expected answer or concatenate with vLLM, which does not mix the tokens "
                "of several prompts, got token. Set another, or answer with our own engine."
            )
        options = decode_options(self.tokenizer, prompts, settings)
        token_ids = prompts.token_ids

        # 1) Each question's unique answers.
        all_prompts = list(itertools.chain.from_iterable(token_ids))
        generated = iter(self._greedy(all_prompts, options.max_new_tokens, options.stops))
        unique: list[list[Answer]] = []
        for by_chunk in token_ids:
            unique.append(unique_answers([next(generated) for _ in by_chunk]))

        # 2) Each of them after each of the question's prompts.
        texts, places = [], []
        for question, by_chunk in enumerate(token_ids):
            for chunk, prompt in enumerate(by_chunk):
                for number, answer in enumerate(unique[question]):
                    texts.append((prompt, outcome(answer, options.stops, options.max_new_tokens)))
                    places.append((question, chunk, number))

        # 3) Their log-probabilities, mixed and ranked.
        most_answers = max(map(len, unique), default=0)
        log_probs = np.zeros((*prompts.log_probs.shape, most_answers), np.float32)
        log_probs[tuple(np.array(places).T)] = self._score(texts, options.stops)
        return rank_candidates(token_ids, unique, log_probs, prompts.log_probs, options)

    def _greedy(self, prompts: Sequence[TokenIds], max_new_tokens: int, stops: Stops) -> list[Answer]:
        """The greedy answer after each prompt."""
        outputs = self._run(
            prompts,
            max_tokens=max_new_tokens,
            stop_token_ids=[*stops.alone, *stops.closing],
            ignore_eos=True,  # `<eos>` is among the stops
            include_stop_str_in_output=True,  # a closing piece belongs to the answer
        )
        return [strip_terminator(output.outputs[0].token_ids, stops) for output in outputs]

    def _score(self, texts: Sequence[tuple[TokenIds, Answer]], stops: Stops) -> list[float]:
        """log p of each outcome after its prompt, in nats."""
        rows = []
        for prompt, tokens in texts:
            rows.append([*prompt, *(token for token in tokens if token != STOP)])
        # vLLM always generates a token: it stands for what may follow the answer.
        outputs = self._run(rows, max_tokens=1, prompt_logprobs=0, logprobs=WHOLE_VOCABULARY)
        scores = []
        for (prompt, tokens), row, output in zip(texts, rows, outputs, strict=True):
            score = 0.0
            for place in range(len(prompt), len(row)):
                score += output.prompt_logprobs[place][row[place]].logprob
            if tokens[-1] == STOP:
                following = output.outputs[0].logprobs[0]
                ends = [following[token].logprob for token in stops.alone]
                score += float(np.logaddexp.reduce(ends))
            scores.append(score)
        return scores

    def _run(self, rows: Sequence[TokenIds], **sampling: Any) -> Sequence[Any]:
        """vLLM's output for each row of token ids, in their order."""
        params = self.sampling_params(temperature=0.0, detokenize=False, **sampling)
        requests = [{"prompt_token_ids": list(row)} for row in rows]
        return self.llm.generate(requests, params, use_tqdm=False)
