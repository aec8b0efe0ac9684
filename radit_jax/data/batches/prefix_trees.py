r"""From an example and its chunk to the token tree that `packing` lays into rows.

    prefix          <bos> Background: {passage} \n\n    weight 0; without <bos> where none is read
    continuation    {prompt}                           weight 0
                    {answer}  (<eos>)                  weight 1

Where a row is too short for all of it, the passage gives way: the prompt and the answer are never cut.

Prompt and answer are tokenised as one text, cut at the first piece that holds a character of the answer. What
follows `<bos>`, the Background or else the prompt, begins with the tokeniser's `opening`.
"""

from collections.abc import Sequence as Seq
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from radit_jax.data.batches.examples import TextTokenizer
from radit_jax.data.batches.packing import PrefixTree, Span, concatenate_spans, span
from radit_jax.data.records import Example
from radit_jax.text.prompts import BACKGROUND_END, BACKGROUND_START, background


@runtime_checkable
class LmTokenizer(TextTokenizer, Protocol):
    """A language model's tokeniser: ids that begin and end a sequence are put in by us, by id."""

    @property
    def start_ids(self) -> tuple[int, ...]:
        """What begins every prompt: `<bos>`, nothing, or the start of a chat template."""
        ...

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The terminator: `<eos>`, or the end of a chat's turn."""
        ...

    @property
    def opening(self) -> str:
        """What its model read between `start_ids` and the first text: a space, nothing, a chat's `user`."""
        ...

    def encode_pair(self, prompt: str, answer: str) -> tuple[list[int], int]:
        """The ids of `prompt + answer`, and the place of the first one of the answer.

        In a chat these include what the template has between the two. An answer may be empty.
        """
        ...


class SharedSequence(NamedTuple):
    """A tree whose continuations are several examples on one passage."""

    sequence: PrefixTree
    examples: tuple[int, ...]  # the continuations' places in the list of examples that was given
    truncated: bool  # the passage was cut


def example_span(tokenizer: LmTokenizer, example: Example, *, terminator: bool, opens: bool = False) -> Span:
    """An example as a continuation: its prompt as context, then its answer, and `<eos>` with `terminator`.

    With `opens` nothing but `<bos>` stands before it. Where there is none, nothing predicts its first token,
    which is then no target even if it holds a character of the answer.
    """
    prompt = tokenizer.opening + example.prompt if opens else example.prompt
    ids, start = tokenizer.encode_pair(prompt, example.answer)
    if terminator:
        ids = [*ids, *tokenizer.end_ids]
    if opens and not tokenizer.start_ids:
        start = max(1, start)
    context = span(ids[:start])
    target = span(ids[start:], 1.0)
    return concatenate_spans(context, target)


def prompt_ids(tokenizer: LmTokenizer, prompt: str, *, opens: bool) -> list[int]:
    """The ids of a prompt up to where its answer starts; with `opens` it is the first text."""
    ids, _ = tokenizer.encode_pair(tokenizer.opening + prompt if opens else prompt, "")
    return ids


def answer_ids(tokenizer: LmTokenizer, answer: str) -> list[int]:
    """The ids of an answer as they follow a prompt that is tokenised without it."""
    ids, start = tokenizer.encode_pair("", answer)
    return ids[start:]


def answer_token_count(tokenizer: LmTokenizer, example: Example) -> int:
    """How many tokens of the example are its answer's, without a terminator: what its score sums over."""
    ids, start = tokenizer.encode_pair(example.prompt, example.answer)
    return len(ids) - start


def fits(tokenizer: LmTokenizer, example: Example, max_length: int) -> bool:
    """Whether `max_length` tokens hold the example with `<bos>` and `<eos>`, if need be without a passage."""
    continuation = example_span(tokenizer, example, terminator=True, opens=True)
    return len(tokenizer.start_ids) + len(continuation.tokens) <= max_length


def lm_sequence(
    tokenizer: LmTokenizer, passage: str | None, example: Example, *, max_length: int, terminator: bool
) -> tuple[PrefixTree, bool]:
    """The tree of one example under one passage (None: closed book), and whether the passage was cut.

    Where not even the passage's first token would fit, the whole Background is left out.
    """
    # 1) Under the passage, or what fits of it.
    if passage is not None:
        continuation = example_span(tokenizer, example, terminator=terminator)
        prefix, is_cut = _prefix(tokenizer, passage, max_length - len(continuation.tokens))
        if prefix is not None:
            return PrefixTree(span(prefix), (continuation,)), is_cut

    # 2) Closed book.
    continuation = example_span(tokenizer, example, terminator=terminator, opens=True)
    num_tokens = len(tokenizer.start_ids) + len(continuation.tokens)
    _check_fits(num_tokens, max_length, f"example {example.id}")
    return PrefixTree(span(tokenizer.start_ids), (continuation,)), passage is not None


def prompt_tokens(
    tokenizer: LmTokenizer, passage: str | None, prompt: str, *, max_length: int
) -> tuple[list[int], bool]:
    """What generation starts from: the tokens of `lm_sequence` before the answer; and whether it is cut."""
    # 1) Under the passage, or what fits of it.
    if passage is not None:
        tokens = prompt_ids(tokenizer, prompt, opens=False)
        prefix, is_cut = _prefix(tokenizer, passage, max_length - len(tokens))
        if prefix is not None:
            return prefix + tokens, is_cut

    # 2) Closed book.
    tokens = [*tokenizer.start_ids, *prompt_ids(tokenizer, prompt, opens=True)]
    _check_fits(len(tokens), max_length, f"prompt {prompt[:40]!r}")
    return tokens, passage is not None


def shared_sequences(
    tokenizer: LmTokenizer,
    passage: str | None,
    examples: Seq[Example],
    *,
    max_length: int,
    max_targets: int | None = None,
    max_continuations: int | None = None,
    terminator: bool = False,
) -> list[SharedSequence]:
    """Trees that hold every example once, with the passage read once per tree instead of once per example.

    A tree is closed when the next example would take it beyond a limit (of tokens, predicted tokens,
    continuations). An example that fits only under a cut passage gets a tree of its own, so that each is
    scored as `lm_sequence` would alone, whatever else is asked of the passage.
    """
    prefix = _whole_prefix(tokenizer, passage)
    room = max_length - len(prefix)
    # 1) Which examples fit after the whole passage.
    together: list[tuple[int, Span]] = []
    alone: list[int] = []
    for number, example in enumerate(examples):
        continuation = example_span(tokenizer, example, terminator=terminator, opens=passage is None)
        if len(continuation.tokens) <= room:
            together.append((number, continuation))
        else:
            alone.append(number)
    # 2) These share trees, as many to a tree as the limits allow.
    trees: list[SharedSequence] = []
    for group in _groups(together, room, max_targets, max_continuations):
        numbers, continuations = zip(*group, strict=True)
        tree = PrefixTree(span(prefix), continuations)
        trees.append(SharedSequence(tree, numbers, truncated=False))
    # 3) Each of the others cuts the passage in a tree of its own.
    for number in alone:
        tree, truncated = lm_sequence(
            tokenizer, passage, examples[number], max_length=max_length, terminator=terminator
        )
        trees.append(SharedSequence(tree, (number,), truncated))
    return trees


def _groups(
    continuations: Seq[tuple[int, Span]],
    max_tokens: int,
    max_targets: int | None,
    max_continuations: int | None,
) -> list[list[tuple[int, Span]]]:
    """Runs of continuations, as long as the limits allow."""
    limits = np.array([max_tokens, max_targets or np.inf, max_continuations or np.inf])
    groups: list[list[tuple[int, Span]]] = []
    used = np.zeros(3)  # tokens, predicted tokens and continuations of the last group
    for number, continuation in continuations:
        size = np.array([len(continuation.tokens), continuation.num_targets, 1])
        if groups and (used + size <= limits).all():
            groups[-1].append((number, continuation))
            used = used + size
        else:
            groups.append([(number, continuation)])
            used = size
    return groups


def _whole_prefix(tokenizer: LmTokenizer, passage: str | None) -> list[int]:
    """`<bos>` and the Background, if there is a passage, however long."""
    text = "" if passage is None else tokenizer.opening + background(passage)
    return [*tokenizer.start_ids, *tokenizer.encode(text)]


def _prefix(tokenizer: LmTokenizer, passage: str, room: int) -> tuple[list[int] | None, bool]:
    """`<bos>` and the passage in at most `room` tokens, and whether the passage was cut.

    None where not even its first token would fit. A cut passage keeps the blank line after it, by which the
    model knows that the question follows.
    """
    prefix = _whole_prefix(tokenizer, passage)
    if len(prefix) <= room:
        return prefix, False
    # Cut the text, but for the blank line, to what `<bos>` and that line leave.
    end = tokenizer.encode(BACKGROUND_END)
    text = tokenizer.opening + background(passage).removesuffix(BACKGROUND_END)
    text_room = max(0, room - len(tokenizer.start_ids) - len(end))
    cut_text = tokenizer.encode(text)[:text_room]
    label = tokenizer.encode(tokenizer.opening + BACKGROUND_START)
    if len(cut_text) <= len(label):
        return None, True
    return [*tokenizer.start_ids, *cut_text, *end], True


def _check_fits(num_tokens: int, max_length: int, what: str) -> None:
    if num_tokens > max_length:
        raise ValueError(
            f"{what}: expected at most the {max_length} tokens that a row holds, got {num_tokens}. Raise the "
            "stage's sequence_length, or leave it out."
        )
