"""What a record of each dataset holds: functions from a record, in its official form or the hub's, to Items.

A record may hold many questions. Every question is yielded once, as an `Item` or as a `Skip` with the reason,
so that what was read is what was kept and what was skipped. A record of another form raises KeyError,
TypeError, IndexError or ValueError, which the caller turns into one message.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from xml.etree import ElementTree

from radit_jax.data.readers.questions import list_of_strings
from radit_jax.data.records import Item
from radit_jax.text.prompts import UNANSWERABLE


class Skip(NamedTuple):
    """A question that is left out, and why: reasons are counted."""

    reason: str


Items = Iterator[Item | Skip]
NO_ANSWER = Skip("no answer")


# ---- dialogue ----


def oasst1(record: Any, name: str) -> Items:
    """A tree of messages: every reply of the assistant, with the turns from the root to it."""
    yield from _replies(record["prompt"], (), lost=False)


def _replies(message: Any, before: tuple[str, ...], *, lost: bool) -> Items:
    text = _text(message, "text")
    lost = lost or message["deleted"] or message["review_result"] is False or not text
    if message["role"] == "assistant":
        kept = Item(message["message_id"], before[-1], (text,), turns=before[:-1])
        yield Skip("a turn deleted or rejected") if lost else kept
    for reply in message["replies"]:
        yield from _replies(reply, (*before, text), lost=lost)


def oasst1_trees(rows: Iterable[Any]) -> Iterator[Any]:
    """The trees of the hub's table of messages, which lists parents before their replies."""
    messages: dict[str, dict[str, Any]] = {}
    roots = []
    for row in rows:
        message = messages[row["message_id"]] = {**row, "replies": []}
        if row["parent_id"] is None:
            roots.append({"prompt": message})
        elif row["parent_id"] in messages:
            messages[row["parent_id"]]["replies"].append(message)
        else:
            raise ValueError(f"oasst1: message {row['message_id']} came before its parent {row['parent_id']}")
    yield from roots


# ---- open-domain questions ----


def commonsense_qa(record: Any, name: str) -> Items:
    asked = record["question"]
    labels = [choice["label"] for choice in asked["choices"]]
    choices = [choice["text"] for choice in asked["choices"]]
    yield _choice(record["id"], _text(asked, "stem"), choices, labels, record.get("answerKey", ""))


def commonsense_qa_hub(row: Any, name: str) -> Items:
    choices = row["choices"]
    yield _choice(row["id"], _text(row, "question"), choices["text"], choices["label"], row["answerKey"])


def math_qa(record: Any, name: str) -> Items:
    """The options are one string: `a ) 24 , b ) 120`, or a printed Python list of such."""
    options = _text(record, "options")
    if options.startswith("["):
        options = " , ".join(list_of_strings(options, "options"))
    pairs = [part.partition(" ) ") for part in re.split(r" , (?=[b-e] \))", options)]
    choices, labels = [text for _, _, text in pairs], [label for label, _, _ in pairs]
    yield _choice(name, _text(record, "Problem"), choices, labels, record["correct"])


def web_questions(record: Any, name: str) -> Items:
    """The answers are the descriptions in an S-expression: `(list (description "Jane Austen"))`."""
    found = re.findall(r'\(description (?:"((?:[^"\\]|\\.)*)"|([^\s()"]+))\)', _text(record, "targetValue"))
    answers = [quoted.replace('\\"', '"') or bare for quoted, bare in found]
    yield _item(name, _text(record, "utterance"), answers)


def web_questions_hub(row: Any, name: str) -> Items:
    yield _item(name, _text(row, "question"), row["answers"])


def wiki_qa(record: Any, name: str) -> Items:
    """A candidate sentence, an answer where its label is 1."""
    right = {"0": False, "1": True}[record["Label"]]
    sentence = _text(record, "Sentence")
    number = f"{record['QuestionID']}-{record['SentenceID']}"
    answered = _item(number, _text(record, "Question"), [sentence])
    yield answered if right else Skip("label 0")


def wiki_qa_hub(row: Any, name: str) -> Items:
    answered = _item(name, _text(row, "question"), [_text(row, "answer")])
    yield answered if row["label"] == 1 else Skip("label 0")


def yahoo_answers_qa(record: Any, name: str) -> Items:
    """nfL6's form. Its other answers are no equals of the best one, so they are left out."""
    yield _item(str(record["id"]), _text(record, "question"), [_text(record, "answer")])


def freebase_qa(record: Any, name: str) -> Items:
    answers = [a for parse in record["Parses"] for answer in parse["Answers"] for a in answer["AnswersName"]]
    yield _item(record["Question-ID"], _text(record, "RawQuestion"), answers)


def freebase_qa_hub(row: Any, name: str) -> Items:
    answers = [a for parse in row["Parses"]["Answers"] for names in parse["AnswersName"] for a in names]
    yield _item(row["Question-ID"], _text(row, "RawQuestion"), answers)


def ms_marco(record: Any, name: str) -> Items:
    """The query and the annotators' answers; the passages are left to retrieval."""
    answers = [answer for answer in record["answers"] if answer.strip(" .") != "No Answer Present"]
    yield _item(str(record["query_id"]), _text(record, "query"), answers)


# ---- reading comprehension ----


def coqa(record: Any, name: str) -> Items:
    """A story with a dialogue on it: every question, with the questions and answers before it."""
    asked = [_text(turn, "input_text") for turn in record["questions"]]
    told = [_text(turn, "input_text") for turn in record["answers"]]
    others = record.get("additional_answers", {}).values()
    for number, question in enumerate(asked):
        answers = [told[number], *(_text(turns[number], "input_text") for turns in others)]
        yield _coqa_turn(record["id"], record["story"], asked, told, number, question, answers)


def coqa_hub(row: Any, name: str) -> Items:
    asked, told = row["questions"], row["answers"]["input_text"]
    for number, question in enumerate(asked):
        yield _coqa_turn(name, row["story"], asked, told, number, question, [told[number]])


def _coqa_turn(
    story_id: str,
    story: str,
    asked: Sequence[str],
    told: Sequence[str],
    number: int,
    question: str,
    answers: Sequence[str],
) -> Item | Skip:
    earlier = zip(asked[:number], told[:number], strict=True)
    turns = tuple(text.strip() for pair in earlier for text in pair)
    return _item(f"{story_id}-{number + 1}", question, answers, context=story, turns=turns)


def drop(record: Any, name: str) -> Items:
    """A (name, passage) pair of an object; an answer is a number, spans, or a date."""
    _, passage = record
    for pair in passage["qa_pairs"]:
        given = [pair["answer"], *pair.get("validated_answers", [])]
        answers = [_drop_answer(answer) for answer in given]
        yield _item(pair["query_id"], _text(pair, "question"), answers, context=passage["passage"])


def _drop_answer(answer: Any) -> str:
    date = [answer["date"][part] for part in ("day", "month", "year")] if answer.get("date") else []
    return answer["number"] or ", ".join(answer["spans"]) or " ".join(part for part in date if part)


def drop_hub(row: Any, name: str) -> Items:
    answer = ", ".join(row["answers_spans"]["spans"])
    yield _item(row["query_id"], _text(row, "question"), [answer], context=row["passage"])


def narrativeqa(record: Any, name: str) -> Items:
    """The context is the summary of the story, which the questions were written from."""
    answers = [_text(record, "answer1"), _text(record, "answer2")]
    yield _item(name, _text(record, "question"), answers, context=record["summary"])


def narrativeqa_hub(row: Any, name: str) -> Items:
    answers = [_text(answer, "text") for answer in row["answers"]]
    summary = row["document"]["summary"]["text"]
    yield _item(name, _text(row["question"], "text"), answers, context=summary)


def newsqa(record: Any, name: str) -> Items:
    """An article's questions; the annotators' consensus is a range of characters, or that there is none."""
    for number, asked in enumerate(record["questions"], 1):
        consensus = asked["consensus"]
        if consensus.get("badQuestion"):
            yield Skip("bad question")
        elif consensus.get("noAnswer"):
            yield NO_ANSWER
        else:
            answer = record["text"][consensus["s"] : consensus["e"]].strip(" \n,.;:")
            yield _item(f"{record['storyId']}#{number}", _text(asked, "q"), [answer], context=record["text"])


def newsqa_hub(row: Any, name: str) -> Items:
    yield _item(row["key"], _text(row, "question"), row["answers"], context=row["context"])


def pubmed_qa(record: Any, name: str) -> Items:
    """A (PubMed id, record) pair of an object: the abstract without its conclusion; yes, no or maybe."""
    number, asked = record
    answers = [_text(asked, "final_decision")]
    yield _item(number, _text(asked, "QUESTION"), answers, context=" ".join(asked["CONTEXTS"]))


def pubmed_qa_hub(row: Any, name: str) -> Items:
    answers, context = [_text(row, "final_decision")], " ".join(row["context"]["contexts"])
    yield _item(str(row["pubid"]), _text(row, "question"), answers, context=context)


def quail(record: ElementTree.Element, name: str) -> Items:
    context = _words(record.findtext("text_body"))
    for asked in record.iter("q"):
        choices = [_words(choice.text) for choice in asked.iter("a")]
        right = [choice.get("correct", "False") for choice in asked.iter("a")]
        number = f"{record.attrib['id']}-{asked.attrib['id']}"
        yield _choice(number, _words(asked.text), choices, right, "True", context=context)


def quail_hub(row: Any, name: str) -> Items:
    labels = [str(number) for number in range(len(row["answers"]))]
    right, context = str(row["correct_answer_id"]), row["context"]
    yield _choice(row["id"], _text(row, "question"), row["answers"], labels, right, context=context)


def quarel(record: Any, name: str) -> Items:
    """A situation and a question in one text, whose end is `(A) one choice (B) the other`: no context."""
    question, first, second = re.split(r"\([AB]\)", _text(record, "question"))
    yield _choice(record["id"], question.strip(), [first, second], ["0", "1"], str(record["answer_index"]))


def squad_v2(record: Any, name: str) -> Items:
    for paragraph in record["paragraphs"]:
        for asked in paragraph["qas"]:
            answers = [_text(answer, "text") for answer in asked["answers"]]
            answers = [UNANSWERABLE] if asked["is_impossible"] else answers
            yield _item(asked["id"], _text(asked, "question"), answers, context=paragraph["context"])


def squad_v2_hub(row: Any, name: str) -> Items:
    answers = row["answers"]["text"] or [UNANSWERABLE]
    yield _item(row["id"], _text(row, "question"), answers, context=row["context"])


# ---- summarisation ----


def cnn_dailymail(story: str, name: str) -> Items:
    """A story, then its highlights, each after a line `@highlight`: sentences without their full stops."""
    article, *highlights = re.split(r"^@highlight\s*$", story, flags=re.MULTILINE)
    yield _summary(name, article, [_words(highlight) for highlight in highlights])


def cnn_dailymail_hub(row: Any, name: str) -> Items:
    highlights = [line.strip().removesuffix(" .") for line in _text(row, "highlights").split("\n")]
    yield _summary(row["id"], row["article"], highlights)


def _summary(name: str, article: str, highlights: Sequence[str]) -> Item | Skip:
    sentences = [text if text[-1] in ".!?" else f"{text}." for text in highlights if text]
    if not article.strip():
        return Skip("no article")
    if not sentences:
        return NO_ANSWER
    return Item(name, "", (" ".join(sentences),), context=_words(article))


# ---- chain of thought ----


def aqua_rat(record: Any, name: str) -> Items:
    pairs = [option.partition(")") for option in record["options"]]
    labels, choices = [label for label, _, _ in pairs], [text for _, _, text in pairs]
    question, reasoning = _text(record, "question"), _text(record, "rationale")
    yield _choice(name, question, choices, labels, record["correct"], reasoning=reasoning)


def ecqa(record: Any, name: str) -> Items:
    """(ECQA's line, CommonsenseQA's line): the question of the one, the explanation of the other."""
    explained, asked = record
    for item in commonsense_qa(asked, name):
        yield _reasoned(item, _text(explained, "explanation"))


def ecqa_hub(row: Any, name: str) -> Items:
    choices = [str(row[f"q_op{number}"]) for number in range(1, 6)]
    question, reasoning = _text(row, "q_text"), _text(row, "taskB")
    yield _choice(row["q_no"], question, choices, choices, str(row["q_ans"]), reasoning=reasoning)


def gsm8k(record: Any, name: str) -> Items:
    """The reasoning, without the `<<2*3=6>>` of its calculator, and after `####` the answer."""
    reasoning, mark, answer = _text(record, "answer").rpartition("####")
    if not mark:
        raise ValueError("no '####' in the answer")
    reasoning = re.sub(r"<<[^<>]*>>", "", reasoning)
    yield _reasoned(_item(name, _text(record, "question"), [answer]), reasoning)


def competition_math(record: Any, name: str) -> Items:
    """A solution is the reasoning; the answer stands in its last `\\boxed{…}`."""
    solution = _text(record, "solution")
    answer = last_boxed(solution)
    yield _reasoned(_item(name, _text(record, "problem"), [answer] if answer else []), solution)


def strategyqa(record: Any, name: str) -> Items:
    """A yes/no question; the facts that decide it are the reasoning."""
    answer = {True: "Yes", False: "No"}[record["answer"]]
    yield _reasoned(_item(record["qid"], _text(record, "question"), [answer]), " ".join(record["facts"]))


def last_boxed(solution: str) -> str:
    r"""What stands in the last `\boxed{…}` or after `\boxed ` in a solution; "" without one.

    >>> last_boxed(r"so $x = \boxed{\frac{1}{2}}$.")
    '\\frac{1}{2}'
    >>> last_boxed(r"so $x = \boxed 7$.")
    '7'
    """
    start = max(solution.rfind("\\boxed"), solution.rfind("\\fbox"))
    if start < 0:
        return ""
    rest = re.sub(r"^\\[a-z]+", "", solution[start:])
    if not rest.startswith("{"):
        return rest.strip().partition("$")[0]
    depth = 0
    for place, letter in enumerate(rest):
        depth += (letter == "{") - (letter == "}")
        if depth == 0:
            return rest[1:place]
    return ""


# ---- shared ----


def _text(record: Any, name: str) -> str:
    """The field `name`, which has to be a string, without the white space around it."""
    if not isinstance(record, Mapping):
        raise TypeError(f"no object with {name!r}")
    value = record[name]
    if not isinstance(value, str):
        raise ValueError(f"field {name!r} is {str(value)[:40]!r}, no string")
    return value.strip()


def _words(text: str | None) -> str:
    """`text` with single spaces, so that a blank line only ever ends a Background."""
    return " ".join((text or "").split())


def _item(name: str, question: str, answers: Iterable[str], **more: Any) -> Item | Skip:
    """An item with the distinct answers that are not blank, skipped where there are none."""
    answers = tuple(dict.fromkeys(text for answer in answers if (text := answer.strip())))
    if not question:
        return Skip("no question")
    if not answers:
        return NO_ANSWER
    more["context"] = _words(more.get("context"))
    return Item(name, question, answers, **more)


def _choice(
    name: str, question: str, choices: Sequence[str], labels: Sequence[str], right: str, **more: Any
) -> Item | Skip:
    """A multiple-choice item: its answer is the text of the choice whose label is `right`."""
    if right not in labels:
        return NO_ANSWER
    choices = tuple(choice.strip() for choice in choices)
    reasoning = more.pop("reasoning", None)
    item = _item(name, question, [choices[list(labels).index(right)]], choices=choices, **more)
    return item if reasoning is None else _reasoned(item, reasoning)


def _reasoned(item: Item | Skip, reasoning: str) -> Item | Skip:
    if isinstance(item, Skip):
        return item
    if not reasoning.strip():
        return Skip("no reasoning")
    return Item(item.id, item.question, item.answers, item.choices, reasoning=reasoning.strip())
