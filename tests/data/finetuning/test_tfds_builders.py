"""TFDS: what was built is what the publisher's files hold, without TensorFlow."""

import pathlib
import subprocess
import sys
import types
from collections import Counter

import pytest

from radit_jax.data.finetuning.datasets import DATASETS, hub_rows, read_items
from radit_jax.data.finetuning.mixture import ReadOptions, draw_lm_ft
from radit_jax.data.finetuning.tfds_builders import BUILDERS, build_dataset, built_items, main

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures" / "raw"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    counts = {
        name: build_dataset(name, data_dir=folder, manual_dir=FIXTURES)
        for name in ("gsm8k", "newsqa", "coqa")
    }
    return folder, counts


def by_id(items):
    return sorted(items, key=lambda item: item.id)


@pytest.mark.parametrize(("name", "split"), [("gsm8k", "train"), ("newsqa", "dev"), ("coqa", "train")])
def test_what_was_built_is_what_the_files_hold(built, name, split):
    items = built_items(DATASETS[name], built[0], split, Counter())
    assert by_id(items) == by_id(read_items(DATASETS[name], FIXTURES / name, split))


def test_counts_come_by_split_and_reason(built):
    assert built[1]["newsqa"] == {
        "train": {"read": 4, "kept": 2, "skipped: no answer": 1, "skipped: bad question": 1},
        "dev": {"read": 1, "kept": 1},
    }


def test_a_split_that_was_not_built_is_empty(built):
    assert list(built_items(DATASETS["gsm8k"], built[0], "dev", Counter())) == []


def test_mixtures_read_what_was_built(built):
    from_files = draw_lm_ft(ReadOptions(FIXTURES, 0), ["gsm8k", "coqa"])
    assert draw_lm_ft(ReadOptions(built[0], 0), ["gsm8k", "coqa"]).examples == from_files.examples


def test_every_dataset_has_a_builder_under_its_own_name():
    assert {name: builder.name for name, builder in BUILDERS.items()} == {
        name: f"radit_{name}" for name in DATASETS
    }


def test_the_command_needs_no_tensorflow(tmp_path):
    code = (
        "import sys\nfrom radit_jax.data.finetuning.tfds_builders import main\n"
        f"main(['quarel', '--manual_dir={FIXTURES}', '--data_dir={tmp_path}'])\n"
        "print('tensorflow' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-2:] == ["quarel train: read 2, kept 2", "False"]
    files = [path.name for path in tmp_path.rglob("*array_record*")]
    assert files == ["radit_quarel-train.array_record-00000-of-00001"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["gsm8k"],
            "error: gsm8k: expected --manual_dir=FOLDER with gsm8k/ in it, or --hub, got --manual_dir=None",
        ),
        (["gsm"], "error: dataset: expected one of aqua_rat, "),
        (
            ["gsm8k", f"--manual_dir={FIXTURES}/coqa"],
            "gsm8k: expected one at least of train.jsonl, test.jsonl, got none",
        ),
    ],
)
def test_what_cannot_be_built_is_one_line(tmp_path, capsys, arguments, message):
    assert main([*arguments, f"--data_dir={tmp_path}"]) == 1
    assert message in capsys.readouterr().err


def test_what_was_not_built_says_how_to(tmp_path):
    with pytest.raises(
        ValueError,
        match=r"radit_gsm8k: expected version 1\.0\.0, got none\. Run .*finetuning\.tfds_builders gsm8k",
    ):
        list(built_items(DATASETS["gsm8k"], tmp_path, "train", Counter()))


# ---- the hub, which a fake stands for ----

SCRIPT = RuntimeError("Dataset scripts are no longer supported, but found math_qa.py")
GATED = FileNotFoundError(
    "Dataset 'tau/commonsense_qa' is a gated dataset on the Hub. You must be authenticated"
)
ROW = {"Problem": "1 + 1 ?", "options": "a ) 1 , b ) 2", "correct": "b"}


@pytest.fixture
def hub(monkeypatch):
    """A hub that has gsm8k and, as a script, math_qa with its conversion; all else is gated."""
    asked = []

    def load_dataset(name, config, *, split, revision=None):
        asked.append((name, revision))
        if name == "openai/gsm8k":
            return [{"question": "1 + 1 ?", "answer": "Two.\n#### 2"}]
        if name == "allenai/math_qa":
            if revision != "refs/convert/parquet":
                raise SCRIPT
            return [ROW]
        raise GATED

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    return asked


def test_of_a_dataset_with_a_script_the_hubs_conversion_is_read(hub):
    assert list(hub_rows(DATASETS["math_qa"], "train")) == [ROW]
    assert hub == [("allenai/math_qa", None), ("allenai/math_qa", "refs/convert/parquet")]


def test_a_gated_dataset_says_what_to_do(hub):
    with pytest.raises(
        ValueError, match=r"tau/commonsense_qa: expected its train .* gated .*hf auth login.*from http"
    ):
        list(hub_rows(DATASETS["commonsense_qa"], "train"))


def test_a_dataset_that_fails_is_listed_at_the_end_and_the_others_are_built(hub, tmp_path, capsys):
    names = ["gsm8k", "commonsense_qa", "math_qa"]
    assert main([*names, "--hub", f"--data_dir={tmp_path}"]) == 1
    printed = capsys.readouterr()
    assert "gsm8k train: read 1, kept 1" in printed.out and "math_qa test: read 1, kept 1" in printed.out
    assert printed.err.splitlines()[-1] == "error: expected 3 datasets, got 2. Not built: commonsense_qa."
    assert main(["gsm8k", "--hub", f"--data_dir={tmp_path}"]) == 0
