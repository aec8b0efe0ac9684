"""Shows a dataset's examples as the model sees them: `python -m radit_jax.show gsm8k --data=data/raw`.

The tokens, whether each is to be predicted, and what is predicted where, from the arrays that training reads;
in colour on a terminal. Chunks are retrieved later: `--passage` stands in for one.
"""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np

from radit_jax.data.batches.packing import PrefixTree, to_batch
from radit_jax.data.batches.prefix_trees import LmTokenizer, lm_sequence
from radit_jax.data.finetuning.datasets import DATASETS, task_named
from radit_jax.data.finetuning.mixture import open_items
from radit_jax.data.finetuning.templates import item_example
from radit_jax.data.records import Example
from radit_jax.errors import exit_command, run_command
from radit_jax.runtime.pretrained.tokenizers import Tokenizer, load_tokenizer, train_bpe
from radit_jax.text.printable import printable
from radit_jax.text.prompts import background

CONTEXT, ANSWER, PLAIN = "\033[2m", "\033[1;32m", "\033[0m"
EDGE = 12  # positions shown at both ends of a stretch without targets


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser("python -m radit_jax.show", description=(__doc__ or "").partition("\n")[0])
    p.add_argument("name", metavar="NAME", help=f"of {', '.join(DATASETS)}")
    p.add_argument(
        "--data", required=True, metavar="FOLDER", help="holds NAME/ with the publisher's files, or builds"
    )
    p.add_argument(
        "--tokenizer", metavar="FOLDER", help="a language model's; default: a BPE of these examples"
    )
    p.add_argument("--split", choices=("train", "dev", "test"), default="train")
    p.add_argument("--mixture", choices=("lm_ft", "r_ft"), help="default: the first that has the dataset")
    p.add_argument("--count", type=int, default=2, metavar="N", help="examples to show (default: 2)")
    p.add_argument("--passage", metavar="TEXT", help="what stands where a chunk is retrieved")
    p.add_argument("--length", type=int, default=2048, metavar="T", help="tokens in a row (default: 2048)")
    p.add_argument("--seed", type=int, default=0, help="of the markers (default: 0)")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
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
    tokenizer = load_tokenizer(options.tokenizer) if options.tokenizer else _own_tokenizer(examples)
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    for example in examples:
        print("\n".join(example_lines(tokenizer, example, options.passage, options.length, colour=colour)))


def example_lines(
    tokenizer: LmTokenizer, example: Example, passage: str | None, length: int, *, colour: bool
) -> Iterator[str]:
    """The lines that show an example: what it is, and a line per position of its row of `LmBatch`.

    Columns are the position, the token there with its id, and, where the loss is taken, the target, which is
    the next token, with its id and weight. Of a long stretch without targets only the ends are shown.
    """
    source = "left out: chunks are retrieved later"
    if example.background is not None:
        source, passage = "the gold context" if example.background else "none", example.background or None
    elif passage is not None:
        source = "a stand-in for a retrieved chunk"
    sequence, cut = lm_sequence(tokenizer, passage, example, max_length=length, terminator=True)
    yield f"── {printable(example.id)}"
    yield f"   query       {example.query!r}"
    yield f"   Background  {source}{', cut to fit' if cut else ''}"
    yield f"   prompt      {example.prompt!r}"
    yield f"   answer      {example.answer!r}"
    yield f"   {'position':>8}  {'id':>6}  {'token':<22}  {'id':>6}  {'target':<22}  weight"
    for line, predicts in _lines(tokenizer, sequence):
        mark = ANSWER if predicts else CONTEXT
        yield f"{mark}{line}{PLAIN}" if colour else line


def _lines(tokenizer: LmTokenizer, sequence: PrefixTree) -> Iterator[tuple[str, bool]]:
    """Each position's line, and whether something is predicted there."""
    size = sum(len(span.tokens) for span in sequence.spans)
    row = to_batch([sequence], [(0,)], row_length=size, targets_per_row=size)
    tokens = np.asarray(row.tokens[0]).tolist()
    spelt = _spelt(tokenizer, tokens)
    weight_at = {
        int(slot): float(weight)
        for slot, weight in zip(row.target_slots[0], row.target_weights[0], strict=True)
        if weight > 0
    }
    target_at = dict(
        zip(np.asarray(row.target_slots[0]).tolist(), np.asarray(row.targets[0]).tolist(), strict=True)
    )
    context = size - len(weight_at) - 1
    for place, token in enumerate(tokens):
        if place == EDGE and context > 2 * EDGE:
            yield f"   {'…':>8}  {context - 2 * EDGE} more", False
        if EDGE <= place < context - EDGE:
            continue
        line = f"   {place:>8}  {token:>6}  {spelt[place]:<22}"
        if place in weight_at:
            line += f"  {target_at[place]:>6}  {spelt[place + 1]:<22}  {weight_at[place]:g}"
        yield line, place in weight_at


def _spelt(tokenizer: LmTokenizer, tokens: Sequence[int]) -> list[str]:
    """What each token adds to the text of the one before it; special tokens by name."""
    names = {tokenizer.bos_id: "<bos>", tokenizer.eos_id: "<eos>"}
    pairs = zip([tokens[0], *tokens], tokens, strict=False)
    texts = [tokenizer.decode([a, b]).removeprefix(tokenizer.decode([a])) for a, b in pairs]
    return [names.get(token) or repr(text) for token, text in zip(tokens, texts, strict=True)]


def _examples(options: argparse.Namespace) -> list[Example]:
    """The first examples of the split."""
    task = task_named(options.name)
    mixture = options.mixture or task.mixtures[0]
    if mixture not in task.mixtures:
        raise ValueError(
            f"{task.name}: --mixture={mixture} came, needed is {' or '.join(task.mixtures)}; leave it out"
        )
    items = open_items(task, options.data, options.split, on_error="stop", counts=Counter())
    examples = [item_example(item, task, mixture, options.seed) for item in islice(items, options.count)]
    if not examples:
        raise ValueError(
            f"{task.name}: no {options.split} examples came from {options.data}; name another --split"
        )
    return examples


def _own_tokenizer(examples: Sequence[Example]) -> Tokenizer:
    print("tokeniser: a BPE of these examples; name the language model's own by --tokenizer")
    texts = [background(e.background or "") + e.prompt + e.answer for e in examples]
    return train_bpe(texts, vocab_size=1024)


if __name__ == "__main__":
    exit_command(main)
