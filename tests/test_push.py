"""Exported models go to the hub once each, with their cards; the hub here is a stand-in on this machine."""

import pathlib
import types

import huggingface_hub
import pytest
from huggingface_hub import errors

from radit_jax import push
from radit_jax.runtime.storage.workdir import Workdir

CARD = '---\nmodel-index:\n- name: radit-lm\n---\n# A card\n\nname = "hf/lm"\n'


@pytest.fixture
def export(tmp_path: pathlib.Path) -> pathlib.Path:
    """An export with a language model and a retriever, and a licence that a person put there."""
    folder = Workdir(tmp_path / "run").published("export", "a" * 12)
    for model in ("hf/lm", "hf/retriever"):
        folder.write(f"{model}/README.md", CARD.encode())
        folder.write(f"{model}/config.json", b"{}")
    folder.write("hf/retriever/query_encoder/model.safetensors", b"weights")
    folder.write("lm/config.json", b"ours")
    folder.finish()
    (folder.path / "hf" / "lm" / "LICENSE").write_text("terms")
    (folder.path / "hf" / "lm" / ".DS_Store").write_text("not for others")
    return pathlib.Path(folder.path)


class Hub:
    """Takes what HfApi takes; `uploads` are the files of each upload by repository."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []
        self.uploads: dict[str, dict[str, str]] = {}
        self.refuses: Exception | None = None

    def whoami(self) -> dict:
        if self.refuses:
            raise self.refuses
        return {"name": "me"}

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
        self.calls.append(("create", repo_id, private, exist_ok))

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str):
        self.calls.append(("upload", repo_id, commit_message))
        files = [path for path in pathlib.Path(folder_path).rglob("*") if path.is_file()]
        self.uploads[repo_id] = {str(path.relative_to(folder_path)): path.read_text() for path in files}
        return types.SimpleNamespace(repo_url=f"https://hub/{repo_id}")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    return hub


def run(capsys: pytest.CaptureFixture, *arguments: str) -> tuple[int, str, str]:
    code = push.main(arguments)
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_each_model_is_uploaded_once_to_a_private_repository(export, hub, capsys) -> None:
    code, printed, _ = run(capsys, "org/tuned", f"--export={export}", "--message=First")
    assert code == 0 and "https://hub/org/tuned-retriever" in printed
    assert hub.calls == [
        ("create", "org/tuned-lm", True, True),
        ("upload", "org/tuned-lm", "First"),
        ("create", "org/tuned-retriever", True, True),
        ("upload", "org/tuned-retriever", "First"),
    ]
    assert set(hub.uploads["org/tuned-lm"]) == {"README.md", "config.json", "LICENSE"}
    assert "query_encoder/model.safetensors" in hub.uploads["org/tuned-retriever"]


def test_the_card_on_the_hub_loads_from_the_hub(export, hub, capsys) -> None:
    run(capsys, "org/tuned", f"--export={export}")
    card = hub.uploads["org/tuned-lm"]["README.md"]
    assert 'name = "org/tuned-lm"' in card and "- name: tuned-lm" in card
    # The export keeps its own.
    assert (export / "hf" / "lm" / "README.md").read_text() == CARD


def test_a_dry_run_shows_files_sizes_and_cards_and_sends_nothing(export, hub, capsys) -> None:
    code, printed, _ = run(capsys, "org/tuned", f"--workdir={export.parent}", "--dry-run", "--public")
    assert code == 0 and not hub.calls
    for shown in (
        "org/tuned-lm (public)",
        "config.json",
        "LICENSE",
        "0.00 MB",
        "# A card",
        "nothing was sent",
    ):
        assert shown in printed
    assert ".DS_Store" not in printed


def test_a_model_of_llama_3_has_to_be_called_so(export, hub, capsys) -> None:
    card = export / "hf" / "lm" / "README.md"
    card.write_text(CARD.replace("model-index", "license: llama3.2\nmodel-index"))
    _, _, warned = run(capsys, "org/tuned", f"--export={export}", "--dry-run")
    assert warned.count("begins with “Llama”") == 1 and "org/tuned-lm" in warned
    _, _, warned = run(capsys, "org/Llama-tuned", f"--export={export}", "--dry-run")
    assert not warned


def test_some_of_the_models_can_be_sent(export, hub, capsys) -> None:
    run(capsys, "org/tuned", f"--export={export}", "--models=retriever", "--public")
    assert hub.calls[0] == ("create", "org/tuned-retriever", False, True) and len(hub.calls) == 2


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["tuned"], "push: expected ORG/NAME, got 'tuned'"),
        (["org/a b"], "push: expected ORG/NAME, got 'org/a b'"),
        (["org/tuned", "--models=lm-adapter"], "push: expected an export with lm-adapter, got lm, retriever"),
        (
            ["org/tuned", "--export=nowhere"],
            "nowhere: expected a finished export, got none. Name another",
        ),
    ],
)
def test_what_cannot_be_sent_is_one_line(export, hub, capsys, arguments, error) -> None:
    code, _, problem = run(capsys, f"--export={export}", *arguments)
    assert code == 1 and error in problem and problem.count("\n") == 1 and not hub.calls


def test_an_export_without_others_forms_says_how_to_make_them(tmp_path, hub, capsys) -> None:
    folder = Workdir(tmp_path).published("export", "a" * 12)
    folder.write("lm/config.json", b"ours")
    folder.finish()
    code, _, problem = run(capsys, "org/tuned", f"--workdir={tmp_path}")
    assert code == 1 and "expected an export with a model in hf/, got none" in problem
    assert "export.hf=true" in problem


def test_an_export_of_an_earlier_version_is_to_be_made_again(tmp_path, hub, capsys) -> None:
    folder = Workdir(tmp_path).published("export", "a" * 12)
    folder.write("hf/query_encoder/config.json", b"{}")
    folder.finish()
    code, _, problem = run(capsys, "org/tuned", f"--workdir={tmp_path}")
    assert code == 1 and "got the layout of an earlier version" in problem


def test_a_damaged_model_is_not_sent(export, hub, capsys) -> None:
    (export / "hf" / "lm" / "config.json").write_text("[]")
    code, _, problem = run(capsys, "org/tuned", f"--export={export}")
    assert code == 1 and "config.json: expected the bytes that were written" in problem and not hub.calls


def answer(status: int) -> errors.HfHubHTTPError:
    response = types.SimpleNamespace(headers={}, status_code=status, request=None)
    return errors.HfHubHTTPError("401 Client Error.\nInvalid user token.", response=response)  # type: ignore


@pytest.mark.parametrize(
    ("refuses", "remedy"),
    [
        (
            errors.LocalTokenNotFoundError("Token is required"),
            "got none. Run `hf auth login`, or set HF_TOKEN.",
        ),
        (answer(401), "got 401 Client Error. Log in with an account that may"),
        (OSError("Name or service not known"), "got Name or service not known. Connect, and run the same"),
        (errors.HTTPError("timed out"), "expected an answer of the hub, got timed out. Connect"),
    ],
    ids=["no token", "wrong token", "no network", "no answer"],
)
def test_without_a_token_or_network_it_says_what_to_do(export, hub, capsys, refuses, remedy) -> None:
    hub.refuses = refuses
    code, _, problem = run(capsys, "org/tuned", f"--export={export}")
    assert code == 1 and remedy in problem and problem.count("\n") == 1 and not hub.calls


def test_the_token_is_the_hubs_own(export, capsys, monkeypatch, tmp_path) -> None:
    # Without a stand-in: huggingface_hub itself looks for the token, and finds none.
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    code, _, problem = run(capsys, "org/tuned", f"--export={export}")
    assert code == 1 and "expected a token of the hub that may write, got none" in problem
