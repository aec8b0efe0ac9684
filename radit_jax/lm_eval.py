"""lm-evaluation-harness on a model of ours: its whole command line, with `radit` beside its own models.

    python -m radit_jax.lm_eval --model radit --model_args path=runs/tiny/export,retrieval=true --tasks piqa

`path` is an export, or any LLaMA that `radit_jax.load` opens; only an export can retrieve. The query is what
stands behind the last blank line of the harness's prompt, the question as it knows it; what stands before are
examples. The Background comes between them, and where the window is short first examples and then the
Background give way. Answers are mixed over the chunks by Eq. 2. In Python `register()` makes the name known.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from radit_jax.config import EvaluateConfig, MeshConfig
from radit_jax.data.artifacts.corpus import Chunks
from radit_jax.data.batches.few_shot import SHOT_END, Shot, few_shot_prompt
from radit_jax.errors import exit_command, run_command
from radit_jax.lm.answering import Backgrounds, Retrieval, merge_equal_texts
from radit_jax.lm.ensemble import answer_questions, answer_questions_by_token
from radit_jax.method.generation import Stops, continuation_log_likelihood
from radit_jax.retrieval.search import Searcher
from radit_jax.runtime.distributed.memory import naming_remedy
from radit_jax.runtime.distributed.mesh import make_mesh
from radit_jax.runtime.pretrained.model_io import Model, open_model
from radit_jax.runtime.pretrained.tokenizers import Tokenizer
from radit_jax.runtime.storage.top_level_folder import TopLevelFolder

LONGEST = 256  # tokens of an answer where the task does not say


class Forced(NamedTuple):
    """An answer whose probability is asked: the contexts it may stand behind, and its tokens."""

    contexts: list[list[int]]
    answer: list[int]
    log_probs: list[float]  # log p_R of each context's chunk


class Radit:
    """The harness's three requests, answered by a language model with or without retrieved chunks.

    `max_length` is the window in tokens; `chunks` is k of Eq. 2, by default the export's own.
    """

    @naming_remedy("harness")
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
        self.batch_size = int(batch_size) if str(batch_size).isdigit() else 8  # "auto" is the harness's word
        inner = epath.Path(path) / "lm"
        source, mesh = str(inner) if inner.exists() else path, make_mesh(MeshConfig())
        self.model: Model = open_model(source, mesh=mesh)
        self.max_length = min(max_length, self.model.module.config.max_length)
        self.library = Library(path, chunks) if retrieval else None
        self._known_stops: dict[tuple[str, ...], Stops] = {}

    @naming_remedy("harness")
    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """log p of each continuation of its context in nats, and whether greedy decoding gives it."""
        pairs = [_split(*request.args) for request in requests]
        backgrounds = self._backgrounds([context for context, _ in pairs])
        asked = [
            self._forced(context, answer, *own)
            for (context, answer), own in zip(
                pairs, zip(backgrounds.passages, backgrounds.log_probs, strict=True), strict=True
            )
        ]
        return self._score(asked)

    @naming_remedy("harness")
    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """log p of each text in nats, in windows with as much context as fits; nothing is retrieved."""
        tokenizer = self.model.tokenizer
        texts = [tokenizer.encode_prompt(request.args[0]) for request in requests]
        parts = [[Forced([c], a, [0.0]) for c, a in windows(text, self.max_length)] for text in texts]
        scored = iter(self._score([part for own in parts for part in own]))
        return [sum(next(scored)[0] for _ in own) for own in parts]

    @naming_remedy("harness")
    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The greedy answer of the mixture, cut before the first of the task's `until`."""
        texts: list[str] = [""] * len(requests)
        kinds: dict[tuple[tuple[str, ...], int], list[int]] = {}
        for number, request in enumerate(requests):
            kinds.setdefault(_generation(request.args[1]), []).append(number)
        for (until, longest), numbers in kinds.items():
            found = self._generate([requests[n].args[0] for n in numbers], until, longest)
            for number, text in zip(numbers, found, strict=True):
                texts[number] = text
        return texts

    def _generate(self, contexts: Sequence[str], until: tuple[str, ...], longest: int) -> list[str]:
        tokenizer, backgrounds = self.model.tokenizer, self._backgrounds(contexts)
        prompts = [
            [self._prompt(context, passage, self.max_length - longest) for passage in own]
            for context, own in zip(contexts, backgrounds.passages, strict=True)
        ]
        by_token = self.library is not None and self.library.settings.ensemble == "token"
        found = (answer_questions_by_token if by_token else answer_questions)(
            self.model.module,
            self.model.params,
            prompts,
            backgrounds.log_probs,
            max_new_tokens=longest,
            stops=self._stops(until),
            questions_per_batch=max(1, self.batch_size // backgrounds.log_probs.shape[1]),
        )
        read = lambda tokens: _before(tokenizer.decode(tokens), until)  # noqa: E731
        return [merge_equal_texts(candidates, read)[0].text for candidates in found]

    def _stops(self, until: tuple[str, ...]) -> Stops:
        """`<eos>` and the pieces that hold an end whole; where one spans pieces it is cut from the text."""
        if until not in self._known_stops:
            self._known_stops[until] = stops_at(self.model.tokenizer, until)
        return self._known_stops[until]

    def _backgrounds(self, contexts: Sequence[str]) -> Backgrounds:
        if self.library is None:
            return Retrieval.none(len(contexts)).backgrounds()
        return self.library.find([context.rpartition(SHOT_END)[2].strip() for context in contexts])

    def _prompt(self, context: str, passage: str | None, room: int) -> list[int]:
        """`<bos>`, the examples that fit, the Background and the question."""
        *before, question = context.split(SHOT_END)
        needed = len(self.model.tokenizer.encode_prompt(question))
        if needed > room:
            raise ValueError(
                f"harness: the prompt {question[:40]!r} has {needed} tokens with <bos>, and max_length "
                f"{self.max_length} leaves {room} beside its answer; raise max_length in --model_args"
            )
        shots = [Shot(None, text, "") for text in before]
        return few_shot_prompt(self.model.tokenizer, shots, passage, question, max_length=room).tokens

    def _forced(
        self, context: str, answer: str, passages: Sequence[str | None], log_probs: np.ndarray
    ) -> Forced:
        tokenizer = self.model.tokenizer
        if not context and passages == [None]:
            tokens = tokenizer.encode(tokenizer.opening + answer)
            return Forced([[tokenizer.bos_id]], tokens, [0.0])
        tokens = tokenizer.encode(answer)
        room = self.max_length - len(tokens)
        contexts = [self._prompt(context, passage, room) for passage in passages]
        return Forced(contexts, tokens, log_probs.tolist())

    def _score(self, asked: Sequence[Forced]) -> list[tuple[float, bool]]:
        """Those of similar length together."""
        order = sorted(range(len(asked)), key=lambda n: max(map(len, asked[n].contexts)))
        size = max(1, self.batch_size // max((len(own.contexts) for own in asked), default=1))
        found: list[tuple[float, bool]] = [(0.0, True)] * len(asked)
        for start in range(0, len(order), size):
            numbers = order[start : start + size]
            batch = _batch([asked[number] for number in numbers], size)
            log_probs, greedy = _forced_log_probs(self.model.module, self.model.params, *batch)
            for number, *pair in zip(numbers, np.asarray(log_probs), np.asarray(greedy), strict=False):
                found[number] = float(pair[0]), bool(pair[1])
        return found


class Library:
    """An export's chunks, and the tuned query encoder over their index."""

    def __init__(self, path: str, num_chunks: int) -> None:
        export = TopLevelFolder(path)
        if not export.complete:
            raise ValueError(
                f"harness: {path} holds no finished export, which retrieval needs; name one that "
                "--stage=export wrote, or leave retrieval=true out"
            )
        stored = export.read_json("answering.json")
        self.settings = EvaluateConfig(**{**stored["evaluate"], "tasks": ()})
        self.temperature = stored["temperature"]
        self.chunks = Chunks(export)
        self.searcher = Searcher.load(
            {"retriever": export, "embeddings": export, "index": export}, MeshConfig()
        )
        self.num_chunks = min(num_chunks or self.settings.chunks_per_answer, len(self.chunks))

    def find(self, queries: Sequence[str]) -> Backgrounds:
        rows, log_probs = self.searcher.retrieve(queries, self.num_chunks, self.temperature)
        retrieval = Retrieval(self.chunks, rows, log_probs)
        concatenate = self.settings.ensemble == "concatenate"
        return retrieval.concatenated() if concatenate else retrieval.backgrounds()


def windows(tokens: Sequence[int], length: int) -> list[tuple[list[int], list[int]]]:
    """Contexts and what is predicted after them: every token but the first once, behind as many as fit.

    >>> windows([0, 1, 2, 3, 4, 5], 4)
    [([0], [1, 2, 3, 4]), ([1, 2, 3, 4], [5])]
    """
    found = []
    for start in range(1, len(tokens), length):
        end = min(start + length, len(tokens))
        # The last token is predicted, not read.
        found.append((list(tokens[max(0, end - 1 - length) : start]), list(tokens[start:end])))
    return found


def register() -> type:
    """The harness's model `radit`, made known to it under this name."""
    try:
        # The import fills the registry, which is left alone once it has an entry.
        import lm_eval.models  # noqa: F401  # pyright: ignore[reportMissingImports]
        from lm_eval.api.model import LM  # pyright: ignore[reportMissingImports]
        from lm_eval.api.registry import register_model  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError(
            "harness: lm-evaluation-harness is not installed, which is needed; "
            "pip install 'radit_jax[lm_eval]'"
        ) from None
    # Its own interface stands last, so that its abstract methods are the ones above.
    return register_model("radit")(type("RaditLM", (Radit, LM), {}))


def main() -> int:
    def body() -> None:
        register()
        from lm_eval.__main__ import cli_evaluate  # pyright: ignore[reportMissingImports]

        cli_evaluate()

    return run_command(body)


def _split(context: str, answer: str) -> tuple[str, str]:
    """Space at the end of the context goes to the answer, whose first piece it belongs to."""
    kept = context.rstrip(" ")
    return kept, context[len(kept) :] + answer


def _generation(options: dict[str, Any]) -> tuple[tuple[str, ...], int]:
    """The texts that end an answer, and its most tokens."""
    if options.get("do_sample") or options.get("temperature"):
        raise ValueError(
            f"harness: sampling came ({options}), needed is greedy decoding; "
            "take do_sample and temperature out"
        )
    until = options.get("until") or ()
    ends = (until,) if isinstance(until, str) else tuple(until)
    return ends, int(options.get("max_gen_toks") or LONGEST)


def stops_at(tokenizer: Tokenizer, until: Sequence[str]) -> Stops:
    """`<eos>` and every piece with one of the texts `until`, those with text before it as closing ones."""
    alone, closing = list(tokenizer.eos_ids), []
    for number in range(tokenizer.vocab_size) if any(until) else ():
        text = tokenizer.decode([number])
        if number not in tokenizer.eos_ids and (head := _before(text, until)) != text:
            (closing if head else alone).append(number)
    return Stops(tuple(alone), tuple(closing))


def _before(text: str, until: Sequence[str]) -> str:
    for end in until:
        text = text.partition(end)[0] if end else text
    return text


def _batch(asked: Sequence[Forced], size: int) -> tuple[jax.Array, ...]:
    """The arrays of `forced_log_probs` for `size` answers, of which the last repeat one."""
    asked = [*asked, *[asked[-1]] * (size - len(asked))]
    num_chunks = max(len(own.contexts) for own in asked)
    num_targets = _round_up(max(len(own.answer) for own in asked))
    longest = _round_up(max(len(c) + len(own.answer) for own in asked for c in own.contexts))
    tokens = np.zeros((size, num_chunks, longest), np.int32)
    slots = np.zeros((size, num_chunks, num_targets), np.int32)
    targets, used = np.zeros((size, num_targets), np.int32), np.zeros((size, num_targets), bool)
    log_probs = np.full((size, num_chunks), -np.inf, np.float32)
    for row, own in enumerate(asked):
        count = len(own.answer)
        targets[row, :count], used[row, :count] = own.answer, True
        log_probs[row, : len(own.contexts)] = own.log_probs
        for chunk, context in enumerate(own.contexts):
            text = [*context, *own.answer]
            tokens[row, chunk, : len(text)] = text
            slots[row, chunk, :count] = np.arange(len(context) - 1, len(text) - 1)
    return tuple(map(jnp.asarray, (tokens, slots, targets, used, log_probs)))


def _round_up(size: int) -> int:
    return -(-size // 32) * 32


_forced_log_probs: Callable[..., Any] = jax.jit(continuation_log_likelihood, static_argnums=0)


if __name__ == "__main__":
    exit_command(main)
