"""`radit demo`: the tiny experiment whole, from a generated world to its results, with one bar."""

import argparse
import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from radit_jax import train
from radit_jax.runtime.monitoring.progress import Progress, show_on

# How long each stage took on two CPU cores, in seconds: its share of the bar.
SECONDS = {
    "corpus": 1,
    "base/lm": 132,
    "base/retriever": 155,
    "embed/retriever": 12,
    "index/retriever": 9,
    "retrieve/lm_ft": 7,
    "retrieve/r_ft": 6,
    "lm_ft": 128,
    "score": 59,
    "r_ft": 74,
    "evaluate": 180,
    "export": 10,
}


def parser() -> argparse.ArgumentParser:
    """The command line of `radit demo`."""
    p = argparse.ArgumentParser(
        description="Train and evaluate the tiny experiment whole. Needs minutes, no network, no accelerator."
    )
    p.add_argument("--workdir", metavar="FOLDER", help="default: runs/tiny")
    p.add_argument(
        "--set", action="append", default=[], metavar="SECTION.FIELD=VALUE", help="change a setting"
    )
    # What else train asks for: this experiment whole, on this machine alone.
    p.set_defaults(
        run=run_demo,
        experiment=str(train.TINY),
        stage="all",
        scratch=None,
        dry_run=False,
        prune=False,
        coordinator=None,
        num_processes=None,
        process_id=None,
    )
    return p


def run_demo(options: argparse.Namespace) -> None:
    """Run all stages of the tiny experiment."""
    with whole_bar():
        train.run_stages(options)


@contextlib.contextmanager
def whole_bar() -> Iterator[None]:
    """One bar for all stages inside, below the lines that they print; without a terminal, lines alone."""
    # Where the output is kept, a bar that is redrawn would only be in the way.
    if not (sys.stdout.isatty() and sys.stderr.isatty()):
        yield
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bar

    # How much, how long already, and how long still.
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True)) as bar, show_on(WholeRun(bar)):
        yield


class WholeRun:
    """Moves the one bar by what each stage's loops say."""

    def __init__(self, bar: Any):
        # The total is in seconds, so that the bar moves evenly over stages of all lengths.
        self._bar = bar
        self._task = bar.add_task("demo", total=sum(SECONDS.values()))
        self._stage = ""
        self._before = 0  # seconds of the stages before this one

    def begin_stage(self, name: str) -> None:
        """Name the stage, and count those before it as done."""
        self._stage = f"stage {list(SECONDS).index(name) + 1}/{len(SECONDS)} {name}"
        self._before = seconds_before(name)
        self._share = SECONDS[name]
        self._bar.update(self._task, completed=self._before, description=self._stage)

    def show_loop(self, loop: Progress) -> None:
        """Move the bar by the loop's share of its stage, and show its loss."""
        # A stage with several loops moves through its share once for each.
        done = loop.done / max(loop.total, 1)
        facts = [f"{name} {value:.4g}" for name, value in loop.facts.items()]
        text = "  ".join([self._stage, *facts[:1]])
        self._bar.update(self._task, completed=self._before + self._share * done, description=text)


def seconds_before(stage: str) -> int:
    """What the stages before `stage` took.

    >>> seconds_before("base/lm")
    1
    """
    # The table is in the order of the stages.
    names = list(SECONDS)
    before = names[: names.index(stage)]
    return sum(SECONDS[name] for name in before)
