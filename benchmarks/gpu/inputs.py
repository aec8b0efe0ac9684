"""Drawn inputs: chunks with questions and answers, as trees of tokens, and prompts."""

import numpy as np

from benchmarks.gpu.sizes import Sizes
from radit_jax.config import DecoderConfig
from radit_jax.data.batches.packing import PrefixTree, Span, concatenate_spans, span

FIRST = 3  # the least id that is drawn: those below it have a meaning to tokenisers
QUESTION = 20  # tokens of the shared part of a continuation, at most


class Draw:
    """Draws token ids of a network's vocabulary; the same seed gives the same ids."""

    def __init__(self, sizes: Sizes, config: DecoderConfig, seed: int = 0):
        self._sizes = sizes
        self._vocab_size = config.vocab_size
        self._rng = np.random.default_rng(seed)

    def tokens(self, at_least: int, at_most: int) -> np.ndarray:
        """Ids, of a drawn number."""
        count = self._rng.integers(at_least, at_most + 1)
        return self._rng.integers(FIRST, self._vocab_size, count)

    def instance(self) -> PrefixTree:
        """An instance of LM-ft: a chunk with its question, and an answer that is the target."""
        prompt = span(self.tokens(*self._sizes.prompt))
        return PrefixTree(span([]), (concatenate_spans(prompt, self._answer()),))

    def chunk(self, num_questions: int) -> PrefixTree:
        """A chunk, read once, and the questions on it with their answers."""
        questions = []
        for _ in range(num_questions):
            question = span(self.tokens(QUESTION // 2, QUESTION))
            questions.append(concatenate_spans(question, self._answer()))
        return PrefixTree(span(self.tokens(*self._sizes.prompt)), tuple(questions))

    def _answer(self) -> Span:
        return span(self.tokens(*self._sizes.answer), 1.0)


def pair_counts(tree: PrefixTree) -> tuple[int, int]:
    """A tree's tokens, and its pairs of a token and one that it sees, itself included.

    >>> pair_counts(PrefixTree(span([1, 2]), (span([3]), span([4, 5]))))
    (5, 13)
    """
    prefix = len(tree.prefix.tokens)
    tokens = prefix
    pairs = prefix * (prefix + 1) // 2
    for continuation in tree.continuations:
        length = len(continuation.tokens)
        tokens += length
        pairs += length * prefix + length * (length + 1) // 2
    return tokens, pairs
