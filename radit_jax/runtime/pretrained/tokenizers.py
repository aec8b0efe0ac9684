"""Tokenisers: text to ids and back, and their files in Hugging Face's form.

Language models and encoders share one class. Special tokens are added by id, never by a tokeniser's
post-processor, because checkpoints disagree on when theirs acts.

LLaMA 1 and 2 read a space before every text. Most texts here continue another text, without a space. So
`encode` adds none, whatever the checkpoint's settings; `opening` is the space for the text after `<bos>`.
What is saved is the checkpoint's own tokeniser: its ids of a text are the ids here of `opening` + text.
"""

import contextlib
import copy
import functools
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from etils import epath
from jaxtyping import Bool, Int
from tokenizers import normalizers

from radit_jax.config import BertConfig, DecoderConfig
from radit_jax.runtime.pretrained.hf_config import declared_ids
from radit_jax.runtime.pretrained.prefix_space import without_prefix
from radit_jax.runtime.storage.files import read_json, read_text

# At import transformers says that torch is missing, which nothing here needs.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
import transformers  # noqa: E402
from transformers import PreTrainedTokenizerBase  # noqa: E402

LM_SPECIALS = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}  # ids 0, 1, 2
ENCODER_SPECIALS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
# The special tokens of tokenisers whose files name none: bert-base-uncased's, LLaMA's.
USUAL = (
    ENCODER_SPECIALS,
    {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
)
# Files of a tokeniser without a tokenizer.json, and the class of transformers that converts each.
BARE = {"tokenizer.model": "LlamaTokenizer", "vocab.txt": "BertTokenizer"}
_JSON_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_COPIED_SUFFIXES = (".json", ".model", ".txt", ".jinja")
REMEMBERED = 4096  # texts whose ids are cached: a passage returns with every question that retrieves it
LARGEST_PADDING = 0.1  # the share of embeddings that may be without a piece
REMEDY = "Fetch the tokeniser again."


class Tokenizer:
    """Text to ids and back, without state; `hf` is the transformers tokeniser that it is made from.

    `num_embeddings` is the number of ids that its network knows. Tokens added beyond them, such as a <pad>
    to LLaMA's 32,000, are `hf`'s alone: no text has them here, and no answer ends with them. `declared` is
    what a checkpoint says of special ids (`hf_config.read_declared`).

    `pad_id`, `bos_id`, `eos_id`, `cls_id` and `sep_id` are ids of special tokens. `bos_id` is None in an
    encoder's tokeniser, `cls_id` in a language model's.
    """

    def __init__(
        self,
        hf: PreTrainedTokenizerBase,
        num_embeddings: int | None = None,
        declared: Mapping[str, Any] | None = None,
    ):
        rust = getattr(hf, "backend_tokenizer", None)
        if not isinstance(rust, tokenizers.Tokenizer):
            raise ValueError(
                f"tokenizer: expected one with a tokenizer.json, got {type(hf).__name__}, written in Python. "
                "Convert it with transformers' AutoTokenizer(..., use_fast=True).save_pretrained(folder)."
            )
        self.hf: Any = hf  # its declared type has no special ids
        self.declared = dict(declared or {})
        self._num_embeddings = num_embeddings
        self._rust, self.opening = without_prefix(rust, num_embeddings)
        self.pad_id: int = self._known(self.hf.pad_token_id) or 0
        self.bos_id: int = self._special("bos")
        self.eos_id: int = self._special("eos")
        self.cls_id: int = self._known(self.hf.cls_token_id)
        self.sep_id: int = self._known(self.hf.sep_token_id)
        # In an encoder's text `[SEP]` is the token, unless the tokeniser says that it is text.
        self._marked = self._rust
        if self.cls_id is not None and not getattr(hf, "split_special_tokens", False):
            self._marked, _ = without_prefix(rust, num_embeddings)
            self._marked.encode_special_tokens = False
        self._encode = functools.lru_cache(REMEMBERED)(self._ids)

    # -- special ids --

    def _known(self, number: int | None) -> Any:
        """The id, or None where the network has no embedding for it."""
        if number is None or number >= (self._num_embeddings or math.inf):
            return None
        return number

    def _declared(self, name: str) -> list[int]:
        """The known ids of a special token that the checkpoint declares."""
        known = [self._known(number) for number in declared_ids(self.declared, name)]
        return [number for number in known if number is not None]

    def _special(self, name: str) -> Any:
        """The id of a special token: the tokeniser's own, else the first that the checkpoint declares."""
        number = self._known(getattr(self.hf, f"{name}_token_id"))
        if number is not None:
            return number
        return next(iter(self._declared(name)), None)

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """The ids that end a text: `eos_id`, and others that the checkpoint declares."""
        numbers = [self.eos_id, *self._declared("eos")]
        return tuple(dict.fromkeys(numbers))

    def reading_marks(self, reads: bool) -> "Tokenizer":
        """The same tokeniser with `[SEP]` and the like in an encoder's texts read as marks, or as text.

        The saved tokeniser says so, too: transformers and sentence-transformers give the same ids.
        """
        hf = copy.deepcopy(self.hf)
        hf.split_special_tokens = hf.init_kwargs["split_special_tokens"] = not reads
        return Tokenizer(hf, self._num_embeddings, self.declared)

    @property
    def vocab_size(self) -> int:
        """The number of ids, special tokens included."""
        return self._rust.get_vocab_size(with_added_tokens=True)

    @property
    def highest_id(self) -> int:
        """The largest id, special tokens included."""
        return max(self._rust.get_vocab(with_added_tokens=True).values(), default=-1)

    @functools.cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """The ids that end an answer: `eos_ids`, and every piece with a newline, the closing ones last."""
        closing_ids = self.closing_ids
        blank_ids = [number for number in self._before_newline if number not in closing_ids]
        return (*self.eos_ids, *blank_ids, *closing_ids)

    @functools.cached_property
    def closing_ids(self) -> tuple[int, ...]:
        r"""The ids in `stop_ids` that hold text of the answer before their newline, such as `.\n`."""
        heads = self._before_newline
        return tuple(number for number, head in heads.items() if head.strip())

    @functools.cached_property
    def _before_newline(self) -> dict[int, str]:
        """The text before the first newline, of every piece with a newline."""
        # In pieces of bytes a newline is Ċ; in SentencePiece a single byte is <0x0A>.
        candidates = []
        for piece, number in self._rust.get_vocab().items():
            if set("\nĊ") & set(piece) or piece == "<0x0A>":
                candidates.append(number)
        heads = {}
        for number in sorted(candidates):
            text = self._rust.decode([number])
            head, newline, _ = text.partition("\n")
            if newline:
                heads[number] = head
        return heads

    # -- encode and decode --

    def encode(self, text: str) -> list[int]:
        """The ids of `text` as the continuation of another text, without special tokens."""
        return list(self._encode(text))

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self._rust.encode(text, add_special_tokens=False).ids)

    def encode_prompt(self, text: str) -> list[int]:
        """The ids of a text's beginning as a language model reads it: after `<bos>`."""
        return [self.bos_id, *self.encode(self.opening + text)]

    def encode_pair(self, prompt: str, answer: str) -> tuple[list[int], int]:
        """The ids of `prompt + answer` as one text, and the number of ids of the prompt.

        A piece with characters of both belongs to the answer, so that the prompt gives none of it away.
        """
        encoding = self._rust.encode(prompt + answer, add_special_tokens=False)
        # Pieces are in the order of the text.
        ends = [end for _, end in encoding.offsets]
        num_prompt_ids = sum(end <= len(prompt) for end in ends)
        return encoding.ids, num_prompt_ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, on all cores."""
        encodings = self._rust.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Iterable[int] | Int[np.ndarray, " n"]) -> str:
        """The text of `ids`, without special tokens."""
        return self._rust.decode([int(i) for i in ids], skip_special_tokens=True)

    def encode_all(self, texts: Sequence[str], max_length: int = 512) -> list[list[int]]:
        """The ids that an encoder reads of each text: `[CLS] … [SEP]`, at most `max_length`."""
        encodings = self._marked.encode_batch_fast(list(texts), add_special_tokens=False)
        room = max_length - 2
        rows = []
        for encoding in encodings:
            ids = encoding.ids[:room]
            rows.append([self.cls_id, *ids, self.sep_id])
        return rows

    def pad(
        self,
        ids: Sequence[Sequence[int]],
        *,
        rows: int | None = None,
        multiple: int = 32,
    ) -> tuple[Int[np.ndarray, "B T"], Bool[np.ndarray, "B T"]]:
        """Token ids (B, T) and the mask of real tokens, padded to `rows` rows and a multiple in length.

        Lengths that are multiples keep the number of compiled shapes small. A row added to reach `rows` is
        one padding token that the mask counts as real, so that a mean over the row is a number.
        """
        # A row of B is a text; T is the longest text, rounded up.
        num_rows = max(rows or 0, len(ids))
        lengths = np.ones(num_rows, np.int64)
        lengths[: len(ids)] = [len(row) for row in ids]
        width = -(-int(lengths.max()) // multiple) * multiple
        tokens = np.full((num_rows, width), self.pad_id, np.int32)
        for row, row_ids in zip(tokens, ids, strict=False):
            row[: len(row_ids)] = row_ids
        positions = np.arange(width)
        mask = positions[None, :] < lengths[:, None]
        return tokens, mask


# ---- files ----


def save_tokenizer(folder: epath.PathLike, tokenizer: Tokenizer) -> None:
    """Write `tokenizer` to `folder`, in the form that transformers' AutoTokenizer reads."""
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # transformers writes to disks only, and the folder may be in a bucket.
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer.hf.save_pretrained(scratch)
        for path in sorted(Path(scratch).rglob("*")):
            if path.is_file():
                target = folder / path.relative_to(scratch).as_posix()
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())


def has_tokenizer(folder: epath.PathLike) -> bool:
    """Whether the folder holds a tokeniser's files."""
    return bool(_main_files(epath.Path(folder)))


def _main_files(folder: epath.Path) -> list[str]:
    """The names of the files that hold a whole tokeniser, the preferred one first."""
    return [name for name in ("tokenizer.json", *BARE) if (folder / name).exists()]


def load_tokenizer(
    folder: epath.PathLike,
    num_embeddings: int | None = None,
    *,
    lower_case: bool = False,
    declared: Mapping[str, Any] | None = None,
) -> Tokenizer:
    """The tokeniser in `folder`: one of ours, or a checkpoint's in Hugging Face's form.

    With `lower_case` texts are lower-cased first, whatever its files say. `num_embeddings` and `declared` are
    `Tokenizer`'s.
    """
    folder = epath.Path(folder)
    names = _main_files(folder)
    if not names:
        raise ValueError(
            f"{folder}: expected a tokenizer.json, tokenizer.model or vocab.txt, got none. Name a folder "
            "that holds a tokeniser in Hugging Face's form."
        )
    main = names[0]
    _check_files(folder, main)
    with tempfile.TemporaryDirectory() as scratch:
        _copy_files(folder, Path(scratch))
        # Never AutoTokenizer: of a bare SentencePiece model it drops the space before a text.
        loader = getattr(transformers, BARE.get(main, "PreTrainedTokenizerFast"))
        with _naming_file(folder / main):
            hf = loader.from_pretrained(scratch)
            _set_usual_specials(hf)
            _set_chat_template(hf, folder / "chat_template.json")
            if lower_case:
                _lower_case_first(hf.backend_tokenizer)
            return Tokenizer(hf, num_embeddings, declared)


def _check_files(folder: epath.Path, main: str) -> None:
    """Refuse files for which the libraries have obscure errors, or which they read as another tokeniser."""
    for name in _JSON_FILES:
        if (folder / name).exists():
            read_json(folder / name, REMEDY)
    if main == "vocab.txt":
        read_text(folder / main, REMEDY)
    if not (folder / main).stat().length:
        raise ValueError(f"{folder / main}: expected a tokeniser, got an empty file. {REMEDY}")


def _copy_files(folder: epath.Path, scratch: Path) -> None:
    """Copy the files that transformers reads, chat templates among them, to a disk."""
    for inner in ("", "additional_chat_templates"):
        if not (folder / inner).is_dir():
            continue
        for file in (folder / inner).iterdir():
            if file.suffix in _COPIED_SUFFIXES and not file.is_dir():
                (scratch / inner).mkdir(exist_ok=True)
                (scratch / inner / file.name).write_bytes(file.read_bytes())


@contextlib.contextmanager
def _naming_file(path: epath.Path) -> Iterator[None]:
    """Turn errors of the libraries, which raise many kinds, into a ValueError that names the file."""
    try:
        yield
    except BaseException as error:
        # A panic of the Rust library is not an Exception, and its class cannot be imported.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{path}: expected a tokeniser that transformers can read, got {type(error).__name__}: {reason}. "
            f"{REMEDY}"
        ) from None


def _set_usual_specials(hf: Any) -> None:
    """Set the special tokens of a tokeniser whose files name none, if its vocabulary has the usual ones.

    transformers' own classes do so, for example for bert-base-uncased's two-field tokenizer_config.json.
    """
    if hf.bos_token is not None or hf.cls_token is not None:
        return
    vocab = hf.get_vocab()
    for usual in USUAL:
        if vocab.keys() >= set(usual.values()):
            names = [name for name in usual if getattr(hf, name) is None]
            hf.add_special_tokens({name: usual[name] for name in names})
            return


def _set_chat_template(hf: Any, path: epath.Path) -> None:
    """Set the chat template from a file of its own, which some checkpoints have."""
    if hf.chat_template is None and path.exists():
        template = read_json(path, REMEDY).get("chat_template")
        hf.chat_template = template if isinstance(template, str | dict) else None


def _lower_case_first(rust: tokenizers.Tokenizer) -> None:
    """Lower-case texts before anything else, as sentence-transformers does where an encoder says so."""
    settings = rust.to_str()
    if '"lowercase":true' in settings or '"Lowercase"' in settings:
        return
    steps = [normalizers.Lowercase()]
    if rust.normalizer is not None:
        steps.append(rust.normalizer)
    rust.normalizer = normalizers.Sequence(steps)


def check_tokenizer(tokenizer: Tokenizer, config: DecoderConfig | BertConfig, where: str) -> None:
    """Raise ValueError where the ids of `tokenizer` cannot be those that the network was trained on."""
    if tokenizer.highest_id >= config.vocab_size:
        raise ValueError(
            f"{where}: expected at most {config.vocab_size} ids, for which the network has embeddings, got a "
            f"tokeniser of {tokenizer.highest_id + 1}. Take both from one checkpoint."
        )
    specials = ("bos", "eos") if isinstance(config, DecoderConfig) else ("cls", "sep")
    missing = [name for name in specials if getattr(tokenizer, f"{name}_id") is None]
    if missing:
        raise ValueError(
            f"{where}: expected a tokeniser with a {missing[0]} token, which a "
            f"{type(config).__name__.removesuffix('Config')} reads, got one without. Take both from one "
            "checkpoint."
        )
    # Embeddings are padded to multiples of 64 or more; a file that was cut short lacks far more.
    if tokenizer.vocab_size < (1 - LARGEST_PADDING) * config.vocab_size:
        raise ValueError(
            f"{where}: expected a tokeniser of about {config.vocab_size} pieces, for which the network has "
            f"embeddings, got {tokenizer.vocab_size}. {REMEDY}"
        )
