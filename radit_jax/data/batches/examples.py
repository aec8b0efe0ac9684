"""The examples (x, y) that training and scoring read: made of questions, and of the corpus' own text."""

from typing import Protocol, runtime_checkable

from radit_jax.data.records import Chunk, Example, Question
from radit_jax.text.prompts import answer_text, question_prompt

_REPLACEMENT = "\ufffd"  # how decoding shows a part of a character


@runtime_checkable
class TextTokenizer(Protocol):
    """Anything that turns text into ids and back; `encode` adds no special tokens."""

    def encode(self, text: str) -> list[int]:
        """The ids of `text`."""
        ...

    def decode(self, ids: list[int]) -> str:
        """The text of `ids`."""
        ...


def question_example(question: Question, answer: str) -> Example:
    """(x, y) of a question with one of its gold answers; the retriever's query is the bare question."""
    return Example(
        id=question.id,
        query=question.question,
        prompt=asked_prompt(question),
        answer=answer_text(answer),
    )


def asked_prompt(question: Question) -> str:
    r"""What the language model reads of a question: its own prompt, or the usual form.

    >>> asked_prompt(Question("1", "Who wrote Emma?", ("Jane Austen",)))
    'Q: Who wrote Emma?\nA:'
    """
    return question.prompt or question_prompt(question.question)


def lm_text_example(chunk: Chunk, tokenizer: TextTokenizer) -> Example | None:
    """LM-ft's unsupervised text: the first half of a chunk's tokens is x, the second y; None if too short."""
    ids = tokenizer.encode(chunk.text)
    if len(ids) < 2:
        return None
    prompt, answer = _cut(chunk.text, ids, len(ids) // 2, tokenizer)
    return _text_example("lm_text", chunk, prompt, answer)


def r_text_example(chunk: Chunk, tokenizer: TextTokenizer, num_tokens: int = 50) -> Example | None:
    """R-ft's corpus text: a chunk's first `num_tokens` tokens are x, its last y (the paper's 50 and 50).

    What lies between is in neither. None, to be skipped and counted, where the two would overlap.
    """
    ids = tokenizer.encode(chunk.text)
    if len(ids) < 2 * num_tokens:
        return None
    # The first tokens, and the last.
    prompt, _ = _cut(chunk.text, ids, num_tokens, tokenizer)
    _, answer = _cut(chunk.text, ids, len(ids) - num_tokens, tokenizer)
    return _text_example("r_text", chunk, prompt, answer)


def _text_example(kind: str, chunk: Chunk, prompt: str, answer: str) -> Example:
    """The example whose x and y are cut from `chunk`, which is searched for with x itself."""
    return Example(
        id=f"{kind}/{chunk.id}",
        query=prompt,
        prompt=prompt,
        answer=answer,
        source_chunk=chunk.id,
    )


def _cut(text: str, ids: list[int], count: int, tokenizer: TextTokenizer) -> tuple[str, str]:
    """`text` before and after its first `count` tokens.

    The second part is cut from the text itself, where decoding gives the text back: decoding it alone would
    lose its leading space in some tokenisers. A character that the cut would split (�) goes to the second.
    """
    head = tokenizer.decode(ids[:count]).rstrip(_REPLACEMENT)
    if text.startswith(head):
        return head, text[len(head) :]
    return head, tokenizer.decode(ids[count:])
