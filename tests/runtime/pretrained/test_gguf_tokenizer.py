"""Tokenisers out of GGUF's metadata, against SentencePiece, a merge by hand, and words split by hand."""

import itertools
import json
import random
import re

import pytest
import sentencepiece
from gguf_files import gemma_file, write_gguf
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from radit_jax.runtime.pretrained.gguf_file import open_gguf
from radit_jax.runtime.pretrained.gguf_tokenizer import SPLITTINGS, gguf_tokenizer
from radit_jax.runtime.pretrained.tokenizer_files import load_tokenizer, save_tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


def write_tokenizer(path, pieces, types, **fields):
    fields = {"tokens": pieces, "token_type": types, **fields}
    template = fields.pop("chat_template", None)
    metadata = {f"tokenizer.ggml.{name}": value for name, value in fields.items()}
    if template:
        metadata["tokenizer.chat_template"] = template
    return write_gguf(path, {}, **metadata)


# ---- SentencePiece ----


@pytest.fixture(scope="module")
def llama(shared_data):
    return sentencepiece.SentencePieceProcessor(str(shared_data / "tokenizers" / "llama_tokenizer.model"))


@pytest.fixture(scope="module")
def llama_file(llama, tmp_path_factory):
    """LLaMA's tokeniser in a GGUF file, as llama.cpp's converter writes it."""
    ids = range(llama.vocab_size())
    types = []
    for number in ids:
        kinds = {
            UNKNOWN: llama.is_unknown,
            CONTROL: llama.is_control,
            BYTE: llama.is_byte,
        }
        types.append(next((kind for kind, holds in kinds.items() if holds(number)), NORMAL))
    return write_tokenizer(
        tmp_path_factory.mktemp("llama") / "llama.gguf",
        [llama.id_to_piece(number) for number in ids],
        types,
        model="llama",
        scores=[llama.get_score(number) for number in ids],
        bos_token_id=1,
        eos_token_id=2,
        unknown_token_id=0,
    )


def test_ids_on_wiki_passages_are_those_of_sentencepiece(llama, llama_file, shared_data):
    tokenizer = load_tokenizer(llama_file)
    with (shared_data / "wiki" / "passages.jsonl").open() as file:
        texts = [json.loads(line)["text"] for line in itertools.islice(file, 1000)]
    assert len(texts) == 1000 and tokenizer.opening == " "
    for text in texts:
        assert tokenizer.encode_prompt(text) == [1, *llama.encode(text)]
    assert tokenizer.hf(texts[0])["input_ids"] == [1, *llama.encode(texts[0])]
    assert tokenizer.decode(tokenizer.encode(texts[0])) == texts[0]


def test_ids_of_repeated_letters_and_spaces_are_those_of_sentencepiece(llama, llama_file):
    """Where a piece is made in two ways, the order of merges shows."""
    tokenizer = load_tokenizer(llama_file)
    draw = random.Random(0)
    parts = ["=", "--", " ", "\n", "\t", "a", "ba", "ha", "the", "é", "🎈", "東京", "</s>"]
    for _ in range(1000):
        text = "".join(draw.choice(parts) * draw.randint(1, 5) for _ in range(draw.randint(1, 8)))
        assert tokenizer.encode_prompt(text)[1:] == llama.encode(text), text


def merged_slowly(text, scores, whole):
    """SentencePiece's BPE, step by step: the best two neighbours are joined until none make a piece."""
    symbols = []
    while text:
        longest = max((piece for piece in whole if text.startswith(piece)), key=len, default=text[0])
        symbols.append(longest)
        text = text[len(longest) :]
    while True:
        best = None
        for place, (left, right) in enumerate(itertools.pairwise(symbols)):
            is_joined = left not in whole and right not in whole and left + right in scores
            if is_joined and (best is None or scores[left + right] > best[0]):
                best = (scores[left + right], place)
        if best is None:
            return symbols
        place = best[1]
        symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]


@pytest.mark.parametrize("seed", range(5))
def test_random_vocabularies_merge_as_sentencepiece_does(tmp_path, seed):
    draw = random.Random(seed)
    letters = ["▁", "a", "b", "c"]
    words = {"".join(draw.choices(letters, k=draw.randint(2, 4))) for _ in range(40)}
    whole = ["\n\n", "  ", "a\n"]
    merged = sorted(words - {"cab"})  # which is unused
    draw.shuffle(merged)
    # Ranks as scores, and single letters after all of them, as SentencePiece gives them.
    ranked = merged + letters
    scores = {piece: -float(rank) for rank, piece in enumerate(ranked)}
    pieces = ["<unk>", "<s>", "</s>", *whole, *ranked, "cab", "<0x0A>"]
    types = [UNKNOWN, CONTROL, CONTROL, *[USER_DEFINED] * 3, *[NORMAL] * len(ranked), UNUSED, BYTE]
    path = write_tokenizer(
        tmp_path / "t.gguf",
        pieces,
        types,
        model="llama",
        scores=[scores.get(piece, -1000.0) for piece in pieces],
        bos_token_id=1,
        eos_token_id=2,
        unknown_token_id=0,
        add_space_prefix=False,
    )
    tokenizer = load_tokenizer(path)
    assert tokenizer.opening == ""
    for _ in range(300):
        text = "".join(draw.choices(["a", "b", "c", " ", "\n"], k=draw.randint(1, 12)))
        marked = text.replace("  ", "\0").replace(" ", "▁").replace("\0", "  ")
        expected = []
        for symbol in merged_slowly(marked, scores, whole):
            expected.append(pieces.index({"\n": "<0x0A>"}.get(symbol, symbol)))
        assert tokenizer.encode(text) == expected, text
        assert tokenizer.decode(expected) == text


def test_gemmas_ids_are_those_of_sentencepieces_steps(shared_data):
    file = open_gguf(gemma_file())
    pieces, types = file.metadata["tokenizer.ggml.tokens"], file.metadata["tokenizer.ggml.token_type"]
    scores, whole = {}, set()
    for piece, kind, score in zip(pieces, types, file.metadata["tokenizer.ggml.scores"], strict=True):
        if kind == NORMAL:
            scores[piece] = score
        elif kind == USER_DEFINED:
            whole.add(piece)
    ids = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = load_tokenizer(file.path)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.opening) == (2, 1, 0, "")
    with (shared_data / "wiki" / "passages.jsonl").open() as lines:
        texts = [json.loads(line)["text"] for line in itertools.islice(lines, 4)]
    for text in [*texts, "Two  spaces,\n\na  line;\t\tand <table> 東京 🎈 \u0301."]:
        marked = re.sub("(?<! ) (?! )", "▁", text)  # runs of spaces are pieces
        expected = []
        for symbol in merged_slowly(marked, scores, whole):
            known = [symbol] if symbol in ids else [f"<0x{byte:02X}>" for byte in symbol.encode()]
            expected += [ids[piece] for piece in known]
        assert tokenizer.encode(text) == expected
        assert tokenizer.decode(expected) == text


# ---- byte-level BPE ----

WORDS = "It's  12345 naïve/\n\n ok"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gpt-2", ["It", "'s", " ", " 12345", " naïve", "/", "\n\n", " ok"]),
        ("smollm", ["It", "'s", "  ", "1", "2", "3", "4", "5", " naïve", "/", "\n\n", " ok"]),
        ("llama-bpe", ["It", "'s", " ", " ", "123", "45", " naïve", "/\n\n", " ok"]),
        ("qwen2", ["It", "'s", " ", " ", "1", "2", "3", "4", "5", " naïve", "/\n\n", " ok"]),
        ("tekken", ["It", "'s", " ", " ", "1", "2", "3", "4", "5", " naïve", "/\n\n", " ok"]),
        ("default", ["It", "'", "s", " ", " ", "123", "45", " naïve", "/", "\n\n", " ok"]),
    ],
)
def test_texts_are_split_into_words_by_name(byte_level, name, words):
    rust, _ = gguf_tokenizer(open_gguf(byte_level(pre=name)))
    split = [span for _, span in rust.pre_tokenizer.pre_tokenize_str(WORDS)]
    assert [WORDS[start:end] for start, end in split] == words


def test_qwens_pattern_is_that_of_transformers():
    assert SPLITTINGS["qwen2"].patterns == (PRETOKENIZE_REGEX,)


@pytest.fixture
def byte_level(tmp_path):
    """A file with the 256 bytes and three merges; fields that a test gives replace or add to its own."""
    letters = sorted(bytes_to_unicode().values())
    pieces = [*letters, "Ġt", "he", "Ġthe", "then", "<|end|>", "<think>"]
    types = [NORMAL] * 260 + [CONTROL, USER_DEFINED]

    def write(**fields):
        own = {"model": "gpt2", "pre": "gpt-2", "merges": ["Ġ t", "h e", "Ġt he"], "eos_token_id": 260}
        return write_tokenizer(tmp_path / "b.gguf", pieces, types, **(own | fields))

    return write


def test_bytes_are_merged_in_order_and_given_back(byte_level):
    tokenizer = load_tokenizer(byte_level(bos_token_id=260, add_bos_token=True))
    text = "a the then é<think>"
    tokens = tokenizer.hf.convert_ids_to_tokens(tokenizer.encode(text))
    assert tokens == ["a", "Ġthe", "Ġthe", "n", "Ġ", "Ã", "©", "<think>"]
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.hf("a")["input_ids"] == [260, *tokenizer.encode("a")]
    assert tokenizer.opening == ""


def test_llama3_takes_whole_words_and_qwen_composes(byte_level):
    llama3 = load_tokenizer(byte_level(pre="llama-bpe"))
    assert llama3.hf.convert_ids_to_tokens(llama3.encode("then")) == ["then"]
    gpt2 = load_tokenizer(byte_level())
    assert gpt2.hf.convert_ids_to_tokens(gpt2.encode("then")) == ["t", "he", "n"]
    qwen = load_tokenizer(byte_level(pre="qwen2"))
    assert qwen.encode("e\u0301") == qwen.encode("é") and gpt2.encode("e\u0301") != gpt2.encode("é")


# ---- special tokens ----


@pytest.mark.parametrize(
    ("fields", "bos"),
    [
        ({"pre": "llama-bpe"}, "<|end|>"),  # LLaMA 3's files may not say it
        ({"pre": "llama-bpe", "add_bos_token": False}, None),
        ({"pre": "qwen2"}, None),
        ({"pre": "qwen2", "add_bos_token": True}, "<|end|>"),
    ],
)
def test_a_beginning_that_is_not_read_is_not_named(byte_level, fields, bos):
    tokenizer = load_tokenizer(byte_level(bos_token_id=260, **fields))
    assert (tokenizer.hf.bos_token, tokenizer.hf.eos_token) == (bos, "<|end|>")
    assert tokenizer.hf.add_bos_token == (bos is not None)


def test_the_chat_template_and_all_else_outlive_a_save(byte_level, tmp_path):
    template = "{% for message in messages %}[{{ message.content }}]{% endfor %}"
    path = byte_level(chat_template=template, bos_token_id=260, add_bos_token=True, padding_token_id=260)
    tokenizer = load_tokenizer(path)
    save_tokenizer(tmp_path / "saved", tokenizer)
    again = load_tokenizer(tmp_path / "saved")
    messages = [{"role": "user", "content": "hi"}]
    for each in (tokenizer, again):
        assert each.hf.apply_chat_template(messages, tokenize=False) == "[hi]"
        assert each.encode("a the <|end|><think>") == tokenizer.encode("a the <|end|><think>")
        assert (each.bos_id, each.eos_id, each.pad_id) == (260, 260, 260)
        assert each.hf("a")["input_ids"] == [260, *tokenizer.encode("a")]


# ---- what is refused ----


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pre": "mystery"}, r'tokenizer\.ggml\.pre to be one of .*qwen2.*, got "mystery"'),
        ({"pre": ""}, r'to be one of .*, got ""'),
        ({"model": "bert"}, r'model llama .* or gpt2 .*, got "bert"'),
        ({"model": "llama"}, r"262 numbers as tokenizer\.ggml\.scores, one for each piece, got 0"),
        ({"token_type": [NORMAL] * 9}, r"262 numbers as tokenizer\.ggml\.token_type.*got 9"),
        ({"eos_token_id": 262}, r"special tokens below 262, the number of pieces, got 262"),
        ({"merges": ["Ġ t", "x y"]}, r'join pieces of its vocabulary, got "x y"'),
        ({"merges": "Ġ t"}, r"a list of texts as tokenizer\.ggml\.merges"),
        ({"add_bos_token": 7}, r"tokenizer\.ggml\.add_bos_token to be true or false, got 7"),
    ],
)
def test_a_tokeniser_that_is_not_known_is_refused_by_name(byte_level, fields, message):
    with pytest.raises(ValueError, match=rf"b\.gguf: expected .*{message}"):
        load_tokenizer(byte_level(**fields))


def test_a_file_without_a_tokeniser_is_refused(tmp_path):
    path = write_gguf(tmp_path / "none.gguf", {}, a_number=1)
    with pytest.raises(ValueError, match=r"none\.gguf: expected tokenizer\.ggml\.model llama .*, got null"):
        load_tokenizer(path)
