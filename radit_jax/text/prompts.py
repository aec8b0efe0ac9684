"""What the language model reads around a passage, a question and an answer.

Its input is `background(passage) + prompt + answer`, tokenised in these three parts, so that the boundary
between prompt and answer is the same in training, scoring and decoding.
"""

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
