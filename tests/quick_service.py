"""The service of `radit serve` over models that answer at once."""

import asyncio

from aiohttp.test_utils import TestClient, TestServer

from radit_jax.serving.server import ServeOptions, make_app


def with_client(system, body, **options):
    """What `body(client)` returns while the service runs."""

    async def run():
        app = make_app(system, ServeOptions(**options))
        async with TestClient(TestServer(app)) as client:
            return await body(client)

    return asyncio.run(run())


class Quick:
    """Stands in for the models: answers at once, or when it may."""

    questions_per_batch = 4

    def __init__(self):
        self.batches = []
        self.fault = None

    def one_at_a_time(self):
        return self

    def why_too_long(self, question):
        return "expected a question of at most 5 tokens." if len(question) > 100 else ""

    def retrieve(self, questions):
        if self.fault:
            raise self.fault
        self.batches.append(list(questions))
        return {"chunks": None}

    def answer(self, questions, retrieved):
        return [[{"text": question.upper(), "probability": 1.0}] for question in questions]

    def describe_chunks(self, retrieved, place):
        return {"chunks": []}
