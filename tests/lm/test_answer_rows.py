"""Which candidate lies in which row, by hand. `test_ensemble` holds that scores are right in any rows."""

import numpy as np
import pytest
from uncached import ENDS

from radit_jax.lm import answer_rows
from radit_jax.lm.answer_rows import scoring_batches
from radit_jax.lm.prefix_sharing import ONE_DEVICE
from radit_jax.method.answer_scoring import NOTHING, STOP


@pytest.fixture
def small_rows(monkeypatch):
    """Two rows together, of four slots where an answer has five tokens at most."""
    monkeypatch.setattr(answer_rows, "ROWS_PER_SCORING", 2)
    monkeypatch.setattr(answer_rows, "SLOT_UNIT", 2)


def batches(candidates, num_groups=1):
    placement = ONE_DEVICE._replace(data_parallel_size=num_groups)
    made = scoring_batches(candidates, ENDS, max_new_tokens=5, num_answers=4, placement=placement)
    return list(made)


def test_candidates_that_do_not_fit_in_a_row_get_another(small_rows):
    full, ended, longer = (3, 4, 5, 0, 3), (4,), (5, 5, 3)
    first, second = batches([[full, None, ended, longer], [], [()]])
    assert first.prompts.tolist() == [[0, 0]]
    assert first.answers.tokens.tolist() == [[3, 4, 5, 0], [4, 5, 5, 3]]
    assert first.answers.offsets.tolist() == [[0, 1, 2, 3], [0, 0, 1, 2]]
    assert first.answers.continuation_ids.tolist() == [[1, 1, 1, 1], [3, 4, 4, 4]]
    assert first.answers.targets.tolist() == [[4, 5, 0, 3], [STOP, 5, 3, STOP]]
    assert first.answers.first_targets.tolist() == [[3, NOTHING, NOTHING, NOTHING], [NOTHING, NOTHING, 4, 5]]
    # An answer without tokens takes no slot. The batch is filled up with an empty row.
    assert second.prompts.tolist() == [[2, 0]]
    assert (second.answers.continuation_ids == 0).all()
    assert second.answers.first_targets.tolist() == [[STOP, NOTHING, NOTHING, NOTHING], [NOTHING] * 4]


def test_a_row_stays_in_the_device_group_of_its_prompt(small_rows):
    first, second = batches([[], [(3,)], [(4,)], [(5,)]], num_groups=2)
    assert first.prompts.tolist() == [[1], [0]]
    assert second.prompts.tolist() == [[0], [1]]
    assert first.rows_of_prompts(4).tolist() == [1, 2]
    assert second.rows_of_prompts(4).tolist() == [0, 3]
    assert second.answers.first_targets[:, 0].tolist() == [NOTHING, 5]


def test_without_candidates_there_is_nothing_to_score():
    assert batches([[], [None, None]]) == []


def test_a_row_has_room_for_the_candidates_of_an_average_prompt(small_rows):
    """Three and one candidates of four slots, and none: eight slots on average."""
    full = [(token,) * 5 for token in (3, 4, 5)]
    first, second = batches([full, [], full[:1]])
    assert first.answers.tokens.shape == (2, 8)
    assert first.prompts.tolist() == [[0, 0]]
    assert second.prompts.tolist() == [[2, 0]]
    assert (first.answers.continuation_ids > 0).sum(axis=1).tolist() == [8, 4]


def test_all_batches_have_rows_of_one_length(small_rows):
    rng = np.random.default_rng(0)
    candidates = []
    for _ in range(6):
        lengths = rng.integers(0, 6, 4)
        candidates.append([tuple(rng.integers(3, 6, length).tolist()) for length in lengths])
    made = batches(candidates)
    assert len(made) > 2
    assert len({batch.answers.tokens.shape for batch in made}) == 1
