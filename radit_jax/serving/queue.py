"""The questions that wait for the models, and the loop that answers several of them together."""

import asyncio
import concurrent.futures
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

from radit_jax.serving.system import TUNED

T = TypeVar("T")


@runtime_checkable
class QuestionAnswerer(Protocol):
    """Retrieves and answers, as `serving.system.AnsweringSystem` does."""

    @property
    def questions_per_batch(self) -> int:
        """How many questions it answers together."""
        ...

    def one_at_a_time(self) -> "QuestionAnswerer":
        """The same, for one question in a batch."""
        ...

    def why_too_long(self, question: str) -> str:
        """The error of a question that is too long; empty for others."""
        ...

    def retrieve(self, questions: Sequence[str]) -> Mapping[str, Any]:
        """Each retriever's chunks for the questions."""
        ...

    def answer(self, questions: Sequence[str], retrieved: Any) -> Sequence[list[dict[str, Any]]]:
        """Each question's answers over its chunks, the best first, as JSON holds them."""
        ...

    def describe_chunks(self, retrieved: Mapping[str, Any], place: int) -> dict[str, Any]:
        """One question's chunks, as JSON holds them."""
        ...


class BusyError(Exception):
    """As many questions wait as may."""


@dataclass(frozen=True)
class Pending:
    """A question with what will be known of it: first its chunks by retriever, then its answers."""

    question: str
    chunks: asyncio.Future[dict[str, Any]]
    answers: asyncio.Future[list[dict[str, Any]]]

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        self.chunks.cancel()
        self.answers.cancel()

    def fail(self, error: Exception) -> None:
        """Whoever waits gets `error`, once."""
        if not self.chunks.done():
            self.chunks.set_exception(error)
            self.answers.cancel()
        elif not self.answers.done():
            self.answers.set_exception(error)


class QuestionQueue:
    """A queue of at most `max_waiting` questions before the models, which one thread uses.

    A question that waits alone is answered in a batch of one. Several are answered in one batch of the
    system's own size. So the models are compiled for two sizes, whatever the load.
    """

    def __init__(self, system: QuestionAnswerer, max_waiting: int):
        self.system = system
        self._single = system.one_at_a_time()
        self._waiting = asyncio.Queue[Pending](max_waiting)
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "models")

    @property
    def num_waiting(self) -> int:
        """How many questions have not reached the models yet."""
        return self._waiting.qsize()

    def put(self, question: str) -> Pending:
        """Add a question; BusyError where the queue is full."""
        pending = self._pending(question)
        try:
            self._waiting.put_nowait(pending)
        except asyncio.QueueFull:
            raise BusyError(f"{self._waiting.maxsize} questions wait already") from None
        return pending

    def _pending(self, question: str) -> Pending:
        loop = asyncio.get_running_loop()
        return Pending(question, loop.create_future(), loop.create_future())

    async def run(self) -> None:
        """Answer questions until this task is cancelled."""
        while True:
            # 1) Wait for a question, and take those that wait with it.
            batch = [await self._waiting.get()]
            while len(batch) < self.system.questions_per_batch and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            # 2) Leave out those whose asker has gone.
            batch = [pending for pending in batch if not pending.answers.done()]
            if not batch:
                continue
            # 3) Answer them. After a fault the next questions may be answered all the same.
            try:
                await self._answer(batch)
            except Exception as error:
                for pending in batch:
                    pending.fail(error)

    async def _answer(self, batch: list[Pending]) -> None:
        """Answer a batch; its chunks are known before its answers."""
        system = self._single if len(batch) == 1 else self.system
        questions = [pending.question for pending in batch]

        # Who waits sees the chunks while the language model reads them.
        retrieved = await self._in_thread(lambda: system.retrieve(questions))
        for place, pending in enumerate(batch):
            if not pending.chunks.done():
                pending.chunks.set_result(system.describe_chunks(retrieved, place))

        # A future that is done was cancelled: its asker has gone meanwhile.
        answered = await self._in_thread(lambda: system.answer(questions, retrieved[TUNED]))
        for pending, candidates in zip(batch, answered, strict=True):
            if not pending.answers.done():
                pending.answers.set_result(candidates)

    async def _in_thread(self, call: Callable[[], T]) -> T:
        """What `call` returns. It runs in the models' thread, and requests are read meanwhile."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    async def warm_up(self) -> None:
        """Compile both sizes, so that the first visitors need not wait for it."""
        for size in sorted({1, self.system.questions_per_batch}):
            await self._answer([self._pending("What is this?") for _ in range(size)])
