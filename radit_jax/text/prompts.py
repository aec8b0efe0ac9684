"""What the language model reads around a passage, a question and an answer.

Its input is `background(passage) + prompt + answer`, tokenised in these three parts, so that the boundary
between prompt and answer is the same in training, scoring and decoding.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

BACKGROUND_START = "Background:"
BACKGROUND_END = "\n\n"


def background(passage: str) -> str:
    r"""What a retrieved chunk puts before the prompt; the form is the paper's.

    >>> background("Emma A novel by Jane Austen.")
    'Background: Emma A novel by Jane Austen.\n\n'
    """
    return f"{BACKGROUND_START} {passage}{BACKGROUND_END}"


def question_prompt(question: str) -> str:
    r"""A question as the language model reads it, up to where its answer starts.

    >>> question_prompt("Who wrote Emma?")
    'Q: Who wrote Emma?\nA:'
    """
    return f"Q: {question}\nA:"


def answer_text(answer: str) -> str:
    """The answer with the space before it, which is part of its first token in most tokenisers."""
    return f" {answer}"


# ---- the templates of fine-tuning data ----

QUESTION_MARKERS = ("Q: ", "Question: ", "")
ANSWER_MARKERS = ("A: ", "Answer: ")
UNANSWERABLE = "I don't know"  # the answer to a question that its context does not answer
SUMMARIZE = "Summarize this article:"


class Markers(NamedTuple):
    """What stands before the question and before the answer: `<inst_s>` and `<answer_s>`."""

    question: str
    answer: str


def draw_markers(seed: int, example_id: str) -> Markers:
    """The markers of one example, at random, whatever the order in which examples are read.

    >>> draw_markers(0, "gsm8k/train-1")
    Markers(question='', answer='A: ')
    """
    number = int.from_bytes(hashlib.sha256(f"{seed} {example_id}".encode()).digest()[:8])
    number, question = divmod(number, len(QUESTION_MARKERS))
    return Markers(QUESTION_MARKERS[question], ANSWER_MARKERS[number % len(ANSWER_MARKERS)])


def marked_prompt(question: str, markers: Markers, turns: Sequence[str] = ()) -> str:
    r"""A question between its markers; earlier questions and answers, in turn, come before it in the same.

    >>> marked_prompt("Who else?", Markers("Q: ", "A: "), ("Who wrote Emma?", "Jane Austen."))
    'Q: Who wrote Emma?\nA: Jane Austen.\nQ: Who else?\nA:'
    """
    before = "".join(
        f"{markers.question}{asked}\n{markers.answer}{answered}\n"
        for asked, answered in zip(turns[::2], turns[1::2], strict=True)
    )
    return f"{before}{markers.question}{question}\n{markers.answer}".rstrip(" ")


def with_choices(question: str, choices: Sequence[str]) -> str:
    r"""A multiple-choice question with its choices below it, lettered as MMLU's are.

    >>> with_choices("Which is a fruit?", ("oak", "pear"))
    'Which is a fruit?\nA. oak\nB. pear'
    """
    return "\n".join([question, *(f"{chr(ord('A') + n)}. {choice}" for n, choice in enumerate(choices))])


def summary_prompt(markers: Markers) -> str:
    """What asks for a summary of the article that stands as the Background."""
    return f"{SUMMARIZE}\n{markers.answer}".rstrip(" ")


def reasoning_prompt(question: str, markers: Markers) -> str:
    """A question that reasoning follows, not yet an answer: it ends where the reasoning starts."""
    return f"{markers.question}{question}\n"


def reasoned_answer(reasoning: str, answer: str, markers: Markers) -> str:
    r"""The reasoning and then, on a line of its own, the answer after its marker.

    >>> reasoned_answer("Two and two is four.", "4", Markers("", "A: "))
    'Two and two is four.\nA: 4'
    """
    return f"{reasoning}\n{markers.answer}{answer}"


def dialogue_prompt(turns: Sequence[str]) -> str:
    """The turns of a user (first and last) and of an assistant, up to where the assistant's next one starts.

    >>> dialogue_prompt(("Hi!", "Hello.", "How are you?"))
    'Q: Hi! A: Hello. Q: How are you? A:'
    """
    marked = (f"{'A' if number % 2 else 'Q'}: {turn}" for number, turn in enumerate(turns))
    return " ".join([*marked, "A:"])
