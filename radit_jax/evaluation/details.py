"""`details.jsonl`: what the systems' answers come from, a line a question, for the report.

    id                    the question's
    rows, log_p_R         by retriever: its K chunks as rows of the corpus, and the logarithm of their p_R
    answer_log_probs      by language model and retriever: log p of the first gold answer under each chunk,
                          summed over its tokens, without a terminator
    answer_tokens         by language model: how many tokens that sum is over
    candidates            by system: each distinct answer with its probability in the mixture, the best first,
                          and `log_probs`: log p of the whole answer under each chunk
    cut                   by system: whether the best answer was cut at `max_new_tokens`

Log-probabilities are nats, rounded to four decimals. A candidate that an earlier version answered has neither
`log_probs` nor an entry in `cut`. A task's file has no gold answer's likelihood where answers are generated.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from radit_jax.data.batches.prefix_trees import answer_ids
from radit_jax.data.eval_tasks.task import EvalExample
from radit_jax.evaluation.multiple_choice import ChoiceResult
from radit_jax.evaluation.systems import SYSTEMS, RetrievedChunks
from radit_jax.lm.answering import Answer, Retrieval
from radit_jax.runtime.pretrained.tokenizers import Tokenizer

DECIMALS = 4  # of log-probabilities: a ten thousandth of a probability
DIGITS = 6  # of a probability, which may be very small


TaskDetail = dict[str, Any]  # what one language model and one retriever's chunks leave of a task's question


class GoldLogProbs(NamedTuple):
    """How likely a language model finds the first gold answer of each question."""

    log_probs: Float[np.ndarray, "Q K"]  # under each chunk, in nats, summed over the answer's tokens
    token_counts: Int[np.ndarray, " Q"]


def gold_log_probs(
    stored: Mapping[str, np.ndarray],
    rows: Int[np.ndarray, "Q K"],
) -> GoldLogProbs:
    """The likelihoods under each question's chunks, from the arrays of scored (question, chunk) pairs."""
    # Where the score of each pair is stored.
    pairs = map(tuple, stored["pairs"].tolist())
    place_of = {pair: place for place, pair in enumerate(pairs)}
    places = np.zeros(rows.shape, np.int64)
    for question, of_question in enumerate(rows.tolist()):
        places[question] = [place_of[question, row] for row in of_question]
    return GoldLogProbs(stored["answer_log_probs"][places], stored["answer_token_counts"])


def rounded(values: Float[np.ndarray, " K"] | Sequence[float]) -> list[float]:
    """Log-probabilities as they are stored."""
    return [round(float(value), DECIMALS) for value in values]


# ---- answers, as shards of answers keep them ----


def answer_to_json(answer: Answer) -> list[Any]:
    """An answer as a list."""
    return [answer.text, answer.probability, rounded(answer.log_probs), answer.is_cut]


def answer_from_json(stored: Sequence[Any]) -> Answer:
    """The answer that `answer_to_json` made a list of; an earlier version wrote text and probability."""
    text, probability, *rest = stored
    log_probs, is_cut = rest or ((), None)
    return Answer(text, probability, tuple(log_probs), is_cut)


def candidate_records(answers: Iterable[Answer]) -> list[dict[str, Any]]:
    """Answers as `candidates` have them."""
    records = []
    for answer in answers:
        probability = float(f"{answer.probability:.{DIGITS}g}")
        record: dict[str, Any] = {"text": answer.text, "probability": probability}
        if answer.log_probs:
            record["log_probs"] = rounded(answer.log_probs)
        records.append(record)
    return records


# ---- lines ----


def detail_lines(
    ids: Sequence[str],
    retrieved: Mapping[str, RetrievedChunks],
    answers: Mapping[str, Sequence[Sequence[Answer]]],
    gold: Mapping[tuple[str, str], GoldLogProbs],
) -> list[dict[str, Any]]:
    """A line for each question: `retrieved` by retriever, `answers` by system, `gold` by LM and retriever."""
    lines = []
    for index, question_id in enumerate(ids):
        # What was retrieved.
        rows, weights = {}, {}
        for name, chunks in retrieved.items():
            log_probs = chunks.log_probs[index]
            k = len(log_probs)
            rows[name] = chunks.rows[index, :k].tolist()
            weights[name] = rounded(log_probs)

        # What was made of it.
        of_question = {}
        for name, of_system in answers.items():
            of_question[name] = of_system[index]
        line = {"id": question_id, "rows": rows, "log_p_R": weights}
        line |= _gold_fields(gold, index)
        line |= answer_fields(of_question)
        lines.append(line)
    return lines


def _gold_fields(
    gold: Mapping[tuple[str, str], GoldLogProbs],
    index: int,
) -> dict[str, Any]:
    """The likelihoods of a question's first gold answer."""
    log_probs: dict[str, dict[str, list[float]]] = {}
    token_counts = {}
    for (lm, retriever), likelihoods in gold.items():
        by_retriever = log_probs.setdefault(lm, {})
        by_retriever[retriever] = rounded(likelihoods.log_probs[index])
        token_counts[lm] = int(likelihoods.token_counts[index])
    return {"answer_log_probs": log_probs, "answer_tokens": token_counts}


def answer_fields(answers: Mapping[str, Sequence[Answer]]) -> dict[str, Any]:
    """`candidates` and `cut` of one question, by system."""
    candidates, cut = {}, {}
    for name, of_system in answers.items():
        candidates[name] = candidate_records(of_system)
        is_cut = of_system[0].is_cut
        if is_cut is not None:
            cut[name] = is_cut
    return {"candidates": candidates, "cut": cut}


# ---- tasks ----


def generated_detail(answers: Sequence[Answer]) -> TaskDetail:
    """What is kept of the answers that a language model wrote to a task's question."""
    return {"candidates": candidate_records(answers), "cut": answers[0].is_cut}


def chosen_detail(
    item: EvalExample,
    result: ChoiceResult,
    tokenizer: Tokenizer,
) -> TaskDetail:
    """What is kept of a choice: the choices as candidates, and the right one's likelihood."""
    # The best by the task's rule first, as the answer was chosen.
    candidates = []
    for choice in np.argsort(-result.scores, kind="stable").tolist():
        text = item.choices[choice].answer
        probability = float(np.exp(result.log_probs[choice]))
        by_chunk = result.by_chunk[:, choice].tolist()
        candidates.append(Answer(text, probability, tuple(by_chunk)))
    detail: TaskDetail = {"candidates": candidate_records(candidates), "cut": False}
    # Of hidden questions the right choice is not known.
    if item.label >= 0:
        right = item.choices[item.label]
        detail["answer_log_probs"] = rounded(result.by_chunk[:, item.label])
        detail["answer_tokens"] = len(answer_ids(tokenizer, right.scored))
    return detail


def add_chunks(
    details: Sequence[TaskDetail],
    retrieval: Retrieval,
) -> None:
    """Say of each question which chunks it was answered with, and their weights."""
    rows = retrieval.rows.tolist()
    for detail, of_question, log_probs in zip(details, rows, retrieval.log_probs, strict=True):
        detail["rows"] = of_question
        detail["log_p_R"] = rounded(log_probs)


def task_detail_lines(
    ids: Sequence[str],
    by_system: Mapping[str, Sequence[TaskDetail]],
) -> list[dict[str, Any]]:
    """A line for each question of a task, from what is kept by system; a system may have kept nothing."""
    lines = []
    for index, question_id in enumerate(ids):
        line: dict[str, Any] = {"id": question_id, "rows": {}, "log_p_R": {}}
        line |= {"answer_log_probs": {}, "answer_tokens": {}, "candidates": {}, "cut": {}}
        for name, details in by_system.items():
            if details:
                _add_system(line, name, details[index])
        lines.append(line)
    return lines


def _add_system(
    line: dict[str, Any],
    name: str,
    detail: TaskDetail,
) -> None:
    """Put what one system left of a question into its line."""
    system = SYSTEMS[name]
    line["candidates"][name] = detail["candidates"]
    if detail["cut"] is not None:
        line["cut"][name] = detail["cut"]
    # A task without queries has no chunks.
    if system.retriever is None or "rows" not in detail:
        return
    line["rows"][system.retriever] = detail["rows"]
    line["log_p_R"][system.retriever] = detail["log_p_R"]
    if "answer_log_probs" in detail:
        by_retriever = line["answer_log_probs"].setdefault(system.lm, {})
        by_retriever[system.retriever] = detail["answer_log_probs"]
        line["answer_tokens"][system.lm] = detail["answer_tokens"]
