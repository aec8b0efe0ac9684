"""LSR scoring: log p_LM(y | c∘x) of (example, chunk) pairs, each chunk read once for all its examples.

Pairs pass through three layouts on their way to the model. Two examples of chunk 7 and one of chunk 4:

    pairs           (0, 7)   (1, 4)   (1, 7)      numbered 0, 1, 2 in the caller's order
    prefix trees    chunk 4: pair 1;  chunk 7: pairs 0 and 2          a continuation for each pair
    rows            [chunk 7, chunk 4]                                whole trees, as they fit

`PairTrees.pair_of_continuation` leads from the trees to the pairs: (1, 0, 2). `Packing` combines it with the
layout of the rows, so that one assignment takes the scores from the rows to their pairs.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int

from radit_jax.config import EvaluateConfig, MeshConfig, ScoreConfig
from radit_jax.data.batches.packing import PrefixTree, has_continuations
from radit_jax.data.batches.prefix_trees import shared_sequences
from radit_jax.data.records import ChunkReader, Example
from radit_jax.lm.scored_rows import Packing, RowFill
from radit_jax.method.likelihood import continuation_log_probs
from radit_jax.models.decoder import DecoderLm
from radit_jax.runtime.ahead import IN_FLIGHT, delayed, prefetched
from radit_jax.runtime.distributed import processes
from radit_jax.runtime.distributed.answering_mesh import answering_mesh, for_each_process, tokens_at_once
from radit_jax.runtime.distributed.mesh import (
    configure_attention,
    data_parallel_size,
    gather,
    make_mesh,
    own_mesh,
    put_batch,
    put_params,
)
from radit_jax.runtime.monitoring.progress import Progress
from radit_jax.runtime.pretrained.model_io import Model, abstract_model, load_model
from radit_jax.runtime.shards import load_on_own_devices

Pairs = Int[np.ndarray, "P 2"]  # (number of an example, row of a chunk or NO_CHUNK)
ChunkRows = Int[np.ndarray, "Q K"]  # the rows of each question's chunks; NO_CHUNK: no Background
NO_CHUNK = -1  # in place of a chunk's row: the answer is scored without a Background


def every_pair(rows: Int[np.ndarray, "E K"]) -> Int[np.ndarray, "E*K 2"]:
    """Each example's number with each of its chunks' rows, as `PairScorer.score` takes them."""
    num_examples, num_chunks = rows.shape
    examples = np.repeat(np.arange(num_examples), num_chunks)
    return np.stack([examples, rows.ravel()], axis=1)


def order_by_chunk(pairs: Pairs) -> Int[np.ndarray, " P"]:
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


class PairTrees(NamedTuple):
    """The prefix trees that score P pairs: a chunk, then the prompt and answer of each of its examples."""

    trees: list[PrefixTree]
    pair_of_continuation: Int[np.ndarray, " P"]  # tree after tree: the number of the pair that it scores
    token_counts: Int[np.ndarray, " P"]  # by pair: chunk, prompt and answer
    truncated: Bool[np.ndarray, " P"]  # by pair: the chunk was cut to fit the row


@dataclass(frozen=True)
class PairScorer:
    """A frozen language model that scores pairs."""

    model: Model
    mesh: Mesh
    settings: ScoreConfig
    module: DecoderLm | None = None  # reads packed rows, where it differs from the model's own module
    own: bool = False  # it is on this process's own devices, and the others have copies of theirs
    filled: RowFill = field(default_factory=RowFill, compare=False)

    @classmethod
    def load(
        cls,
        path: Any,
        settings: ScoreConfig,
        mesh: MeshConfig,
        num_models: int = 1,
        *,
        answers: EvaluateConfig | None = None,
    ) -> "PairScorer":
        """Load the model at `path`, one of `num_models` that are used together.

        Several processes have a copy each on their own devices, where these have room for one. Else one model
        lies on the devices of all. One that `answers`, too, with these settings, lies as `answering_mesh`
        says.
        """

        def devices_of(own: bool) -> Mesh:
            if answers is None:
                return own_mesh(mesh) if own else make_mesh(mesh, rows=settings.batch_size)
            _, count = processes.process_index_and_count() if own else (0, 1)
            return answering_mesh(
                mesh,
                abstract_model(path, settings.dtype),
                num_tokens=tokens_at_once(for_each_process(answers, count)),
                rows=settings.batch_size,
                num_models=num_models,
                own=own,
            )

        scorer, _ = load_on_own_devices(
            lambda own: cls._load(path, settings, mesh, devices_of(own), own),
            lambda scorer: scorer.model.params,
            num_models,
        )
        return scorer

    @classmethod
    def _load(
        cls, path: Any, settings: ScoreConfig, mesh: MeshConfig, devices: Mesh, own: bool
    ) -> "PairScorer":
        # All processes together have the batch that the settings say, and all copies have as many rows.
        _, count = processes.process_index_and_count() if own else (0, 1)
        unit = data_parallel_size(devices)
        rows = -(-settings.batch_size // (count * unit)) * unit
        model = load_model(path, dtype=settings.dtype, mesh=devices, frozen=True)
        return cls._on(devices, model, replace(settings, batch_size=rows), mesh, own)

    @classmethod
    def of(cls, model: Model, settings: ScoreConfig, mesh: MeshConfig) -> "PairScorer":
        """A model in memory on the devices of `mesh`."""
        devices = make_mesh(mesh, rows=settings.batch_size)
        module = model.module.clone(dtype=jnp.dtype(settings.dtype))
        placed = Model(module, put_params(model.params, devices), model.tokenizer)
        return cls._on(devices, placed, settings, mesh)

    @classmethod
    def _on(
        cls, devices: Mesh, model: Model, settings: ScoreConfig, mesh: MeshConfig, own: bool = False
    ) -> "PairScorer":
        # Packed rows and generation, with rows of any length, read the same parameters by two modules.
        row_module = configure_attention(model.module, devices, mesh, row_length=settings.sequence_length)
        generating_module = configure_attention(model.module, devices, mesh)
        return cls(model._replace(module=generating_module), devices, settings, row_module, own)

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
        (scores,) = self.score_each([pairs], examples, chunks, bar)
        return scores

    def score_each(
        self,
        parts: Iterable[Pairs],
        examples: Sequence[Example],
        chunks: ChunkReader,
        bar: Progress | None = None,
    ) -> Iterator[PairScores]:
        """`score` of each part, none of which is empty.

        The devices do not wait for the host: the next part is read, tokenised and packed meanwhile.
        """
        laid_out = prefetched(self._lay_out(examples, pairs, chunks) for pairs in parts)
        for part in self._scored(laid_out, bar):
            assert part.pairs is not None, "`_lay_out` sets it"
            yield PairScores(part.scores, part.pairs.token_counts, part.pairs.truncated)

    def score_trees(
        self, trees: Sequence[PrefixTree], bar: Progress | None = None
    ) -> Float[np.ndarray, " N"]:
        """Each continuation's log-probability, tree after tree, in nats, summed over its weighted tokens."""
        if not trees:
            return np.zeros(0, np.float32)
        num_continuations = sum(len(tree.continuations) for tree in trees)
        packings = list(self._packings(trees, np.arange(num_continuations)))
        (part,) = self._scored([_PairPart(np.zeros(num_continuations, np.float32), packings)], bar)
        return part.scores

    def _lay_out(self, examples: Sequence[Example], pairs: Pairs, chunks: ChunkReader) -> "_PairPart":
        """What the devices need to score `pairs`."""
        trees = self._pair_trees(examples, pairs, chunks)
        packings = list(self._packings(trees.trees, trees.pair_of_continuation))
        return _PairPart(np.zeros(len(pairs), np.float32), packings, trees)

    def _pair_trees(self, examples: Sequence[Example], pairs: Pairs, chunks: ChunkReader) -> PairTrees:
        """The pairs as prefix trees, the examples of a chunk together."""
        trees: list[PrefixTree] = []
        pair_of_continuation: list[int] = []
        token_counts = np.zeros(len(pairs), np.int32)
        truncated = np.zeros(len(pairs), bool)

        # 1) Split the pairs by chunk, and read all chunks.
        order = order_by_chunk(pairs)
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

    def _scored(self, parts: Iterable["_PairPart"], bar: Progress | None) -> Iterator["_PairPart"]:
        """Each part with its scores."""
        for batch in delayed(self._dispatched(parts), IN_FLIGHT):
            # Wait for the batch's scores. Those of a packing's rows are put in their places together.
            batch.row_scores.append(gather(batch.sums))
            if bar is None:
                processes.stop_if_asked("scoring")
            else:
                bar.advance(batch.num_continuations)
            if not batch.ends_packing:
                continue
            # The last batch is filled up with empty rows.
            packing = batch.packing
            row_scores = np.concatenate(batch.row_scores)[: len(packing.rows)]
            packing.put_scores(row_scores, batch.part.scores)
            if packing is batch.part.packings[-1]:
                yield batch.part

    def _dispatched(self, parts: Iterable["_PairPart"]) -> Iterator["_RowBatch"]:
        """The batches of each part, dispatched to the devices when they are asked for."""
        module, params = self.row_module, self.model.params
        batch_size = self.settings.batch_size
        for part in parts:
            for packing in part.packings:
                self.filled.add(len(packing.rows), packing.fill)
                row_scores: list[Any] = []
                num_rows = 0
                for batch, num_continuations in packing.batches(batch_size):
                    on_devices = put_batch(batch, self.mesh)
                    sums = continuation_log_probs(module, params, on_devices, packing.targets_per_row)
                    num_rows += batch_size
                    ends_packing = num_rows >= len(packing.rows)
                    yield _RowBatch(part, packing, row_scores, sums, num_continuations, ends_packing)


class _PairPart(NamedTuple):
    """Trees that are scored together."""

    scores: Float[np.ndarray, " N"]  # of their continuations, to be filled
    packings: Sequence[Packing]  # all of them; each fills its continuations' places
    pairs: PairTrees | None = None  # where the continuations are those of pairs


class _RowBatch(NamedTuple):
    """Rows of a packing that are scored together."""

    part: _PairPart
    packing: Packing
    row_scores: list[Any]  # [row, continuation] of the packing's batches so far
    sums: Any  # the same of this batch, on the devices
    num_continuations: int
    ends_packing: bool
