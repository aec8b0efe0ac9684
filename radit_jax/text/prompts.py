"""The text that the language model reads around a passage, a question and an answer.

Its input is `background(passage) + prompt + answer`. These three parts are tokenised separately, so that the
boundary between prompt and answer is the same in training, scoring and decoding.
"""

import hashlib
import itertools
from collections.abc import Sequence
from typing import NamedTuple

BACKGROUND_START = "Background:"
BACKGROUND_END = "\n\n"
PASSAGE_FORM = "{title} {text}"  # a chunk as encoders and language models read it, without spaces around it


def background(passage: str) -> str:
    r"""A retrieved chunk as the text before the prompt, in the paper's form.

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

# One of each is drawn for every example, so that the model does not learn one form only.
QUESTION_MARKERS = ("Q: ", "Question: ", "")
ANSWER_MARKERS = ("A: ", "Answer: ")
UNANSWERABLE = "I don't know"  # the answer to a question that its context does not answer
SUMMARIZE = "Summarize this article:"


class Markers(NamedTuple):
    """The paper's `<inst_s>` and `<answer_s>`: the texts before a question and before its answer."""

    question: str
    answer: str


def draw_markers(seed: int, example_id: str) -> Markers:
    """The markers of one example, at random, and independent of the order in which examples are read.

    >>> draw_markers(0, "gsm8k/train-1")
    Markers(question='', answer='A: ')
    """
    # A number that depends on the example alone, read as two digits in mixed radix.
    digest = hashlib.sha256(f"{seed} {example_id}".encode()).digest()
    random_number = int.from_bytes(digest[:8])
    rest, question = divmod(random_number, len(QUESTION_MARKERS))
    answer = rest % len(ANSWER_MARKERS)
    return Markers(
        question=QUESTION_MARKERS[question],
        answer=ANSWER_MARKERS[answer],
    )


def marked_prompt(
    question: str,
    markers: Markers,
    turns: Sequence[str] = (),
) -> str:
    r"""A question between its markers, after the earlier `turns`: questions and answers alternately.

    >>> marked_prompt("Who else?", Markers("Q: ", "A: "), ("Who wrote Emma?", "Jane Austen."))
    'Q: Who wrote Emma?\nA: Jane Austen.\nQ: Who else?\nA:'
    """
    # Earlier turns are answered; the last question is not.
    lines = []
    for asked, answered in zip(turns[::2], turns[1::2], strict=True):
        lines.append(markers.question + asked)
        lines.append(markers.answer + answered)
    lines.append(markers.question + question)
    lines.append(markers.answer)

    # The space after the last marker is the first character of the answer.
    return "\n".join(lines).rstrip(" ")


def with_choices(question: str, choices: Sequence[str]) -> str:
    r"""A multiple-choice question with its choices below it, lettered as MMLU's are.

    >>> with_choices("Which is a fruit?", ("oak", "pear"))
    'Which is a fruit?\nA. oak\nB. pear'
    """
    # Letters start at A, whatever the dataset's own labels are.
    lines = [question]
    for index, choice in enumerate(choices):
        letter = chr(ord("A") + index)
        lines.append(f"{letter}. {choice}")
    return "\n".join(lines)


def summary_prompt(markers: Markers) -> str:
    """The prompt that asks for a summary of the article given as the Background."""
    return f"{SUMMARIZE}\n{markers.answer}".rstrip(" ")


def reasoning_prompt(question: str, markers: Markers) -> str:
    """A question that is followed by reasoning before its answer: it ends where the reasoning starts."""
    return f"{markers.question}{question}\n"


def reasoned_answer(
    reasoning: str,
    answer: str,
    markers: Markers,
) -> str:
    r"""The reasoning and then, on the next line, the answer after its marker.

    >>> reasoned_answer("Two and two is four.", "4", Markers("", "A: "))
    'Two and two is four.\nA: 4'
    """
    return f"{reasoning}\n{markers.answer}{answer}"


def dialogue_prompt(turns: Sequence[str]) -> str:
    """The turns of a user (first and last) and of an assistant, up to where the assistant's answer starts.

    >>> dialogue_prompt(("Hi!", "Hello.", "How are you?"))
    'Q: Hi! A: Hello. Q: How are you? A:'
    """
    # The user speaks first and last, and the assistant's turn is next.
    speakers = itertools.cycle("QA")
    marked = [f"{speaker}: {turn}" for speaker, turn in zip(speakers, turns, strict=False)]
    return " ".join([*marked, "A:"])
