"""The mixtures: shares, caps, and draws that depend on nothing but the seed and the ids."""

import json
import pathlib

import pytest

from radit_jax.data.finetuning.mixture import ReadOptions, draw_lm_ft, draw_r_ft, parse_weights, share_count

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
    drawn = draw_lm_ft(ReadOptions(folder, 3), NAMES, cap=130)
    # 130 + 40 of the others are 85 % of all, so 10 dialogues are 5 % and 20 texts would be 10 %
    assert {name: count["drawn"] for name, count in drawn.counts.items()} == {
        "gsm8k": 130,
        "strategyqa": 40,
        "oasst1": 10,
    }
    assert drawn.counts["gsm8k"] == {"read": 400, "kept": 400, "drawn": 130, "instances": 390}
    assert share_count(len(drawn.examples), 0.10) == 20
    assert [question.id for question in drawn.questions] == ids(drawn)


def test_shares_are_of_instances_of_which_a_passage_has_one(tmp_path):
    for name in ("oasst1", "gsm8k", "coqa"):
        (tmp_path / name).mkdir()
    turns = [{"input_text": f"What is {n}?"} for n in range(120)]
    story = {"id": "s", "story": "A story.", "questions": turns, "answers": turns}
    (tmp_path / "coqa/coqa-train-v1.0.json").write_text(json.dumps({"data": [story]}))
    lines = [{"question": f"How many are {n}?", "answer": f"It is {n}.\n#### {n}"} for n in range(60)]
    (tmp_path / "gsm8k/train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    message = {"role": "prompter", "deleted": False, "review_result": True}
    reply = {**message, "role": "assistant", "text": "So.", "replies": []}
    trees = [
        {
            "prompt": {
                **message,
                "message_id": f"p{n}",
                "text": f"Hi {n}",
                "replies": [{**reply, "message_id": f"r{n}"}],
            }
        }
        for n in range(50)
    ]
    (tmp_path / "oasst1/tree.jsonl").write_text("".join(json.dumps(tree) + "\n" for tree in trees))
    drawn = draw_lm_ft(ReadOptions(tmp_path, 0), ("oasst1", "gsm8k", "coqa"), num_chunks=3)
    # 120 + 3 × 60 instances are 85 %, so 5 % are 17.6: six dialogues of three
    assert {name: (count["drawn"], count["instances"]) for name, count in drawn.counts.items()} == {
        "coqa": (120, 120),
        "gsm8k": (60, 180),
        "oasst1": (6, 18),
    }


def test_a_weight_repeats_a_datasets_examples_or_leaves_some_out(folder):
    def drawn(**weights):
        return ids(draw_lm_ft(ReadOptions(folder, 1), ["gsm8k", "strategyqa"], cap=20, weights=weights))

    once = drawn()
    assert len(set(once)) == 40
    twice = [name for name in drawn(gsm8k=2.0) if name.startswith("gsm8k")]
    assert sorted(twice) == sorted(2 * [name for name in once if name.startswith("gsm8k")])
    half = {name for name in drawn(strategyqa=0.5) if name.startswith("strategyqa")}
    assert len(half) == 10 and half < set(once)
    names = ("freebase_qa", "quarel")
    plain = draw_r_ft(ReadOptions(FIXTURES, 0), names)
    weighted = draw_r_ft(ReadOptions(FIXTURES, 0), names, weights={"quarel": 3.0})
    assert weighted.counts["quarel"]["drawn"] == 3 * plain.counts["quarel"]["drawn"]
    assert parse_weights("s", ("quarel = 3",)) == {"quarel": 3.0}


def test_replies_of_one_tree_and_repeated_questions_stay_on_one_side_of_a_held_out_part(tmp_path):
    def message(name, text, role, *replies):
        known = {"message_id": name, "text": text, "role": role, "deleted": False, "review_result": True}
        return {**known, "replies": list(replies)}

    trees = []
    for n in range(60):
        last = message(f"{n}d", f"More {n}.", "assistant")
        asked = message(f"{n}c", f"And then {n}?", "prompter", last)
        replies = message(f"{n}b", "So.", "assistant", asked), message(f"{n}e", "Or so.", "assistant")
        trees.append({"prompt": message(f"{n}a", f"How is {n}?", "prompter", *replies)})
    (tmp_path / "oasst1").mkdir()
    (tmp_path / "oasst1/tree.jsonl").write_text("".join(json.dumps(tree) + "\n" for tree in trees))
    reading = ReadOptions(tmp_path, 0, held_out=0.3)
    sides = {}
    for split in ("train", "dev"):
        for name in ids(draw_lm_ft(reading, ["oasst1"], split=split)):
            sides.setdefault(name.removeprefix("oasst1/")[:-1], set()).add(split)
    assert len(sides) == 60 and all(len(own) == 1 for own in sides.values())
    assert {"train"} in sides.values() and {"dev"} in sides.values()


def test_the_same_seed_draws_the_same_and_another_seed_others(folder):
    first, again, other = (draw_lm_ft(ReadOptions(folder, seed), NAMES, cap=50) for seed in (1, 1, 2))
    assert first.examples == again.examples
    assert set(ids(first)) != set(ids(other))


def test_a_larger_draw_contains_a_smaller_one_in_its_order(folder):
    small, large = (ids(draw_lm_ft(ReadOptions(folder, 1), ["gsm8k"], cap=cap)) for cap in (20, 60))
    assert [name for name in large if name in set(small)] == small


def test_the_draw_does_not_depend_on_the_order_of_the_file(folder):
    before = draw_lm_ft(ReadOptions(folder, 1), ["strategyqa"], cap=9)
    path = folder / "strategyqa/strategyqa_train.json"
    path.write_text(json.dumps(json.loads(path.read_text())[::-1]))
    assert draw_lm_ft(ReadOptions(folder, 1), ["strategyqa"], cap=9).examples == before.examples


def test_datasets_come_mixed(folder):
    names = [name.partition("/")[0] for name in ids(draw_lm_ft(ReadOptions(folder, 1), NAMES, cap=40))]
    changes = sum(a != b for a, b in zip(names, names[1:], strict=False))
    assert changes > 20


def test_r_ft_draws_from_all_its_datasets_together():
    names = ("freebase_qa", "ms_marco", "quarel", "pubmed_qa")
    everything = draw_r_ft(ReadOptions(FIXTURES, 0), names)
    assert len(everything.examples) == 8
    drawn = draw_r_ft(ReadOptions(FIXTURES, 0), names, count=5)
    assert len(drawn.examples) == 5
    assert set(ids(drawn)) < set(ids(everything))
    assert sum(count["drawn"] for count in drawn.counts.values()) == 5
    assert all(example.background is None for example in drawn.examples)


def test_a_split_that_a_dataset_lacks_is_empty(folder):
    assert draw_lm_ft(ReadOptions(folder, 0), ["strategyqa"], split="dev").examples == []


def test_all_of_d_l_is_read_by_default():
    drawn = draw_lm_ft(ReadOptions(FIXTURES, 0))
    assert len(drawn.counts) == 20
    # 39 others; the two dialogues of the fixture are what 5 % of 46 asks for
    assert len(drawn.examples) == 39 + 2
    assert sum(example.background is not None for example in drawn.examples) == 17 + 2


def test_a_dataset_of_the_other_mixture_is_an_error():
    with pytest.raises(
        ValueError, match=r"lm_ft_datasets: expected .* \(oasst1, .*\), got 'ms_marco'\. Leave it out"
    ):
        draw_lm_ft(ReadOptions(FIXTURES, 0), ["ms_marco"])
