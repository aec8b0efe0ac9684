"""What a row of each dataset holds in the hub's form, where that is not the publisher's. As `formats`."""

from collections.abc import Iterable, Iterator
from typing import Any

from radit_jax.data.finetuning.items import (
    NOT_AN_ANSWER,
    Items,
    coqa_turn,
    make_choice,
    make_item,
    make_summary,
    text_field,
)
from radit_jax.text.prompts import UNANSWERABLE

# ---- dialogue ----


def oasst1_trees(rows: Iterable[Any]) -> Iterator[Any]:
    """The trees of the hub's table of messages, which lists parents before their replies."""
    messages: dict[str, dict[str, Any]] = {}  # by id, each with its replies in it
    roots = []
    for row in rows:
        message = messages[row["message_id"]] = {**row, "replies": []}
        if row["parent_id"] is None:
            roots.append({"prompt": message})
        elif row["parent_id"] in messages:
            messages[row["parent_id"]]["replies"].append(message)
        else:
            raise ValueError(
                f"oasst1: expected every message after its parent, got {row['message_id']} before "
                f"{row['parent_id']}. Keep the order of the hub's rows."
            )
    yield from roots


# ---- open-domain questions ----


def commonsense_qa_hub(row: Any, name: str) -> Items:
    """As `commonsense_qa`, with the choices in two lists."""
    choices, labels = row["choices"]["text"], row["choices"]["label"]
    question = text_field(row, "question")
    yield make_choice(row["id"], question, choices, labels, row["answerKey"])


def web_questions_hub(row: Any, name: str) -> Items:
    """A question with a list of answers."""
    question = text_field(row, "question")
    yield make_item(name, question, row["answers"])


def wiki_qa_hub(row: Any, name: str) -> Items:
    """As `wiki_qa`."""
    question = text_field(row, "question")
    item = make_item(name, question, [text_field(row, "answer")])
    yield item if row["label"] == 1 else NOT_AN_ANSWER


def freebase_qa_hub(row: Any, name: str) -> Items:
    """As `freebase_qa`, with a list of parses and of answers for each field."""
    answers: list[str] = []
    for parse in row["Parses"]["Answers"]:
        for names in parse["AnswersName"]:
            answers += names
    question = text_field(row, "RawQuestion")
    yield make_item(row["Question-ID"], question, answers)


# ---- reading comprehension ----


def coqa_hub(row: Any, name: str) -> Items:
    """As `coqa`, without the additional answers."""
    asked, told = row["questions"], row["answers"]["input_text"]
    for number in range(len(asked)):
        yield coqa_turn(name, row["story"], asked, told, number, [told[number]])


def drop_hub(row: Any, name: str) -> Items:
    """A question with one answer, whose spans belong together."""
    answer = ", ".join(row["answers_spans"]["spans"])
    question = text_field(row, "question")
    yield make_item(row["query_id"], question, [answer], context=row["passage"])


def narrativeqa_hub(row: Any, name: str) -> Items:
    """As `narrativeqa`."""
    answers = [text_field(answer, "text") for answer in row["answers"]]
    summary = row["document"]["summary"]["text"]
    question = text_field(row["question"], "text")
    yield make_item(name, question, answers, context=summary)


def newsqa_hub(row: Any, name: str) -> Items:
    """A question with the answers that MRQA's filter left it."""
    question = text_field(row, "question")
    yield make_item(row["key"], question, row["answers"], context=row["context"])


def pubmed_qa_hub(row: Any, name: str) -> Items:
    """As `pubmed_qa`."""
    answers = [text_field(row, "final_decision")]
    context = " ".join(row["context"]["contexts"])
    question = text_field(row, "question")
    yield make_item(str(row["pubid"]), question, answers, context=context)


def quail_hub(row: Any, name: str) -> Items:
    """One question on a text; its answer is the number of a choice."""
    choices = row["answers"]
    labels = [str(number) for number in range(len(choices))]
    right = str(row["correct_answer_id"])
    question = text_field(row, "question")
    yield make_choice(row["id"], question, choices, labels, right, context=row["context"])


def squad_v2_hub(row: Any, name: str) -> Items:
    """One question on a paragraph; without answers it is impossible."""
    answers = row["answers"]["text"] or [UNANSWERABLE]
    question = text_field(row, "question")
    yield make_item(row["id"], question, answers, context=row["context"])


# ---- summarisation ----


def cnn_dailymail_hub(row: Any, name: str) -> Items:
    """An article with a highlight per line, whose full stop stands apart."""
    highlights = [line.strip().removesuffix(" .") for line in text_field(row, "highlights").split("\n")]
    yield make_summary(row["id"], row["article"], highlights)


# ---- chain of thought ----


def ecqa_hub(row: Any, name: str) -> Items:
    """A question with five choices, and an explanation of the right one."""
    choices = [str(row[f"q_op{number}"]) for number in range(1, 6)]
    question = text_field(row, "q_text")
    reasoning = text_field(row, "taskB")
    # The answer is given as the text of its choice, so texts are the labels.
    yield make_choice(row["q_no"], question, choices, choices, str(row["q_ans"]), reasoning=reasoning)
