r"""A prompt with examples of its task before it: 5-shot evaluation, where the shots stand in the context.

    <bos>
    Background: {passage}\n\n {prompt} {answer} \n\n      the farthest shot
    …
    Background: {passage}\n\n {prompt} {answer} \n\n      the nearest shot
    Background: {passage}\n\n {prompt}                  the question

Whether each shot has its own top chunk as Background is the caller's choice, as it is with the question. What
does not fit gives way in this order: shots, whole and the farthest first, and then the question's Background.
"""

from collections.abc import Sequence
from typing import NamedTuple

from radit_jax.data.sequences import LmTokenizer, prompt_tokens
from radit_jax.text.prompts import background

SHOT_END = "\n\n"  # `ours`: the paper does not say what stands between examples


class Shot(NamedTuple):
    """An example: its Background, if any, and its prompt and answer, which are concatenated as they are."""

    passage: str | None
    prompt: str
    answer: str


class FewShotPrompt(NamedTuple):
    """What generation or scoring starts from."""

    tokens: list[int]
    shots_dropped: int
    truncated: bool  # the question's own Background was cut


def few_shot_prompt(
    tokenizer: LmTokenizer, shots: Sequence[Shot], passage: str | None, prompt: str, *, max_length: int
) -> FewShotPrompt:
    """`<bos>`, as many of the shots as fit, given from the farthest to the nearest, and the question."""
    alone, truncated = prompt_tokens(tokenizer, passage, prompt, max_length=max_length)
    found = FewShotPrompt(alone, len(shots), truncated)
    if truncated:
        return found
    question = _background_tokens(tokenizer, passage) + tokenizer.encode(prompt)
    for count in range(1, len(shots) + 1):
        kept = shots[-count:]
        before = [token for shot in kept for token in _shot_tokens(tokenizer, shot, opens=shot is kept[0])]
        tokens = [tokenizer.bos_id, *before, *question]
        if len(tokens) > max_length:
            break
        found = FewShotPrompt(tokens, len(shots) - count, False)
    return found


def _shot_tokens(tokenizer: LmTokenizer, shot: Shot, *, opens: bool) -> list[int]:
    """A shot tokenised in the parts in which training has an example; the first one `opens` the text."""
    opening = tokenizer.opening if opens else ""
    passage = _background_tokens(tokenizer, shot.passage, opening)
    prompt = shot.prompt if passage else opening + shot.prompt
    example, _ = tokenizer.encode_pair(prompt, shot.answer)
    return passage + example + tokenizer.encode(SHOT_END)


def _background_tokens(tokenizer: LmTokenizer, passage: str | None, opening: str = "") -> list[int]:
    return [] if passage is None else tokenizer.encode(opening + background(passage))
