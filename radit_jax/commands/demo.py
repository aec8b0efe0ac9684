"""`radit demo`: the tiny experiment whole, from a generated world to its results, with one bar."""

import argparse
import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from radit_jax import train
from radit_jax.command_line import add_set_option
from radit_jax.pipeline.past_times import TINY_SECONDS
from radit_jax.runtime.monitoring.progress import Progress, show_on
from radit_jax.runtime.monitoring.time_left import TimeLeft, in_words


def parser() -> argparse.ArgumentParser:
    """The command line of `radit demo`."""
    p = argparse.ArgumentParser(
        description="Train and evaluate the tiny experiment whole. Needs minutes, no network, no accelerator."
    )
    p.add_argument("--workdir", metavar="FOLDER", help="default: runs/tiny")
    add_set_option(p)
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
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    # How much, how long already, and how long still.
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )
    with Bar(*columns, console=Console(stderr=True)) as bar, show_on(WholeRun(bar)):
        yield


class WholeRun:
    """Moves the one bar by what each stage's loops say."""

    def __init__(self, bar: Any):
        # The total is in seconds, so that the bar moves evenly over stages of all lengths.
        self._bar = bar
        self._time_left = TimeLeft(TINY_SECONDS)
        self._task = bar.add_task("demo", total=self._time_left.total, left="")
        self._title = ""

    def begin_stage(self, name: str) -> None:
        """Name the stage, and count those before it as done."""
        self._time_left.begin(name)
        self._title = f"stage {name}"
        # A setting may bring a stage that the table lacks.
        if name in TINY_SECONDS:
            number = list(TINY_SECONDS).index(name) + 1
            self._title = f"stage {number}/{len(TINY_SECONDS)} {name}"
        self._show()

    def show_loop(self, loop: Progress) -> None:
        """Move the bar by the loop's share of its stage, and show its loss."""
        # A loop that the table lacks leaves the bar where it is.
        fraction = loop.done / max(loop.total, 1)
        self._time_left.advance(loop.name, fraction, loop.seconds_left())
        facts = [f"{name} {value:.4g}" for name, value in loop.facts.items()]
        self._show(*facts[:1])

    def show_note(self, text: str) -> None:
        """Show it next to the stage, until a loop goes on."""
        self._show(text)

    def _show(self, *words: str) -> None:
        left = in_words(self._time_left.left() or 0.0)
        self._bar.update(
            self._task,
            completed=self._time_left.done,
            description="  ".join([self._title, *words]),
            left=left,
        )

    def end_stages(self) -> None:
        """Leave the whole bar above what follows."""
        self._bar.update(self._task, completed=self._time_left.total, description="demo", left="")
        self._bar.stop()
