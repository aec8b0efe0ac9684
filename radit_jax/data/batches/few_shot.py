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

from radit_jax.data.batches.prefix_trees import LmTokenizer, prompt_tokens
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
    made, truncated = prompt_tokens(tokenizer, passage, prompt, max_length=max_length)
    if truncated or not shots:
        return FewShotPrompt(made, len(shots), truncated)
    parts = (prompt,) if passage is None else (background(passage), prompt)
    behind = [token for part in parts for token in tokenizer.encode(part)]
    kept = 0
    for shot in reversed(shots):
        longer = [tokenizer.bos_id, *shot_tokens(tokenizer, shot, opens=True), *behind]
        if len(longer) > max_length:
            break
        made, kept = longer, kept + 1
        behind = shot_tokens(tokenizer, shot) + behind
    return FewShotPrompt(made, len(shots) - kept, truncated=False)


def shot_tokens(tokenizer: LmTokenizer, shot: Shot, *, opens: bool = False) -> list[int]:
    """A shot tokenised in the parts in which training tokenises an example, first behind `<bos>` or not."""
    parts = [shot.prompt + shot.answer, SHOT_END]
    if shot.passage is not None:
        parts.insert(0, background(shot.passage))
    if opens:
        parts[0] = tokenizer.opening + parts[0]
    return [token for part in parts for token in tokenizer.encode(part)]
