"""What a run found, in sentences: a terminal and a report show them before any table."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from radit_jax.config import RFtConfig
from radit_jax.text.metrics import exact_match
from radit_jax.text.results_table import reading_results
from radit_jax.text.statistics import in_percent, percent_with_interval

JsonObject = Mapping[str, Any]
HARDLY = 0.01  # an exact match below this says little of a change in the answers
HALF = 0.5  # of the labels
SHARP = 0.25  # τ with which means of log p make labels that prefer some chunks
TRAININGS = {
    "lm_ft": "LM-ft",
    "r_ft": "R-ft",
}
UNTUNED = "the base LM and retriever"


class Changes(NamedTuple):
    """How many questions an answer became right for, and wrong for."""

    better: int
    worse: int


def changed_answers(
    predictions: Iterable[JsonObject],
    after: str = "radit",
    before: str = "base",
) -> Changes:
    """What became right and what became wrong from one system to another, by `predictions.jsonl`'s lines."""
    better = worse = 0
    for line in predictions:
        answers, gold = line["systems"], line["gold"]
        right_after = exact_match(answers[after], gold)
        right_before = exact_match(answers[before], gold)
        better += right_after > right_before
        worse += right_after < right_before
    return Changes(better, worse)


def verdict(
    results: JsonObject,
    predictions: Iterable[JsonObject] = (),
    best_steps: Mapping[str, int] | None = None,
    dev_mrr: float | None = None,
) -> str:
    """A run's `results.json` in a few sentences, the most important first.

    `predictions` are the lines of `predictions.jsonl`, which say how many answers got worse. `best_steps` has
    the step of the checkpoint that LM-ft ("lm_ft") and R-ft ("r_ft") kept, where that is known: 0 is the
    untuned model. `dev_mrr` is the kept retriever's MRR@10 on the development questions.
    """
    with reading_results():
        if results.get("average"):
            sentences = [_tasks_sentence(results)]
        elif results.get("systems"):
            sentences = [_answers_sentence(results, list(predictions))]
        else:
            sentences = []
        if "retrieval" in results:
            sentences += _retrieval_sentences(results)
    # A run that learnt nothing would otherwise read like a success.
    first = learnt_nothing(best_steps or {}, dev_mrr)
    return " ".join(filter(None, [first, *sentences]))


def learnt_nothing(best_steps: Mapping[str, int], dev_mrr: float | None = None) -> str:
    """The sentence for trainings that kept what they began with; "" where each learnt something."""
    untuned = []
    for name, title in TRAININGS.items():
        if best_steps.get(name) == 0:
            untuned.append(title)
    if not untuned:
        return ""
    if len(untuned) == len(TRAININGS):
        sentence = (
            "This run learnt nothing: LM-ft and R-ft both kept their checkpoint of step 0, so that all "
            "systems are the untuned models."
        )
    else:
        sentence = (
            f"{untuned[0]} learnt nothing: the best on the development questions was its checkpoint of step "
            "0, the untuned model."
        )
    # Nothing is better than the best.
    if _no_room(best_steps, dev_mrr):
        sentence += (
            " The untuned retriever puts a right chunk first for every development question, so these "
            "cannot show a gain of R-ft."
        )
    return sentence


def what_may_help(best_steps: Mapping[str, int], dev_mrr: float | None, r_ft: RFtConfig) -> list[str]:
    """What to do after a run that learnt nothing, without what its settings say already."""
    no_room = _no_room(best_steps, dev_mrr)
    advice = ["bring more questions"]
    if no_room:
        advice = ["bring more questions, and harder ones to choose R-ft's checkpoint by"]
    trainings = [name for name in TRAININGS if best_steps.get(name) == 0]
    # Labels and steps are not at fault where there is no room.
    if no_room:
        trainings.remove("r_ft")
    elif "r_ft" in trainings:
        labels = _other_labels(r_ft)
        if labels:
            advice.append(f"try labels that prefer some chunks ({', '.join(labels)})")
    if trainings:
        rates = " and ".join(f"{name}.optimizer.peak_lr" for name in trainings)
        advice.append(f"lower {rates}")
    return advice


def _no_room(best_steps: Mapping[str, int], dev_mrr: float | None) -> bool:
    """Whether R-ft kept the untuned retriever because that cannot be surpassed."""
    return best_steps.get("r_ft") == 0 and dev_mrr is not None and dev_mrr >= 1


def _other_labels(r_ft: RFtConfig) -> list[str]:
    """The settings of labels that are less flat, and that the run did not have."""
    settings = []
    if r_ft.lm_score != "mean_log_prob":
        settings.append("r_ft.lm_score=mean_log_prob")
    if r_ft.lm_score != "mean_log_prob" or r_ft.tau > SHARP:
        settings.append(f"r_ft.tau={SHARP}")
    return settings


# ---- sentences ----


def _answers_sentence(results: JsonObject, predictions: list[JsonObject]) -> str:
    """What RA-DIT answers of the corpus' own questions, and what it gains."""
    figure = results["systems"]["radit"]["exact_match"]
    num_questions = results["num_questions"]
    sentence = f"RA-DIT answers {_share(figure)} of {_questions(num_questions)}{_ends(figure)}"
    gain = _gain(results["gains"]["radit-base"], UNTUNED)
    sentence += f", {gain}"
    # How many changed says what a difference of means hides.
    if predictions:
        changes = changed_answers(predictions)
        sentence += f"; {changes.better} got better, {changes.worse} got worse"
    sentence += "."
    # Where nothing is answered, nothing can be gained.
    shares = []
    for system in results["systems"].values():
        shares.append(system["exact_match"]["value"])
    if max(shares) < HARDLY:
        sentence += " No system answers more than one question in a hundred: the likelihoods (NLL) tell more."
    return sentence


def _tasks_sentence(results: JsonObject) -> str:
    """What RA-DIT scores over tasks."""
    scored = [task for task in results["tasks"].values() if task["systems"]]
    figure = results["average"]["systems"]["radit"]["mean"]
    gain = _gain(results["average"]["gains"]["radit-base"], UNTUNED)
    over = "on one task" if len(scored) == 1 else f"on average over {len(scored)} tasks"
    num_questions = sum(task["num_questions"] for task in scored)
    scores = percent_with_interval(figure)
    return f"RA-DIT scores {scores} {over} of {_questions(num_questions)}, {gain}."


def _retrieval_sentences(results: JsonObject) -> list[str]:
    """How often the first chunk holds an answer after R-ft, and before."""
    after = results["retrieval"]["r_ft"]["answer_recall@1"]
    gain = results.get("retrieval_gains", {}).get("answer_recall@1")
    # Without open questions nothing was judged; older files have no gains.
    if after["value"] is None or gain is None:
        return []
    share = f"{_share(after)} of the questions{_ends(after)}"
    gained = _gain(gain, "the base retriever")
    return [f"The tuned retriever puts a chunk that holds an answer first for {share}, {gained}."]


def signal_in_words(signal: JsonObject) -> str:
    """What the labels can teach the retriever, by the figures that R-ft's manifest has of a round."""
    flat = signal["flat_targets"]
    if flat is None:
        return "The labels say nothing: no example has two chunks to choose from."
    if flat > HALF:
        return (
            f"The labels say little: {in_percent(flat)} % of them are flat, which means that to the language "
            "model one chunk is as good as another."
        )
    # Where there is something to rank, who ranks better?
    sentence = f"A label spreads over {signal['effective_chunks']:.1f} chunks on average."
    by_lm, by_retriever = signal["mixed_lm_first"], signal["mixed_retriever_first"]
    if by_lm is None:
        return sentence
    sentence += (
        f" Of {signal['mixed_examples']} questions with useful and useless chunks, the language model puts a "
        f"useful one first for {in_percent(by_lm)} %, the untuned retriever for {in_percent(by_retriever)} %"
    )
    if by_lm > by_retriever:
        return f"{sentence}: there is something to learn."
    return f"{sentence}: the retriever has little to learn from it."


# ---- words ----


def _share(figure: JsonObject) -> str:
    return f"{in_percent(figure['value'])} %"


def _questions(count: int) -> str:
    return "one question" if count == 1 else f"{count:,} questions"


def _ends(figure: JsonObject) -> str:
    """A figure's interval in percent, with the space before it."""
    if figure["low"] is None:
        return ""
    return f" [{in_percent(figure['low'])}, {in_percent(figure['high'])}]"


def _gain(figure: JsonObject, before: str) -> str:
    """A gain over `before` in words, and whether the questions can tell it from none.

    >>> _gain({"value": 0.376, "low": 0.33, "high": 0.42}, "the base LM")
    '37.6 points [33.0, 42.0] over the base LM'
    >>> _gain({"value": -0.01, "low": -0.03, "high": 0.01}, "it")
    '1.0 points [-3.0, 1.0] below it, which these questions cannot tell from none'
    """
    value = figure["value"]
    low = figure["low"]
    high = figure["high"]
    direction = "over" if value >= 0 else "below"
    words = f"{abs(100 * value):.1f} points{_ends(figure)} {direction} {before}"
    if low is not None and low <= 0 <= high:
        words += ", which these questions cannot tell from none"
    return words
