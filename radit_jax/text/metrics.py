"""How an answer and a ranking are judged: exact match, F1, ROUGE-L, containment, recall@k, MRR."""

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

_ARTICLES = frozenset(("a", "an", "the"))
_ARTICLE = re.compile(r"\b(a|an|the)\b")
_DELETE_PUNCTUATION = str.maketrans("", "", string.punctuation)
_WORD = re.compile(r"[^\W_]+")


def normalize(text: str) -> str:
    """`text` as SQuAD compares it: lower case, no ASCII punctuation, no articles, single spaces.

    A text of nothing but articles and punctuation would vanish; it is kept in lower case instead, so that
    blood type "A" can be answered, and only by "a".

    >>> normalize("The  U.S.-led coalition!")
    'usled coalition'
    """
    words = _ARTICLE.sub(" ", text.lower().translate(_DELETE_PUNCTUATION)).split()
    return " ".join(words or text.lower().split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1.0 where the normalised prediction is one of the gold answers, else 0.0; an empty one scores 0.

    >>> exact_match("the Seine.", ["Seine", "River Seine"])
    1.0
    """
    predicted = normalize(prediction)
    return float(bool(predicted) and any(predicted == normalize(answer) for answer in answers))


def f1(prediction: str, answers: Sequence[str]) -> float:
    """Harmonic mean of word precision and recall, the best over the gold answers; an empty one scores 0.

    >>> f1("River Seine", ["the Seine"])  # precision 1/2, recall 1
    0.6666666666666666
    """
    return max((_word_f1(normalize(prediction), normalize(answer)) for answer in answers), default=0.0)


def strict_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """KILT's accuracy: 1.0 where the stripped prediction is a gold answer, else 0.0; an empty one scores 0.

    >>> strict_accuracy(" Emma ", ["Emma"]), strict_accuracy("emma", ["Emma"])
    (1.0, 0.0)
    """
    return float(bool(prediction.strip()) and prediction.strip() in answers)


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

    Words are runs of letters and digits in lower case, articles left out; everything else is a boundary.
    That differs from `normalize`, which deletes punctuation: "Franco-Prussian war[2]" has to contain
    "Prussian War", and "1970s" must not contain "1970". An answer without words is in no text.

    >>> contains_answer("The Franco-Prussian war[2] began.", ["Prussian War"])
    True
    """
    if not answers:
        return False
    words = f" {_joined_words(text)} "
    wanted = (_joined_words(answer) for answer in answers)
    return any(f" {answer} " in words for answer in wanted if answer)


def _joined_words(text: str) -> str:
    return " ".join(word for word in _WORD.findall(text.lower()) if word not in _ARTICLES)


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
