"""Show a dataset's examples as the model sees them: `python -m radit_jax.show gsm8k --data=data/raw`.

Prints the tokens, which of them are predicted, and from which positions, out of the arrays that training
reads; in colour on a terminal. Chunks are retrieved later: `--passage` stands in for one.
"""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from typing import Any

from radit_jax.command_line import module_parser
from radit_jax.data.finetuning.datasets import DATASETS, dataset_named
from radit_jax.data.records import Example
from radit_jax.errors import exit_command, parse_and_run


def parser() -> argparse.ArgumentParser:
    """The command line of `show`."""
    p = module_parser("show", __doc__, print_examples)
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
    p.add_argument(
        "--split", choices=("train", "dev", "test"), default="train", help="of the dataset (default: train)"
    )
    p.add_argument("--mixture", choices=("lm_ft", "r_ft"), help="default: the first that has the dataset")
    p.add_argument("--count", type=int, default=2, metavar="N", help="examples to show (default: 2)")
    p.add_argument("--passage", metavar="TEXT", help="what stands where a chunk is retrieved")
    p.add_argument("--length", type=int, default=2048, metavar="T", help="tokens in a row (default: 2048)")
    p.add_argument("--seed", type=int, default=0, help="of the markers (default: 0)")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    return parse_and_run(parser(), arguments)


def print_examples(options: argparse.Namespace) -> None:
    """Print the examples that the command line asks for."""
    if options.count < 1 or options.length < 3 or options.seed < 0:
        raise ValueError(
            f"show: expected --count >= 1, --length >= 3 and --seed >= 0, got {options.count}, "
            f"{options.length} and {options.seed}."
        )
    # What takes seconds to import, and `--help` does without.
    from radit_jax.data.batches.example_lines import example_lines
    from radit_jax.runtime.pretrained import hub
    from radit_jax.runtime.pretrained.tokenizer_files import load_tokenizer

    examples = _examples(options)
    source = options.tokenizer
    tokenizer = load_tokenizer(hub.find_small(source)) if source else _own_tokenizer(examples)
    tokenizer = tokenizer.with_prompt(options.prompt)
    # Colours are for terminals, unless the person does not want them.
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    for example in examples:
        lines = example_lines(tokenizer, example, options.passage, options.length, colour=colour)
        print("\n".join(lines))


def _examples(options: argparse.Namespace) -> list[Example]:
    """The first examples of the split."""
    from radit_jax.data.finetuning.mixture import open_items
    from radit_jax.data.finetuning.templates import item_example

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


def _own_tokenizer(examples: Sequence[Example]) -> Any:
    """A small BPE trained on the examples themselves."""
    from radit_jax.runtime.pretrained.tokenizer_training import train_bpe
    from radit_jax.text.prompts import background

    print("tokeniser: a BPE of these examples; name the language model's own by --tokenizer")
    texts = []
    for example in examples:
        beginning = background(example.background or "")
        texts.append(beginning + example.prompt + example.answer)
    return train_bpe(texts, vocab_size=1024)


if __name__ == "__main__":
    exit_command(main)
