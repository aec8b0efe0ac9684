"""What a record of each dataset holds in its publisher's form: functions from a record to Items.

A record may hold many questions. Every question is yielded once, as an `Item` or as a `Skip` with the reason,
so that what was read is what was kept and what was skipped. A record of another form raises KeyError,
TypeError, IndexError or ValueError, which the caller turns into one message. `hub_formats` has the forms that
differ on the hub.
"""

import re
from typing import Any
from xml.etree import ElementTree

from radit_jax.data.finetuning.items import (
    NO_ANSWER,
    NOT_AN_ANSWER,
    Items,
    Skip,
    add_reasoning,
    coqa_turn,
    make_choice,
    make_item,
    make_summary,
    single_spaced,
    text_field,
)
from radit_jax.data.readers.string_lists import list_of_strings
from radit_jax.data.records import Item
from radit_jax.text.prompts import UNANSWERABLE

# ---- dialogue ----


def oasst1(record: Any, name: str) -> Items:
    """A tree of messages: every reply of the assistant, with the turns from the root to it."""
    yield from _replies(record["prompt"], (), lost=False)


def _replies(message: Any, before: tuple[str, ...], *, lost: bool) -> Items:
    """The assistant's replies from a message on; all are lost below one that was deleted or rejected."""
    text = text_field(message, "text")
    lost = lost or message["deleted"] or message["review_result"] is False or not text
    if message["role"] == "assistant":
        *turns, question = before
        if lost:
            yield Skip("a turn deleted or rejected")
        else:
            yield Item(message["message_id"], question, (text,), turns=tuple(turns))
    for reply in message["replies"]:
        yield from _replies(reply, (*before, text), lost=lost)


# ---- open-domain questions ----


def commonsense_qa(record: Any, name: str) -> Items:
    """A question with choices; a test question has no answer."""
    asked = record["question"]
    labels = [choice["label"] for choice in asked["choices"]]
    choices = [choice["text"] for choice in asked["choices"]]
    question = text_field(asked, "stem")
    yield make_choice(record["id"], question, choices, labels, record.get("answerKey", ""))


def math_qa(record: Any, name: str) -> Items:
    """The options are one string: `a ) 24 , b ) 120`, or a printed Python list of such."""
    options = text_field(record, "options")
    if options.startswith("["):
        options = " , ".join(list_of_strings(options, "options"))
    choices: list[str] = []
    labels: list[str] = []
    for option in re.split(r" , (?=[b-e] \))", options):
        label, _, text = option.partition(" ) ")
        labels.append(label)
        choices.append(text)
    question = text_field(record, "Problem")
    yield make_choice(name, question, choices, labels, record["correct"])


def web_questions(record: Any, name: str) -> Items:
    """The answers are the descriptions in an S-expression: `(list (description "Jane Austen"))`."""
    target = text_field(record, "targetValue")
    descriptions = re.findall(r'\(description (?:"((?:[^"\\]|\\.)*)"|([^\s()"]+))\)', target)
    # A description is in quotes, or one word without.
    answers = [quoted.replace('\\"', '"') or bare for quoted, bare in descriptions]
    question = text_field(record, "utterance")
    yield make_item(name, question, answers)


def wiki_qa(record: Any, name: str) -> Items:
    """A candidate sentence, an answer where its label is 1."""
    is_answer = {"0": False, "1": True}[record["Label"]]
    sentence = text_field(record, "Sentence")
    sentence_id = f"{record['QuestionID']}-{record['SentenceID']}"
    question = text_field(record, "Question")
    item = make_item(sentence_id, question, [sentence])
    yield item if is_answer else NOT_AN_ANSWER


def yahoo_answers_qa(record: Any, name: str) -> Items:
    """nfL6's form. Its other answers are worse than the best one, so they are left out."""
    question = text_field(record, "question")
    yield make_item(str(record["id"]), question, [text_field(record, "answer")])


def freebase_qa(record: Any, name: str) -> Items:
    """A question with the names of its answers in every parse."""
    answers: list[str] = []
    for parse in record["Parses"]:
        for answer in parse["Answers"]:
            answers += answer["AnswersName"]
    question = text_field(record, "RawQuestion")
    yield make_item(record["Question-ID"], question, answers)


def ms_marco(record: Any, name: str) -> Items:
    """The query and the annotators' answers; the passages are left to retrieval."""
    answers = [answer for answer in record["answers"] if answer.strip(" .") != "No Answer Present"]
    question = text_field(record, "query")
    yield make_item(str(record["query_id"]), question, answers)


# ---- reading comprehension ----


def coqa(record: Any, name: str) -> Items:
    """A story with a dialogue on it: every question, with the questions and answers before it."""
    asked = [text_field(turn, "input_text") for turn in record["questions"]]
    told = [text_field(turn, "input_text") for turn in record["answers"]]
    # Other annotators' answers, which the dev part has.
    others = record.get("additional_answers", {}).values()
    for number in range(len(asked)):
        # The answer of the dialogue comes first, then those of other annotators.
        answers = [told[number], *(text_field(turns[number], "input_text") for turns in others)]
        yield coqa_turn(record["id"], record["story"], asked, told, number, answers)


def drop(record: Any, name: str) -> Items:
    """A (name, passage) pair of an object; an answer is a number, spans, or a date."""
    # An answer is followed by those of annotators who validated it.
    _, passage = record
    for pair in passage["qa_pairs"]:
        given = [pair["answer"], *pair.get("validated_answers", [])]
        answers = [_drop_answer(answer) for answer in given]
        question = text_field(pair, "question")
        yield make_item(pair["query_id"], question, answers, context=passage["passage"])


def _drop_answer(answer: Any) -> str:
    """The one of number, spans and date that an answer has."""
    date: list[str] = []
    if answer.get("date"):
        date = [answer["date"][part] for part in ("day", "month", "year")]
    return answer["number"] or ", ".join(answer["spans"]) or " ".join(filter(None, date))


def narrativeqa(record: Any, name: str) -> Items:
    """The context is the summary of the story, which the questions were written from."""
    answers = [text_field(record, "answer1"), text_field(record, "answer2")]
    question = text_field(record, "question")
    yield make_item(name, question, answers, context=record["summary"])


def newsqa(record: Any, name: str) -> Items:
    """An article's questions; the annotators' consensus is a range of characters, or that there is none."""
    for number, asked in enumerate(record["questions"], 1):
        consensus = asked["consensus"]  # "s" and "e" are characters of the text
        if consensus.get("badQuestion"):
            yield Skip("bad question")
        elif consensus.get("noAnswer"):
            yield NO_ANSWER
        else:
            article = record["text"]
            name = f"{record['storyId']}#{number}"
            answer = article[consensus["s"] : consensus["e"]].strip(" \n,.;:")
            question = text_field(asked, "q")
            yield make_item(name, question, [answer], context=article)


def pubmed_qa(record: Any, name: str) -> Items:
    """A (PubMed id, record) pair of an object: the abstract without its conclusion; yes, no or maybe."""
    number, asked = record
    answers = [text_field(asked, "final_decision")]
    context = " ".join(asked["CONTEXTS"])
    question = text_field(asked, "QUESTION")
    yield make_item(number, question, answers, context=context)


def quail(record: ElementTree.Element, name: str) -> Items:
    """A text with its questions, each with choices."""
    context = single_spaced(record.findtext("text_body"))
    for asked in record.iter("q"):
        choices = [single_spaced(choice.text) for choice in asked.iter("a")]
        # The label of the right choice is "True", of the others "False".
        labels = [choice.get("correct", "False") for choice in asked.iter("a")]
        number = f"{record.attrib['id']}-{asked.attrib['id']}"
        yield make_choice(number, single_spaced(asked.text), choices, labels, "True", context=context)


def quarel(record: Any, name: str) -> Items:
    """A situation and a question in one text, whose end is `(A) one choice (B) the other`: no context."""
    question, first, second = re.split(r"\([AB]\)", text_field(record, "question"))
    right = str(record["answer_index"])
    yield make_choice(record["id"], question.strip(), [first, second], ["0", "1"], right)


def squad_v2(record: Any, name: str) -> Items:
    """An article's paragraphs with their questions; one that is impossible is answered by saying so."""
    for paragraph in record["paragraphs"]:
        for asked in paragraph["qas"]:
            answers = [text_field(answer, "text") for answer in asked["answers"]]
            if asked["is_impossible"]:
                answers = [UNANSWERABLE]
            question = text_field(asked, "question")
            yield make_item(asked["id"], question, answers, context=paragraph["context"])


# ---- summarisation ----


def cnn_dailymail(story: str, name: str) -> Items:
    """A story, then its highlights, each after a line `@highlight`: sentences without their full stops."""
    # What stands before the first mark is the article.
    article, *highlights = re.split(r"^@highlight\s*$", story, flags=re.MULTILINE)
    yield make_summary(name, article, [single_spaced(highlight) for highlight in highlights])


# ---- chain of thought ----


def aqua_rat(record: Any, name: str) -> Items:
    """A question with choices `A)…`, and the rationale of the right one."""
    labels: list[str] = []
    choices: list[str] = []
    for option in record["options"]:
        label, _, text = option.partition(")")
        labels.append(label)
        choices.append(text)
    question = text_field(record, "question")
    reasoning = text_field(record, "rationale")
    yield make_choice(name, question, choices, labels, record["correct"], reasoning=reasoning)


def ecqa(record: Any, name: str) -> Items:
    """(ECQA's line, CommonsenseQA's line): the question of the one, the explanation of the other."""
    # Its question and choices are CommonsenseQA's.
    explained, asked = record
    for item in commonsense_qa(asked, name):
        yield add_reasoning(item, text_field(explained, "explanation"))


def gsm8k(record: Any, name: str) -> Items:
    """The reasoning, without the `<<2*3=6>>` of its calculator, and after `####` the answer."""
    reasoning, mark, answer = text_field(record, "answer").rpartition("####")
    if not mark:
        raise ValueError("no '####' in the answer")
    reasoning = re.sub(r"<<[^<>]*>>", "", reasoning)
    question = text_field(record, "question")
    item = make_item(name, question, [answer])
    yield add_reasoning(item, reasoning)


def competition_math(record: Any, name: str) -> Items:
    """A solution is the reasoning; the answer stands in its last `\\boxed{…}`."""
    solution = text_field(record, "solution")
    question = text_field(record, "problem")
    item = make_item(name, question, [last_boxed(solution)])
    yield add_reasoning(item, solution)


def strategyqa(record: Any, name: str) -> Items:
    """A yes/no question; the facts that decide it are the reasoning."""
    answer = {True: "Yes", False: "No"}[record["answer"]]
    question = text_field(record, "question")
    item = make_item(record["qid"], question, [answer])
    yield add_reasoning(item, " ".join(record["facts"]))


def last_boxed(solution: str) -> str:
    r"""What stands in the last `\boxed{…}` or after `\boxed ` in a solution; "" without one.

    >>> last_boxed(r"so $x = \boxed{\frac{1}{2}}$.")
    '\\frac{1}{2}'
    >>> last_boxed(r"so $x = \boxed 7$.")
    '7'
    """
    # `\fbox` is used where `\boxed` is meant.
    start = max(solution.rfind("\\boxed"), solution.rfind("\\fbox"))
    if start < 0:
        return ""
    rest = re.sub(r"^\\[a-z]+", "", solution[start:])
    if not rest.startswith("{"):
        return rest.strip().partition("$")[0]
    # What stands between the first brace and the one that closes it.
    depth = 0
    for place, letter in enumerate(rest):
        depth += (letter == "{") - (letter == "}")
        if depth == 0:
            return rest[1:place]
    return ""
