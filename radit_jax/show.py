"""Show a dataset's examples as the model sees them: `python -m radit_jax.show gsm8k --data=data/raw`.

Prints the tokens, which of them are predicted, and from which positions, out of the arrays that training
reads; in colour on a terminal. Chunks are retrieved later: `--passage` stands in for one.
"""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, islice
from typing import Protocol, runtime_checkable

import numpy as np

from radit_jax.data.batches.packing import PrefixTree, to_batch
from radit_jax.data.batches.prefix_trees import LmTokenizer, lm_sequence
from radit_jax.data.finetuning.datasets import DATASETS, dataset_named
from radit_jax.data.finetuning.mixture import open_items
from radit_jax.data.finetuning.templates import item_example
from radit_jax.data.records import Example
from radit_jax.errors import exit_command, run_command
from radit_jax.runtime.pretrained import hub
from radit_jax.runtime.pretrained.tokenizer_files import load_tokenizer
from radit_jax.runtime.pretrained.tokenizer_training import train_bpe
from radit_jax.runtime.pretrained.tokenizers import Tokenizer
from radit_jax.text.printable import printable
from radit_jax.text.prompts import background

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


def parser() -> argparse.ArgumentParser:
    """The command line of `show`."""
    p = argparse.ArgumentParser("python -m radit_jax.show", description=(__doc__ or "").partition("\n")[0])
    p.add_argument("name", metavar="NAME", help=f"of {', '.join(DATASETS)}")
    p.add_argument(
        "--data", required=True, metavar="FOLDER", help="holds NAME/ with the publisher's files, or builds"
    )
    p.add_argument(
        "--tokenizer",
        metavar="CHECKPOINT",
        help="a language model's, as an experiment names it; default: a BPE of these examples",
    )
    p.add_argument(
        "--prompt", choices=("plain", "chat"), default="plain", help="chat: in the tokeniser's chat template"
    )
    p.add_argument("--split", choices=("train", "dev", "test"), default="train")
    p.add_argument("--mixture", choices=("lm_ft", "r_ft"), help="default: the first that has the dataset")
    p.add_argument("--count", type=int, default=2, metavar="N", help="examples to show (default: 2)")
    p.add_argument("--passage", metavar="TEXT", help="what stands where a chunk is retrieved")
    p.add_argument("--length", type=int, default=2048, metavar="T", help="tokens in a row (default: 2048)")
    p.add_argument("--seed", type=int, default=0, help="of the markers (default: 0)")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = parser().parse_args(arguments)
    return run_command(lambda: print_examples(options))


def print_examples(options: argparse.Namespace) -> None:
    """Print the examples that the command line asks for."""
    if options.count < 1 or options.length < 3 or options.seed < 0:
        raise ValueError(
            f"show: expected --count >= 1, --length >= 3 and --seed >= 0, got {options.count}, "
            f"{options.length} and {options.seed}."
        )
    examples = _examples(options)
    source = options.tokenizer
    tokenizer = load_tokenizer(hub.find_small(source)) if source else _own_tokenizer(examples)
    tokenizer = tokenizer.with_prompt(options.prompt)
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    for example in examples:
        lines = example_lines(tokenizer, example, options.passage, options.length, colour=colour)
        print("\n".join(lines))


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


def _examples(options: argparse.Namespace) -> list[Example]:
    """The first examples of the split."""
    dataset = dataset_named(options.name)
    mixture = options.mixture or dataset.mixtures[0]
    if mixture not in dataset.mixtures:
        raise ValueError(
            f"{dataset.name}: expected --mixture={' or '.join(dataset.mixtures)}, got {mixture}. "
            "Leave the option out."
        )
    # Only as many are read as are shown.
    items = open_items(dataset, options.data, options.split, on_error="stop", counts=Counter())
    first_items = islice(items, options.count)
    examples = [item_example(item, dataset, mixture, options.seed) for item in first_items]
    if not examples:
        raise ValueError(
            f"{dataset.name}: expected examples of {options.split} in {options.data}, got none. "
            "Name another --split."
        )
    return examples


def _own_tokenizer(examples: Sequence[Example]) -> Tokenizer:
    """A small BPE trained on the examples themselves."""
    print("tokeniser: a BPE of these examples; name the language model's own by --tokenizer")
    texts = []
    for example in examples:
        beginning = background(example.background or "")
        texts.append(beginning + example.prompt + example.answer)
    return train_bpe(texts, vocab_size=1024)


if __name__ == "__main__":
    exit_command(main)
