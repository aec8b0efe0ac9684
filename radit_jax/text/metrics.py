"""How an answer and a ranking are judged: exact match, F1, ROUGE-L, containment, recall@k, MRR."""

import functools
import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np
import regex
from jaxtyping import Bool, Float

from radit_jax.text.words import characters_apart, folded, is_spaced, words

_ARTICLES = frozenset(("a", "an", "the"))
_ARTICLE = re.compile(r"\b(a|an|the)\b")
_ARTICLE_BESIDE_MARKS = regex.compile(r"(?<![\w\p{M}])(?:a|an|the)(?![\w\p{M}])")
_DELETE_PUNCTUATION = str.maketrans("", "", string.punctuation)
_PUNCTUATION = regex.compile(r"\p{P}")
_MARK = regex.compile(r"\p{M}")
_OF_INDIA = re.compile(r"[\u0900-\u0dff]")  # words have spaces there, punctuation is not ASCII's
_KEY_PART = regex.compile(r"(?<=\d)\.(?=\d)|[+*/^=<>%×÷√]|[\p{L}\p{N}][\p{L}\p{N}\p{M}]*")


def normalize(text: str) -> str:
    """`text` as SQuAD compares it: lower case, no ASCII punctuation, no articles, single spaces.

    A text of nothing but articles and punctuation would vanish; it is kept in lower case instead, so that
    blood type "A" can be answered, and only by "a". SQuAD knows English: text is composed first (NFC), an
    article beside a combining mark is part of a word, and where a script has no spaces, or is one of
    India's, all punctuation goes and characters stand apart, as in MLQA.

    >>> normalize("The  U.S.-led coalition!"), normalize("长江。")
    ('usled coalition', '长 江')
    """
    text = folded(text)
    bare = text.translate(_DELETE_PUNCTUATION)
    if text.isascii():
        return " ".join(_ARTICLE.sub(" ", bare).split() or text.split())
    if not is_spaced(bare) or _OF_INDIA.search(bare):
        bare = _PUNCTUATION.sub("", bare)
    article = _ARTICLE_BESIDE_MARKS if _MARK.search(bare) else _ARTICLE
    return characters_apart(article.sub(" ", bare)) or " ".join(text.split())


def question_key(question: str) -> str:
    """What two questions have in common that count as the same: letters, digits and signs of calculation.

    Case, spaces, other punctuation and articles do not count, for one dataset's copy of another's question
    differs in them. Equal keys must not stand on two sides of a split. `data.overlap.letters_key`, between
    datasets that write signs differently, drops those too.

    >>> question_key("What is 3.5 + x, Tom's sum?") == question_key("what is 3.5 +x , tom ' s sum ?")
    True
    >>> question_key("What is 2 + 3?") == question_key("What is 2 * 3?")
    False
    """
    text = folded(question)
    parts = [part for part in _KEY_PART.findall(text) if part not in _ARTICLES]
    return "".join(parts) or " ".join(text.split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1.0 where the normalised prediction is one of the gold answers, else 0.0; an empty one scores 0.

    >>> exact_match("the Seine.", ["Seine", "River Seine"])
    1.0
    """
    predicted = normalize(prediction)
    return float(bool(predicted) and any(predicted == normalize(answer) for answer in answers))


def f1(prediction: str, answers: Sequence[str]) -> float:
    """Harmonic mean of word precision and recall, the best over the gold answers; an empty one scores 0.

    In a script without spaces a character counts as a word, as in MLQA.

    >>> f1("River Seine", ["the Seine"])  # precision 1/2, recall 1
    0.6666666666666666
    """
    return max((_word_f1(normalize(prediction), normalize(answer)) for answer in answers), default=0.0)


def strict_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """KILT's accuracy: 1.0 where the prediction is a gold answer, both stripped, else 0.0; empty is 0.

    >>> strict_accuracy(" Emma ", ["Emma"]), strict_accuracy("emma", ["Emma"])
    (1.0, 0.0)
    """
    stripped = prediction.strip()
    return float(bool(stripped) and any(stripped == answer.strip() for answer in answers))


def rouge_l(prediction: str, answers: Sequence[str]) -> float:
    """ROUGE-L's F as KILT takes it from the `rouge` package, the best over the gold answers.

    That package's form has its own ways, which are kept: sentences end at full stops, words are counted once
    however often they come, and what the sentences' longest common subsequences have in common is united.
    """
    return max((_sentences_rouge_l(prediction, answer) for answer in answers), default=0.0)


def _sentences_rouge_l(prediction: str, answer: str) -> float:
    predicted, wanted = (
        [sentence.split() or [""] for sentence in text.split(".") if sentence]
        for text in (prediction, answer)
    )
    if not predicted or not wanted or not prediction.strip():
        return 0.0
    common = {word for gold in wanted for sentence in predicted for word in _common_words(gold, sentence)}
    precision = len(common) / len({word for sentence in predicted for word in sentence})
    recall = len(common) / len({word for sentence in wanted for word in sentence})
    return 2 * precision * recall / (precision + recall + 1e-8)


def _common_words(gold: Sequence[str], predicted: Sequence[str]) -> set[str]:
    """The words of a longest common subsequence; of several the one that the package finds."""
    lengths = np.zeros((len(gold) + 1, len(predicted) + 1), np.int32)
    same = np.array(gold, object)[:, None] == np.array(predicted, object)[None]
    for i in range(len(gold)):
        taken = np.where(same[i], lengths[i, :-1] + 1, lengths[i, 1:])
        lengths[i + 1, 1:] = np.maximum.accumulate(taken)
    words: set[str] = set()
    i, j = len(gold), len(predicted)
    while i and j:
        if same[i - 1, j - 1]:
            words.add(gold[i - 1])
            i, j = i - 1, j - 1
        elif lengths[i - 1, j] > lengths[i, j - 1]:
            i -= 1
        else:
            j -= 1
    return words


def _word_f1(prediction: str, answer: str) -> float:
    predicted, wanted = Counter(prediction.split()), Counter(answer.split())
    common = (predicted & wanted).total()
    return 2 * common / (predicted.total() + wanted.total()) if common else 0.0


def contains_answer(text: str, answers: Sequence[str]) -> bool:
    """Whether one of the answers stands in `text` as a run of whole words: what answer recall counts.

    Words are runs of letters and digits in lower case, in a script without spaces single characters;
    everything else is a boundary. That differs from `normalize`, which deletes punctuation: "Franco-Prussian
    war[2]" has to contain "Prussian War", and "1970s" must not contain "1970". The articles of an answer
    count, or "The Who" would be in every text with "who"; those of the text do not where the answer has none.
    An answer without words, or of articles alone, is in no text.

    >>> contains_answer("The Franco-Prussian war[2] began.", ["Prussian War"])
    True
    >>> contains_answer("nobody knew who", ["The Who"]), contains_answer("北京是中国的首都", ["北京"])
    (False, True)
    """
    text = folded(text)
    # Most texts hold no answer, and a search for its words says so without cutting the text.
    likely = [found for a in answers if (found := _answer_words(a)) and all(word in text for word in found)]
    if not likely:
        return False
    in_text = words(text)
    whole = f" {' '.join(in_text)} "
    without_articles = f" {' '.join(word for word in in_text if word not in _ARTICLES)} "
    return any(
        f" {' '.join(answer)} " in (without_articles if _ARTICLES.isdisjoint(answer) else whole)
        for answer in likely
    )


@functools.lru_cache(1 << 14)
def _answer_words(answer: str) -> tuple[str, ...]:
    """An answer's words, articles among them; none where it has no others."""
    found = tuple(words(folded(answer)))
    return () if _ARTICLES.issuperset(found) else found


def is_yes_no(answers: Sequence[str]) -> bool:
    """Whether every answer is yes or no.

    A passage that says "no" somewhere does not thereby answer the question, so containment means nothing
    here: such a question has no gold chunk and stays out of answer recall.
    """
    return all(normalize(answer) in ("yes", "no") for answer in answers)


def recall_at_k(hits: Bool[np.ndarray, "B K"], k: int) -> Float[np.ndarray, " B"]:
    """1.0 for each question that has a hit among its first `k` chunks (best first), else 0.0."""
    if not 1 <= k <= hits.shape[1]:
        raise ValueError(
            f"recall@{k}: {hits.shape[1]} chunks were ranked; ask for a k from 1 to {hits.shape[1]}"
        )
    return np.any(hits[:, :k], axis=1).astype(np.float64)


def reciprocal_ranks(hits: Bool[np.ndarray, "B K"]) -> Float[np.ndarray, " B"]:
    """1 / rank of each question's first hit, 0.0 without one; the mean is the MRR at K."""
    return np.where(hits.any(axis=1), 1.0 / (hits.argmax(axis=1) + 1), 0.0)
