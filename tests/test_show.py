"""The command that prints examples: what it prints is what the batch holds."""

import ast
import copy
import pathlib

import families
import pytest

from radit_jax.data.batches.example_lines import example_lines
from radit_jax.data.finetuning.datasets import DATASETS
from radit_jax.data.records import Example
from radit_jax.runtime.pretrained.tokenizer_files import save_tokenizer
from radit_jax.runtime.pretrained.tokenizer_training import train_bpe
from radit_jax.show import main

FIXTURES = pathlib.Path(__file__).parent / "data" / "fixtures" / "raw"


class Letters:
    """A tokeniser of single characters."""

    start_ids, end_ids, opening = (1,), (2,), ""
    special_names = {1: "<bos>", 2: "<eos>"}

    def encode(self, text):
        return [ord(letter) for letter in text]

    def encode_pair(self, prompt, answer):
        return self.encode(prompt + answer), len(self.encode(prompt))

    def decode(self, ids):
        return "".join(chr(number) for number in ids)


def rows(lines):
    return [line.split() for line in lines[7:]]


def test_targets_stand_beside_the_positions_that_predict_them():
    lines = list(example_lines(Letters(), Example("e", "a", "a", "bc"), None, 10, colour=False))
    assert rows(lines) == [
        ["0", "1", "<bos>"],
        ["1", "97", "'a'", "98", "'b'", "1"],
        ["2", "98", "'b'", "99", "'c'", "1"],
        ["3", "99", "'c'", "2", "<eos>", "1"],
        ["4", "2", "<eos>"],
    ]


def test_the_whole_text_is_shown_with_its_special_tokens():
    example = Example("e", "", "a", "b", background="x" * 40)
    lines = list(example_lines(Letters(), example, None, 100, colour=False))
    assert lines[5] == f"   read        '<bos>Background: {'x' * 40}\\n\\nab<eos>'"


def test_the_background_is_read_and_cut_to_the_row():
    example = Example("e", "", "a", "b", background="xyz")
    assert (
        len(rows(list(example_lines(Letters(), example, None, 100, colour=False))))
        == 1 + len("Background: xyz\n\nab") + 1
    )
    lines = list(example_lines(Letters(), example, None, 18, colour=False))
    assert "cut to fit" in lines[2]
    assert len(rows(lines)) == 18


def test_the_middle_of_a_long_context_is_left_out():
    lines = list(example_lines(Letters(), Example("e", "", "a" * 50, "b"), None, 100, colour=False))
    assert lines[7 + 12].split() == ["…", "26", "more"]
    assert len(lines) == 7 + 12 + 1 + 12 + 3  # two ends, then b, <eos> and the last of the context


def test_on_a_terminal_what_is_predicted_is_in_colour():
    lines = list(example_lines(Letters(), Example("e", "a", "a", "b"), None, 10, colour=True))[7:]
    assert [line.startswith("\033[1;32m") for line in lines] == [False, True, True, False]
    assert all(line.endswith("\033[0m") for line in lines)


def test_the_command_shows_a_dataset_with_a_tokeniser_of_its_own_or_a_given_one(tmp_path, capsys):
    assert main(["squad_v2", f"--data={FIXTURES}"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("tokeniser: a BPE of these examples")
    assert "── squad_v2/s1" in printed and '" I don\'t know"' in printed
    save_tokenizer(tmp_path, train_bpe(["Where does Dray lie?"], 300))
    assert main(["squad_v2", f"--data={FIXTURES}", f"--tokenizer={tmp_path}", "--count=1"]) == 0
    assert capsys.readouterr().out.startswith("── squad_v2/s1")


def test_in_a_chat_the_command_shows_the_template(tmp_path, capsys):
    hf = copy.deepcopy(families.qwen())
    hf.chat_template = families.TEMPLATES["qwen"]
    hf.save_pretrained(tmp_path)
    arguments = ["squad_v2", f"--data={FIXTURES}", f"--tokenizer={tmp_path}", "--count=1", "--prompt=chat"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    (read,) = [line for line in printed.splitlines() if line.startswith("   read")]
    text = ast.literal_eval(read.removeprefix("   read").strip())
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    assert text.startswith(f"{system}<|im_start|>user\nBackground: ") and text.endswith("<|im_end|>")
    assert ":<|im_end|>\n<|im_start|>assistant\n" in text and "<|im_start|>" in printed.splitlines()[7]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gsm"], f"dataset: expected one of {', '.join(sorted(DATASETS))}, got 'gsm'."),
        (["gsm8k", "--mixture=r_ft"], "gsm8k: expected --mixture=lm_ft, got r_ft."),
        (["gsm8k", "--split=dev"], "gsm8k: expected examples of dev in "),
        (["gsm8k", "--tokenizer=/nowhere"], "checkpoint /nowhere: expected a folder, got none"),
        (["gsm8k", "--tokenizer=package:nothing"], "checkpoint package:nothing: expected the installed"),
        (["gsm8k", "--prompt=chat"], "base.lm.prompt: expected a chat template that is in the tokeniser's"),
    ],
)
def test_what_cannot_be_shown_is_one_line(capsys, arguments, message):
    assert main([*arguments, f"--data={FIXTURES}"]) == 1
    assert capsys.readouterr().err.startswith(f"error: {message}")
