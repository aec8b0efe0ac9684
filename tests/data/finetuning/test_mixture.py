"""The mixtures: shares, caps, and draws that depend on nothing but the seed and the ids."""

import json
import pathlib

import pytest

from radit_jax.data.finetuning.mixture import lm_ft_tasks, r_ft_tasks, share_count

FIXTURES = pathlib.Path(__file__).parent.parent / "fixtures" / "raw"


@pytest.fixture
def folder(tmp_path):
    """400 questions of gsm8k, 40 of strategyqa and a dialogue of 100 replies."""
    (tmp_path / "gsm8k").mkdir()
    lines = [{"question": f"What is {n}?", "answer": f"It is {n}.\n#### {n}"} for n in range(400)]
    (tmp_path / "gsm8k/train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "strategyqa").mkdir()
    asked = [
        {"qid": str(n), "question": f"Is {n} even?", "answer": not n % 2, "facts": ["F."]} for n in range(40)
    ]
    (tmp_path / "strategyqa/strategyqa_train.json").write_text(json.dumps(asked))
    reply = {"role": "assistant", "deleted": False, "review_result": True, "replies": []}
    replies = [{**reply, "message_id": f"m{n}", "text": f"Reply {n}."} for n in range(100)]
    root = {"message_id": "m", "role": "prompter", "text": "Hi!", "deleted": False, "review_result": True}
    (tmp_path / "oasst1").mkdir()
    tree = {"prompt": {**root, "replies": replies}}
    (tmp_path / "oasst1/trees.jsonl").write_text(json.dumps(tree) + "\n")
    return tmp_path


NAMES = ("gsm8k", "strategyqa", "oasst1")


def ids(drawn):
    return [example.id for example in drawn.examples]


def test_lm_ft_takes_at_most_the_cap_of_a_dataset_and_five_in_a_hundred_of_dialogues(folder):
    drawn = lm_ft_tasks(folder, NAMES, cap=130, seed=3)
    # 130 + 40 of the others are 85 % of all, so 10 dialogues are 5 % and 20 texts would be 10 %
    assert {name: count["drawn"] for name, count in drawn.counts.items()} == {
        "gsm8k": 130,
        "strategyqa": 40,
        "oasst1": 10,
    }
    assert drawn.counts["gsm8k"] == {"read": 400, "kept": 400, "drawn": 130}
    assert share_count(len(drawn.examples), 0.10) == 20
    assert [question.id for question in drawn.questions] == ids(drawn)


def test_the_same_seed_draws_the_same_and_another_seed_others(folder):
    first, again, other = (lm_ft_tasks(folder, NAMES, cap=50, seed=seed) for seed in (1, 1, 2))
    assert first.examples == again.examples
    assert set(ids(first)) != set(ids(other))


def test_a_larger_draw_contains_a_smaller_one_in_its_order(folder):
    small, large = (ids(lm_ft_tasks(folder, ["gsm8k"], cap=cap, seed=1)) for cap in (20, 60))
    assert [name for name in large if name in set(small)] == small


def test_the_draw_does_not_depend_on_the_order_of_the_file(folder):
    before = lm_ft_tasks(folder, ["strategyqa"], cap=9, seed=1)
    path = folder / "strategyqa/strategyqa_train.json"
    path.write_text(json.dumps(json.loads(path.read_text())[::-1]))
    assert lm_ft_tasks(folder, ["strategyqa"], cap=9, seed=1).examples == before.examples


def test_datasets_come_mixed(folder):
    names = [name.partition("/")[0] for name in ids(lm_ft_tasks(folder, NAMES, cap=40, seed=1))]
    changes = sum(a != b for a, b in zip(names, names[1:], strict=False))
    assert changes > 20


def test_r_ft_draws_from_all_its_datasets_together():
    names = ("freebase_qa", "ms_marco", "quarel", "pubmed_qa")
    everything = r_ft_tasks(FIXTURES, names, seed=0)
    assert len(everything.examples) == 8
    drawn = r_ft_tasks(FIXTURES, names, count=5, seed=0)
    assert len(drawn.examples) == 5
    assert set(ids(drawn)) < set(ids(everything))
    assert sum(count["drawn"] for count in drawn.counts.values()) == 5
    assert all(example.background is None for example in drawn.examples)


def test_a_split_that_a_dataset_lacks_is_empty(folder):
    assert lm_ft_tasks(folder, ["strategyqa"], split="dev", seed=0).examples == []


def test_all_of_d_l_is_read_by_default():
    drawn = lm_ft_tasks(FIXTURES, seed=0)
    assert len(drawn.counts) == 20
    # 39 others; the two dialogues of the fixture are what 5 % of 46 asks for
    assert len(drawn.examples) == 39 + 2
    assert sum(example.background is not None for example in drawn.examples) == 17 + 2


def test_a_dataset_of_the_other_mixture_is_an_error():
    with pytest.raises(
        ValueError, match=r"lm_ft: task 'ms_marco' came, needed is one of oasst1, .*; leave it out"
    ):
        lm_ft_tasks(FIXTURES, ["ms_marco"], seed=0)
