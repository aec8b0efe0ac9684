"""What a run says of its size before it begins."""

from radit_jax import config, train
from radit_jax.pipeline.graph import stages
from radit_jax.pipeline.work_ahead import work_ahead

TINY = config.load_experiment(str(train.TINY))


def ahead(experiment: config.Experiment, *names: str) -> str:
    table = stages(experiment)
    return work_ahead(experiment, [table[name] for name in names or table])


def test_the_sizes_of_tiny_are_those_of_its_finished_run() -> None:
    # 600 entities x 6 questions are 0.9 of 4,000 examples; each has ten chunks, and none.
    assert ahead(TINY) == (
        "ahead: base/lm 420 steps, base/retriever 200 steps, lm_ft 200 steps, score 44,000 pairs, "
        "r_ft 300 steps"
    )
    assert ahead(TINY, "corpus", "export") == ""


def test_what_is_read_from_a_checkpoint_or_a_file_is_no_work() -> None:
    assert ahead(config.load_experiment("wiki_gemma"), "base/lm", "score").startswith("ahead: score ")
    scored = config.override_settings(TINY, ["score.language_model=scores.jsonl"])
    assert ahead(scored, "score") == ""
    assert ahead(config.load_experiment("wiki_small"), "score") == "ahead: score 11 pairs a question"
