"""`radit serve`: a page to ask on, and the same in JSON.

    GET  /                       the page
    POST /api/ask                {"question": …} → the answers of Eq. 2 and the chunks before and after R-ft;
                                 with `Accept: text/event-stream` the events `chunks`, then `answers`
    POST /v1/chat/completions    the best answer as OpenAI's clients read it (openai_chat.py)
    GET  /v1/models, /healthz

A request that is wrong gets 400, 401, 403, 413 or 415; one too many 503 with Retry-After. aiohttp serves: it
has a server, streaming and limits in one package.
"""

import asyncio
import contextlib
import hmac
import ipaddress
import json
import pathlib
import re
import socket
import sys
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from radit_jax.serving.openai_chat import completion, completion_events, read_chat_request
from radit_jax.serving.queue import BusyError, Pending, QuestionAnswerer, QuestionQueue
from radit_jax.text.content_policy import content_policy, only

PAGE = pathlib.Path(__file__).parent / "page.html"
LARGEST_BODY = 64 * 1024  # bytes of a request
RETRY_AFTER = "2"  # seconds, for a client that comes while the queue is full
EVENT_STREAM = "text/event-stream"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
QUEUE: Any = web.AppKey("queue", QuestionQueue)


@dataclass(frozen=True)
class ServeOptions:
    """Where to listen, for whom, and how many may wait."""

    host: str = "127.0.0.1"
    port: int = 8765  # 0: any free one
    token: str = ""  # which every request must bring; empty: none
    max_waiting: int = 64
    name: str = "radit"  # of the model

    def __post_init__(self) -> None:
        """Refuse an address of others without a token, and sizes that are none."""
        if not self.token and not _is_loopback(self.host):
            raise ValueError(
                f"serve: expected a token for --host={self.host}, which other machines reach, got none. "
                "Set RADIT_SERVE_TOKEN, or serve 127.0.0.1."
            )
        if not 0 <= self.port < 65536 or self.max_waiting < 1:
            raise ValueError(
                f"serve: expected --port of 0 to 65535 and --max-waiting >= 1, got {self.port} and "
                f"{self.max_waiting}. Correct it."
            )


def serve(system: QuestionAnswerer, options: ServeOptions) -> None:
    """Answer requests until Ctrl-C or SIGTERM."""
    app = make_app(system, options)
    with _naming_port(options):
        web.run_app(app, host=options.host, port=options.port, print=_say_where, access_log=None)


def check_port(options: ServeOptions) -> None:
    """Refuse a port that another program has, before the models are read."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    with _naming_port(options), socket.create_server((options.host, options.port), family=family):
        pass


@contextlib.contextmanager
def _naming_port(options: ServeOptions) -> Iterator[None]:
    """Let an address that cannot be listened on be an error that a person can correct."""
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"serve: expected a free port on {options.host}, got {options.port} ({error.strerror}). "
            "Name another with --port."
        ) from error


def _say_where(message: str) -> None:
    """Print aiohttp's line that names the address, and not the ones around it."""
    address = re.search(r"https?://\S+", message)
    if address is not None:
        print(f"ask at {address[0]} (Ctrl-C ends)", flush=True)


def make_app(system: QuestionAnswerer, options: ServeOptions) -> web.Application:
    """The routes, with the guard before them and the queue behind them."""
    queue = QuestionQueue(system, options.max_waiting)
    service = _Service(queue, options)
    app = web.Application(
        middlewares=[service.guard],
        client_max_size=LARGEST_BODY,
        handler_args={"handler_cancellation": True},  # a client that leaves frees its place
    )
    app[QUEUE] = queue
    app.cleanup_ctx.append(_answering)
    app.router.add_get("/", service.page)
    app.router.add_get("/healthz", service.health)
    app.router.add_post("/api/ask", service.ask)
    app.router.add_get("/v1/models", service.models)
    app.router.add_post("/v1/chat/completions", service.chat)
    return app


async def _answering(app: web.Application) -> AsyncIterator[None]:
    """Run the queue's loop while the server runs."""
    queue = app[QUEUE]
    print("   compiling for one question, and for several", flush=True)
    await queue.warm_up()
    loop = asyncio.create_task(queue.run())
    yield
    loop.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await loop


class _Service:
    """The handlers of all routes."""

    def __init__(self, queue: QuestionQueue, options: ServeOptions):
        self.queue = queue
        self.options = options
        self._page = PAGE.read_text()
        self._policy = _policy(self._page)

    # ---- who may ask ----

    @web.middleware
    async def guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Let in who may ask, and answer every fault with JSON."""
        try:
            self._check_asker(request)
            return await handler(request)
        except _RefusedError as refusal:
            return _error(refusal.status, str(refusal))
        except ValueError as error:
            return _error(400, str(error))
        except BusyError as error:
            response = _error(503, f"expected a free place, got none: {error}. Ask again in a moment.")
            response.headers["Retry-After"] = RETRY_AFTER
            return response
        except web.HTTPException as error:
            return _error(error.status, f"{error.reason} ({request.method} {request.path})")
        except Exception as error:  # a fault of ours costs one answer, not the service
            traceback.print_exc(file=sys.stderr)
            return _error(500, f"the answer failed: {type(error).__name__}")

    def _check_asker(self, request: web.Request) -> None:
        """Refuse a request without the token, and a browser's on behalf of another site."""
        # 1) By the token, or by the name of this machine.
        host = _host_of(request)
        if self.options.token:
            # The page itself holds nothing secret; it asks for the token.
            given = request.headers.get("Authorization", "").removeprefix("Bearer ")
            allowed = hmac.compare_digest(given.encode(), self.options.token.encode())
            if request.path not in ("/", "/healthz") and not allowed:
                raise _RefusedError(401, "expected 'Authorization: Bearer TOKEN' with this server's token")
        elif not _is_loopback(host):
            # Another site's name that points here would let its pages read the answers.
            raise _RefusedError(403, f"expected a request to this machine's own name, got one to {host!r}")
        # 2) Browsers say whose page a request is from.
        origin = request.headers.get("Origin")
        if origin and origin.partition("://")[2] != request.host:
            raise _RefusedError(403, f"expected a request of this server's own page, got one of {origin}")

    # ---- the page ----

    async def page(self, request: web.Request) -> web.Response:
        """The page, which loads nothing from anywhere."""
        headers = {
            "Content-Security-Policy": self._policy,
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        }
        return web.Response(text=self._page, content_type="text/html", headers=headers)

    async def health(self, request: web.Request) -> web.Response:
        """That the server lives, and how many wait."""
        return web.json_response({"status": "ok", "waiting": self.queue.num_waiting})

    # ---- asking ----

    async def ask(self, request: web.Request) -> web.StreamResponse:
        """Answer one question, whole or as it becomes known."""
        body = await _json_body(request)
        pending = self._put(body.get("question"))
        try:
            if EVENT_STREAM in request.headers.get("Accept", ""):
                return await _stream(request, _ask_events(pending))
            chunks = await pending.chunks
            return web.json_response({"answers": await pending.answers, **chunks})
        finally:
            pending.cancel()

    async def models(self, request: web.Request) -> web.Response:
        """The one model that there is, in OpenAI's form."""
        model = {"id": self.options.name, "object": "model", "created": 0, "owned_by": "radit_jax"}
        return web.json_response({"object": "list", "data": [model]})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """Answer the last message of a chat, in OpenAI's form."""
        # The same question, in another form.
        asked = read_chat_request(await _json_body(request))
        pending = self._put(asked.question)
        try:
            if asked.stream:
                return await _stream(request, completion_events(pending, self.options.name))
            chunks = await pending.chunks
            answers = await pending.answers
            return web.json_response(completion(asked, self.options.name, answers, chunks))
        finally:
            pending.cancel()

    def _put(self, question: Any) -> Pending:
        """Queue a question; ValueError where it is none, or too long."""
        if not isinstance(question, str) or not question.strip():
            raise ValueError(f"question: expected a text, got {str(question)[:80]!r}. Ask something.")
        # A prompt is a line; a newline would end the question for the language model.
        question = " ".join(question.split())
        too_long = self.queue.system.why_too_long(question)
        if too_long:
            raise ValueError(f"question: {too_long} Ask a shorter one.")
        return self.queue.put(question)


class _RefusedError(Exception):
    """A request that may not be answered."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


async def _json_body(request: web.Request) -> dict[str, Any]:
    """The object that a request holds."""
    # 1) Other sites' forms cannot send this type without asking first.
    if request.content_type != "application/json":
        raise _RefusedError(415, f"expected Content-Type: application/json, got {request.content_type}")
    # 2) Its text may be anything.
    try:
        body = json.loads(await request.text())
    except (ValueError, RecursionError, LookupError) as error:
        raise ValueError(f"body: expected JSON, got something else ({error}). Send an object.") from error
    if not isinstance(body, dict):
        raise ValueError(f"body: expected an object, got {type(body).__name__}. Send one in braces.")
    return body


async def _ask_events(pending: Pending) -> AsyncIterator[str]:
    """What is known of a question, as it becomes known."""
    yield f"event: chunks\ndata: {json.dumps(await pending.chunks)}\n\n"
    yield f"event: answers\ndata: {json.dumps(await pending.answers)}\n\n"


async def _stream(request: web.Request, events: AsyncIterator[str]) -> web.StreamResponse:
    """Send events as they come; an error after the first is an event too."""
    # Errors before the first event still have a status of their own.
    first = await anext(events)
    response = web.StreamResponse(headers={"Content-Type": EVENT_STREAM, "Cache-Control": "no-store"})
    await response.prepare(request)
    await response.write(first.encode())
    # The response has begun: what goes wrong now is told in it.
    try:
        async for event in events:
            await response.write(event.encode())
    except ConnectionError:
        pass  # the client has left
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        message = json.dumps({"message": f"the answer failed: {type(error).__name__}"})
        await response.write(f"event: error\ndata: {message}\n\n".encode())
    return response


def _error(status: int, message: str) -> web.Response:
    """A fault in the form that OpenAI's clients read."""
    # Their clients raise an exception by the status, and show the message.
    kind = "invalid_request_error" if status < 500 else "server_error"
    return web.json_response({"error": {"message": message, "type": kind, "code": status}}, status=status)


def _host_of(request: web.Request) -> str:
    """The name that the client reached this server by, without its port."""
    return re.sub(r":\d+$", "", request.host).strip("[]")


def _is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _policy(page: str) -> str:
    """A policy that runs the page's own script and style, and lets it ask this server."""
    # The page's own parts are known by their hashes.
    directives = ["connect-src 'self'"]
    for element in ("script", "style"):
        text = re.search(rf"<{element}>(.*?)</{element}>", page, re.DOTALL)
        assert text is not None
        directives.append(only(element, text[1]))
    return content_policy(*directives)
