"""What few questions are said to be too few for."""

from radit_jax.data.records import Question
from radit_jax.data.sources.small_data import small_data_warnings


def questions(count, num_passages):
    """Questions, some of them on the same passage."""
    return [Question(f"{n}", f"Who is {n}?", ("x",), group=f"p{n % num_passages}") for n in range(count)]


def test_questions_on_one_passage_count_once_and_that_is_said():
    warnings = small_data_warnings(
        {"train": questions(300, 7), "dev": questions(50, 50), "test": questions(4, 4)}
    )
    assert warnings == [
        "there are 7 independent train questions (300, those on one passage or document counted once) to "
        "learn from, which is little: bring more",
        "there are 4 independent test questions to evaluate with: half of them right is known to within ± 35 "
        "points, of 100 to within ± 10",
    ]
