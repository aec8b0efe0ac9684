"""The space that a tokeniser adds before a text, and a copy of the tokeniser without it."""

import json
import math
from typing import Any

import tokenizers


def without_prefix(
    rust: tokenizers.Tokenizer, num_embeddings: int | None
) -> tuple[tokenizers.Tokenizer, str]:
    """A copy that adds nothing before a text, and what `rust` adds there: a space, or nothing.

    It is a copy because transformers changes its own with every call. It has no added tokens without an
    embedding, and reads a special token's name in a text as text.
    """
    # 1) The tokeniser's steps, without the space.
    settings = json.loads(rust.to_str())
    plain = {}
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        plain[part] = _without_space(settings[part])
    # The decoder takes the space away again.
    adding_parts = ("normalizer", "pre_tokenizer")
    adds_space = any(plain[part] != settings[part] for part in adding_parts)

    # 2) Its added tokens, without those that the network does not know.
    limit = num_embeddings or math.inf
    added_tokens = [token for token in settings["added_tokens"] if token["id"] < limit]

    # 3) The copy. Texts are neither cut nor padded by it.
    settings |= plain | {"added_tokens": added_tokens}
    copied = tokenizers.Tokenizer.from_str(json.dumps(settings))
    copied.no_truncation()
    copied.no_padding()
    copied.encode_special_tokens = True  # a passage that spells `<eos>` has ordinary pieces for it
    return copied, " " if adds_space else ""


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
