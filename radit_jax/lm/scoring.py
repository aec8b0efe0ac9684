"""LSR scoring: log p_LM(y | c∘x) of (example, chunk) pairs, each chunk read once for all its examples."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int

from radit_jax.config import MeshConfig, ScoreConfig
from radit_jax.data.artifacts.corpus import Chunks
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
from radit_jax.data.records import Example
from radit_jax.method.likelihood import continuation_log_probs
from radit_jax.models.attention import max_segments
from radit_jax.models.llama import Llama
from radit_jax.runtime.distributed.mesh import configure_attention, gather, make_mesh, put_batch, row_layout
from radit_jax.runtime.monitoring.progress import Progress
from radit_jax.runtime.pretrained.model_io import Model, load_model
from radit_jax.runtime.storage.fingerprints import shard_name
from radit_jax.runtime.storage.stage_folder import StageFolder

NO_CHUNK = -1  # in the place of a chunk's row: the answer is scored without a Background


def every_pair(rows: Int[np.ndarray, "E K"]) -> Int[np.ndarray, "E*K 2"]:
    """Each example's number with each of its chunks' rows, as `PairScorer.score` takes them."""
    return np.stack([np.repeat(np.arange(len(rows)), rows.shape[1]), rows.ravel()], axis=1)


class PairScores(NamedTuple):
    """What the language model says of P (example, chunk) pairs."""

    answer_log_probs: Float[np.ndarray, " P"]  # nats, summed over the answer's tokens, without a terminator
    token_counts: Int[np.ndarray, " P"]  # chunk, prompt and answer, as the model read them
    truncated: Bool[np.ndarray, " P"]  # the chunk was cut to fit the row

    @classmethod
    def empty(cls, *shape: int) -> "PairScores":
        """Room for the scores of so many pairs."""
        return cls(np.zeros(shape, np.float32), np.zeros(shape, np.int32), np.zeros(shape, bool))

    def put(self, places: Any, scores: "PairScores") -> None:
        """Write `scores` into `places`."""
        for mine, new in zip(self, scores, strict=True):
            mine[places] = new


def score_in_shards(
    folder: StageFolder,
    name: str,
    pairs: Int[np.ndarray, "P 2"],
    score: Callable[[Int[np.ndarray, "S 2"], Progress], PairScores],
    *,
    shard_size: int,
    title: str,
) -> PairScores:
    """The scores of all `pairs`, which `score` makes a shard at a time and `folder` keeps as `name`-….

    A run that was killed loses the shard it was at; the next one, of the same pairs, takes up the others.
    """
    order = np.argsort(pairs[:, 1], kind="stable")  # so that most chunks are read in one shard alone
    shards = np.array_split(order, max(1, -(-len(order) // shard_size)))
    found = PairScores.empty(len(pairs))
    with Progress(len(pairs), title, "pairs") as bar:
        for number, shard in enumerate(shards if len(pairs) else ()):
            file = shard_name(name, number, len(shards))
            if folder.has(file):
                bar.advance(len(shard))
            else:
                folder.write_arrays(file, **score(pairs[shard], bar)._asdict())
            found.put(shard, PairScores(**folder.read_arrays(file)))
    return found


@dataclass
class Filled:
    """How much of the rows that were scored is tokens."""

    rows: int = 0
    full_rows: float = 0.0  # as many of these hold the same tokens

    def add(self, rows: int, share: float) -> None:
        self.rows += rows
        self.full_rows += rows * share

    @property
    def share(self) -> float:
        return self.full_rows / max(1, self.rows)


@dataclass(frozen=True)
class PairScorer:
    """A frozen language model that scores pairs."""

    model: Model
    mesh: Mesh
    settings: ScoreConfig
    module: Llama | None = None  # reads rows, where the model's own module does not
    filled: Filled = field(default_factory=Filled, compare=False)

    @classmethod
    def load(cls, path: Any, settings: ScoreConfig, mesh: MeshConfig) -> "PairScorer":
        devices = make_mesh(mesh, rows=settings.batch_size)
        model = load_model(path, dtype=settings.dtype, mesh=devices)
        module = configure_attention(model.module, devices, mesh, row_length=settings.sequence_length)
        own = model.module.clone(layout=row_layout(devices))
        return cls(model._replace(module=own), devices, settings, module)

    def score(
        self,
        examples: Sequence[Example],
        pairs: Int[np.ndarray, "P 2"],
        chunks: Chunks,
        bar: Progress | None = None,
    ) -> PairScores:
        """Score `pairs` of (place in `examples`, row of `chunks` or NO_CHUNK), in any order."""
        if not len(pairs):
            return PairScores.empty(0)
        trees, owners, truncated = self._trees(examples, pairs, chunks)
        lengths = [len(tree.prefix.tokens) + len(b.tokens) for tree in trees for b in tree.continuations]
        scores = PairScores(self.score_trees(trees, bar), np.array(lengths), truncated[owners])
        found = PairScores.empty(len(pairs))
        found.put(owners, scores)
        return found

    def score_trees(
        self, trees: Sequence[PrefixTree], bar: Progress | None = None
    ) -> Float[np.ndarray, " N"]:
        """Each continuation's log-probability, tree after tree, in nats, summed over its weighted tokens."""
        # A kernel knows only segments, so it takes the trees of one continuation; the reference takes any.
        by_kernel = self.row_module.attention != "xla"
        apart = np.array([by_kernel and not has_continuations([tree]) for tree in trees], bool)
        of_continuation = np.repeat(apart, [len(tree.continuations) for tree in trees])
        found = np.zeros(len(of_continuation), np.float32)
        for kind in (False, True):
            if some := [tree for tree, own in zip(trees, apart, strict=True) if own == kind]:
                found[of_continuation == kind] = self._score_alike(some, bar, continuation_ids=not kind)
        return found

    def _score_alike(
        self, trees: Sequence[PrefixTree], bar: Progress | None, *, continuation_ids: bool
    ) -> Float[np.ndarray, " N"]:
        length, targets = self.settings.sequence_length, self.targets_per_row
        if any(
            sum(len(continuation.tokens) for continuation in tree.continuations) > targets for tree in trees
        ):
            targets = length  # an answer that is longer than what it continues
        most = targets if continuation_ids else max_segments(length) - 1
        rows = pack(trees, row_length=length, targets_per_row=targets, continuations_per_row=most)
        self.filled.add(len(rows), fill(trees, rows, row_length=length))
        return self._sums(trees, rows, targets, bar, continuation_ids)[continuation_places(trees, rows)]

    @property
    def row_module(self) -> Llama:
        """What reads packed rows; generating, whose rows are of any length, is the model's own module's."""
        return self.model.module if self.module is None else self.module

    @property
    def targets_per_row(self) -> int:
        """How many tokens are predicted in a row, unless one tree alone has more."""
        return self.settings.sequence_length // 2

    def _trees(
        self, examples: Sequence[Example], pairs: Int[np.ndarray, "P 2"], chunks: Chunks
    ) -> tuple[list[PrefixTree], Int[np.ndarray, " P"], Bool[np.ndarray, " P"]]:
        """Trees of all pairs, the pair that each continuation scores, and which pairs' chunks were cut."""
        trees: list[PrefixTree] = []
        owners: list[int] = []
        truncated = np.zeros(len(pairs), dtype=bool)
        order = np.argsort(pairs[:, 1], kind="stable")
        wanted, starts = np.unique(pairs[order, 1], return_index=True)
        passages = iter(chunks.take(wanted[wanted != NO_CHUNK]))
        for row, numbers in zip(wanted, np.split(order, starts[1:]), strict=True):
            passage = None if row == NO_CHUNK else next(passages).passage
            shared = shared_sequences(
                self.model.tokenizer,
                passage,
                [examples[pairs[number, 0]] for number in numbers],
                max_length=self.settings.sequence_length,
                max_targets=self.targets_per_row,
            )
            for tree in shared:
                trees.append(tree.sequence)
                owners.extend(numbers[list(tree.examples)])
                truncated[numbers[list(tree.examples)]] = tree.truncated
        return trees, np.array(owners), truncated

    def _sums(
        self,
        trees: Sequence[PrefixTree],
        rows: Sequence[Row],
        targets: int,
        bar: Progress | None,
        continuation_ids: bool,
    ) -> Float[np.ndarray, "R P"]:
        """The continuations' summed log-probabilities, a row of packed trees at a time."""
        size, results = self.settings.batch_size, []
        for start in range(0, len(rows), size):
            some = rows[start : start + size]
            batch = to_batch(
                trees,
                some,
                row_length=self.settings.sequence_length,
                targets_per_row=targets,
                num_rows=size,
                continuation_ids=continuation_ids,
            )
            batch = put_batch(batch, self.mesh)
            results.append(gather(continuation_log_probs(self.row_module, self.model.params, batch, targets)))
            if bar is not None:
                bar.advance(sum(len(trees[i].continuations) for row in some for i in row))
        return np.concatenate(results)[: len(rows)]
