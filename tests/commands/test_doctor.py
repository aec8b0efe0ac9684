"""`radit doctor`: what it finds, what it tells people to do, and its exit code."""

import json
import pathlib
import tomllib

import jax
import pytest

from radit_jax import cli
from radit_jax.commands import doctor

PROJECT = tomllib.loads((pathlib.Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
FOR_DEVELOPMENT = {"docs", "test", "bench"}


def findings(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, str]]:
    found = json.loads(capsys.readouterr().out)
    return {finding["what"]: finding for finding in found}


def test_this_machine_is_ready(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--json"]) == 0
    found = findings(capsys)
    assert {"radit_jax", "python", "jax", "devices", "memory", "disk here", "scratch"} <= set(found)
    assert found["devices"]["value"].startswith("8 x cpu")
    assert "fault" not in {finding["state"] for finding in found.values()}


def test_without_a_device_it_exits_with_1_and_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_devices() -> None:
        raise ValueError("no TPU answers. End what uses it.")

    monkeypatch.setattr(jax, "devices", no_devices)
    assert cli.main(["doctor"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "fault    devices            none. no TPU answers. End what uses it." in lines


def test_a_full_disk_and_one_that_cannot_be_written_are_faults(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(tmp_path / "not" / "made")
    good = doctor.check_disk("scratch", folder, "--scratch")
    assert good.state == "ok" and good.value.endswith(f" free in {tmp_path}")
    monkeypatch.setattr(doctor, "LEAST_ROOM", 1e18)
    full = doctor.check_disk("scratch", folder, "--scratch")
    assert (full.state, full.todo) == ("fault", "Make room, or name another folder with --scratch.")
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)
    assert "cannot be written" in doctor.check_disk("scratch", folder, "--scratch").todo


def test_every_extra_that_users_may_want_has_a_purpose() -> None:
    assert set(doctor.PURPOSES) == set(PROJECT["optional-dependencies"]) - FOR_DEVELOPMENT


def test_an_extra_is_missing_where_one_of_its_packages_is(monkeypatch: pytest.MonkeyPatch) -> None:
    requires = {"radit_jax": ["numpy>=2", "gcsfs>=1; extra == 'gcs'", "jax[cuda13]; extra == 'cuda'"]}
    requires["jax"] = ["jaxlib==1; extra == 'cuda13'", "jax-cuda13-plugin==1; extra == 'cuda13'", "scipy"]
    monkeypatch.setattr(doctor.importlib.metadata, "requires", requires.get)
    assert list(doctor.packages_of("radit_jax", "gcs")) == ["gcsfs"]
    # The extra of jax counts, though jax itself is there.
    assert list(doctor.packages_of("radit_jax", "cuda")) == ["jax", "jaxlib", "jax-cuda13-plugin"]
