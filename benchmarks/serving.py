"""The service on a finished run of `tiny`: one question after the other, then 50 clients for a minute.

Each client asks its next question when it has an answer, or a quarter of a second after a 503.
"""

import asyncio
import datetime
import json
import pathlib
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import aiohttp

from benchmarks import compare

NUM_ALONE = 40  # questions that are asked one after the other
NUM_CLIENTS = 50
SECONDS = 60


def run(cache: pathlib.Path, rounds: int) -> dict[str, Any]:
    """Seconds of single questions, and what 50 clients get; `rounds` is not used."""
    # 1) The run, and what `ask` answers.
    workdir = cache.absolute() / "serving"
    train = [sys.executable, "-m", "radit_jax.train", "--stage=all", f"--workdir={workdir}"]
    subprocess.run(train, check=True, cwd=compare.ROOT)
    lines = (workdir / "predictions.jsonl").read_text().splitlines()
    questions = [json.loads(line)["question"] for line in lines]

    # 2) The service.
    serve = [sys.executable, "-m", "radit_jax.ask", "--serve", "--port=0", f"--workdir={workdir}"]
    with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True, cwd=compare.ROOT) as process:
        try:
            address = _address(process)
            measured = asyncio.run(_measure(address, process.pid, questions))
        finally:
            process.terminate()
    return {
        "benchmark": "serving",
        "date": datetime.date.today().isoformat(),
        "commit": compare.commit(),
        "machine": compare.machine(),
        **measured,
    }


def _address(process: subprocess.Popen[str]) -> str:
    """Where the service listens, from the line that says so."""
    assert process.stdout is not None
    for line in process.stdout:
        if match := re.search(r"http://\S+", line):
            return match[0].rstrip("/")
    raise ValueError("serving: expected a service that starts, got one that ended. Read its error above.")


async def _measure(address: str, pid: int, questions: Sequence[str]) -> dict[str, Any]:
    """Ask alone, then with all clients at once."""
    async with aiohttp.ClientSession() as session:
        # 1) One after the other: seconds, and each question's best answer.
        seconds, expected = [], {}
        for question in questions[:NUM_ALONE]:
            start = time.monotonic()
            _, expected[question] = await _ask(session, address, question)
            seconds.append(time.monotonic() - start)

        # 2) All clients. Memory is read when all shapes are compiled, and at the end.
        statuses = Counter[int]()
        answers: list[tuple[str, str | None]] = []
        end = time.monotonic() + SECONDS
        clients = []
        for client in range(NUM_CLIENTS):
            clients.append(_keep_asking(session, address, list(expected), client, end, statuses, answers))
        everyone = asyncio.gather(*clients)
        await asyncio.sleep(SECONDS / 4)
        memory = [_resident_mib(pid)]
        await everyone
        memory.append(_resident_mib(pid))
    return {
        "seconds_alone": seconds,
        "statuses": statuses,
        "answers_a_second": len(answers) / SECONDS,
        "other_answers": sum(answer != expected[question] for question, answer in answers),
        "resident_mib": memory,
    }


async def _keep_asking(
    session: aiohttp.ClientSession,
    address: str,
    questions: Sequence[str],
    client: int,
    end: float,
    statuses: Counter[int],
    answers: list[tuple[str, str | None]],
) -> None:
    """One client's questions until `end`, each client from another place of the list."""
    place = client
    while time.monotonic() < end:
        question = questions[place % len(questions)]
        status, answer = await _ask(session, address, question)
        statuses[status] += 1
        if status == 200:
            answers.append((question, answer))
            place += 1
        else:
            await asyncio.sleep(0.25)


async def _ask(session: aiohttp.ClientSession, address: str, question: str) -> tuple[int, str | None]:
    """The status, and the best answer where there is one."""
    async with session.post(f"{address}/api/ask", json={"question": question}) as response:
        body = await response.json()
        return response.status, body["answers"][0]["text"] if response.status == 200 else None


def _resident_mib(pid: int) -> float:
    """A process' resident memory, as Linux reports it."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    match = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert match is not None
    return int(match[1]) / 1024


def section(record: Mapping[str, Any]) -> str:
    """What was measured, in a table."""
    machine, seconds = record["machine"], sorted(record["seconds_alone"])
    median, slowest = statistics.median(seconds), seconds[int(0.95 * len(seconds))]
    before, after = record["resident_mib"]
    statuses = ", ".join(f"{count:,} × {status}" for status, count in sorted(record["statuses"].items()))
    return "\n".join(
        (
            f"## Serving, {record['date']}",
            "",
            f"`python -m benchmarks serving` at commit {record['commit']}; {machine['cores']} cores of "
            f"{machine['cpu']}. A finished run of `tiny` behind `ask --serve`.",
            "",
            "| | |",
            "|---|--:|",
            f"| a question alone, warm: median, 95 % | {1000 * median:.0f} ms, {1000 * slowest:.0f} ms |",
            f"| {NUM_CLIENTS} clients for {SECONDS} s: answers a second | {record['answers_a_second']:.1f} |",
            f"| responses by status | {statuses} |",
            f"| best answers that differ from those to a single question | {record['other_answers']} |",
            f"| resident memory after {SECONDS // 4} s, at the end | {before:,.0f}, {after:,.0f} MiB |",
        )
    )
