r"""A checkpoint's chat template, as what a language model reads around a prompt and its answer.

The template is rendered once, with a stand-in for each of the two texts, and cut at them. Qwen2's gives

    start_ids        <|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>
    opening          user\n
                     the prompt
    turn_ids         <|im_end|>\n<|im_start|>
    answer_opening   assistant\n
                     the answer
    end_ids          <|im_end|>

A tokeniser reads the text between two special tokens as one. So `opening` and the prompt are tokenised as one
text, and so are `answer_opening` and the answer. The rest is always the same ids.
"""

import datetime
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import tokenizers

from radit_jax.runtime.pretrained.prefix_space import for_whole_texts

TODAY = datetime.date(2024, 7, 26)  # for templates that say the date, so that a prompt is the same on any day
_DATE_CODES = ("%a", "%A", "%b", "%B", "%d", "%m", "%y", "%Y")
# Stand-ins for the two texts, and texts as they may be.
STAND_INS = ("STAND-IN 0371", "STAND-IN 9265")
SAMPLE = ("Background: Paris lies on the Seine.\n\nQ: Where does Paris lie?\nA:", "On the Seine.")


class ChatFrame(NamedTuple):
    """What is read around a prompt and its answer, neither of which has white space at its ends."""

    start_ids: tuple[int, ...]  # up to the last special token before the prompt
    opening: str  # from there to the prompt
    prompt_end: str  # after the prompt, up to the first special token
    turn_ids: tuple[int, ...]  # from that one to the last one before the answer; none in LLaMA 2's
    answer_opening: str  # from there to the answer
    space: str  # before the answer, as part of it: LLaMA's pieces begin with their space
    end_ids: tuple[int, ...]  # after the answer: the end of the turn


def chat_frame(hf: Any, plain: tokenizers.Tokenizer, space: str, num_embeddings: int | None) -> ChatFrame:
    """The frame that the template of the tokeniser `hf` puts around a prompt and its answer.

    `plain` and `space` are what `without_prefix` makes of `hf`. Raises ValueError for a template that cannot
    be cut so, or whose parts are other ids than transformers makes of a whole conversation.
    """
    # 1) What is before, between and after the two texts, and whether that is so for other texts.
    before, between, after = _cut(_render(hf, STAND_INS), STAND_INS)
    sample = before + SAMPLE[0] + between + SAMPLE[1] + after
    rendered = _render(hf, SAMPLE)
    if rendered != sample:
        _refuse("leaves a text as it is", f"{rendered[-80:]!r} for a text that ends {sample[-80:]!r}")
    generated = _render(hf, STAND_INS[:1])
    if not (before + STAND_INS[0] + between).startswith(generated.rstrip(" ")):
        _refuse("asks for an answer as it begins one", f"{generated[-80:]!r} before {between!r}")

    # 2) Where a text may begin with a space, the ids of a whole conversation say whether it does.
    reader = for_whole_texts(hf.backend_tokenizer, None)
    whole_ids = reader.encode(rendered, add_special_tokens=False).ids
    frame = _frame(before, between, after, reader, plain, hf.eos_token_id)
    for opening_space, answer_space in itertools.product(dict.fromkeys(("", space)), repeat=2):
        candidate = frame._replace(opening=opening_space + frame.opening)
        if frame.answer_opening:
            candidate = candidate._replace(answer_opening=answer_space + frame.answer_opening)
        else:
            candidate = candidate._replace(space=answer_space + frame.space)
        ids = _conversation(candidate, plain)
        if ids == whole_ids[: len(ids)]:
            break
    else:
        _refuse("has its parts tokenised as the whole is", f"other ids for {rendered[:80]!r}")
    if num_embeddings is not None and max(ids) >= num_embeddings:
        _refuse(f"has the model's {num_embeddings} ids", f"{hf.convert_ids_to_tokens(max(ids))}")
    return candidate


def _render(hf: Any, texts: Sequence[str]) -> str:
    """A conversation of these texts, the user's and the assistant's; of one alone, up to the answer."""
    messages = []
    for role, text in zip(("user", "assistant"), texts, strict=False):
        messages.append({"role": role, "content": text})
    if hf.chat_template is None:
        _refuse("is in the tokeniser's files", "none")
    try:
        return hf.apply_chat_template(
            messages,
            chat_template=_date_macro() + hf.get_chat_template(),
            tokenize=False,
            add_generation_prompt=len(messages) == 1,
        )
    except Exception as error:  # a template may do anything
        reason = " ".join(str(error).split())[:200]
        _refuse("can be rendered", f"{type(error).__name__}: {reason}")


def _date_macro() -> str:
    """Jinja that takes the place of transformers' `strftime_now`, which templates may call."""
    filters = []
    for code in _DATE_CODES:
        filters.append(f"replace('{code}', '{TODAY.strftime(code)}')")
    date = "{{ format | " + " | ".join(filters) + " }}"
    # The empty text keeps a line end with which a template may begin.
    return "{% macro strftime_now(format) %}" + date + "{% endmacro %}{{ '' }}"


def _cut(rendered: str, texts: Sequence[str]) -> tuple[str, str, str]:
    """What is before, between and after the two texts."""
    user, assistant = texts
    counts = (rendered.count(user), rendered.count(assistant))
    before, _, rest = rendered.partition(user)
    between, _, after = rest.partition(assistant)
    if counts != (1, 1) or assistant in before:
        _refuse("has the user's text once and then the assistant's", f"them {counts} times in {rendered!r}")
    return before, between, after


class _Part(NamedTuple):
    """A part of the template: text, ids from the first special token to the last, and text after that."""

    head: str
    ids: tuple[int, ...]
    tail: str


def _split(text: str, reader: tokenizers.Tokenizer, special: Mapping[int, str]) -> _Part:
    """Cut `text` at its first and its last special token; without one it is all `head`."""
    encoding = reader.encode(text, add_special_tokens=False)
    places = [place for place, number in enumerate(encoding.ids) if number in special]
    if not places:
        return _Part(text, (), "")
    first, last = places[0], places[-1]
    start, end = encoding.offsets[first][0], encoding.offsets[last][1]
    return _Part(text[:start], tuple(encoding.ids[first : last + 1]), text[end:])


def _frame(
    before: str,
    between: str,
    after: str,
    reader: tokenizers.Tokenizer,
    plain: tokenizers.Tokenizer,
    eos_id: int | None,
) -> ChatFrame:
    """The frame of a template's three parts, without the spaces that a tokeniser adds."""
    added = reader.get_added_tokens_decoder()
    special = {number: token.content for number, token in added.items() if token.special or number == eos_id}

    # 1) Up to the prompt: text before the first special token is ids too.
    start = _split(before, reader, special)
    start_ids, opening = start.ids, start.tail if start.ids else start.head
    if start.ids and start.head:
        start_ids = (*reader.encode(start.head, add_special_tokens=False).ids, *start.ids)

    # 2) Up to the answer, whose first piece has the spaces before it.
    turn = _split(between, reader, special)
    before_answer = turn.tail if turn.ids else turn.head
    stripped = before_answer.rstrip(" ")
    prompt_end, answer_opening = (turn.head, stripped) if turn.ids else (stripped, "")

    # 3) The end of the answer.
    end = _split(after, reader, special)
    if not end.ids or end.head.strip():
        _refuse("ends an answer with a special token", f"{after!r} after it")
    end_ids = (*plain.encode(end.head, add_special_tokens=False).ids, end.ids[0])
    return ChatFrame(
        start_ids=start_ids,
        opening=opening,
        prompt_end=prompt_end,
        turn_ids=turn.ids,
        answer_opening=answer_opening,
        space=before_answer[len(stripped) :],
        end_ids=end_ids,
    )


def _conversation(frame: ChatFrame, plain: tokenizers.Tokenizer) -> list[int]:
    """The ids of the sample conversation, up to the end of its answer."""
    user = frame.opening + SAMPLE[0] + frame.prompt_end
    assistant = frame.answer_opening + frame.space + SAMPLE[1]
    # Without a special token between them they are one text.
    texts = (user, assistant) if frame.turn_ids else (user + assistant, "")
    asked, answered = (plain.encode(text, add_special_tokens=False).ids for text in texts)
    return [*frame.start_ids, *asked, *frame.turn_ids, *answered, *frame.end_ids]


def _refuse(expected: str, got: str) -> NoReturn:
    raise ValueError(
        f"base.lm.prompt: expected a chat template that {expected}, got {got}. Set base.lm.prompt=plain, or "
        "name a checkpoint with such a template."
    )
