"""Tokenisers: trained here on an experiment's own text, or read from a folder in Hugging Face's form.

Language models and encoders share one class. Special tokens are put in by id, never by a tokeniser's
post-processor, because checkpoints disagree on when theirs acts.

LLaMA 1 and 2 read a space before every text. Most texts here continue another, where there is none, so
`encode` adds none, whatever the checkpoint's settings; `opening` is the space for the text behind `<bos>`.
What is saved is the checkpoint's own tokeniser: what it makes of a text ours makes of `opening` + text.
"""

import contextlib
import copy
import functools
import json
import math
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from etils import epath
from jaxtyping import Bool, Int
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from radit_jax.config import BertConfig, LlamaConfig
from radit_jax.runtime.pretrained.hf_config import declared_ids
from radit_jax.runtime.storage.files import read_json, read_text

# Without torch, which nothing here needs, transformers says at import that it misses it.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
import transformers  # noqa: E402
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast  # noqa: E402

LM_SPECIALS = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}  # ids 0, 1, 2
ENCODER_SPECIALS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
# What a tokenizer.json has that names none of its special tokens: bert-base-uncased's, LLaMA's.
USUAL = (
    ENCODER_SPECIALS,
    {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
)
REMEMBERED = 4096  # texts whose ids are kept: passages come again with every question that retrieves them
# A tokeniser without a tokenizer.json is converted by the class that knows its form.
REMEDY = "Fetch the tokeniser again."
LARGEST_PADDING = 0.1  # of the embeddings, those without a piece
BARE = {"tokenizer.model": "LlamaTokenizer", "vocab.txt": "BertTokenizer"}


class Tokenizer:
    """Text to ids and back, without state: `hf` is the transformers tokeniser underneath.

    `num_embeddings` is the number of ids that its network knows. Tokens that were added beyond them, as a
    <pad> to LLaMA's 32,000, are `hf`'s alone: no text gives them here and no answer ends with them.
    `declared` is what a checkpoint's files say beside its tokeniser's (`hf_config.read_declared`).
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
        self.hf: Any = hf  # whose type leaves open what its special ids are
        self.declared = dict(declared or {})
        self._num_embeddings = num_embeddings
        self._rust, self.opening = _without_prefix(rust, num_embeddings)
        self.pad_id: int = self._known(self.hf.pad_token_id) or 0
        self.bos_id: int = self._special("bos")  # None in an encoder's
        self.eos_id: int = self._special("eos")
        self.cls_id: int = self._known(self.hf.cls_token_id)  # None in a language model's
        self.sep_id: int = self._known(self.hf.sep_token_id)
        # `[SEP]` in a query is the token, unless the tokeniser says that marks in texts are text.
        self._marked = self._rust
        if self.cls_id is not None and not getattr(hf, "split_special_tokens", False):
            self._marked, _ = _without_prefix(rust, num_embeddings)
            self._marked.encode_special_tokens = False
        self._encode = functools.lru_cache(REMEMBERED)(self._ids)

    def _known(self, number: int | None) -> Any:
        """The id, or None where the network has no embedding for it."""
        return None if number is None or number >= (self._num_embeddings or math.inf) else number

    def _special(self, name: str) -> Any:
        """The id of a special token: the tokeniser's own, else the first that the checkpoint declares."""
        named = self._known(getattr(self.hf, f"{name}_token_id"))
        declared = [self._known(number) for number in declared_ids(self.declared, name)]
        return named if named is not None else next((i for i in declared if i is not None), None)

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """The ids that end a text: `eos_id`, and the others that the checkpoint declares."""
        declared = (self._known(number) for number in declared_ids(self.declared, "eos"))
        return tuple(dict.fromkeys([self.eos_id, *(i for i in declared if i is not None)]))

    def reading_marks(self, reads: bool) -> "Tokenizer":
        """The same tokeniser, for which `[SEP]` and the like in an encoder's texts are marks, or are text.

        What is saved says so too, so transformers and sentence-transformers give the same ids.
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
        return max(self._rust.get_vocab(with_added_tokens=True).values(), default=-1)

    @functools.cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """The ids that end an answer: `eos_ids` and every piece with a newline, the closing ones last."""
        heads = self._before_newline
        return (*self.eos_ids, *(i for i, head in heads.items() if not head.strip()), *self.closing_ids)

    @functools.cached_property
    def closing_ids(self) -> tuple[int, ...]:
        r"""Those of `stop_ids` that hold text of the answer before their newline, such as `.\n`."""
        return tuple(i for i, head in self._before_newline.items() if head.strip())

    @functools.cached_property
    def _before_newline(self) -> dict[int, str]:
        """Of every piece with a newline what stands before the first."""
        # As pieces of bytes a newline is Ċ, as a single byte of SentencePiece <0x0A>.
        named = (
            i for piece, i in self._rust.get_vocab().items() if set("\nĊ") & set(piece) or piece == "<0x0A>"
        )
        texts = ((i, self._rust.decode([i])) for i in sorted(named))
        return {i: text.partition("\n")[0] for i, text in texts if "\n" in text}

    def encode(self, text: str) -> list[int]:
        """The ids of `text` as it stands behind another text, without special tokens."""
        return list(self._encode(text))

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self._rust.encode(text, add_special_tokens=False).ids)

    def encode_prompt(self, text: str) -> list[int]:
        """The ids of `text` as a language model reads what begins with it: behind `<bos>`."""
        return [self.bos_id, *self.encode(self.opening + text)]

    def encode_pair(self, prompt: str, answer: str) -> tuple[list[int], int]:
        """The ids of `prompt + answer` as one text, and the place of the first one of the answer.

        A piece that holds characters of both belongs to the answer, so that the prompt gives none of it away.
        """
        encoding = self._rust.encode(prompt + answer, add_special_tokens=False)
        in_prompt = sum(end <= len(prompt) for _, end in encoding.offsets)
        return encoding.ids, in_prompt

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, on all cores."""
        return [e.ids for e in self._rust.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Iterable[int] | Int[np.ndarray, " n"]) -> str:
        """The text of `ids`, without special tokens."""
        return self._rust.decode([int(i) for i in ids], skip_special_tokens=True)

    def encode_all(self, texts: Sequence[str], max_length: int = 512) -> list[list[int]]:
        """What an encoder reads of each text: `[CLS] … [SEP]`, at most `max_length` ids."""
        pieces = [e.ids for e in self._marked.encode_batch_fast(list(texts), add_special_tokens=False)]
        return [[self.cls_id, *ids[: max_length - 2], self.sep_id] for ids in pieces]

    def pad(
        self, ids: Sequence[Sequence[int]], *, rows: int | None = None, multiple: int = 32
    ) -> tuple[Int[np.ndarray, "B T"], Bool[np.ndarray, "B T"]]:
        """The ids as one array with its mask of real tokens, padded to `rows` and to a multiple in length.

        Lengths on a coarse grid keep the number of compiled shapes small. A row added to reach `rows` is one
        masked-in padding token, so that a mean over it is a number.
        """
        lengths = np.array([len(row) for row in ids] + [1] * ((rows or len(ids)) - len(ids)))
        width = -(-int(lengths.max()) // multiple) * multiple
        tokens = np.full((len(lengths), width), self.pad_id, np.int32)
        for row, values in zip(tokens, ids, strict=False):
            row[: len(values)] = values
        return tokens, np.arange(width)[None, :] < lengths[:, None]


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE for a language model: any text round-trips, equal texts give equal ids.

    It splits at newlines, each a token of its own, and before spaces. So `Background: …\\n\\n`, a prompt that
    ends in `A:`, and an answer that starts with a space, tokenised apart, give the joint text's tokens.
    """
    rust = tokenizers.Tokenizer(models.BPE())
    rust.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    rust.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(LM_SPECIALS.values()),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    rust.train_from_iterator(texts, trainer)
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=rust, **LM_SPECIALS))


def train_wordpiece(texts: Iterable[str], vocab_size: int, alphabet_size: int = 1000) -> Tokenizer:
    """BERT's uncased WordPiece for an encoder that is trained from scratch."""
    texts = list(texts)
    specials = list(ENCODER_SPECIALS.values())
    letters = _letters(texts, alphabet_size)
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        # The trainer numbers `##x` in the order of a hash map, another one in each process, and breaks ties
        # by number. Listed here they are numbered first.
        special_tokens=[*specials, *letters, *("##" + letter for letter in letters)],
        initial_alphabet=letters,
        limit_alphabet=len(letters),
        show_progress=False,
    )
    learner = _wordpiece()
    learner.train_from_iterator(texts, trainer)
    return Tokenizer(
        PreTrainedTokenizerFast(tokenizer_object=_wordpiece(learner.get_vocab()), **ENCODER_SPECIALS)
    )


def _wordpiece(vocab: Mapping[str, int] | None = None) -> tokenizers.Tokenizer:
    unknown = ENCODER_SPECIALS["unk_token"]
    model = models.WordPiece(dict(vocab), unk_token=unknown) if vocab else models.WordPiece(unk_token=unknown)
    rust = tokenizers.Tokenizer(model)
    rust.normalizer = normalizers.BertNormalizer(lowercase=True)
    rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    rust.decoder = decoders.WordPiece()
    return rust


def _letters(texts: Iterable[str], limit: int) -> list[str]:
    """The most frequent characters of the normalised texts, sorted."""
    normalizer = normalizers.BertNormalizer(lowercase=True)
    counts = Counter()
    for text in texts:
        counts.update(normalizer.normalize_str(text))
    ranked = sorted((c for c in counts if not c.isspace()), key=lambda c: (-counts[c], c))
    return sorted(ranked[:limit])


def save_tokenizer(folder: epath.PathLike, tokenizer: Tokenizer) -> None:
    """Write `tokenizer` into `folder`, in the form that transformers' AutoTokenizer reads."""
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # transformers writes to disks only, and the folder may be in a bucket.
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer.hf.save_pretrained(scratch)
        for file in sorted(path for path in Path(scratch).rglob("*") if path.is_file()):
            copy_to = folder / file.relative_to(scratch).as_posix()
            copy_to.parent.mkdir(parents=True, exist_ok=True)
            copy_to.write_bytes(file.read_bytes())


def has_tokenizer(folder: epath.PathLike) -> bool:
    """Whether the folder holds a tokeniser's files."""
    return any((epath.Path(folder) / name).exists() for name in ("tokenizer.json", *BARE))


def load_tokenizer(
    folder: epath.PathLike,
    num_embeddings: int | None = None,
    *,
    lower_case: bool = False,
    declared: Mapping[str, Any] | None = None,
) -> Tokenizer:
    """The tokeniser in `folder`: one of ours, or a checkpoint's in Hugging Face's form.

    `lower_case` says that texts are lower-cased first, whatever its own files say; the rest is `Tokenizer`'s.
    """
    folder = epath.Path(folder)
    names = [name for name in ("tokenizer.json", *BARE) if (folder / name).exists()]
    if not names:
        raise ValueError(
            f"{folder}: expected a tokenizer.json, tokenizer.model or vocab.txt, got none. Name a folder "
            "that holds a tokeniser in Hugging Face's form."
        )
    _check_files(folder, names[0])
    with tempfile.TemporaryDirectory() as scratch:
        _copy_files(folder, Path(scratch))
        # Never AutoTokenizer: of a bare SentencePiece model it drops the space before a text.
        loader = getattr(transformers, BARE.get(names[0], "PreTrainedTokenizerFast"))
        with _naming(folder / names[0]):
            hf = loader.from_pretrained(scratch)
            _name_specials(hf)
            _add_template(hf, folder / "chat_template.json")
            if lower_case:
                _lower_case_first(hf.backend_tokenizer)
            return Tokenizer(hf, num_embeddings, declared)


def _check_files(folder: epath.Path, main: str) -> None:
    """Refuse what the libraries underneath meet with errors of their own, or read as another tokeniser."""
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        if (folder / name).exists():
            read_json(folder / name, REMEDY)
    if main == "vocab.txt":
        read_text(folder / main, REMEDY)
    if not (folder / main).stat().length:
        raise ValueError(f"{folder / main}: expected a tokeniser, got an empty file. {REMEDY}")


def _copy_files(folder: epath.Path, scratch: Path) -> None:
    """Copy what transformers reads of a tokeniser, chat templates too, to a disk."""
    for inner in ("", "additional_chat_templates"):
        if not (folder / inner).is_dir():
            continue
        for file in (folder / inner).iterdir():
            if file.suffix in (".json", ".model", ".txt", ".jinja") and not file.is_dir():
                (scratch / inner).mkdir(exist_ok=True)
                (scratch / inner / file.name).write_bytes(file.read_bytes())


@contextlib.contextmanager
def _naming(path: epath.Path) -> Iterator[None]:
    """Errors of the libraries underneath, which raise many kinds, as one that names the file."""
    try:
        yield
    except BaseException as error:
        # A panic of the Rust library is no Exception, and its class cannot be imported.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        first = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{path}: expected a tokeniser that transformers can read, got {type(error).__name__}: {first}. "
            f"{REMEDY}"
        ) from None


def _name_specials(hf: Any) -> None:
    """Name the special tokens of a tokeniser whose files name none, where it has the usual ones.

    transformers' own classes do so by their names, as of bert-base-uncased's two-field tokenizer_config.json.
    """
    if hf.bos_token is not None or hf.cls_token is not None:
        return
    vocab = hf.get_vocab()
    for usual in USUAL:
        if all(token in vocab for token in usual.values()):
            unnamed = {name: token for name, token in usual.items() if getattr(hf, name) is None}
            hf.add_special_tokens(unnamed)
            return


def _add_template(hf: Any, path: epath.Path) -> None:
    """A chat template in the file that some checkpoints have for it."""
    if hf.chat_template is None and path.exists():
        template = read_json(path, REMEDY).get("chat_template")
        hf.chat_template = template if isinstance(template, str | dict) else None


def _lower_case_first(rust: tokenizers.Tokenizer) -> None:
    """Lower-case texts before anything else, as sentence-transformers does where an encoder says so."""
    if '"lowercase":true' not in rust.to_str() and '"Lowercase"' not in rust.to_str():
        steps = [normalizers.Lowercase()] + ([rust.normalizer] if rust.normalizer is not None else [])
        rust.normalizer = normalizers.Sequence(steps)


def check_tokenizer(tokenizer: Tokenizer, config: LlamaConfig | BertConfig, where: str) -> None:
    """An error where the ids of `tokenizer` cannot be those that the network `config` was trained on."""
    if tokenizer.highest_id >= config.vocab_size:
        raise ValueError(
            f"{where}: expected at most {config.vocab_size} ids, for which the network has embeddings, got a "
            f"tokeniser of {tokenizer.highest_id + 1}. Take both from one checkpoint."
        )
    specials = ("bos", "eos") if isinstance(config, LlamaConfig) else ("cls", "sep")
    if missing := [name for name in specials if getattr(tokenizer, f"{name}_id") is None]:
        raise ValueError(
            f"{where}: expected a tokeniser with a {missing[0]} token, which a {type(config).__name__[:-6]} "
            "reads, got one without. Take both from one checkpoint."
        )
    # Embeddings are padded to multiples of 64 or more; a file that was cut short lacks far more.
    if tokenizer.vocab_size < (1 - LARGEST_PADDING) * config.vocab_size:
        raise ValueError(
            f"{where}: expected a tokeniser of about {config.vocab_size} pieces, for which the network has "
            f"embeddings, got {tokenizer.vocab_size}. {REMEDY}"
        )


def _without_prefix(
    rust: tokenizers.Tokenizer, num_embeddings: int | None
) -> tuple[tokenizers.Tokenizer, str]:
    """A copy that puts nothing before a text, and what `rust` puts there: a space, or nothing.

    A copy, because transformers changes its own with every call. It has no added token without an embedding,
    and what a text spells of a special token is text.
    """
    settings = json.loads(rust.to_str())
    plain = {part: _plain(settings[part]) for part in ("normalizer", "pre_tokenizer", "decoder")}
    prefixed = any(plain[part] != settings[part] for part in ("normalizer", "pre_tokenizer"))
    limit = num_embeddings or math.inf
    added = [token for token in settings["added_tokens"] if token["id"] < limit]
    own = tokenizers.Tokenizer.from_str(json.dumps(settings | plain | {"added_tokens": added}))
    own.no_truncation()
    own.no_padding()
    own.encode_special_tokens = True  # a passage that spells `<eos>` has ordinary pieces for it
    return own, " " if prefixed else ""


def _plain(part: Any) -> Any:
    """A step of a tokeniser, or its steps, without what adds or removes a space before the text."""
    if isinstance(part, list):
        return [kept for step in part if (kept := _plain(step)) is not None]
    if not isinstance(part, dict):
        return part
    if part.get("type") == "Prepend":
        return None
    off = {"prepend_scheme": "never", "add_prefix_space": False, "start": 0}
    return {name: off.get(name, _plain(value)) for name, value in part.items()}
