"""How much work is before a run, in a line: steps to train, and pairs to score."""

from collections.abc import Iterable

from radit_jax.config import Experiment, GeneratedWorld
from radit_jax.pipeline.stage import Stage


def work_ahead(experiment: Experiment, stages: Iterable[Stage]) -> str:
    """The sizes of the stages that take long, by name; empty where none of `stages` does.

    How long they take depends on the machine, and an earlier run on it knows that better than any table.
    """
    sizes = []
    for stage in stages:
        size = _size(experiment, stage)
        if size:
            sizes.append(f"{stage.name} {size}")
    return f"ahead: {', '.join(sizes)}" if sizes else ""


def _size(experiment: Experiment, stage: Stage) -> str:
    """The steps of a stage that trains, or the pairs of one that scores."""
    if stage.kind == "score":
        return _pairs(experiment)
    # Base models are trained only without a checkpoint.
    trained = {
        "base/lm": experiment.base.lm,
        "base/retriever": experiment.base.retriever,
        "lm_ft": experiment.lm_ft,
        "r_ft": experiment.r_ft,
    }
    settings = trained.get(stage.name)
    if settings is None or getattr(settings, "checkpoint", ""):
        return ""
    return f"{settings.optimizer.steps:,} steps"


def _pairs(experiment: Experiment) -> str:
    """The pairs of a question and a chunk whose likelihood is measured; none where a file has the scores."""
    if experiment.score.file:
        return ""
    # The candidates, and the question without a chunk.
    a_question = experiment.retrieve.num_chunks + 1
    examples = experiment.r_ft.num_examples or _num_examples(experiment)
    if not examples:
        return f"{a_question} pairs a question"
    return f"{examples * a_question:,} pairs"


def _num_examples(experiment: Experiment) -> int:
    """The examples of R-ft on a generated world; 0 of other data, whose questions are counted later."""
    data = experiment.data
    if not isinstance(data, GeneratedWorld):
        return 0
    # Questions are a fraction of the examples, the rest is cut from text.
    questions = data.train_entities * data.train_questions_per_entity
    fraction = 1 - experiment.r_ft.corpus_text_fraction
    return round(questions / fraction) if fraction else 0
