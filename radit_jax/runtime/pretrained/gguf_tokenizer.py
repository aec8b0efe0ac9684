"""The tokeniser that a GGUF file's metadata describe, built anew as one of the library tokenizers.

tokenizer.ggml.model   llama: SentencePiece's BPE, by its pieces and their scores; gpt2: byte-level BPE, by
                       its merges and by `tokenizer.ggml.pre`, which names how texts are split into words
tokenizer.ggml.tokens, .scores, .token_type, .merges      the vocabulary
tokenizer.ggml.bos_token_id, .add_bos_token, ...          special tokens
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from radit_jax.runtime.pretrained.fields import Field, read_fields, shown_value
from radit_jax.runtime.pretrained.gguf_file import REMEDY, GgufFile

SPACE = "▁"  # SentencePiece's mark for a space
# A piece's `token_type`. A piece that is unused (5), such as [PAD7], is made by no merge.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
_ID = (0, 1 << 24)
_FIELDS = {
    "tokenizer.ggml.model": Field("model", str, default=None),
    "tokenizer.ggml.pre": Field("pre", str, default=""),
    "tokenizer.ggml.bos_token_id": Field("bos_token", int, *_ID, None),
    "tokenizer.ggml.eos_token_id": Field("eos_token", int, *_ID, None),
    "tokenizer.ggml.unknown_token_id": Field("unk_token", int, *_ID, None),
    "tokenizer.ggml.padding_token_id": Field("pad_token", int, *_ID, None),
    "tokenizer.ggml.eot_token_id": Field("turn_end", int, *_ID, None),
    "tokenizer.ggml.add_bos_token": Field("add_bos", bool, default=None),
    "tokenizer.ggml.add_eos_token": Field("add_eos", bool, default=False),
    "tokenizer.ggml.add_space_prefix": Field("add_space", bool, default=True),
    "tokenizer.chat_template": Field("chat_template", str, default=None),
}
_SPECIALS = ("bos_token", "eos_token", "unk_token", "pad_token")


class Splitting(NamedTuple):
    """How a byte-level BPE splits a text into words, and what else goes with the name in `pre`."""

    patterns: tuple[str, ...]  # each splits what the one before has left whole
    takes_whole_words: bool = False  # a word that is a piece is not built by merges
    composes: bool = False  # to Unicode's NFC
    adds_bos: bool = False  # where the file does not say


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# The patterns after GPT-2's. They differ in what a word is, and in how many digits stay together.
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_REST = rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
_LLAMA3 = Splitting((rf"{_WORDS}|\p{{N}}{{1,3}}|{_REST}",), takes_whole_words=True, adds_bos=True)
_QWEN2 = Splitting((rf"{_WORDS}|\p{{N}}|{_REST}",), composes=True)
_TEKKEN = rf"{_CASED}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
SPLITTINGS = {
    "default": Splitting((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    "gpt-2": Splitting((_GPT2,)),
    "smollm": Splitting((r"\p{N}", _GPT2)),
    "llama-bpe": _LLAMA3,
    "llama-v3": _LLAMA3,
    "llama3": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "tekken": Splitting((_TEKKEN,), takes_whole_words=True, adds_bos=True),
}


class Vocabulary(NamedTuple):
    """The pieces of a file by their ids, and each one's type."""

    pieces: list[str]
    types: Sequence[int]

    def of_type(self, *types: int) -> list[str]:
        """The pieces of these types, in the order of ids."""
        return [piece for piece, kind in zip(self.pieces, self.types, strict=True) if kind in types]


def gguf_tokenizer(file: GgufFile) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    """The tokeniser of `file`, and its special tokens and template as `PreTrainedTokenizerFast` takes them.

    ValueError where the file has no tokeniser, or one of a kind that is not known here.
    """
    where = str(file.path)
    fields = read_fields(file.metadata, _FIELDS, where, REMEDY)
    # 1) The tokeniser.
    if fields["model"] == "llama":
        vocabulary = _with_spaces(_vocabulary(file))
        scores = _numbers(file, "tokenizer.ggml.scores", len(vocabulary.pieces))
        unknown = _piece(vocabulary, fields["unk_token"], where)
        rust = _sentencepiece(vocabulary, scores, unknown, fields["add_space"])
    elif fields["model"] == "gpt2":
        vocabulary = _vocabulary(file)
        splitting = _splitting(fields["pre"], where)
        merges = _texts(file, "tokenizer.ggml.merges")
        rust = _byte_level(vocabulary, _pairs(merges, vocabulary, where), splitting)
    else:
        raise ValueError(
            f"{where}: expected tokenizer.ggml.model llama (SentencePiece's BPE) or gpt2 (byte-level BPE), "
            f"got {shown_value(fields['model'])}. Use a checkpoint in Hugging Face's form."
        )
    # 2) Pieces that are found in a text before anything else.
    rust.add_special_tokens(_added(vocabulary.of_type(UNKNOWN, CONTROL), special=True))
    rust.add_tokens(_added(vocabulary.of_type(USER_DEFINED), special=False))

    # 3) Special tokens, and the template of a chat.
    ids = special_ids(file)
    options: dict[str, Any] = {"add_bos_token": "bos_token" in ids, "add_eos_token": fields["add_eos"]}
    for name in _SPECIALS:
        options[name] = _piece(vocabulary, _first(ids.get(name)), where)
    if fields["chat_template"] is not None:
        options["chat_template"] = fields["chat_template"]
    return rust, options


def special_ids(file: GgufFile) -> dict[str, Any]:
    """The ids of special tokens that `file` says, by transformers' names.

    `bos_token` is left out where the model does not read it before its texts. `eos_token` is a list where a
    chat's turn ends with another token than a text.
    """
    fields = read_fields(file.metadata, _FIELDS, str(file.path), REMEDY)
    ids = {name: fields[name] for name in _SPECIALS if fields[name] is not None}
    # Where the file does not say it, llama.cpp goes by the kind of tokeniser.
    adds_bos = fields["add_bos"]
    if adds_bos is None:
        splitting = SPLITTINGS.get(fields["pre"])
        adds_bos = fields["model"] == "llama" or (splitting is not None and splitting.adds_bos)
    if not adds_bos:
        ids.pop("bos_token", None)
    # Both end an answer.
    turn_end = fields["turn_end"]
    if "eos_token" in ids and turn_end not in (None, ids["eos_token"]):
        ids["eos_token"] = [ids["eos_token"], turn_end]
    return ids


def _first(numbers: Any) -> int | None:
    return numbers[0] if isinstance(numbers, list) else numbers


# ---- metadata ----


def _texts(file: GgufFile, name: str) -> list[str]:
    """A list of texts in the metadata."""
    texts = file.metadata.get(name)
    if not isinstance(texts, list):
        raise ValueError(f"{file.path}: expected a list of texts as {name}, got none. {REMEDY}")
    return texts


def _numbers(file: GgufFile, name: str, count: int) -> Sequence[Any]:
    """`count` numbers in the metadata, one for each piece."""
    numbers = file.metadata.get(name)
    found = len(numbers) if isinstance(numbers, np.ndarray) else 0
    if not isinstance(numbers, np.ndarray) or found != count:
        raise ValueError(
            f"{file.path}: expected {count} numbers as {name}, one for each piece, got {found}. {REMEDY}"
        )
    return numbers.tolist()


def _vocabulary(file: GgufFile) -> Vocabulary:
    pieces = _texts(file, "tokenizer.ggml.tokens")
    name = "tokenizer.ggml.token_type"
    # Old files do not say the types.
    types = _numbers(file, name, len(pieces)) if name in file.metadata else [NORMAL] * len(pieces)
    return Vocabulary(pieces, types)


def _piece(vocabulary: Vocabulary, number: int | None, where: str) -> str | None:
    """The piece of a special token's id; None where the file has no such id."""
    if number is None:
        return None
    if number >= len(vocabulary.pieces):
        raise ValueError(
            f"{where}: expected ids of special tokens below {len(vocabulary.pieces)}, the number of pieces, "
            f"got {number}. {REMEDY}"
        )
    return vocabulary.pieces[number]


def _added(pieces: Sequence[str], special: bool) -> list[AddedToken]:
    return [AddedToken(piece, special=special, normalized=False) for piece in pieces]


def _ids(vocabulary: Vocabulary) -> dict[str, int]:
    return {piece: number for number, piece in enumerate(vocabulary.pieces)}


# ---- SentencePiece's BPE ----


def _with_spaces(vocabulary: Vocabulary) -> Vocabulary:
    """The pieces with spaces in those that are found in a text as it is, which old files spell with marks."""
    pieces = list(vocabulary.pieces)
    for number, kind in enumerate(vocabulary.types):
        if kind == USER_DEFINED:
            pieces[number] = pieces[number].replace(SPACE, " ")
    return Vocabulary(pieces, vocabulary.types)


def _sentencepiece(
    vocabulary: Vocabulary, scores: Sequence[float], unknown: str | None, adds_space: bool
) -> tokenizers.Tokenizer:
    """SentencePiece's BPE: a text's spaces are marked, and it is one word."""
    # Special pieces, single bytes and unused pieces are made by no merge.
    mergeable = {}
    for piece, kind, score in zip(*vocabulary, scores, strict=True):
        if kind == NORMAL:
            mergeable[piece] = score
    falls_back = bool(vocabulary.of_type(BYTE))
    rust = tokenizers.Tokenizer(
        models.BPE(
            _ids(vocabulary),
            merges_by_score(mergeable),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=falls_back,
        )
    )
    # The space before a text is taken away again by the decoder.
    marking: list[Any] = [normalizers.Replace(" ", SPACE)]
    unmarking: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if adds_space:
        marking.insert(0, normalizers.Prepend(SPACE))
        unmarking.append(decoders.Strip(" ", 1, 0))
    rust.normalizer = normalizers.Sequence(marking)
    rust.decoder = decoders.Sequence(unmarking)
    return rust


def merges_by_score(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """The merges that build pieces as SentencePiece does, best first.

    SentencePiece joins the two neighbours that make the piece of the highest score, whichever they are. So
    every pair of pieces that makes a third is a merge, and the third's score its rank. Where a piece is made
    in two ways, the longer left part is first: SentencePiece goes from left to right.

    >>> merges_by_score({"a": -9.0, "b": -9.0, "ab": -1.0, "aba": -3.0, "ba": -2.0})
    [('a', 'b'), ('b', 'a'), ('ab', 'a'), ('a', 'ba')]
    """
    merges = []
    for piece in sorted(scores, key=scores.__getitem__, reverse=True):
        for cut in range(len(piece) - 1, 0, -1):
            left, right = piece[:cut], piece[cut:]
            if left in scores and right in scores:
                merges.append((left, right))
    return merges


# ---- byte-level BPE ----


def _splitting(name: str, where: str) -> Splitting:
    if name not in SPLITTINGS:
        raise ValueError(
            f"{where}: expected tokenizer.ggml.pre to be one of {', '.join(SPLITTINGS)}, got "
            f"{shown_value(name)}. Use a checkpoint in Hugging Face's form."
        )
    return SPLITTINGS[name]


def _pairs(merges: Sequence[str], vocabulary: Vocabulary, where: str) -> list[tuple[str, str]]:
    """The merges as pairs of pieces; both and what they make are in the vocabulary."""
    # The library's own error would not say which file.
    known = set(vocabulary.pieces)
    pairs = []
    for merge in merges:
        left, _, right = merge.partition(" ")
        if not {left, right, left + right} <= known:
            raise ValueError(
                f"{where}: expected tokenizer.ggml.merges to join pieces of its vocabulary, got "
                f"{shown_value(merge)}. {REMEDY}"
            )
        pairs.append((left, right))
    return pairs


def _byte_level(
    vocabulary: Vocabulary, merges: list[tuple[str, str]], splitting: Splitting
) -> tokenizers.Tokenizer:
    """Byte-level BPE: a text is split into words, and a word into bytes, which merges join."""
    rust = tokenizers.Tokenizer(
        models.BPE(_ids(vocabulary), merges, ignore_merges=splitting.takes_whole_words)
    )
    # Words first; then each one's bytes as letters, as the pieces spell them.
    steps: list[Any] = [pre_tokenizers.Split(Regex(p), behavior="isolated") for p in splitting.patterns]
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    rust.pre_tokenizer = pre_tokenizers.Sequence(steps)
    rust.decoder = decoders.ByteLevel()
    if splitting.composes:
        rust.normalizer = normalizers.NFC()
    return rust
