"""How an answer and a ranking are judged: exact match, F1, ROUGE-L, containment, recall@k, MRR."""

import functools
import itertools
import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import regex
from jaxtyping import Bool, Float

from radit_jax.text.words import characters_apart, folded, is_spaced, word_spans, words

_ARTICLES = frozenset(("a", "an", "the"))
_ARTICLE = re.compile(r"\b(a|an|the)\b")
# `re` counts no combining mark among a word's characters, so it would see an article before one.
_UNMARKED_ARTICLE = regex.compile(r"(?<![\w\p{M}])(?:a|an|the)(?![\w\p{M}])")
_DELETE_PUNCTUATION = str.maketrans("", "", string.punctuation)
_PUNCTUATION = regex.compile(r"\p{P}")
_MARK = regex.compile(r"\p{M}")
# The scripts of India put spaces between words, but their punctuation is not ASCII's.
_INDIC = re.compile(r"[\u0900-\u0dff]")
# A decimal point, a sign of calculation, or a word.
_KEY_PART = regex.compile(r"(?<=\d)\.(?=\d)|[+*/^=<>%×÷√]|[\p{L}\p{N}][\p{L}\p{N}\p{M}]*")


def normalize(text: str) -> str:
    """`text` as SQuAD compares it: lower case, no ASCII punctuation, no articles, single spaces.

    A text of nothing but articles and punctuation would vanish; it is kept in lower case instead, so that
    blood type "A" can be answered, and only by "a". SQuAD's rules are for English. For other languages, text
    is composed first (NFC), and an article next to a combining mark is part of a word. In scripts without
    spaces and in India's, all punctuation is removed; in the former, characters stand apart as in MLQA.

    >>> normalize("The  U.S.-led coalition!"), normalize("长江。")
    ('usled coalition', '长 江')
    """
    text = folded(text)
    bare = text.translate(_DELETE_PUNCTUATION)

    # English, and most of what is compared.
    if text.isascii():
        remaining_words = _ARTICLE.sub(" ", bare).split()
        return " ".join(remaining_words or text.split())

    # Other scripts have punctuation of their own, and articles next to combining marks.
    if not is_spaced(bare) or _INDIC.search(bare):
        bare = _PUNCTUATION.sub("", bare)
    has_marks = _MARK.search(bare) is not None
    article = _UNMARKED_ARTICLE if has_marks else _ARTICLE
    without_articles = article.sub(" ", bare)
    remaining_text = characters_apart(without_articles)
    return remaining_text or " ".join(text.split())


def question_key(question: str) -> str:
    """A key that is equal for two forms of one question: its letters, digits and signs of calculation.

    Case, spaces, other punctuation and articles do not count, because one dataset's copy of another's
    question differs in them. Questions with equal keys must not be on two sides of a split.
    `asked_elsewhere.letters_key` compares datasets that write the signs differently, and drops those too.

    >>> question_key("What is 3.5 + x, Tom's sum?") == question_key("what is 3.5 +x , tom ' s sum ?")
    True
    >>> question_key("What is 2 + 3?") == question_key("What is 2 * 3?")
    False
    """
    # Decimal points are kept, and so are the signs of calculation: they change the question.
    text = folded(question)
    parts = [part for part in _KEY_PART.findall(text) if part not in _ARTICLES]
    # A question of articles and punctuation alone keeps its whole text.
    return "".join(parts) or " ".join(text.split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1.0 where the normalised prediction is one of the gold answers, else 0.0; an empty one scores 0.

    >>> exact_match("the Seine.", ["Seine", "River Seine"])
    1.0
    """
    predicted = normalize(prediction)
    # Two empty texts are equal, yet no answer was given.
    if not predicted:
        return 0.0
    gold = [normalize(answer) for answer in answers]
    return float(predicted in gold)


def f1(prediction: str, answers: Sequence[str]) -> float:
    """Harmonic mean of word precision and recall, the best over the gold answers; an empty one scores 0.

    In a script without spaces a character counts as a word, as in MLQA.

    >>> f1("River Seine", ["the Seine"])  # precision 1/2, recall 1
    0.6666666666666666
    """
    # Articles and punctuation are gone from both before words are counted.
    predicted = normalize(prediction)
    scores = [_word_f1(predicted, normalize(answer)) for answer in answers]
    return max(scores, default=0.0)


def _word_f1(prediction: str, answer: str) -> float:
    """F1 of two normalised texts as bags of words."""
    # The intersection of two bags has each word as often as the bag with fewer of it.
    predicted_words = Counter(prediction.split())
    answer_words = Counter(answer.split())
    num_common = (predicted_words & answer_words).total()
    if not num_common:
        return 0.0
    num_words = predicted_words.total() + answer_words.total()
    return 2 * num_common / num_words


def strict_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """KILT's accuracy: 1.0 where the prediction is a gold answer, both stripped, else 0.0; empty is 0.

    >>> strict_accuracy(" Emma ", ["Emma"]), strict_accuracy("emma", ["Emma"])
    (1.0, 0.0)
    """
    stripped = prediction.strip()
    if not stripped:  # as in `exact_match`
        return 0.0
    gold = [answer.strip() for answer in answers]
    return float(stripped in gold)


def rouge_l(prediction: str, answers: Sequence[str]) -> float:
    """ROUGE-L's F as KILT takes it from the `rouge` package, the best over the gold answers.

    The package's own rules are followed: sentences end at full stops, a word is counted once however often
    it occurs, and the longest common subsequences of all pairs of sentences are united.
    """
    # As KILT does for every metric: the gold answer that fits best counts.
    scores = [_summary_rouge_l(prediction, answer) for answer in answers]
    return max(scores, default=0.0)


def _summary_rouge_l(prediction: str, answer: str) -> float:
    """ROUGE-L of one prediction and one answer, both as lists of sentences."""
    # The package refuses empty texts, which KILT then counts as 0.
    predicted = _rouge_sentences(prediction)
    gold = _rouge_sentences(answer)
    if not predicted or not gold or not prediction.strip():
        return 0.0

    # Every gold sentence may have its words in any of the predicted ones.
    common: set[str] = set()
    for gold_sentence, predicted_sentence in itertools.product(gold, predicted):
        common |= _common_words(gold_sentence, predicted_sentence)

    precision = len(common) / _num_distinct_words(predicted)
    recall = len(common) / _num_distinct_words(gold)
    product = 2 * precision * recall
    return product / (precision + recall + 1e-8)


def _rouge_sentences(text: str) -> list[list[str]]:
    """The words of each sentence; a sentence of white space has one empty word, as in the package."""
    sentences = [sentence for sentence in text.split(".") if sentence]
    return [sentence.split() or [""] for sentence in sentences]


def _num_distinct_words(sentences: Iterable[Sequence[str]]) -> int:
    return len(set(itertools.chain.from_iterable(sentences)))


def _common_words(gold: Sequence[str], predicted: Sequence[str]) -> set[str]:
    """The words of a longest common subsequence; of several the one that the package finds."""
    gold_words = np.array(gold, object)
    predicted_words = np.array(predicted, object)
    same = gold_words[:, None] == predicted_words[None]

    # 1) Fill in lengths[i, j], the length for the first i gold and the first j predicted words.
    num_gold, num_predicted = len(gold), len(predicted)
    lengths = np.zeros((num_gold + 1, num_predicted + 1), np.int32)
    for i in range(num_gold):
        without_last = lengths[i, 1:]
        with_last = lengths[i, :-1] + 1
        taken = np.where(same[i], with_last, without_last)
        lengths[i + 1, 1:] = np.maximum.accumulate(taken)

    # 2) Walk back from the end and collect the words of one subsequence of that length.
    words: set[str] = set()
    i, j = num_gold, num_predicted
    while i and j:
        without_gold = lengths[i - 1, j]
        without_predicted = lengths[i, j - 1]
        if same[i - 1, j - 1]:
            words.add(gold[i - 1])
            i -= 1
            j -= 1
        elif without_gold > without_predicted:
            i -= 1
        else:
            j -= 1
    return words


def contains_answer(text: str, answers: Sequence[str]) -> bool:
    """Whether one of the answers is in `text` as a run of whole words: what answer recall counts.

    Words are runs of letters and digits in lower case, in a script without spaces single characters;
    everything else is a boundary. That differs from `normalize`, which deletes punctuation: "Franco-Prussian
    war[2]" has to contain "Prussian War", and "1970s" must not contain "1970". The articles of an answer
    count, or "The Who" would be in every text with "who"; the articles of the text are ignored where the
    answer has none. An answer without words, or of articles alone, is in no text.

    >>> contains_answer("The Franco-Prussian war[2] began.", ["Prussian War"])
    True
    >>> contains_answer("nobody knew who", ["The Who"]), contains_answer("北京是中国的首都", ["北京"])
    (False, True)
    """
    text = folded(text)

    # Most texts hold no answer, and a search for its words says so without cutting the text into words.
    candidates = []
    for answer in answers:
        answer_words = _answer_words(answer)
        if answer_words and all(word in text for word in answer_words):
            candidates.append(answer_words)
    if not candidates:
        return False

    # Spaces around every word make a substring a run of whole words.
    text_words = words(text)
    other_words = [word for word in text_words if word not in _ARTICLES]
    whole_text = _between_spaces(text_words)
    without_articles = _between_spaces(other_words)
    for answer_words in candidates:
        has_article = not _ARTICLES.isdisjoint(answer_words)
        searched = whole_text if has_article else without_articles
        if _between_spaces(answer_words) in searched:
            return True
    return False


def answer_spans(text: str, answers: Sequence[str]) -> list[tuple[int, int]]:
    """Where `contains_answer` finds the answers: the start and end of each run of words, without overlaps.

    >>> answer_spans("The Seine, and the river Seine.", ["Seine", "River Seine"])
    [(4, 9), (19, 30)]
    """
    # Most texts hold none, which takes a tenth of the time to see.
    if not contains_answer(text, answers):
        return []

    # 1) Every run of words that is one of the answers.
    text_words = word_spans(text)
    other_words = [word for word in text_words if word[0] not in _ARTICLES]
    found = []
    for answer in answers:
        answer_words = _answer_words(answer)
        has_article = not _ARTICLES.isdisjoint(answer_words)
        searched = text_words if has_article else other_words
        found += _runs(searched, answer_words)

    # 2) Of those that overlap, the first, and of these the longest.
    found.sort(key=lambda span: (span[0], -span[1]))
    spans: list[tuple[int, int]] = []
    for start, end in found:
        if not spans or start >= spans[-1][1]:
            spans.append((start, end))
    return spans


def _runs(
    text_words: Sequence[tuple[str, int, int]],
    answer_words: Sequence[str],
) -> list[tuple[int, int]]:
    """Where an answer's words stand next to each other among a text's; nowhere if it has none."""
    count = len(answer_words)
    spans = []
    for first in range(len(text_words) - count + 1 if count else 0):
        run = text_words[first : first + count]
        if tuple(word for word, _, _ in run) == tuple(answer_words):
            spans.append((run[0][1], run[-1][2]))
    return spans


def _between_spaces(text_words: Iterable[str]) -> str:
    return f" {' '.join(text_words)} "


@functools.lru_cache(1 << 14)
def _answer_words(answer: str) -> tuple[str, ...]:
    """An answer's words, articles among them; none where it has no others."""
    # The same answers are looked for in chunk after chunk.
    answer_words = tuple(words(folded(answer)))
    return () if _ARTICLES.issuperset(answer_words) else answer_words


def is_yes_no(answers: Sequence[str]) -> bool:
    """Whether every answer is yes or no.

    A passage that says "no" somewhere does not thereby answer the question, so containment means nothing
    here: such a question has no gold chunk, and answer recall leaves it out.
    """
    # An answer such as "Yes." counts, too.
    normalized = {normalize(answer) for answer in answers}
    return normalized <= {"yes", "no"}


def recall_at_k(
    hits: Bool[np.ndarray, "B K"],
    k: int,
) -> Float[np.ndarray, " B"]:
    """1.0 for each question that has a hit among its first `k` chunks (best first), else 0.0."""
    num_ranked = hits.shape[1]
    if not 1 <= k <= num_ranked:
        raise ValueError(
            f"recall@{k}: expected a k of at most the chunks ranked, got {num_ranked} chunks. Use a k from 1 "
            f"to {num_ranked}."
        )
    first_hits = hits[:, :k]
    has_hit = np.any(first_hits, axis=1)
    return has_hit.astype(np.float64)


def reciprocal_ranks(hits: Bool[np.ndarray, "B K"]) -> Float[np.ndarray, " B"]:
    """1 / rank of each question's first hit, 0.0 without one; the mean is the MRR at K."""
    has_hit = hits.any(axis=1)
    first_hit_rank = hits.argmax(axis=1) + 1  # argmax of a Boolean row is its first True
    return np.where(has_hit, 1.0 / first_hit_rank, 0.0)
