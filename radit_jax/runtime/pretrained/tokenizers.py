"""Tokenisers: text to ids and back. Their files are in `tokenizer_files.py`.

Language models and encoders share one class. Special tokens are added by id, never by a tokeniser's
post-processor, because checkpoints disagree on when theirs acts.

A text begins with `<bos>` where its checkpoint reads one: LLaMA's, Mistral's and Gemma's do, Qwen's and
SmolLM's read none.

LLaMA 1 and 2 read a space before every text. Most texts here continue another text, without a space. So
`encode` adds none, whatever the checkpoint's settings; `opening` is the space for the text that begins.
What is saved is the checkpoint's own tokeniser: its ids of a text are the ids here of `opening` + text.
"""

import copy
import functools
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import tokenizers
from jaxtyping import Bool, Int

from radit_jax.runtime.pretrained.chat_template import ChatFrame, chat_frame
from radit_jax.runtime.pretrained.hf_config import declared_ids
from radit_jax.runtime.pretrained.prefix_space import for_whole_texts, without_prefix

# At import transformers says that torch is missing, which nothing here needs.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
from transformers import PreTrainedTokenizerBase  # noqa: E402

LM_SPECIALS = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}  # ids 0, 1, 2
ENCODER_SPECIALS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
BEGINNINGS = ("<s>", "<bos>", "<|begin_of_text|>")  # names of a bos token that begins every text
REMEMBERED = 4096  # texts whose ids are cached: a passage returns with every question that retrieves it


class Tokenizer:
    """Text to ids and back, without state; `hf` is the transformers tokeniser that it is made from.

    `num_embeddings` is the number of ids that its network knows. Tokens added beyond them, such as a <pad>
    to LLaMA's 32,000, are `hf`'s alone: no text has them here, and no answer ends with them. `declared` is
    what a checkpoint says of special ids (`hf_config.read_declared`), and of the form of prompts
    (`with_prompt`).

    `pad_id`, `bos_id`, `eos_id`, `cls_id` and `sep_id` are ids of special tokens. `bos_id` is None where no
    text begins with one, as in an encoder's tokeniser; `cls_id` is None in a language model's.
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
        self._rust, space = without_prefix(rust, num_embeddings)
        self.chat: ChatFrame | None = None  # what is read around a prompt, where its form is chat
        if self.declared.get("prompt") == "chat":
            self.chat = chat_frame(hf, self._rust, space, num_embeddings)
        self.opening: str = self.chat.opening if self.chat else space
        self.pad_id: int = self._known(self.hf.pad_token_id) or 0
        self.bos_id: int | None = self._beginning()
        self.eos_id: int = self._special("eos")
        self.cls_id: int = self._known(self.hf.cls_token_id)
        self.sep_id: int = self._known(self.hf.sep_token_id)
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

    def _beginning(self) -> int | None:
        """The id of the bos token, if texts begin with it."""
        number = self._special("bos")
        if number is None:
            return None
        # Checkpoints disagree on when a post-processor acts, so it is enough that the token is named so.
        first_ids = self.hf.backend_tokenizer.encode("a").ids[:1]
        is_named_so = self.hf.convert_ids_to_tokens(number) in BEGINNINGS
        return number if is_named_so or first_ids == [number] else None

    @property
    def start_ids(self) -> tuple[int, ...]:
        """The ids before the first text: `<bos>` or none, or what a chat template begins with."""
        if self.chat:
            return self.chat.start_ids
        return () if self.bos_id is None else (self.bos_id,)

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The ids after an answer that is learnt: `<eos>`, or the end of a chat's turn."""
        return self.chat.end_ids if self.chat else (self.eos_id,)

    @functools.cached_property
    def marks(self) -> tuple[list[int], list[int]]:
        """The ids that an encoder reads before each text, and those after it.

        They are `[CLS]` and `[SEP]`, by whatever names. A tokeniser without these, such as a decoder's, says
        itself what it adds: Qwen3-Embedding's, for example, `<|endoftext|>` after the text.
        """
        if self.cls_id is not None and self.sep_id is not None:
            return [self.cls_id], [self.sep_id]
        encoding = self._whole_texts.encode("a")
        is_text = [not mark for mark in encoding.special_tokens_mask]
        start = is_text.index(True)
        end = len(is_text) - is_text[::-1].index(True)
        return encoding.ids[:start], encoding.ids[end:]

    @functools.cached_property
    def _whole_texts(self) -> tokenizers.Tokenizer:
        """What reads an encoder's texts, which continue no other text."""
        rust = for_whole_texts(self.hf.backend_tokenizer, self._num_embeddings)
        # In such a text `[SEP]` is the token, unless the tokeniser says that it is text.
        rust.encode_special_tokens = bool(getattr(self.hf, "split_special_tokens", False))
        return rust

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """The ids that end a text: `eos_id`, and others that the checkpoint declares."""
        numbers = [self.eos_id, *self._declared("eos"), self.end_ids[-1]]
        return tuple(dict.fromkeys(numbers))

    def with_prompt(self, form: Literal["plain", "chat"]) -> "Tokenizer":
        """The same tokeniser with prompts as they are, or in the checkpoint's own chat template.

        A saved model says so too. Raises ValueError for a template that cannot serve (`chat_frame`).
        """
        if (form == "chat") == (self.chat is not None):
            return self
        declared = {name: value for name, value in self.declared.items() if name != "prompt"}
        if form == "chat":
            declared["prompt"] = form
        return Tokenizer(self.hf, self._num_embeddings, declared)

    @functools.cached_property
    def plain(self) -> "Tokenizer":
        """The same tokeniser with prompts as they are, for texts that are no prompts."""
        return self.with_prompt("plain") if self.chat else self

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

    @property
    def special_names(self) -> dict[int, str]:
        """The special tokens by their ids, which `decode` leaves out."""
        added = self._rust.get_added_tokens_decoder()
        return {number: token.content for number, token in added.items() if token.special}

    # -- encode and decode --

    def encode(self, text: str) -> list[int]:
        """The ids of `text` as the continuation of another text, without special tokens."""
        return list(self._encode(text))

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self._rust.encode(text, add_special_tokens=False).ids)

    def encode_prompt(self, prompt: str) -> list[int]:
        """The ids of a prompt that nothing is before, as a language model reads it: after `<bos>`, if any."""
        ids, _ = self.encode_pair(self.opening + prompt, "")
        return [*self.start_ids, *ids]

    def encode_pair(self, prompt: str, answer: str) -> tuple[list[int], int]:
        """The ids of `prompt + answer` as one text, and the number of ids of the prompt.

        A piece with characters of both belongs to the answer, so that the prompt gives none of it away. In a
        chat the prompt is what the user says, up to where the assistant's answer begins.
        """
        if self.chat is None:
            return self._encode_pair(prompt, answer)
        # Neither text has white space at its ends: some templates strip it.
        prompt = prompt.rstrip() + self.chat.prompt_end
        answer = answer and self.chat.space + answer.strip()
        ids = []
        if self.chat.turn_ids:
            ids = [*self.encode(prompt), *self.chat.turn_ids]
            prompt = self.chat.answer_opening
        rest, start = self._encode_pair(prompt, answer)
        return [*ids, *rest], len(ids) + start

    def _encode_pair(self, prompt: str, answer: str) -> tuple[list[int], int]:
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
        """The ids that an encoder reads of each text, between its `marks`: at most `max_length`."""
        encodings = self._whole_texts.encode_batch_fast(list(texts), add_special_tokens=False)
        before, after = self.marks
        room = max_length - len(before) - len(after)
        return [[*before, *encoding.ids[:room], *after] for encoding in encodings]

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
