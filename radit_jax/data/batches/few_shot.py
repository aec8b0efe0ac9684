r"""A prompt with examples of its task before it: 5-shot evaluation, where the shots stand in the context.

    <bos>
    Background: {passage}\n\n {prompt} {answer} \n\n      the farthest shot
    …
    Background: {passage}\n\n {prompt} {answer} \n\n      the nearest shot
    Background: {passage}\n\n {prompt}                  the question

Whether each shot has its own top chunk as Background is the caller's choice, as it is with the question.
Where not all fits, shots are left out whole, the farthest first; then the question's Background is cut.
"""

from collections.abc import Sequence
from typing import NamedTuple

from radit_jax.data.batches.prefix_trees import LmTokenizer, prompt_ids, prompt_tokens
from radit_jax.text.prompts import background

SHOT_END = "\n\n"  # our choice: the paper does not say what stands between examples


class Shot(NamedTuple):
    """An example: its Background, if any, and its prompt and answer, which are concatenated as they are."""

    passage: str | None  # its Background, if it has one
    prompt: str
    answer: str


class FewShotPrompt(NamedTuple):
    """What generation or scoring starts from."""

    tokens: list[int]
    shots_dropped: int  # those that did not fit
    truncated: bool  # the question's own Background was cut


def few_shot_prompt(
    tokenizer: LmTokenizer, shots: Sequence[Shot], passage: str | None, prompt: str, *, max_length: int
) -> FewShotPrompt:
    """As many of the shots as fit, given from the farthest to the nearest, and the question."""
    # 1) Without any shot.
    tokens, truncated = prompt_tokens(tokenizer, passage, prompt, max_length=max_length)
    if truncated or not shots:
        return FewShotPrompt(tokens, len(shots), truncated)
    # 2) One shot more before the rest, from the nearest on, while the row has room. The shot that opens a
    # prompt may be other tokens than the same shot later in it.
    rest = [] if passage is None else tokenizer.encode(background(passage))
    rest += prompt_ids(tokenizer, prompt, opens=False)
    num_shots = 0
    for shot in reversed(shots):
        longer = [*tokenizer.start_ids, *shot_tokens(tokenizer, shot, opens=True), *rest]
        if len(longer) > max_length:
            break
        tokens = longer
        num_shots += 1
        rest = shot_tokens(tokenizer, shot) + rest
    return FewShotPrompt(tokens, len(shots) - num_shots, truncated=False)


def shot_tokens(tokenizer: LmTokenizer, shot: Shot, *, opens: bool = False) -> list[int]:
    """A shot tokenised in the parts in which training tokenises an example; it `opens` after `<bos>`."""
    parts = [shot.prompt + shot.answer, SHOT_END]
    if shot.passage is not None:
        parts.insert(0, background(shot.passage))
    if opens:
        parts[0] = tokenizer.opening + parts[0]
    # No token spans two parts.
    tokens: list[int] = []
    for part in parts:
        tokens += tokenizer.encode(part)
    return tokens
