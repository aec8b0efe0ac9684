"""A dataset's examples as the model sees them, in lines for a person to read.

The tokens, which of them are predicted, and from which positions, out of the arrays that training reads.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Protocol, runtime_checkable

import numpy as np

from radit_jax.data.batches.packing import PrefixTree, to_batch
from radit_jax.data.batches.prefix_trees import LmTokenizer, lm_sequence
from radit_jax.data.records import Example
from radit_jax.text.printable import printable

# Escape sequences of a terminal: faint, bold green, and back to plain.
CONTEXT, ANSWER, PLAIN = "\033[2m", "\033[1;32m", "\033[0m"
EDGE = 12  # positions shown at both ends of a stretch without targets


@runtime_checkable
class ReadableTokenizer(LmTokenizer, Protocol):
    """A language model's tokeniser whose special tokens have names, by their ids."""

    @property
    def special_names(self) -> Mapping[int, str]:
        """For example {1: "<bos>", 2: "<eos>"}."""
        ...


def example_lines(
    tokenizer: ReadableTokenizer, example: Example, passage: str | None, length: int, *, colour: bool
) -> Iterator[str]:
    """The lines that show an example: what it is, the whole text, a line per position of its `LmBatch` row.

    Columns are the position, the token there with its id, and, where the loss is taken, the target, which is
    the next token, with its id and weight. Of a long stretch without targets only the ends are shown.
    """
    # A Background that comes with the example takes the place of a retrieved chunk.
    origin = "left out: chunks are retrieved later"
    if example.background is not None:
        origin = "the gold context" if example.background else "none"
        passage = example.background or None
    elif passage is not None:
        origin = "a stand-in for a retrieved chunk"

    # The row is that of training, so what does not fit is cut here too.
    tree, is_cut = lm_sequence(tokenizer, passage, example, max_length=length, terminator=True)

    # What the example is, and then its positions.
    yield f"── {printable(example.id)}"
    yield f"   query       {example.query!r}"
    yield f"   Background  {origin}{', cut to fit' if is_cut else ''}"
    yield f"   prompt      {example.prompt!r}"
    yield f"   answer      {example.answer!r}"
    yield f"   read        {_whole_text(tokenizer, tree)!r}"
    yield f"   {'position':>8}  {'id':>6}  {'token':<22}  {'id':>6}  {'target':<22}  weight"
    for line, has_target in _position_lines(tokenizer, tree):
        # What is predicted is told apart by colour, where there is one.
        mark = ANSWER if has_target else CONTEXT
        yield f"{mark}{line}{PLAIN}" if colour else line


def _whole_text(tokenizer: ReadableTokenizer, tree: PrefixTree) -> str:
    """What the model reads, with its special tokens by name."""
    tokens = np.concatenate([span.tokens for span in tree.spans]).tolist()
    names = tokenizer.special_names
    parts = []
    for is_special, group in groupby(tokens, key=names.__contains__):
        if is_special:
            parts += [names[token] for token in group]
        else:
            parts.append(tokenizer.decode(list(group)))
    return "".join(parts)


def _position_lines(tokenizer: ReadableTokenizer, tree: PrefixTree) -> Iterator[tuple[str, bool]]:
    """Each position's line, and whether something is predicted there."""
    # A batch of one row that is just long enough.
    size = sum(len(span.tokens) for span in tree.spans)
    row = to_batch([tree], [(0,)], row_length=size, targets_per_row=size)
    tokens = np.asarray(row.tokens[0]).tolist()
    texts = _token_texts(tokenizer, tokens)

    target_at: dict[int, tuple[int, float]] = {}  # by position: the target's id and weight
    columns = (row.target_slots, row.targets, row.target_weights)
    values = [np.asarray(column[0]).tolist() for column in columns]
    for slot, target, weight in zip(*values, strict=True):
        if weight > 0:
            target_at[slot] = (target, weight)

    # The context, which is before the first target, is shown up to EDGE positions at both ends.
    context = size - len(target_at) - 1
    hidden = context - 2 * EDGE
    for position, token in enumerate(tokens):
        if position == EDGE and hidden > 0:
            yield f"   {'…':>8}  {hidden} more", False
        if EDGE <= position < context - EDGE:
            continue
        text = texts[position]
        line = f"   {position:>8}  {token:>6}  {text:<22}"
        if position in target_at:
            target, weight = target_at[position]
            text = texts[position + 1]  # the target is the next token
            line += f"  {target:>6}  {text:<22}  {weight:g}"
        yield line, position in target_at


def _token_texts(tokenizer: ReadableTokenizer, tokens: Sequence[int]) -> list[str]:
    """What each token adds to the text of the one before it; special tokens by name."""
    names = tokenizer.special_names
    texts = []
    previous = tokens[0]
    for token in tokens:
        # A token alone may decode to other text, so it is decoded after the one before it.
        before = tokenizer.decode([previous])
        text = tokenizer.decode([previous, token]).removeprefix(before)
        shown = names.get(token) or repr(text)
        texts.append(shown)
        previous = token
    return texts
