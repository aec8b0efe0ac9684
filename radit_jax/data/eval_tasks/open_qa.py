"""Readers of open questions: NQ's, HotpotQA's and TriviaQA's own files, and files of a user's questions."""

from collections import Counter
from collections.abc import Iterator

from etils import epath

from radit_jax.data.eval_tasks.task import EvalExample
from radit_jax.data.readers.lines import demand, json_list, json_objects, line_object
from radit_jax.data.readers.questions import read_questions
from radit_jax.text.prompts import question_prompt

# ---- original files of tasks with free answers ----


def read_nq(path: epath.Path, counts: Counter[str]) -> Iterator[EvalExample]:
    """NQ-open's lines, which have no ids: a question's id is its line's number."""
    for line_number, (where, line) in enumerate(json_objects(path), start=1):
        demand(line, {"question": "a string", "answer": "a list of strings"}, where)
        counts["read"] += 1
        # No shot may be a question's own, so every question needs an id.
        identifier = f"{path.name}:{line_number}"
        yield _open_question(identifier, line["question"], tuple(line["answer"]))


def read_hotpotqa(
    path: epath.Path,
    counts: Counter[str],
) -> Iterator[EvalExample]:
    """HotpotQA's own files; the paragraphs in them are not read."""
    for where, line in json_list(path):
        demand(
            line,
            {"_id": "a string", "question": "a string", "answer": "a string"},
            where,
        )
        counts["read"] += 1
        yield _open_question(line["_id"], line["question"], (line["answer"],))


def read_trivia_qa(
    path: epath.Path,
    counts: Counter[str],
) -> Iterator[EvalExample]:
    """TriviaQA's own files; aliases are gold answers too, and shots show the value itself."""
    for where, line in json_list(path, "Data"):
        demand(line, {"QuestionId": "a string", "Question": "a string"}, where)
        answer = line_object(line.get("Answer", {}), where)
        counts["read"] += 1
        # The test files have no values.
        if "Value" not in answer:
            counts["skipped_without_answer"] += 1
            continue

        # Either list of aliases may be absent.
        answer = {"Aliases": [], "NormalizedAliases": [], **answer}
        kinds = {
            "Value": "a string",
            "Aliases": "a list of strings",
            "NormalizedAliases": "a list of strings",
        }
        demand(answer, kinds, where)
        answers = [answer["Value"], *answer["Aliases"], *answer["NormalizedAliases"]]
        distinct = tuple(dict.fromkeys(answers))
        yield _open_question(line["QuestionId"], line["Question"], distinct)


def read_users_file(
    path: epath.Path,
    counts: Counter[str],
) -> Iterator[EvalExample]:
    """Questions in any of the forms of `questions.py`."""
    for asked in read_questions(path):
        counts["read"] += 1
        # Some people's files mix questions with and without answers.
        question = asked.question
        if not question.answers:
            counts["skipped_without_answer"] += 1
            continue
        yield _open_question(question.id, question.question, question.answers)


def _open_question(
    identifier: str,
    question: str,
    answers: tuple[str, ...],
) -> EvalExample:
    """A question whose answer is generated; it is the query too, and shots show its first answer."""
    return EvalExample(
        identifier,
        prompt=question_prompt(question),
        query=question,
        answers=answers,
        target=answers[0] if answers else "",
    )
