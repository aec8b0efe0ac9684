"""Names of checkpoints, against a hub of our own on this machine that speaks as Hugging Face's does."""

import http.server
import importlib.util
import json
import threading

import huggingface_hub.constants
import pytest

from radit_jax.runtime.pretrained import hub

COMMIT = "a" * 40
FILES = {
    "org/safe": {
        "config.json": b"{}",
        "model.safetensors": b"s",
        "pytorch_model.bin": b"p",
        "1_Pooling/config.json": b"{}",
        "original/params.json": b"{}",
        "README.md": b"r",
    },
    "org/pickled": {"config.json": b"{}", "pytorch_model.bin": b"p", "flax_model.msgpack": b"f"},
}


class Hub(http.server.BaseHTTPRequestHandler):
    """The part of the hub's API that a snapshot takes. `org/gated` wants a token that we lack."""

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(send_body=False)

    def do_GET(self):
        self.answer(send_body=True)

    def answer(self, send_body):
        path = self.path.partition("?")[0].strip("/").removeprefix("api/models/")
        repo = "/".join(path.split("/")[:2])
        if repo == "org/gated":
            return self.send(403, b"", send_body, **{"X-Error-Code": "GatedRepo"})
        if repo not in FILES:
            return self.send(401, b"", send_body, **{"X-Error-Code": "RepoNotFound"})
        rest = path.removeprefix(f"{repo}/")
        if rest == "revision/main" or rest == f"revision/{COMMIT}":
            files = [{"rfilename": name} for name in FILES[repo]]
            body = json.dumps({"id": repo, "sha": COMMIT, "siblings": files}).encode()
        elif rest.startswith("revision/"):
            return self.send(404, b"", send_body, **{"X-Error-Code": "RevisionNotFound"})
        elif rest.startswith("tree/"):
            files = FILES[repo].items()
            entries = [{"type": "file", "path": n, "size": len(b), "oid": "b" * 40} for n, b in files]
            body = json.dumps(entries).encode()
        else:
            body = FILES[repo][rest.removeprefix(f"resolve/{COMMIT}/")]
        return self.send(200, body, send_body, **{"X-Repo-Commit": COMMIT, "ETag": f'"{hash(rest):x}"'})

    def send(self, status, body, send_body, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if send_body:
            self.wfile.write(body)


@pytest.fixture(scope="module")
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def at(monkeypatch, tmp_path):
    """Point huggingface_hub at an address, with an empty cache and in an empty folder."""

    def at(address):
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, "ENDPOINT", address)
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", "")

    monkeypatch.chdir(tmp_path)
    return at


@pytest.fixture
def online(at, server):
    at(f"http://127.0.0.1:{server.server_port}")


@pytest.mark.parametrize("source", ["hub:org/safe", "org/safe", "hub:org/safe@main"])
def test_a_repository_of_the_hub_is_fetched_without_its_other_forms(online, source):
    folder = hub.find(source)
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert names == {"config.json", "model.safetensors", "1_Pooling/config.json", "README.md"}
    assert hub.identity(source) == f"org/safe@{COMMIT}"


def test_a_pickle_is_fetched_only_where_there_are_no_safetensors(online):
    assert sorted(path.name for path in hub.find("org/pickled").iterdir()) == [
        "config.json",
        "pytorch_model.bin",
    ]


def test_a_pickle_without_torch_is_refused_before_it_is_fetched(online, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "torch" else find(name, *rest)
    )
    hub.check_weights("org/safe")
    for refused in (hub.check_weights, hub.find):
        with pytest.raises(ValueError, match=r"org/pickled: expected .* pip install 'radit_jax\[torch\]'"):
            refused("org/pickled")
    assert [path.name for path in hub.find_small("org/pickled").iterdir()] == ["config.json"]


@pytest.mark.parametrize("source", ["x" * 5000, "a\x00b", "~nobody-here/x", "package:", "package:a.b/c"])
def test_a_name_of_any_kind_is_refused(online, source):
    for function in (hub.find, hub.find_small):
        with pytest.raises(ValueError, match="checkpoint "):
            function(source)


def test_what_was_fetched_is_found_without_the_hub(online, at):
    folder = hub.find("org/safe")
    at("http://127.0.0.1:9")  # where nothing listens
    assert hub.find("org/safe") == folder
    assert hub.identity("org/safe") == f"org/safe@{COMMIT}"


def test_a_hub_that_cannot_be_reached_is_an_error(at):
    at("http://127.0.0.1:9")
    with pytest.raises(ValueError, match=r"checkpoint org/safe: .* an answer of the hub, got (?!Got)"):
        hub.find("org/safe")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "org/gated",
            "expected a token that may read org/gated, .* got none. .* run `hf auth login` or set",
        ),
        (
            "org/nothing",
            "org/nothing: expected a folder or a repository of the hub, got neither. Correct the name",
        ),
        ("hub:org/safe@v9", "expected a revision of org/safe, got v9. Name another"),
        ("hub:name", "checkpoint hub:name: expected hub:ORG/NAME or hub:ORG/NAME@REVISION"),
    ],
)
def test_what_the_hub_refuses_is_an_error_that_says_why(online, source, message):
    with pytest.raises(ValueError, match=message):
        hub.find(source)


@pytest.mark.parametrize("source", ["/models/x", "./models/x", "models/x/y", "~/models", "models"])
def test_a_path_is_never_taken_for_a_repository(online, source):
    assert hub.identity(source) is None
    with pytest.raises(
        ValueError, match=f"checkpoint {source}: expected a folder, got none of that name. Correct the path"
    ):
        hub.find(source)


def test_a_gguf_file_that_is_not_here_is_no_repository(online):
    with pytest.raises(ValueError, match=r"checkpoint org/m\.gguf: expected a file, got none of that name"):
        hub.find("org/m.gguf")


def test_a_slip_in_a_path_of_a_folder_that_is_here_is_no_repository(online, tmp_path):
    (tmp_path / "org" / "here").mkdir(parents=True)
    assert hub.find("org/here") == hub.Path("org/here")
    with pytest.raises(
        ValueError,
        match="checkpoint org/safe: expected a folder, got none of that name. Correct the path, or",
    ):
        hub.find("org/safe")
    assert hub.find("hub:org/safe").name == COMMIT


def test_a_folder_inside_a_package_is_found():
    assert hub.find("package:numpy/linalg").name == "linalg"
