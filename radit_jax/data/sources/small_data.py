"""What few questions cannot teach, nor show: said before a run, in words."""

from collections.abc import Mapping, Sequence

from radit_jax.data.records import Question
from radit_jax.text.statistics import share_interval

SMALL_BYTES = 16 << 20  # of files that are read whole before a run, in a second or two
# Fewer groups of questions than these are worth a warning.
FEW_TRAIN = 200
FEW_DEV = 50
FEW_TEST = 100


def small_data_warnings(questions: Mapping[str, Sequence[Question]]) -> list[str]:
    """What the questions of the splits train, dev and test are too few for.

    Questions of one group, such as those on one passage, count once.
    """
    counts, words = {}, {}
    for split, of_split in questions.items():
        counts[split] = len({question.resampling_group for question in of_split})
        words[split] = _questions(split, counts[split], len(of_split))
    warnings = []

    # 1) To learn.
    if counts["train"] < FEW_TRAIN:
        warnings.append(f"there are {words['train']} to learn from, which is little: bring more")
    # 2) To choose a checkpoint.
    if counts["dev"] < FEW_DEV:
        warnings.append(
            f"there are {words['dev']} to choose LM-ft's and R-ft's checkpoints by: chance "
            "chooses with so few, and the untuned model may be kept"
        )
    # 3) To measure what was learnt.
    if counts["test"] < FEW_TEST:
        half = share_interval(0.5, counts["test"])
        enough = share_interval(0.5, FEW_TEST)
        warnings.append(
            f"there are {words['test']} to evaluate with: half of them right is known to within "
            f"{_points(half)} points, of {FEW_TEST} to within {_points(enough)}"
        )
    return warnings


def _questions(split: str, count: int, total: int) -> str:
    words = f"{count} independent {split} question{'' if count == 1 else 's'}"
    # Else nobody knows why the number is not that of the questions.
    return words if count == total else f"{words} ({total:,}, those on one passage or document counted once)"


def _points(figure: Mapping[str, float | None]) -> str:
    low = figure["low"]
    assert low is not None
    return f"± {100 * (0.5 - low):.0f}"
