"""What a realistic time rests on: shares of peaks, and what a host does for an item, each a named number.

Host work was measured on one core of an AMD EPYC that other programs shared, so it is rather high
(`docs/performance.md`, "Host work an item"). Shares are assumed: nothing was measured on a GPU or a TPU.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace


@dataclass(frozen=True)
class Assumptions:
    """Stated inputs of a plan; `--assume NAME=VALUE` changes one. Times are CPU-seconds."""

    mfu: float = 0.4  # of the chips' peak operations a second that a stage reaches
    memory_share: float = 0.7  # of the bandwidth between a chip and its memory
    network_share: float = 0.7  # of the bandwidth between chips, and between hosts
    file_bandwidth: float = 1.4e9  # bytes a second at which a host reads and hashes files, in one thread
    tokens_per_word: float = 1.35  # of English, in LLaMA's and BERT's vocabularies
    chunk_bytes_per_word: float = 4.33  # of chunks in their compressed files
    cut_word: float = 2.1e-7  # to cut a chunk from the corpus, a word: all cores of a host
    write_word: float = 1.0e-7  # to write it, a word: one process
    tokenize_word: float = 2.1e-6  # for the encoder: all cores of a host
    lay_out_pair: float = 1.6e-4  # to lay out a pair for the language model: one thread
    search_shard: float = 5e-4  # for one query in one ScaNN shard: all cores of a host
    index_vector: float = 4e-4  # to put a vector into a ScaNN tree: all cores of a host


def assume(changes: Iterable[str]) -> Assumptions:
    """The assumptions with `changes`, each NAME=VALUE; ValueError for a name or a value that cannot be."""
    names = [field.name for field in fields(Assumptions)]
    assumed = Assumptions()
    for change in changes:
        name, _, text = change.partition("=")
        try:
            value = float(text)
        except ValueError:
            value = 0.0
        if name not in names or not 0 < value < float("inf"):
            raise ValueError(
                f"--assume: expected NAME=VALUE with a name among {', '.join(names)} and a number above 0, "
                f"got {change!r}. Write it like mfu=0.3."
            )
        assumed = replace(assumed, **{name: value})
    return assumed
