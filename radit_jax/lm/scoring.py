"""LSR scoring: log p_LM(y | c∘x) of (example, chunk) pairs, each chunk read once for all its examples.

Pairs pass through three layouts on their way to the model. Two examples of chunk 7 and one of chunk 4:

    pairs           (0, 7)   (1, 4)   (1, 7)      numbered 0, 1, 2 in the caller's order
    prefix trees    chunk 4: pair 1;  chunk 7: pairs 0 and 2          a continuation for each pair
    rows            [chunk 7, chunk 4]                                whole trees, as they fit

`PairTrees.pair_of_continuation` leads from the trees to the pairs: (1, 0, 2). `Packing` combines it with the
layout of the rows, so that one assignment takes the scores from the rows to their pairs.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int

from radit_jax.config import MeshConfig, ScoreConfig
from radit_jax.data.batches.packing import (
    PrefixTree,
    Row,
    continuation_places,
    fill,
    has_continuations,
    pack,
    to_batch,
)
from radit_jax.data.batches.prefix_trees import shared_sequences
from radit_jax.data.records import ChunkReader, Example
from radit_jax.method.likelihood import LmBatch, continuation_log_probs
from radit_jax.models.cudnn import max_segments
from radit_jax.models.decoder import DecoderLm
from radit_jax.runtime.distributed.mesh import (
    configure_attention,
    gather,
    make_mesh,
    put_batch,
    put_params,
    row_layout,
)
from radit_jax.runtime.monitoring.progress import Progress
from radit_jax.runtime.pretrained.model_io import Model, load_model
from radit_jax.runtime.storage.fingerprints import shard_name
from radit_jax.runtime.storage.stage_folder import StageFolder

Pairs = Int[np.ndarray, "P 2"]  # (number of an example, row of a chunk or NO_CHUNK)
ChunkRows = Int[np.ndarray, "Q K"]  # the rows of each question's chunks; NO_CHUNK: no Background
NO_CHUNK = -1  # in place of a chunk's row: the answer is scored without a Background


def every_pair(rows: Int[np.ndarray, "E K"]) -> Int[np.ndarray, "E*K 2"]:
    """Each example's number with each of its chunks' rows, as `PairScorer.score` takes them."""
    num_examples, num_chunks = rows.shape
    examples = np.repeat(np.arange(num_examples), num_chunks)
    return np.stack([examples, rows.ravel()], axis=1)


def _order_by_chunk(pairs: Pairs) -> Int[np.ndarray, " P"]:
    """The numbers of the pairs, those of a chunk next to each other."""
    return np.argsort(pairs[:, 1], kind="stable")


class PairScores(NamedTuple):
    """What the language model says of P (example, chunk) pairs."""

    answer_log_probs: Float[np.ndarray, " P"]  # nats, summed over the answer's tokens, without a terminator
    token_counts: Int[np.ndarray, " P"]  # chunk, prompt and answer, as the model read them
    truncated: Bool[np.ndarray, " P"]  # the chunk was cut to fit the row

    @classmethod
    def empty(cls, *shape: int) -> "PairScores":
        """Zeros for pairs of this shape, to be filled by `put`."""
        return cls(
            answer_log_probs=np.zeros(shape, np.float32),
            token_counts=np.zeros(shape, np.int32),
            truncated=np.zeros(shape, bool),
        )

    def put(self, places: Any, scores: "PairScores") -> None:
        """Write `scores` into `places`."""
        for array, new in zip(self, scores, strict=True):
            array[places] = new


def score_in_shards(
    folder: StageFolder,
    name: str,
    pairs: Pairs,
    score: Callable[[Pairs, Progress], PairScores],
    *,
    shard_size: int,
    title: str,
) -> PairScores:
    """The scores of all `pairs`, which `score` makes a shard at a time and `folder` keeps as `name`-….

    A run that is killed loses the shard that it was scoring; the next run of the same pairs reads the others.
    """
    scores = PairScores.empty(len(pairs))
    # Ordered by chunk, most chunks are read in one shard only.
    order = _order_by_chunk(pairs)
    num_shards = max(1, -(-len(order) // shard_size))
    shards = np.array_split(order, num_shards)
    with Progress(len(pairs), title, "pairs") as bar:
        for index, shard in enumerate(shards if len(pairs) else ()):
            file = shard_name(name, index, len(shards))
            # A shard that an earlier run has written is read back.
            if folder.has(file):
                bar.advance(len(shard))
            else:
                shard_scores = score(pairs[shard], bar)
                folder.write_arrays(file, **shard_scores._asdict())
            scores.put(shard, PairScores(**folder.read_arrays(file)))
    return scores


class PairTrees(NamedTuple):
    """The prefix trees that score P pairs: a chunk, then the prompt and answer of each of its examples."""

    trees: list[PrefixTree]
    pair_of_continuation: Int[np.ndarray, " P"]  # tree after tree: the number of the pair that it scores
    token_counts: Int[np.ndarray, " P"]  # by pair: chunk, prompt and answer
    truncated: Bool[np.ndarray, " P"]  # by pair: the chunk was cut to fit the row


class Packing(NamedTuple):
    """Prefix trees packed into rows, and where the score of each of their N continuations belongs."""

    trees: Sequence[PrefixTree]
    numbers: Int[np.ndarray, " N"]  # tree after tree: the place of each continuation in the result
    rows: Sequence[Row]
    row_length: int
    targets_per_row: int
    continuation_ids: bool  # False: no tree has two continuations, and the batches need no numbers for them

    @classmethod
    def pack(
        cls,
        trees: Sequence[PrefixTree],
        numbers: Int[np.ndarray, " N"],
        *,
        row_length: int,
        targets_per_row: int,
        continuation_ids: bool,
    ) -> "Packing":
        """Pack the trees; rows get room for `row_length` targets where a tree needs more than usual."""
        if any(_num_continuation_tokens(tree) > targets_per_row for tree in trees):
            targets_per_row = row_length
        # A kernel that knows only segments has room for a limited number of them, padding included.
        continuations_per_row = targets_per_row if continuation_ids else max_segments(row_length) - 1
        rows = pack(
            trees,
            row_length=row_length,
            targets_per_row=targets_per_row,
            continuations_per_row=continuations_per_row,
        )
        return cls(trees, numbers, rows, row_length, targets_per_row, continuation_ids)

    @property
    def fill(self) -> float:
        """The share of the rows' positions that hold a token."""
        return fill(self.trees, self.rows, row_length=self.row_length)

    def batches(self, batch_size: int) -> Iterator[tuple[LmBatch, int]]:
        """The rows, `batch_size` at a time, with the number of continuations in them."""
        for start in range(0, len(self.rows), batch_size):
            rows = self.rows[start : start + batch_size]
            batch = to_batch(
                self.trees,
                rows,
                row_length=self.row_length,
                targets_per_row=self.targets_per_row,
                num_rows=batch_size,
                continuation_ids=self.continuation_ids,
            )
            trees = [self.trees[index] for index in itertools.chain.from_iterable(rows)]
            yield batch, sum(len(tree.continuations) for tree in trees)

    def put_scores(
        self,
        row_scores: Float[np.ndarray, "R C"],
        scores: Float[np.ndarray, " _"],
    ) -> None:
        """Write `row_scores`, [row, continuation in the row], to the continuations' places in `scores`."""
        places = continuation_places(self.trees, self.rows)
        scores[self.numbers] = row_scores[places]


def _num_continuation_tokens(tree: PrefixTree) -> int:
    """Tokens of all continuations; each may be a target."""
    return sum(len(continuation.tokens) for continuation in tree.continuations)


@dataclass
class RowFill:
    """How much of the rows that were scored is tokens."""

    rows: int = 0
    full_rows: float = 0.0  # the number of rows without padding that would hold the same tokens

    def add(self, rows: int, share: float) -> None:
        """Count `rows` rows; a token is at `share` of their positions."""
        self.rows += rows
        self.full_rows += rows * share

    @property
    def share(self) -> float:
        """The share of positions that hold a token."""
        return self.full_rows / max(1, self.rows)


@dataclass(frozen=True)
class PairScorer:
    """A frozen language model that scores pairs."""

    model: Model
    mesh: Mesh
    settings: ScoreConfig
    module: DecoderLm | None = None  # reads packed rows, where it differs from the model's own module
    filled: RowFill = field(default_factory=RowFill, compare=False)

    @classmethod
    def load(cls, path: Any, settings: ScoreConfig, mesh: MeshConfig) -> "PairScorer":
        """Load the model at `path` on the devices of `mesh`."""
        devices = make_mesh(mesh, rows=settings.batch_size)
        return cls._on(devices, load_model(path, dtype=settings.dtype, mesh=devices), settings, mesh)

    @classmethod
    def of(cls, model: Model, settings: ScoreConfig, mesh: MeshConfig) -> "PairScorer":
        """A model in memory on the devices of `mesh`."""
        devices = make_mesh(mesh, rows=settings.batch_size)
        module = model.module.clone(dtype=jnp.dtype(settings.dtype))
        placed = Model(module, put_params(model.params, devices), model.tokenizer)
        return cls._on(devices, placed, settings, mesh)

    @classmethod
    def _on(cls, devices: Mesh, model: Model, settings: ScoreConfig, mesh: MeshConfig) -> "PairScorer":
        # Packed rows and generation read the same parameters by two modules.
        row_module = configure_attention(model.module, devices, mesh, row_length=settings.sequence_length)
        generating_module = model.module.clone(layout=row_layout(devices))
        return cls(model._replace(module=generating_module), devices, settings, row_module)

    @property
    def row_module(self) -> DecoderLm:
        """The module that reads packed rows. Generation, with rows of any length, takes the model's own."""
        return self.model.module if self.module is None else self.module

    @property
    def targets_per_row(self) -> int:
        """How many tokens are predicted in a row, unless one tree alone has more."""
        return self.settings.sequence_length // 2

    def score(
        self,
        examples: Sequence[Example],
        pairs: Pairs,
        chunks: ChunkReader,
        bar: Progress | None = None,
    ) -> PairScores:
        """Score `pairs` of (number in `examples`, row of `chunks` or NO_CHUNK), in any order."""
        # Without a pair there is no row to pack.
        if not len(pairs):
            return PairScores.empty(0)
        trees = self._pair_trees(examples, pairs, chunks)
        log_probs = self._score(trees.trees, trees.pair_of_continuation, bar)
        return PairScores(log_probs, trees.token_counts, trees.truncated)

    def score_trees(
        self, trees: Sequence[PrefixTree], bar: Progress | None = None
    ) -> Float[np.ndarray, " N"]:
        """Each continuation's log-probability, tree after tree, in nats, summed over its weighted tokens."""
        num_continuations = sum(len(tree.continuations) for tree in trees)
        return self._score(trees, np.arange(num_continuations), bar)

    def _pair_trees(self, examples: Sequence[Example], pairs: Pairs, chunks: ChunkReader) -> PairTrees:
        """The pairs as prefix trees, the examples of a chunk together."""
        trees: list[PrefixTree] = []
        pair_of_continuation: list[int] = []
        token_counts = np.zeros(len(pairs), np.int32)
        truncated = np.zeros(len(pairs), bool)

        # 1) Split the pairs by chunk, and read all chunks.
        order = _order_by_chunk(pairs)
        chunk_rows, starts = np.unique(pairs[order, 1], return_index=True)
        pairs_by_chunk = np.split(order, starts[1:])
        loaded_chunks = iter(chunks.take(chunk_rows[chunk_rows != NO_CHUNK]))
        for chunk_row, pair_numbers in zip(chunk_rows, pairs_by_chunk, strict=True):
            # 2) Make the trees of a chunk: one, or several where its examples do not fit into a row.
            passage = None if chunk_row == NO_CHUNK else next(loaded_chunks).passage
            chunk_examples = [examples[index] for index in pairs[pair_numbers, 0]]
            shared = shared_sequences(
                self.model.tokenizer,
                passage,
                chunk_examples,
                max_length=self.settings.sequence_length,
                max_targets=self.targets_per_row,
            )

            # 3) Note which pair each continuation scores, and what was read for it.
            for tree, example_numbers, is_cut in shared:
                tree_pairs = pair_numbers[list(example_numbers)]
                trees.append(tree)
                pair_of_continuation += tree_pairs.tolist()
                truncated[tree_pairs] = is_cut
                prefix_length = len(tree.prefix.tokens)
                for pair, continuation in zip(tree_pairs, tree.continuations, strict=True):
                    token_counts[pair] = prefix_length + len(continuation.tokens)
        return PairTrees(trees, np.array(pair_of_continuation), token_counts, truncated)

    def _score(
        self, trees: Sequence[PrefixTree], numbers: Int[np.ndarray, " N"], bar: Progress | None
    ) -> Float[np.ndarray, " N"]:
        """Score the trees' N continuations; `numbers` says where each one's score belongs in the result."""
        # Each packing fills its continuations' places.
        scores = np.zeros(len(numbers), np.float32)
        for packing in self._packings(trees, numbers):
            self.filled.add(len(packing.rows), packing.fill)
            packing.put_scores(self._row_scores(packing, bar), scores)
        return scores

    def _packings(self, trees: Sequence[PrefixTree], numbers: Int[np.ndarray, " N"]) -> Iterator[Packing]:
        """The trees in rows: those that an attention kernel can read in one packing, all others in another.

        A kernel knows segments only, so it takes trees of one continuation; the reference takes any.
        """
        # 1) Choose for each tree, and so for its continuations.
        has_kernel = self.row_module.attention != "xla"
        single = [not has_continuations([tree]) for tree in trees]
        by_kernel = np.array(single, bool) & has_kernel
        continuation_counts = [len(tree.continuations) for tree in trees]
        continuation_by_kernel = np.repeat(by_kernel, continuation_counts)

        # 2) Pack both kinds, the reference's first.
        for kernel in (False, True):
            tree_numbers = np.flatnonzero(by_kernel == kernel).tolist()
            if tree_numbers:
                yield Packing.pack(
                    [trees[index] for index in tree_numbers],
                    numbers[continuation_by_kernel == kernel],
                    row_length=self.settings.sequence_length,
                    targets_per_row=self.targets_per_row,
                    continuation_ids=not kernel,
                )

    def _row_scores(self, packing: Packing, bar: Progress | None) -> Float[np.ndarray, "R C"]:
        """The continuations' summed log-probabilities, as they lie in the rows."""
        params = self.model.params
        results = []
        for batch, num_continuations in packing.batches(self.settings.batch_size):
            on_devices = put_batch(batch, self.mesh)
            sums = continuation_log_probs(self.row_module, params, on_devices, packing.targets_per_row)
            results.append(gather(sums))
            if bar is not None:
                bar.advance(num_continuations)
        # The last batch is filled up with empty rows.
        return np.concatenate(results)[: len(packing.rows)]
