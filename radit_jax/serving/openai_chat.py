"""The form of OpenAI's chat completions, so that existing clients ask RA-DIT.

The question is the last message, the answer that of Eq. 2; earlier messages are not read. `n` asks for as
many candidates. Decoding is greedy under each chunk: `temperature`, `top_p` and `max_tokens` change nothing.
`radit` in a completion holds the candidates' probabilities and the chunks.
"""

import json
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, NamedTuple

from radit_jax.serving.queue import Pending


class ChatRequest(NamedTuple):
    """What is read of a request."""

    question: str
    num_answers: int
    stream: bool


def read_chat_request(body: Mapping[str, Any]) -> ChatRequest:
    """The question of a request; ValueError where there is none."""
    # 1) The last message is the question.
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not isinstance(messages[-1], dict):
        raise ValueError("messages: expected a list of them, got none. Send the question as the last one.")
    last = messages[-1]
    if last.get("role") != "user":
        raise ValueError(
            f"messages: expected the user's message last, got {last.get('role')!r}. "
            "Send the question as the last one."
        )
    # 2) How many answers, and how they are sent.
    num_answers = body.get("n") or 1
    if not isinstance(num_answers, int) or num_answers < 1:
        raise ValueError(f"n: expected a number >= 1, got {num_answers!r}. Leave it out for one.")
    stream = bool(body.get("stream"))
    if stream and num_answers > 1:
        raise ValueError(f"n: expected 1 with stream, got {num_answers}. Leave stream out for several.")
    return ChatRequest(_text(last.get("content")), num_answers, stream)


def _text(content: Any) -> str:
    """The text of a message, whose content is a string or a list of parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ValueError("question: expected a text as the last message's content, got none. Ask something.")
    parts = []
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text":
            raise ValueError("content: expected parts of text, got another kind. Send text only.")
        parts.append(str(part.get("text", "")))
    return " ".join(parts)


def completion(
    asked: ChatRequest,
    model: str,
    answers: Sequence[Mapping[str, Any]],
    chunks: Mapping[str, Any],
) -> dict[str, Any]:
    """The whole completion, the best answer first."""
    # Eq. 2 has ranked the candidates.
    choices = []
    for index, answer in enumerate(answers[: asked.num_answers]):
        message = {"role": "assistant", "content": answer["text"]}
        choices.append({"index": index, "message": message, "finish_reason": "stop", "logprobs": None})
    return {
        **_header("chat.completion", model),
        "choices": choices,
        "radit": {"answers": list(answers), **chunks},
    }


async def completion_events(pending: Pending, model: str) -> AsyncIterator[str]:
    """The completion as a stream: one piece, since Eq. 2 ranks whole answers."""
    header = _header("chat.completion.chunk", model)
    await pending.chunks
    answers = await pending.answers
    pieces = [({"role": "assistant", "content": answers[0]["text"]}, None), ({}, "stop")]
    for delta, reason in pieces:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        yield f"data: {json.dumps({**header, 'choices': [choice]})}\n\n"
    yield "data: [DONE]\n\n"


def _header(kind: str, model: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": model,
    }
