"""Asking where the devices' memory is too small; what it answers is in test_train.py."""

from types import SimpleNamespace

import jax
import pytest

from radit_jax import ask
from radit_jax.lm import answering
from radit_jax.runtime.store import PublishedFolder


def test_ask_says_in_one_line_what_to_do_where_the_memory_is_too_small(
    exported, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 GiB.")

    monkeypatch.setattr(answering, "answer_questions", refuse)
    assert ask.main(["Who?", f"--export={exported}"]) == 1
    device = SimpleNamespace(memory_stats=lambda: {"bytes_limit": 100})
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    assert ask.main(["Who?", f"--export={exported}"]) == 1
    err = capsys.readouterr().err
    assert "Traceback" not in err
    decoding, loading = [line for line in err.splitlines() if "error: " in line]
    for line, fault in ((decoding, "allocate 9 GiB."), (loading, "the model takes 0.00 GiB of each device")):
        assert "error: ask: the devices' memory is too small: " in line and fault in line
        assert line.endswith("; take more devices, or the CPU with JAX_PLATFORMS=cpu")


@pytest.mark.parametrize("both", (False, True))
def test_the_base_query_encoder_is_asked_only_where_the_chunks_vectors_are_its_own(
    exported, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, both: bool
) -> None:
    read = PublishedFolder.read_json
    monkeypatch.setattr(PublishedFolder, "read_json", lambda *a: {**read(*a), "both_encoders": both})
    assert ask.main(["Who?", f"--export={exported}"]) == 0
    printed = capsys.readouterr().out
    assert "chunks after R-ft" in printed
    assert ("chunks before R-ft" in printed) is not both
