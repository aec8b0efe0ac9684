"""The model `radit` of lm-evaluation-harness: its three requests on a model of ours (`lm_eval.py`)."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from radit_jax.command_line import run_stage
from radit_jax.config import EvaluateConfig, MeshConfig
from radit_jax.data.artifacts.chunks import Chunks
from radit_jax.data.batches.few_shot import SHOT_END, Shot, few_shot_prompt
from radit_jax.data.batches.prefix_trees import answer_ids
from radit_jax.lm.answering import Backgrounds, Retrieval, merge_equal_texts, placement_of
from radit_jax.lm.ensemble import DecodeOptions, answer_questions, answer_questions_by_token
from radit_jax.method.answer_scoring import continuation_log_likelihood
from radit_jax.method.generation import Stops
from radit_jax.retrieval.search import Searcher
from radit_jax.runtime.distributed.answering_mesh import answering_mesh
from radit_jax.runtime.distributed.memory import naming_remedy
from radit_jax.runtime.distributed.mesh import row_layout
from radit_jax.runtime.pretrained.model_io import Model, abstract_model, open_model
from radit_jax.runtime.pretrained.tokenizers import Tokenizer
from radit_jax.runtime.storage.top_level_folder import TopLevelFolder

DEFAULT_ANSWER_TOKENS = 256  # at most, where the task does not say
GenerationOptions = tuple[tuple[str, ...], int]  # the texts that end an answer, and its most tokens
LENGTH_UNIT = 32  # lengths are rounded up to a multiple of it, so that few shapes are compiled


class ContinuationRequest(NamedTuple):
    """A continuation whose probability is asked: its tokens, and the contexts that it may follow."""

    contexts: list[list[int]]  # one a chunk
    continuation: list[int]
    log_probs: list[float]  # log p_R of each context's chunk


class Radit:
    """The harness's three requests, answered by a language model with or without retrieved chunks.

    `max_length` is the window in tokens; `chunks` is k of Eq. 2, by default the export's own. `device` and
    `max_batch_size` are the harness's options; they change nothing here.
    """

    @naming_remedy("lm_eval")
    def __init__(
        self,
        path: str,
        retrieval: bool = False,
        chunks: int = 0,
        max_length: int = 2048,
        batch_size: int | str = 8,
        device: str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        # The harness also says "auto".
        self.batch_size = int(batch_size) if str(batch_size).isdigit() else 8

        # An export has its language model in a folder of its own.
        inner = epath.Path(path) / "lm"
        source = str(inner) if inner.exists() else path
        num_tokens = self.batch_size * max_length
        mesh = answering_mesh(MeshConfig(), abstract_model(source), num_tokens=num_tokens)
        model = open_model(source, mesh=mesh)
        self.model: Model = model._replace(module=model.module.clone(layout=row_layout(mesh)))
        self._placement = placement_of(model.params)
        self.max_length = min(max_length, self.model.module.config.max_length)
        self.library = Library(path, chunks) if retrieval else None
        self._known_stops: dict[tuple[str, ...], Stops] = {}

    @naming_remedy("lm_eval")
    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """log p of each continuation after its context in nats, and whether greedy decoding gives it."""
        # Retrieve once for all, then make token ids of each continuation and its contexts.
        pairs = [_split_at_space(*request.args) for request in requests]
        backgrounds = self._backgrounds([context for context, _ in pairs])
        continuations = []
        for pair, passages, log_probs in zip(pairs, *backgrounds, strict=True):
            continuations.append(self._continuation_request(*pair, passages, log_probs))
        return self._score(continuations)

    @naming_remedy("lm_eval")
    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """log p of each text in nats, in windows with as much context as fits; nothing is retrieved."""
        # Score the windows of all texts together.
        tokenizer = self.model.tokenizer.plain
        all_windows = []
        windows_per_text = []
        for request in requests:
            tokens = tokenizer.encode(tokenizer.opening + request.args[0])
            text_windows = windows([*_text_start(tokenizer), *tokens], self.max_length)
            windows_per_text.append(len(text_windows))
            for context, continuation in text_windows:
                all_windows.append(ContinuationRequest([context], continuation, [0.0]))
        scores = iter(self._score(all_windows))

        # Add up what belongs to one text.
        totals = []
        for num_windows in windows_per_text:
            log_probs = [next(scores)[0] for _ in range(num_windows)]
            totals.append(sum(log_probs))
        return totals

    @naming_remedy("lm_eval")
    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The greedy answer of the mixture, cut before the first of the task's `until`."""
        # Requests with the same options are generated together.
        by_options: dict[GenerationOptions, list[int]] = {}
        for number, request in enumerate(requests):
            options = _generation_options(request.args[1])
            by_options.setdefault(options, []).append(number)

        # Put the answers in the order of the requests.
        texts: list[str] = [""] * len(requests)
        for (until, max_new_tokens), numbers in by_options.items():
            contexts = [requests[number].args[0] for number in numbers]
            answers = self._generate(contexts, until, max_new_tokens)
            for number, text in zip(numbers, answers, strict=True):
                texts[number] = text
        return texts

    def _generate(self, contexts: Sequence[str], until: tuple[str, ...], max_new_tokens: int) -> list[str]:
        """The answer after each context."""
        # A prompt for each context and chunk, with room for the answer.
        backgrounds = self._backgrounds(contexts)
        room = self.max_length - max_new_tokens
        prompts = []
        for context, passages in zip(contexts, backgrounds.passages, strict=True):
            prompts.append([self._prompt(context, passage, room) for passage in passages])

        # The mixture is made of whole answers, or token by token.
        by_token = self.library is not None and self.library.settings.ensemble == "token"
        answer = answer_questions_by_token if by_token else answer_questions
        num_chunks = backgrounds.log_probs.shape[1]
        options = DecodeOptions(
            max_new_tokens=max_new_tokens,
            stops=self._stops(until),
            questions_per_batch=max(1, self.batch_size // num_chunks),
            placement=self._placement,
        )
        candidates_of_questions = answer(
            self.model.module, self.model.params, prompts, backgrounds.log_probs, options
        )

        def text_of(tokens: Sequence[int]) -> str:
            return _before_ends(self.model.tokenizer.decode(tokens), until)

        # Tokenisations of one text are one answer; the likeliest comes first.
        texts = []
        for candidates in candidates_of_questions:
            best = merge_equal_texts(candidates, text_of)[0]
            texts.append(best.text)
        return texts

    def _stops(self, until: tuple[str, ...]) -> Stops:
        """`<eos>` and the pieces that hold an end whole; where one spans pieces it is cut from the text."""
        if until not in self._known_stops:
            self._known_stops[until] = stops_at(self.model.tokenizer, until)
        return self._known_stops[until]

    def _backgrounds(self, contexts: Sequence[str]) -> Backgrounds:
        """What is retrieved for the question at each context's end, or no Background at all."""
        if self.library is None:
            return Retrieval.none(len(contexts)).backgrounds()
        questions = [context.rpartition(SHOT_END)[2].strip() for context in contexts]
        return self.library.find(questions)

    def _prompt(self, context: str, passage: str | None, room: int) -> list[int]:
        """The examples that fit, the Background and the question: at most `room` tokens."""
        *examples, question = context.split(SHOT_END)
        tokenizer = self.model.tokenizer
        num_tokens = len(tokenizer.encode_prompt(question))
        if num_tokens > room:
            raise ValueError(
                f"lm_eval: expected prompts of at most {room} tokens, since max_length is {self.max_length}, "
                f"got {num_tokens} in {question[:40]!r}. Raise max_length in --model_args."
            )
        shots = [Shot(None, text, "") for text in examples]
        prompt = few_shot_prompt(tokenizer, shots, passage, question, max_length=room)
        return prompt.tokens or _text_start(tokenizer)

    def _continuation_request(
        self, context: str, continuation: str, passages: Sequence[str | None], log_probs: np.ndarray
    ) -> ContinuationRequest:
        """Token ids of a continuation and of its context with each passage."""
        tokenizer = self.model.tokenizer
        # Without context or passage, the continuation is the first words of a text.
        if not context and passages == [None]:
            tokens = tokenizer.plain.encode(tokenizer.plain.opening + continuation)
            return ContinuationRequest([_text_start(tokenizer.plain)], tokens, [0.0])
        # All contexts leave room for the continuation.
        tokens = answer_ids(tokenizer, continuation)
        room = self.max_length - len(tokens)
        contexts = [self._prompt(context, passage, room) for passage in passages]
        return ContinuationRequest(contexts, tokens, log_probs.tolist())

    def _score(self, requests: Sequence[ContinuationRequest]) -> list[tuple[float, bool]]:
        """log p of each continuation, and whether it is the greedy one, in the order of the requests."""

        def longest_context(number: int) -> int:
            return max(map(len, requests[number].contexts))

        # Requests of similar length share a batch, which is little padded then.
        order = sorted(range(len(requests)), key=longest_context)
        num_chunks = max((len(request.contexts) for request in requests), default=1)
        size = self._placement.num_rows(max(1, self.batch_size // num_chunks))
        scores: list[tuple[float, bool]] = [(0.0, True)] * len(requests)
        for start in range(0, len(order), size):
            numbers = order[start : start + size]
            batch = _to_batch([requests[number] for number in numbers], size)
            batch = self._placement.put_rows(batch)
            outputs = _log_likelihood(self.model.module, self.model.params, *batch)
            log_probs, is_greedy = map(self._placement.gather, outputs)
            of_requests = zip(log_probs.tolist(), is_greedy.tolist(), strict=True)
            for number, score in zip(numbers, of_requests, strict=False):
                scores[number] = score
        return scores


class Library:
    """An export's chunks, and the tuned query encoder over their index."""

    def __init__(self, path: str, num_chunks: int) -> None:
        export = TopLevelFolder(path)
        if not export.complete:
            raise ValueError(
                f"lm_eval: expected a finished export to retrieve from, got {path}. "
                f"Name a folder that {run_stage('export')} wrote, or leave retrieval=true out."
            )
        # How the run answered: its settings and the temperature of p_R.
        stored = export.read_json("answering.json")
        self.settings = EvaluateConfig(**{**stored["evaluate"], "tasks": ()})
        self.temperature = stored["temperature"]

        self.chunks = Chunks(export)
        inputs = {"retriever": export, "embeddings": export, "index": export}
        self.searcher = Searcher.load(inputs, MeshConfig())
        num_chunks = num_chunks or self.settings.chunks_per_answer
        self.num_chunks = min(num_chunks, len(self.chunks))

    def find(self, queries: Sequence[str]) -> Backgrounds:
        """The chunks of each query, each as its own Background or all as one."""
        rows, log_probs = self.searcher.retrieve(queries, self.num_chunks, self.temperature)
        retrieval = Retrieval(self.chunks, rows, log_probs)
        if self.settings.ensemble == "concatenate":
            return retrieval.concatenated()
        return retrieval.backgrounds()


def _text_start(tokenizer: Tokenizer) -> list[int]:
    """What a text's first token follows: `<bos>`, or as the harness has it `<eos>` where there is none."""
    return list(tokenizer.start_ids or tokenizer.end_ids)


def windows(tokens: Sequence[int], length: int) -> list[tuple[list[int], list[int]]]:
    """Contexts with what is predicted after them: every token but the first once, after as many as fit.

    >>> windows([0, 1, 2, 3, 4, 5], 4)
    [([0], [1, 2, 3, 4]), ([1, 2, 3, 4], [5])]
    """
    pairs = []
    for start in range(1, len(tokens), length):
        end = min(start + length, len(tokens))
        # The last token is predicted, not read.
        first = max(0, end - 1 - length)
        context = list(tokens[first:start])
        pairs.append((context, list(tokens[start:end])))
    return pairs


def _split_at_space(context: str, continuation: str) -> tuple[str, str]:
    """Both, with the spaces at the context's end moved to the continuation, whose first piece they are in."""
    stripped = context.rstrip(" ")
    spaces = context[len(stripped) :]
    return stripped, spaces + continuation


def _generation_options(options: dict[str, Any]) -> GenerationOptions:
    """The texts that end an answer, and the most tokens that it may have."""
    if options.get("do_sample") or options.get("temperature"):
        raise ValueError(
            f"lm_eval: expected a task with greedy decoding, got sampling ({options}). "
            f"Take do_sample and temperature out."
        )
    until = options.get("until") or ()
    ends = (until,) if isinstance(until, str) else tuple(until)
    max_new_tokens = options.get("max_gen_toks") or DEFAULT_ANSWER_TOKENS
    return ends, int(max_new_tokens)


def stops_at(tokenizer: Tokenizer, until: Sequence[str]) -> Stops:
    """`<eos>` and every piece with one of the texts `until`, those with text before it as closing ones."""
    alone: list[int] = list(tokenizer.eos_ids)
    closing: list[int] = []
    if not any(until):
        return Stops(tuple(alone), ())
    # A piece ends an answer where its text holds one of the ends.
    for piece in range(tokenizer.vocab_size):
        text = tokenizer.decode([piece])
        before = _before_ends(text, until)
        if before == text or piece in tokenizer.eos_ids:
            continue
        if before:
            closing.append(piece)
        else:
            alone.append(piece)
    return Stops(tuple(alone), tuple(closing))


def _before_ends(text: str, until: Sequence[str]) -> str:
    """`text` up to the first of the ends in it."""
    for end in until:
        if end:
            text = text.partition(end)[0]
    return text


def _to_batch(requests: Sequence[ContinuationRequest], size: int) -> tuple[np.ndarray, ...]:
    """The arrays of `continuation_log_likelihood` for `size` requests; the last one fills up the batch."""
    repeated = [requests[-1]] * (size - len(requests))
    requests = [*requests, *repeated]

    # Make room for the most chunks, the longest text and the longest continuation.
    num_chunks = max(len(request.contexts) for request in requests)
    num_targets = _round_up(max(len(request.continuation) for request in requests))
    length = _round_up(max(map(_longest_text, requests)))
    tokens = np.zeros((size, num_chunks, length), np.int32)
    slots = np.zeros((size, num_chunks, num_targets), np.int32)
    targets = np.zeros((size, num_targets), np.int32)
    is_target = np.zeros((size, num_targets), bool)
    log_probs = np.full((size, num_chunks), -np.inf, np.float32)

    for row, request in enumerate(requests):
        count = len(request.continuation)
        targets[row, :count] = request.continuation
        is_target[row, :count] = True
        log_probs[row, : len(request.contexts)] = request.log_probs
        for chunk, context in enumerate(request.contexts):
            text = [*context, *request.continuation]
            tokens[row, chunk, : len(text)] = text
            # The logits at a position predict the token after it.
            slots[row, chunk, :count] = np.arange(len(context) - 1, len(text) - 1)
    return tokens, slots, targets, is_target, log_probs


def _longest_text(request: ContinuationRequest) -> int:
    """Tokens of the longest context with the continuation."""
    longest_context = max(map(len, request.contexts))
    return longest_context + len(request.continuation)


def _round_up(length: int) -> int:
    """The multiple of `LENGTH_UNIT` at or above."""
    return -(-length // LENGTH_UNIT) * LENGTH_UNIT


_log_likelihood: Callable[..., Any] = jax.jit(continuation_log_likelihood, static_argnums=0)
