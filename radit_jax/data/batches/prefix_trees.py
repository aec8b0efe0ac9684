r"""From an example and its chunk to the token tree that `packing` lays into rows.

    trunk    <bos> Background: {passage} \n\n          weight 0
    branch   {prompt}                                weight 0
             {answer}  (<eos>)                       weight 1

Where a row is too short for all of it, the passage gives way: the prompt and the answer are never cut.

Prompt and answer are tokenised as one text, cut at the first piece that holds a character of the answer. What
stands behind `<bos>`, the Background or else the prompt, begins with the tokeniser's `opening`.
"""

from collections.abc import Sequence as Seq
from typing import NamedTuple, Protocol, runtime_checkable

from radit_jax.data.batches.examples import Tokenizer
from radit_jax.data.batches.packing import Sequence, Span, join, span
from radit_jax.data.records import Example
from radit_jax.text.prompts import BACKGROUND_END, BACKGROUND_START, background


@runtime_checkable
class LmTokenizer(Tokenizer, Protocol):
    """A language model's tokeniser: ids that begin and end a sequence are put in by us, by id."""

    bos_id: int
    eos_id: int
    opening: str  # what its model read before the first text behind `<bos>`: a space, or nothing

    def encode_pair(self, prompt: str, answer: str) -> tuple[list[int], int]:
        """The ids of `prompt + answer` as one text, and the place of the first one of the answer."""
        ...


class SharedSequence(NamedTuple):
    """A tree whose branches are several examples on one passage."""

    sequence: Sequence
    examples: tuple[int, ...]  # the branches' places in the list of examples that was given
    truncated: bool  # the passage was cut


def example_span(tokenizer: LmTokenizer, example: Example, *, terminator: bool, opens: bool = False) -> Span:
    """An example as a branch: its prompt as context, then its answer, and `<eos>` with `terminator`.

    With `opens` nothing but `<bos>` stands before it.
    """
    prompt = tokenizer.opening + example.prompt if opens else example.prompt
    ids, start = tokenizer.encode_pair(prompt, example.answer)
    end = [tokenizer.eos_id] if terminator else []
    return join(span(ids[:start]), span(ids[start:] + end, 1.0))


def answer_token_count(tokenizer: LmTokenizer, example: Example) -> int:
    """How many tokens of the example are its answer's, without a terminator: what its score sums over."""
    ids, start = tokenizer.encode_pair(example.prompt, example.answer)
    return len(ids) - start


def fits(tokenizer: LmTokenizer, example: Example, max_length: int) -> bool:
    """Whether `max_length` tokens hold the example with `<bos>` and `<eos>`, if need be without a passage."""
    branch = example_span(tokenizer, example, terminator=True, opens=True)
    return 1 + len(branch.tokens) <= max_length


def lm_sequence(
    tokenizer: LmTokenizer, passage: str | None, example: Example, *, max_length: int, terminator: bool
) -> tuple[Sequence, bool]:
    """The tree of one example under one passage (None: closed book), and whether the passage was cut."""
    branch = example_span(tokenizer, example, terminator=terminator, opens=passage is None)
    trunk, truncated = _trunk(tokenizer, passage, max_length - len(branch.tokens), f"example {example.id}")
    return Sequence(span(trunk), (branch,)), truncated


def prompt_tokens(
    tokenizer: LmTokenizer, passage: str | None, prompt: str, *, max_length: int
) -> tuple[list[int], bool]:
    """What generation starts from: `<bos>`, the passage and the prompt; and whether the passage was cut."""
    tokens = tokenizer.encode(tokenizer.opening + prompt if passage is None else prompt)
    trunk, truncated = _trunk(tokenizer, passage, max_length - len(tokens), f"prompt {prompt[:40]!r}")
    return trunk + tokens, truncated


def shared_sequences(
    tokenizer: LmTokenizer,
    passage: str | None,
    examples: Seq[Example],
    *,
    max_length: int,
    max_targets: int | None = None,
    max_branches: int | None = None,
    terminator: bool = False,
) -> list[SharedSequence]:
    """Trees that hold every example once, with the passage read once per tree instead of once per example.

    A tree is closed when the next example would take it beyond a limit (of tokens, predicted tokens,
    branches). An example that fits only under a cut passage gets a tree of its own, so that each is scored as
    `lm_sequence` would alone, whatever else is asked of the passage.
    """
    whole = _whole_trunk(tokenizer, passage)
    alone, together = [], []
    for number, example in enumerate(examples):
        branch = example_span(tokenizer, example, terminator=terminator, opens=passage is None)
        (together if len(whole) + len(branch.tokens) <= max_length else alone).append((number, branch))
    trees = [
        SharedSequence(Sequence(span(whole), tuple(b for _, b in group)), tuple(n for n, _ in group), False)
        for group in _groups(together, max_length - len(whole), max_targets, max_branches)
    ]
    for number, _ in alone:
        cut, truncated = lm_sequence(
            tokenizer, passage, examples[number], max_length=max_length, terminator=terminator
        )
        trees.append(SharedSequence(cut, (number,), truncated))
    return trees


def _groups(
    branches: Seq[tuple[int, Span]], max_tokens: int, max_targets: int | None, max_branches: int | None
) -> list[list[tuple[int, Span]]]:
    """Runs of branches, as long as the limits allow."""
    limits = (max_tokens, max_targets or float("inf"), max_branches or float("inf"))
    groups: list[list[tuple[int, Span]]] = []
    used = limits
    for number, branch in branches:
        size = (len(branch.tokens), int((branch.weights > 0).sum()), 1)
        grown = tuple(a + b for a, b in zip(used, size, strict=True))
        if groups and all(a <= b for a, b in zip(grown, limits, strict=True)):
            groups[-1].append((number, branch))
            used = grown
        else:
            groups.append([(number, branch)])
            used = size
    return groups


def _whole_trunk(tokenizer: LmTokenizer, passage: str | None) -> list[int]:
    text = "" if passage is None else tokenizer.opening + background(passage)
    return [tokenizer.bos_id, *tokenizer.encode(text)]


def _trunk(tokenizer: LmTokenizer, passage: str | None, room: int, what: str) -> tuple[list[int], bool]:
    """`<bos>` and the passage in at most `room` tokens, and whether the passage was cut.

    A cut passage keeps the blank line behind it, by which the model knows that the question follows. Where
    not even its first token would fit, the whole Background is left out.
    """
    if room < 1:
        raise ValueError(
            f"{what}: it is {1 - room} tokens too long for the row with <bos> alone; "
            "raise the stage's sequence_length or leave it out"
        )
    trunk = _whole_trunk(tokenizer, passage)
    if passage is None or len(trunk) <= room:
        return trunk, False
    end = tokenizer.encode(BACKGROUND_END)
    text = tokenizer.opening + background(passage).removesuffix(BACKGROUND_END)
    kept = tokenizer.encode(text)[: max(0, room - 1 - len(end))]
    if len(kept) <= len(tokenizer.encode(tokenizer.opening + BACKGROUND_START)):
        return [tokenizer.bos_id], True
    return [tokenizer.bos_id, *kept, *end], True
