"""Items out of the parts of a record, or a `Skip` where one is missing."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from radit_jax.data.records import Item


class Skip(NamedTuple):
    """A question that is left out, and why: reasons are counted."""

    reason: str


Items = Iterator[Item | Skip]
NO_ANSWER = Skip("no answer")
NOT_AN_ANSWER = Skip("label 0")  # WikiQA's, of a sentence that does not answer its question


def text_field(record: Any, name: str) -> str:
    """The field `name`, which has to be a string, without the white space around it."""
    if not isinstance(record, Mapping):
        raise TypeError(f"not an object with {name!r}")
    value = record[name]
    if not isinstance(value, str):
        raise ValueError(f"field {name!r} is {str(value)[:40]!r}, not a string")
    return value.strip()


def single_spaced(text: str | None) -> str:
    """`text` with single spaces, so that a blank line only ever ends a Background."""
    return " ".join((text or "").split())


def make_item(name: str, question: str, answers: Iterable[str], **more: Any) -> Item | Skip:
    """An item with the distinct answers that are not blank, skipped where there are none."""
    # What a dataset writes twice, or differs in white space alone, is one answer.
    stripped = [answer.strip() for answer in answers]
    distinct = tuple(dict.fromkeys(filter(None, stripped)))
    if not question:
        return Skip("no question")
    if not distinct:
        return NO_ANSWER
    more["context"] = single_spaced(more.get("context"))
    return Item(name, question, distinct, **more)


def make_choice(
    name: str,
    question: str,
    choices: Sequence[str],
    labels: Sequence[str],
    right: str,
    **more: Any,
) -> Item | Skip:
    """A multiple-choice item: its answer is the text of the choice whose label is `right`."""
    if right not in labels:
        return NO_ANSWER
    choices = tuple(choice.strip() for choice in choices)
    # Of choices with one label, such as QuAIL's wrong ones, the first counts.
    answer = choices[list(labels).index(right)]
    reasoning = more.pop("reasoning", None)
    item = make_item(name, question, [answer], choices=choices, **more)
    return item if reasoning is None else add_reasoning(item, reasoning)


def add_reasoning(item: Item | Skip, reasoning: str) -> Item | Skip:
    """The item with what leads to its answer, skipped where that is missing."""
    if isinstance(item, Skip):
        return item
    if not reasoning.strip():
        return Skip("no reasoning")
    # A context is left out: a chain of thought is asked for without one.
    return Item(item.id, item.question, item.answers, item.choices, reasoning=reasoning.strip())


def coqa_turn(
    story_id: str,
    story: str,
    asked: Sequence[str],
    told: Sequence[str],
    number: int,
    answers: Sequence[str],
) -> Item | Skip:
    """Question `number`, from 0, of a story's dialogue."""
    turns: list[str] = []
    for question, answer in zip(asked[:number], told[:number], strict=True):
        turns += [question.strip(), answer.strip()]
    name = f"{story_id}-{number + 1}"
    return make_item(name, asked[number], answers, context=story, turns=tuple(turns))


def make_summary(name: str, article: str, highlights: Sequence[str]) -> Item | Skip:
    """An item without a question, whose answer is the highlights as sentences."""
    # A highlight that is a headline gets a full stop.
    sentences = [text if text[-1] in ".!?" else f"{text}." for text in highlights if text]
    if not article.strip():
        return Skip("no article")
    if not sentences:
        return NO_ANSWER
    return Item(name, "", (" ".join(sentences),), context=single_spaced(article))
