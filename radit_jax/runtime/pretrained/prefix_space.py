"""Copies of a tokeniser for one network, with and without the space that it adds before a text."""

import json
import math
from typing import Any

import tokenizers


def without_prefix(
    rust: tokenizers.Tokenizer, num_embeddings: int | None
) -> tuple[tokenizers.Tokenizer, str]:
    """A copy that adds nothing before a text, and what `rust` adds there: a space, or nothing.

    It reads a special token's name in a text as text.
    """
    # 1) The tokeniser's steps, without the space.
    settings = json.loads(rust.to_str())
    plain = {}
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        plain[part] = _without_space(settings[part])
    # The decoder takes the space away again.
    adding_parts = ("normalizer", "pre_tokenizer")
    adds_space = any(plain[part] != settings[part] for part in adding_parts)

    # 2) The copy.
    copied = _copy(settings | plain, num_embeddings)
    copied.encode_special_tokens = True  # a passage that spells `<eos>` has ordinary pieces for it
    return copied, " " if adds_space else ""


def for_whole_texts(rust: tokenizers.Tokenizer, num_embeddings: int | None) -> tokenizers.Tokenizer:
    """A copy with all of the tokeniser's steps, for texts that continue no other text."""
    return _copy(json.loads(rust.to_str()), num_embeddings)


def _copy(settings: dict[str, Any], num_embeddings: int | None) -> tokenizers.Tokenizer:
    """A tokeniser without added tokens that have no embedding; it neither cuts nor pads texts.

    It is a copy because transformers changes its own with every call.
    """
    limit = num_embeddings or math.inf
    added_tokens = [token for token in settings["added_tokens"] if token["id"] < limit]
    copied = tokenizers.Tokenizer.from_str(json.dumps(settings | {"added_tokens": added_tokens}))
    copied.no_truncation()
    copied.no_padding()
    return copied


def _without_space(part: Any) -> Any:
    """A step of a tokeniser, or a list of steps, without what adds or removes a space before the text."""
    if isinstance(part, list):
        steps = [_without_space(step) for step in part]
        return [step for step in steps if step is not None]
    if not isinstance(part, dict):
        return part
    if part.get("type") == "Prepend":
        return None
    # Settings of the steps that add a space, or that strip one in a decoder.
    off = {"prepend_scheme": "never", "add_prefix_space": False, "start": 0}
    changed = {}
    for name, value in part.items():
        changed[name] = off[name] if name in off else _without_space(value)
    return changed
