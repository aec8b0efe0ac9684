"""Compilation that takes long is said, before and after; what is quick is not."""

import threading

import jax
import jax.numpy as jnp
import pytest

from radit_jax.runtime.monitoring import compilation
from radit_jax.runtime.monitoring.compilation import announcing_compilation

LOWERED = "/jax/core/compile/jaxpr_to_mlir_module_duration"
COMPILED = "/jax/core/compile/backend_compile_duration"


def compile_step(shown: threading.Event, seconds: float, timeout: float) -> None:
    """What jax reports of a program, and how long it is waited for a note in between."""
    jax.monitoring.record_event_duration_secs(LOWERED, 0.1, fun_name="jit(step)")
    shown.wait(timeout)
    jax.monitoring.record_event_duration_secs(COMPILED, seconds, fun_name="jit(step)")


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch):
    """The notes that are shown, and an event for the first of them."""
    notes, shown = [], threading.Event()

    def show(text: str) -> None:
        notes.append(text)
        shown.set()

    monkeypatch.setattr(compilation, "show_note", show)
    return notes, shown


def test_a_long_compilation_is_said_once_before_and_once_after(notes, monkeypatch) -> None:
    monkeypatch.setattr(compilation, "QUIET_SECONDS", 0.01)
    with announcing_compilation():
        compile_step(notes[1], seconds=22.4, timeout=30)
    assert notes[0] == ["compiling step …", "compiled step in 22 s"]
    compile_step(notes[1], seconds=22.4, timeout=0.1)
    assert len(notes[0]) == 2  # nobody listens any more


def test_what_compiles_at_once_is_not_mentioned(notes, monkeypatch) -> None:
    monkeypatch.setattr(compilation, "QUIET_SECONDS", 0.05)
    with announcing_compilation():
        compile_step(notes[1], seconds=0.04, timeout=0)
        assert not notes[1].wait(0.2)


def test_a_program_that_is_only_lowered_is_forgotten_with_the_next_one(notes, monkeypatch) -> None:
    monkeypatch.setattr(compilation, "QUIET_SECONDS", 0.05)
    with announcing_compilation():
        jax.monitoring.record_event_duration_secs(LOWERED, 0.1, fun_name="jit(planned)")
        compile_step(notes[1], seconds=3.0, timeout=30)
    assert notes[0] == ["compiling step …", "compiled step in 3 s"]


def test_jax_reports_a_program_before_and_after_it_is_compiled(monkeypatch) -> None:
    reports = []

    class Announcement:
        def __init__(self, program: str):
            self.program = program
            reports.append(f"begin {program}")

        def end(self, seconds: float | None) -> None:
            assert seconds is not None and seconds > 0
            reports.append(f"end {self.program}")

    def wobble(x):
        return jnp.sin(x) * 3

    monkeypatch.setattr(compilation, "Announcement", Announcement)
    x = jnp.ones(7)
    with announcing_compilation():
        jax.jit(wobble)(x)
        jax.jit(wobble)(x)
    assert reports == ["begin wobble", "end wobble"]
