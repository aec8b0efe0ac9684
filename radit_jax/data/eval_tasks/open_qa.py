"""Readers of open questions: NQ's, HotpotQA's and TriviaQA's own files, and files of a user's questions."""

from collections import Counter
from collections.abc import Iterator

from etils import epath

from radit_jax.data.eval_tasks.task import EvalExample
from radit_jax.data.readers.lines import (
    demand,
    json_list,
    json_objects,
    line_object,
)
from radit_jax.data.readers.questions import read_questions
from radit_jax.text.prompts import question_prompt

# ---- original files of tasks with free answers ----


def read_nq(path: epath.Path, counts: Counter[str]) -> Iterator[EvalExample]:
    for number, (where, line) in enumerate(json_objects(path), start=1):
        demand(line, {"question": "a string", "answer": "a list of strings"}, where)
        counts["read"] += 1
        yield _free(f"{path.name}:{number}", line["question"], tuple(line["answer"]))


def read_hotpotqa(path: epath.Path, counts: Counter[str]) -> Iterator[EvalExample]:
    for where, line in json_list(path):
        demand(line, {"_id": "a string", "question": "a string", "answer": "a string"}, where)
        counts["read"] += 1
        yield _free(line["_id"], line["question"], (line["answer"],))


def read_trivia_qa(path: epath.Path, counts: Counter[str]) -> Iterator[EvalExample]:
    """TriviaQA's own files; the aliases are gold answers too, the value itself is the one to show."""
    for where, line in json_list(path, "Data"):
        demand(line, {"QuestionId": "a string", "Question": "a string"}, where)
        answer = line_object(line.get("Answer", {}), where)
        counts["read"] += 1
        if "Value" not in answer:
            counts["skipped_without_answer"] += 1
            continue
        answer = {"Aliases": [], "NormalizedAliases": [], **answer}
        lists = dict.fromkeys(("Aliases", "NormalizedAliases"), "a list of strings")
        demand(answer, {"Value": "a string", **lists}, where)
        aliases = dict.fromkeys([answer["Value"], *answer["Aliases"], *answer["NormalizedAliases"]])
        yield _free(line["QuestionId"], line["Question"], tuple(aliases))


def read_users_file(path: epath.Path, counts: Counter[str]) -> Iterator[EvalExample]:
    """Questions in any of the forms of `questions.py`."""
    for asked in read_questions(path):
        counts["read"] += 1
        if asked.question.answers:
            yield _free(asked.question.id, asked.question.question, asked.question.answers)
        else:
            counts["skipped_without_answer"] += 1


def _free(identifier: str, question: str, answers: tuple[str, ...]) -> EvalExample:
    return EvalExample(
        identifier, question_prompt(question), question, answers, target=answers[0] if answers else ""
    )
