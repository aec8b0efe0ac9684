"""The service over HTTP on the small models: its answers, its errors, and its queue."""

import asyncio
import contextlib
import json
import re

import pytest
from quick_service import Quick, with_client

from radit_jax import ask
from radit_jax.runtime.storage.top_level_folder import TopLevelFolder
from radit_jax.serving import server
from radit_jax.serving.queue import QuestionQueue
from radit_jax.serving.server import ServeOptions
from radit_jax.serving.system import AnsweringSystem

QUESTIONS = ["Who built Dray Tower?", "Where is it?", "Who?"]


@pytest.fixture(scope="module")
def system(exported):
    return AnsweringSystem.load(TopLevelFolder(exported))


async def post(client, path, body, **options):
    async with client.post(path, json=body, **options) as response:
        return response.status, await response.json()


def test_it_answers_as_the_command_does(system, exported):
    expected = list(ask.ask(TopLevelFolder(exported), QUESTIONS))

    async def body(client):
        return [await post(client, "/api/ask", {"question": question}) for question in QUESTIONS]

    for (status, answered), one in zip(with_client(system, body), expected, strict=True):
        assert status == 200
        assert [answer["text"] for answer in answered["answers"]] == [a["text"] for a in one["answers"]]
        for name in ("chunks", "base_chunks"):
            assert [chunk["text"] for chunk in answered[name]] == [chunk["text"] for chunk in one[name]]
            assert sum(chunk["p_R"] for chunk in answered[name]) == pytest.approx(1, abs=1e-5)


def test_chunks_arrive_as_an_event_before_the_answers(system):
    async def body(client):
        headers = {"Accept": "text/event-stream"}
        async with client.post("/api/ask", json={"question": "Who?"}, headers=headers) as response:
            return response.headers["Content-Type"], await response.text()

    kind, text = with_client(system, body)
    assert kind == "text/event-stream"
    names = re.findall(r"^event: (\w+)$", text, re.MULTILINE)
    chunks, answers = map(json.loads, re.findall(r"^data: (.*)$", text, re.MULTILINE))
    assert names == ["chunks", "answers"]
    assert len(chunks["chunks"]) == 2 and answers[0]["text"] is not None


def test_a_chat_is_answered_in_openais_form_whole_and_as_a_stream(system):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}]

    async def body(client):
        whole = await post(client, "/v1/chat/completions", {"model": "x", "messages": messages, "n": 2})
        parts = [{"type": "text", "text": "Who?"}]
        request = {"messages": [{"role": "user", "content": parts}], "stream": True}
        async with client.post("/v1/chat/completions", json=request) as response:
            return whole, await response.text()

    (status, completion), stream = with_client(system, body)
    best = completion["choices"][0]["message"]
    assert status == 200 and completion["object"] == "chat.completion"
    assert best == {"role": "assistant", "content": completion["radit"]["answers"][0]["text"]}
    assert len(completion["choices"]) == len(completion["radit"]["answers"][:2])
    *events, end = re.findall(r"^data: (.*)$", stream, re.MULTILINE)
    deltas = [json.loads(event)["choices"][0] for event in events]
    assert end == "[DONE]"
    assert deltas[0]["delta"]["content"] == best["content"] and deltas[-1]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/api/ask", {}, "question: expected a text, got 'None'"),
        ("/api/ask", {"question": "  "}, "question: expected a text"),
        ("/api/ask", {"question": ["Who?"]}, "question: expected a text"),
        ("/api/ask", {"question": "Who " * 600}, "question: expected a question of at most "),
        ("/api/ask", [], "body: expected an object, got list"),
        ("/v1/chat/completions", {}, "messages: expected a list of them"),
        ("/v1/chat/completions", {"messages": ["Who?"]}, "messages: expected a list of them"),
        ("/v1/chat/completions", {"messages": [{"role": "assistant"}]}, "messages: expected the user's"),
        ("/v1/chat/completions", {"messages": [{"role": "user"}]}, "question: expected a text"),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "content: expected parts of text",
        ),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "Who?"}], "n": "3"},
            "n: expected a number >= 1, got '3'",
        ),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "Who?"}], "n": 3, "stream": True},
            "n: expected 1 with stream, got 3",
        ),
    ],
)
def test_a_bad_request_is_told_what_is_wrong(quick, path, body, message):
    status, answered = with_client(quick, lambda client: post(client, path, body))
    assert status == 400
    assert answered["error"]["message"].startswith(message)


@pytest.fixture
def quick():
    return Quick()


def test_bodies_that_are_no_json_or_too_large_are_refused(quick):
    async def body(client):
        statuses = []
        for data in (b"{", b"\xff\xfe", b'"' + b"a" * 70_000 + b'"', b"[" * 20_000):
            headers = {"Content-Type": "application/json"}
            async with client.post("/api/ask", data=data, headers=headers) as response:
                statuses.append((response.status, (await response.json())["error"]["code"]))
        async with client.post("/api/ask", data=b"question=Who") as response:
            statuses.append((response.status, (await response.json())["error"]["code"]))
        for path in ("/absent", "/api/ask"):
            async with client.get(path) as response:
                statuses.append((response.status, (await response.json())["error"]["code"]))
        return statuses

    assert with_client(quick, body) == [(status, status) for status in (400, 400, 413, 400, 415, 404, 405)]


def test_questions_that_wait_are_answered_together_in_their_order(quick):
    async def run():
        queue = QuestionQueue(quick, 10)
        waiting = [queue.put(f"q{number}") for number in range(7)]
        waiting[1].cancel()  # its asker has gone
        loop = asyncio.create_task(queue.run())
        answers = [await one.answers for place, one in enumerate(waiting) if place != 1]
        loop.cancel()
        return [answer[0]["text"] for answer in answers]

    assert asyncio.run(run()) == ["Q0", "Q2", "Q3", "Q4", "Q5", "Q6"]
    assert quick.batches == [["q0", "q2", "q3"], ["q4", "q5", "q6"]]


def test_a_full_queue_gives_503_and_a_free_one_answers_again(quick, monkeypatch):
    started, hold = asyncio.Event(), asyncio.Event()
    answer = QuestionQueue._answer

    async def answer_later(queue, batch):
        started.set()
        await hold.wait()
        await answer(queue, batch)

    async def body(client):
        monkeypatch.setattr(QuestionQueue, "_answer", answer_later)
        asked = [asyncio.create_task(post(client, "/api/ask", {"question": "first"}))]
        await asyncio.wait_for(started.wait(), 60)
        # One is with the models; two more may wait.
        for place in (1, 2):
            asked.append(asyncio.create_task(post(client, "/api/ask", {"question": f"q{place}"})))
            while client.app[server.QUEUE].num_waiting < place:
                await asyncio.sleep(0.01)
        async with client.post("/api/ask", json={"question": "late"}) as response:
            late = response.status, response.headers["Retry-After"]
        hold.set()
        statuses = [status for status, _ in await asyncio.gather(*asked)]
        again, _ = await post(client, "/api/ask", {"question": "late"})
        return statuses, late, again

    quick.questions_per_batch = 1
    assert with_client(quick, body, max_waiting=2) == ([200, 200, 200], (503, "2"), 200)


def test_a_fault_of_the_models_costs_one_answer_and_not_the_service(quick, capsys):
    async def body(client):
        quick.fault = RuntimeError("broken")
        faults = [await post(client, "/api/ask", {"question": "q"})]
        headers = {"Accept": "text/event-stream"}
        faults.append(await post(client, "/api/ask", {"question": "q"}, headers=headers))
        quick.fault = None
        return faults, await post(client, "/api/ask", {"question": "q"})

    faults, (status, answered) = with_client(quick, body)
    assert [status for status, _ in faults] == [500, 500]
    assert faults[0][1]["error"]["message"] == "the answer failed: RuntimeError"
    assert status == 200 and answered["answers"][0]["text"] == "Q"
    assert "broken" in capsys.readouterr().err


def test_a_token_is_asked_of_everyone_but_not_for_the_page(quick):
    async def body(client):
        async with client.get("/") as page:
            statuses = [page.status]
        for given in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer secrét"}):
            status, _ = await post(client, "/api/ask", {"question": "q"}, headers=given)
            statuses.append(status)
        return statuses

    assert with_client(quick, body, token="secrét") == [200, 401, 401, 200]


def test_other_sites_cannot_ask_in_a_browser(quick):
    async def body(client):
        statuses = []
        for headers in (
            {"Origin": "https://evil.example"},
            {"Host": "evil.example"},
            {"Origin": f"http://127.0.0.1:{client.port}"},
        ):
            status, _ = await post(client, "/api/ask", {"question": "q"}, headers=headers)
            statuses.append(status)
        return statuses

    assert with_client(quick, body) == [403, 403, 200]


def test_the_page_runs_its_own_script_only_and_loads_nothing(quick):
    async def body(client):
        async with client.get("/") as response:
            return response.headers["Content-Security-Policy"], await response.text()

    policy, page = with_client(quick, body)
    assert policy.startswith("default-src 'none';") and "unsafe" not in policy
    assert "; connect-src 'self'; " in policy
    assert not re.search(r"https?://(?!host:8765)", page)
    assert "innerHTML" not in page


def test_an_address_of_others_takes_a_token_and_a_taken_port_is_an_error(quick):
    with pytest.raises(ValueError, match=r"expected a token for --host=0\.0\.0\.0, .*RADIT_SERVE_TOKEN"):
        ServeOptions(host="0.0.0.0")
    assert ServeOptions(host="0.0.0.0", token="t").port == 8765
    for wrong in ({"port": 70000}, {"max_waiting": 0}):
        with pytest.raises(ValueError, match="expected --port of 0 to 65535 and --max-waiting >= 1"):
            ServeOptions(**wrong)
    with contextlib.closing(asyncio.new_event_loop()) as loop:
        other = loop.run_until_complete(asyncio.start_server(lambda *_: None, "127.0.0.1", 0))
        port = other.sockets[0].getsockname()[1]
        for listen in (lambda taken: server.serve(quick, taken), server.check_port):
            with pytest.raises(ValueError, match=f"expected a free port on 127.0.0.1, got {port}"):
                listen(ServeOptions(port=port))
        other.close()
        loop.run_until_complete(other.wait_closed())
