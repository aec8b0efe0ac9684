"""Cloze questions on passages, from which a small language model learns to read.

Plain text hardly ever asks for what was said a moment ago, so a model of a few million parameters does not
learn from it to look an answer up. Here every tree is a lookup exercise in the form that RA-DIT uses:

    prefix          <bos>Background: Danube The Danube rises in the Black Forest. It is 2,850 km long.\\n\\n
    continuation    Q: Where Danube rises?\\nA: Black Forest<eos>
    continuation    Q: It how many long?\\nA: 2,850 km<eos>
    ...             the other questions; none sees another

A question is a sentence of the passage with a span taken out, a question word in its place or in front, and
other words dropped, so that it has to be matched by what is left. All of it can be had from any text.
"""

import functools
import itertools
import re
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Seq
from typing import Any, NamedTuple

import numpy as np

from radit_jax.data.batches.packing import PrefixTree, Span, concatenate_spans, span
from radit_jax.data.batches.prefix_trees import LmTokenizer
from radit_jax.data.records import Chunk
from radit_jax.text.prompts import answer_text, background, question_prompt

MAX_WORDS = 70  # of a passage, its title included
MAX_QUESTIONS = 12  # on a passage
MIN_WORDS = 4  # of a sentence that is asked about
OTHER_WEIGHT = 0.5  # of a token outside the answers, where it is predicted at all
OTHER_SHARE = 0.3  # of those tokens that are

QUESTION_WORDS = {
    "name": ("who", "what", "where", "which"),
    "number": ("when", "how many", "what year", "how much"),
    "phrase": ("what", "which", "what kind of", "how"),
}
_MOST_WORDS = {"name": 6, "number": 2, "phrase": 3}  # of a span of each kind
KIND_WEIGHTS = {"name": 0.45, "number": 0.2, "phrase": 0.35}
FUNCTION_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a an and are as at be been but by for from had has have he her his in into is it its not of on or "
        "she than that the their them there these they this to was were which while who with would",
    )
)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[\"'“(]?[A-Z0-9])")
_TRIES = 100  # passages that are drawn for a tree, until one gives a question
_EDGE = "\"'“”‘’()[],;:.!?–—"


Rng = np.random.Generator


class Cloze(NamedTuple):
    """A question with the span of the passage that answers it."""

    question: str  # "Where Danube rises?"
    answer: str  # "Black Forest"


class ClozeSpan(NamedTuple):
    """Words `start` to `stop` of a sentence, to be asked for."""

    start: int
    stop: int
    kind: str  # a key of `QUESTION_WORDS`


def cloze_sequence(
    passages: Seq[Chunk], tokenizer: LmTokenizer, seed: int, number: int, *, max_tokens: int, max_targets: int
) -> PrefixTree:
    """Tree `number` of an endless series: a drawn passage, with as many questions on it as fit.

    Answers with their `<eos>` weigh 1, and `OTHER_WEIGHT` a drawn share of all other tokens, which keeps the
    model a language model. It depends on the arguments only, so training can resume at any number; and as
    trees fill the `max_tokens` of a row by themselves, a row is a tree.
    """
    rng = np.random.default_rng([seed, number])
    for _ in range(_TRIES):
        passage = passages[int(rng.integers(len(passages)))]
        sentences = _window(passage, rng)
        tree = PrefixTree(_prefix(passage.title, sentences, tokenizer, rng), ())
        # Questions on sentences of it, until one more would not fit.
        for _ in range(MAX_QUESTIONS):
            question = cloze(_draw(sentences, rng), passage.title, rng)
            if question is None:
                continue
            continuations = (*tree.continuations, _continuation(question, tokenizer, rng))
            larger = tree._replace(continuations=continuations)
            if not _fits(larger, max_tokens, max_targets):
                break
            tree = larger
        if tree.continuations:
            return tree
    raise ValueError(
        f"cloze: expected a question that fits {max_tokens} tokens, got none from {_TRIES} passages drawn "
        f"from {len(passages)}. Give passages with sentences of {MIN_WORDS} words or more, or raise "
        "base.lm.sequence_length."
    )


def questions_on(passages: Iterable[Chunk], seed: int, most: int = 3) -> Iterator[tuple[int, Cloze]]:
    """(number of the passage, a question on it), at most so many on each, whose questions all differ."""
    for number, passage in enumerate(passages):
        rng = np.random.default_rng([seed, number])
        asked: set[str] = set()
        for _ in range(most):
            sentence = _draw(_window(passage, rng), rng)
            question = cloze(sentence, passage.title, rng)
            # A question word alone asks nothing.
            if question is None or len(question.question.split()) < MIN_WORDS:
                continue
            if question.answer and question.question not in asked:
                asked.add(question.question)
                yield number, question


# ---- spans of tokens ----


def _fits(tree: PrefixTree, max_tokens: int, max_targets: int) -> bool:
    return tree.num_tokens <= max_tokens and tree.num_targets <= max_targets


def _prefix(title: str, sentences: Seq[Seq[str]], tokenizer: LmTokenizer, rng: Rng) -> Span:
    """`<bos>` and the passage as Background, a share of whose tokens is predicted."""
    words = itertools.chain.from_iterable(sentences)
    text = " ".join([title, *words]).strip()
    tokens = tokenizer.encode(background(text))
    prefix = concatenate_spans(span(tokenizer.start_ids), _partly(tokens, rng))
    prefix.weights[0] = 0.0  # nothing predicts the first token
    return prefix


def _continuation(c: Cloze, tokenizer: LmTokenizer, rng: Rng) -> Span:
    """A question, whose tokens are predicted in part, and its answer with `<eos>`, all predicted."""
    prompt = tokenizer.encode(question_prompt(c.question))
    answer = [*tokenizer.encode(answer_text(c.answer)), *tokenizer.end_ids]
    return concatenate_spans(_partly(prompt, rng), span(answer, 1.0))


def _partly(tokens: Seq[int], rng: Rng) -> Span:
    """A span with a drawn share of its tokens to be predicted, at less than full weight."""
    is_target = rng.random(len(tokens)) < OTHER_SHARE
    return Span(np.asarray(tokens, np.int32), np.float32(OTHER_WEIGHT) * is_target)


def _window(passage: Chunk, rng: Rng) -> list[tuple[str, ...]]:
    """Consecutive sentences, as words, from a drawn one on: as many as `MAX_WORDS` leave room for."""
    sentences = [tuple(sentence.split()) for sentence in _SENTENCE_END.split(passage.text.strip())]
    room = max(1, MAX_WORDS - len(passage.title.split()))
    # It begins at any sentence but the last, unless there is only one.
    start = int(rng.integers(max(1, len(sentences) - 1)))
    window = []
    for sentence in sentences[start:]:
        if window and len(sentence) > room:
            break
        window.append(sentence[:room])
        room -= len(window[-1])
    return window


# ---- questions ----


def cloze(sentence: tuple[str, ...], title: str, rng: Rng) -> Cloze | None:
    """A question on `sentence`; None if it is too short, or has no span worth asking for."""
    candidates = _candidates(sentence) if len(sentence) >= MIN_WORDS else []
    if not candidates:
        return None
    # 1) Draw a kind, and a span of it: the answer.
    kinds = sorted({c.kind for c in candidates})
    weights = np.array([KIND_WEIGHTS[kind] for kind in kinds])
    probabilities = weights / weights.sum()
    kind = kinds[rng.choice(len(kinds), p=probabilities)]
    chosen = _draw([c for c in candidates if c.kind == kind], rng)
    answer = " ".join(sentence[chosen.start : chosen.stop]).strip(_EDGE)
    # 2) Keep some of the words around it.
    radius = int(rng.integers(4, 16))
    drop = rng.uniform(0.1, 0.6)
    first = max(0, chosen.start - radius)
    before = _thinned(sentence[first : chosen.start], drop, rng)
    after = _thinned(sentence[chosen.stop : chosen.stop + radius], drop, rng)
    # 3) Put a question word in its place or in front, and perhaps the title at the end.
    question_word = _draw(QUESTION_WORDS[kind], rng)
    if rng.random() < 0.4:
        words = [*before, question_word, *after]
    else:
        first = question_word.capitalize() if rng.random() < 0.5 else question_word
        words = [first, *before, *after]
    if rng.random() < 0.3:
        words += title.split()
    question = " ".join(words).strip(_EDGE + " ") + "?"
    return Cloze(question, answer)


def _thinned(words: Seq[str], drop: float, rng: Rng) -> list[str]:
    """The words that survive dropping, without most of their punctuation."""
    survivors = [word for word in words if rng.random() >= drop]
    return [word.strip(_EDGE) or word for word in survivors]


@functools.lru_cache(maxsize=64)
def _candidates(sentence: tuple[str, ...]) -> list[ClozeSpan]:
    """Runs of capitalised words, numbers, and runs of up to three other content words."""
    kinds = [_kind(word, first=i == 0) for i, word in enumerate(sentence)]
    spans = []
    for start, kind in enumerate(kinds):
        if not kind:
            continue
        # A name is asked for as a whole.
        if kind == "name" and start and _continues(sentence, kinds, start - 1, kind):
            continue
        last_stop = min(start + _MOST_WORDS[kind], len(kinds))
        stop = start + 1
        while stop < last_stop and _continues(sentence, kinds, stop - 1, kind):
            stop += 1
        spans.append(ClozeSpan(start, stop, kind))
    return spans


def _continues(sentence: Seq[str], kinds: Seq[str], i: int, kind: str) -> bool:
    """Whether word i + 1 belongs to the run of `kind` that word i is in."""
    # What a number counts follows it: "2,850 km".
    follows = "phrase" if kind == "number" else kind
    is_of_run = kinds[i] in (kind, follows) and kinds[i + 1] == follows
    ends_with_sign = sentence[i][-1] in _EDGE  # such as a comma
    return is_of_run and not ends_with_sign


def _kind(word: str, *, first: bool) -> str:
    """What a word may be part of; "" for a function word. The first word's capital says nothing."""
    # Without the punctuation around it.
    core = word.strip(_EDGE)
    if not core or core.lower() in FUNCTION_WORDS:
        return ""
    if any(letter.isdigit() for letter in core):
        return "number"
    return "name" if core[0].isupper() and not first else "phrase"


def _draw(options: Seq[Any], rng: Rng) -> Any:
    return options[int(rng.integers(len(options)))]
