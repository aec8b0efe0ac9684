"""The files of tokenisers: read in Hugging Face's form or GGUF's, written in the first, checked."""

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tokenizers
from etils import epath
from tokenizers import normalizers

from radit_jax.config import DecoderConfig, EncoderConfig, LastTokenConfig
from radit_jax.runtime.pretrained.gguf_file import is_gguf, open_gguf
from radit_jax.runtime.pretrained.gguf_tokenizer import gguf_tokenizer
from radit_jax.runtime.pretrained.tokenizers import ENCODER_SPECIALS, Tokenizer
from radit_jax.runtime.storage.files import read_json, read_text

# `tokenizers.py` sets it up before it is imported.
import transformers  # isort: skip

# The special tokens of tokenisers whose files name none: bert-base-uncased's, LLaMA's.
USUAL = (
    ENCODER_SPECIALS,
    {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
)
# Files of a tokeniser without a tokenizer.json, and the class of transformers that converts each.
BARE = {"tokenizer.model": "LlamaTokenizer", "vocab.txt": "BertTokenizer"}
_JSON_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_COPIED_SUFFIXES = (".json", ".model", ".txt", ".jinja")
LARGEST_PADDING = 0.1  # the share of embeddings that may be without a piece
REMEDY = "Fetch the tokeniser again."


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
    """Whether the folder holds a tokeniser's files, or the GGUF file a tokeniser."""
    if is_gguf(folder):
        return "tokenizer.ggml.model" in open_gguf(folder).metadata
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
    """The tokeniser in `folder`: one of ours, or a checkpoint's in Hugging Face's form, or a GGUF file's.

    With `lower_case` texts are lower-cased first, whatever its files say. `num_embeddings` and `declared` are
    `Tokenizer`'s.
    """
    folder = epath.Path(folder)
    if is_gguf(folder):
        return _load_gguf(folder, num_embeddings, declared)
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


def _load_gguf(path: epath.Path, num_embeddings: int | None, declared: Mapping[str, Any] | None) -> Tokenizer:
    """The tokeniser that a GGUF file's metadata describe."""
    rust, options = gguf_tokenizer(open_gguf(path))
    with _naming_file(path):
        hf = transformers.PreTrainedTokenizerFast(tokenizer_object=rust, **options)
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


def check_tokenizer(tokenizer: Tokenizer, config: DecoderConfig | EncoderConfig, where: str) -> None:
    """Raise ValueError where the ids of `tokenizer` cannot be those that the network was trained on."""
    if tokenizer.highest_id >= config.vocab_size:
        raise ValueError(
            f"{where}: expected at most {config.vocab_size} ids, for which the network has embeddings, got a "
            f"tokeniser of {tokenizer.highest_id + 1}. Take both from one checkpoint."
        )
    # A decoder need not read a `<bos>`, nor, as an encoder, any mark.
    specials: tuple[str, ...] = ()
    if not isinstance(config, LastTokenConfig):
        specials = ("eos",) if isinstance(config, DecoderConfig) else ("cls", "sep")
    missing = [name for name in specials if getattr(tokenizer, f"{name}_id") is None]
    if missing:
        raise ValueError(
            f"{where}: expected a tokeniser with the special token {missing[0]}, which a "
            f"{type(config).__name__.removesuffix('Config')} reads, got one without. Take both from one "
            "checkpoint."
        )
    # Embeddings are padded to multiples of 64 or more; a file that was cut short lacks far more.
    if tokenizer.vocab_size < (1 - LARGEST_PADDING) * config.vocab_size:
        raise ValueError(
            f"{where}: expected a tokeniser of about {config.vocab_size} pieces, for which the network has "
            f"embeddings, got {tokenizer.vocab_size}. {REMEDY}"
        )
