"""Object stores on the loopback: each context gives the environment that points a process at its server."""

import contextlib
import http
import http.server
import json
import logging
import re
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import pytest

emulator = pytest.importorskip("gcp_storage_emulator.server")
store = pytest.importorskip("gcp_storage_emulator.storage")
moto = pytest.importorskip("moto.server")

BUCKET = "lab"
logging.getLogger("werkzeug").setLevel(logging.ERROR)


class Server(NamedTuple):
    environment: dict[str, str]
    names: Callable[[], list[str]]  # of all objects


@contextlib.contextmanager
def s3() -> Iterator[Server]:
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "anyone",
        "AWS_SECRET_ACCESS_KEY": "anything",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }

    def ask(method: str, query: str = "") -> str:
        request = urllib.request.Request(f"http://{host}:{port}/{BUCKET}{query}", method=method)
        with urllib.request.urlopen(request) as answer:
            return answer.read().decode()

    ask("PUT")
    try:
        yield Server(environment, lambda: re.findall("<Key>([^<]*)</Key>", ask("GET", "?max-keys=9999")))
    finally:
        server.stop()


@contextlib.contextmanager
def gs(denied: bool = False, busy: Callable[[], bool] = lambda: False) -> Iterator[Server]:
    """Google's; `denied` answers as to an account without permission, and `busy` says when with 503."""
    storage = Objects(use_memory_fs=True)
    storage.create_bucket(BUCKET, {"kind": "storage#bucket", "name": BUCKET})
    answering = type("Answering", (Handler,), {"busy": staticmethod(busy)})
    handler = Denied if denied else partial(answering, storage)
    with Http(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        environment = {
            "STORAGE_EMULATOR_HOST": address,
            "TENSORSTORE_GCS_HTTP_URL": address,
            "CLOUD_STORAGE_EMULATOR_ENDPOINT": address,
            "FSSPEC_GCS": json.dumps({"token": "anon"}),
            "NO_GCE_CHECK": "true",
            "GCE_METADATA_ROOT": "127.0.0.1:1",
        }
        yield Server(environment, lambda: list(storage.objects.get(BUCKET, {})))
        server.shutdown()


class Http(http.server.ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None: ...  # a client that was killed, or that wants no more


class Objects(store.Storage):
    """The emulator's store, with listings that begin at an offset, and without a file that describes it."""

    start_offset = ""

    def _write_config_to_file(self) -> None: ...

    def get_file_list(self, *args, **options):
        found, prefixes = super().get_file_list(*args, **options)
        return [obj for obj in found if obj["name"] >= self.start_offset], prefixes


class Handler(emulator.RequestHandler):
    """What Orbax and TensorStore need beside: generations, preconditions, suffix ranges, moves."""

    lock = threading.Lock()
    busy = staticmethod(lambda: False)  # whether to answer that the store is

    def serve(self, method: str) -> None:
        if self.busy():
            self.object = ""
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self._answer(
                http.HTTPStatus.SERVICE_UNAVAILABLE, {"error": {"code": 503, "message": "slow down"}}
            )
            return
        with self.lock:
            url = urllib.parse.urlsplit(self.path)
            query = dict(urllib.parse.parse_qsl(url.query))
            self.object = self._named(url.path, query)
            self.storage.start_offset = query.get("startOffset", "")
            source, moved, target = url.path.partition("/moveTo/o/")
            if moved:
                self._move(source, urllib.parse.unquote(target))
            elif query.get("ifGenerationMatch", self._generation()) != self._generation():
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self._answer(http.HTTPStatus.PRECONDITION_FAILED, {"error": {"code": 412, "message": "no"}})
            else:
                self._widen_suffix_range()
                emulator.Router(self).handle(method)

    def _named(self, path: str, query: dict[str, str]) -> str:
        _, behind, name = path.partition(f"/b/{BUCKET}/o/")
        return urllib.parse.unquote(name) if behind else query.get("name", "")

    def _resource(self) -> dict | None:
        return self.storage.objects.get(BUCKET, {}).get(self.object)

    def _generation(self) -> str:
        resource = self._resource()
        return resource["generation"] if resource else "0"

    def _widen_suffix_range(self) -> None:
        wanted, resource = self.headers.get("Range", ""), self._resource()
        if wanted.startswith("bytes=-") and resource:
            start = max(0, int(resource["size"]) - int(wanted.removeprefix("bytes=-")))
            self.headers.replace_header("Range", f"bytes={start}-")

    def _move(self, source: str, target: str) -> None:
        name = urllib.parse.unquote(source.partition(f"/b/{BUCKET}/o/")[2])
        resource = self.storage.objects[BUCKET][name] | {"name": target}
        self.storage.create_file(BUCKET, target, self.storage.get_file(BUCKET, name), resource)
        self.storage.delete_file(BUCKET, name)
        self._answer(http.HTTPStatus.OK, resource)

    def _answer(self, status: http.HTTPStatus, value: dict) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def end_headers(self) -> None:
        if self._resource():
            self.send_header("X-Goog-Generation", self._generation())
        super().end_headers()

    def do_GET(self) -> None:
        self.serve("GET")

    def do_POST(self) -> None:
        self.serve("POST")

    def do_PUT(self) -> None:
        self.serve("PUT")

    def do_DELETE(self) -> None:
        self.serve("DELETE")

    def do_PATCH(self) -> None:
        self.serve("PATCH")


class Denied(http.server.BaseHTTPRequestHandler):
    def refuse(self) -> None:
        body = json.dumps({"error": {"code": 403, "message": "no storage.objects access"}}).encode()
        self.send_response(403)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_DELETE = refuse

    def log_message(self, *_: object) -> None: ...
