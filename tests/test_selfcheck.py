"""The self-check passes as a command, and fails when what it proves is broken."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from radit_jax.method import likelihood, losses, steps
from radit_jax.selfcheck import __main__, proofs

SOUND = {
    "r_ft_loss": losses.r_ft_loss,
    "retrieval_log_prob": losses.retrieval_log_prob,
    "token_log_probs": likelihood.token_log_probs,
}


def test_the_command_proves_at_least_ten_properties():
    run = subprocess.run(
        [sys.executable, "-m", "radit_jax.selfcheck"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    lines = run.stdout.splitlines()
    assert len(lines) - 1 == len(proofs.PROPERTIES) >= 10
    assert all(line.startswith("ok ") for line in lines[:-1])
    assert lines[-1].startswith("0 failed")


@pytest.mark.parametrize(("option", "status", "text"), [("--help", 0, "usage"), ("--fast", 2, "--fast")])
def test_options_prove_nothing(option, status, text, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["selfcheck", option])
    with pytest.raises(SystemExit) as stop:
        __main__.command()
    shown = capsys.readouterr()
    assert (stop.value.code, text in shown.out + shown.err) == (status, True)


def reversed_kl(p, q, mask, *, direction):
    other = {"retrieval_to_lsr": "lsr_to_retrieval", "lsr_to_retrieval": "retrieval_to_lsr"}
    return SOUND["r_ft_loss"](p, q, mask, direction=other.get(direction, direction))


def mean_of_logs(answers, retrieval, mask):
    return jnp.where(mask, jnp.exp(retrieval) * answers, 0.0).sum(axis=-1)


def scores_without_gradient(scores, mask, temperature=1.0):
    return SOUND["retrieval_log_prob"](jax.lax.stop_gradient(scores), mask, temperature)


def one_position_late(module, params, batch):
    return SOUND["token_log_probs"](module, params, batch._replace(target_slots=batch.target_slots + 1))


@pytest.mark.parametrize(
    ("module", "name", "broken", "property_name"),
    [
        (losses, "r_ft_loss", reversed_kl, "Eq. 5: KL in its three directions"),
        (losses, "ensemble_log_prob", mean_of_logs, "Eq. 2: mixture over chunks"),
        (losses, "lm_score", lambda sums, counts, *, form: sums, "Eq. 4: p_LSR in its four forms"),
        (losses, "retrieval_log_prob", scores_without_gradient, "every query-encoder parameter"),
        (likelihood, "token_log_probs", one_position_late, "answer log-probabilities are those"),
        (steps, "token_log_probs", one_position_late, "Eq. 3: LM-ft loss"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_broken_property_is_found(monkeypatch, capsys, module, name, broken, property_name):
    monkeypatch.setattr(module, name, broken)
    [prop] = (p for p in proofs.PROPERTIES if p.name.startswith(property_name))
    with pytest.raises(SystemExit) as exit_:
        proofs.main([prop])
    assert exit_.value.code == 1
    out = capsys.readouterr().out
    assert out.startswith("FAIL") and property_name in out and "1 failed" in out


def test_a_measurement_that_is_not_a_number_fails(capsys):
    for at_least in (False, True):
        nan = proofs.Property("nothing", lambda models: float("nan"), 1.0, at_least)
        with pytest.raises(SystemExit) as exit_:
            proofs.main([nan])
        assert exit_.value.code == 1
