"""A small server that speaks the protocol of the Hugging Face hub, for one repository."""

import hashlib
import json
import re
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

SHA = "a" * 40
TOKEN = "hf_right"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    repositories: ClassVar[Mapping[str, Path]] = {}
    private: ClassVar[Collection[str]] = ()
    gated: ClassVar[Collection[str]] = ()
    requests: ClassVar[list[tuple[str, str, str | None]]] = []
    cut: ClassVar[dict[str, int]] = {}  # bytes after which a file's first download breaks off

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        """Answers a request for a model's entry, the tree of its files, or a file."""
        path = self.path.partition("?")[0]
        self.requests.append((self.command, path, self.headers.get("Range")))
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?/?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        found = api or file
        assert found is not None, path
        name, revision = found[1], found[3 if api else 2] or "main"
        if refusal := self._refuse(name, revision):
            self._fail(*refusal)
        elif api:
            folder = self.repositories[name]
            self._send(json.dumps(_describe(folder, name, api[2])).encode())
        elif (place := self.repositories[name] / found[3]).is_file():
            self._send_file(place)
        else:
            self._fail(404, "EntryNotFound")

    def _refuse(self, name: str, revision: str) -> tuple[int, str] | None:
        """Returns the status and the code of a refusal, or None if the request is allowed."""
        if name in self.gated:
            return 403, "GatedRepo"
        is_known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if name not in self.repositories or (name in self.private and not is_known):
            return 404 if is_known else 401, "RepoNotFound"
        return None if revision in ("main", "v1", SHA) else (404, "RevisionNotFound")

    def _send_file(self, place: Path) -> None:
        data = place.read_bytes()
        etag = hashlib.sha256(data).hexdigest()
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": SHA, "Accept-Ranges": "bytes"}
        if (given := self.headers.get("Range")) is not None:
            first = int(given.removeprefix("bytes=").partition("-")[0])
            headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
            return self._send(data[first:], 206, headers)
        if self.command == "GET" and place.name in self.cut:
            self._send(data, 200, headers, stop=self.cut.pop(place.name))
            self.close_connection = True
            return None
        return self._send(data, 200, headers)

    def _send(
        self,
        data: bytes,
        status: int = 200,
        headers: Mapping[str, str] = {},
        stop: int | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[:stop])

    def _fail(self, status: int, code: str) -> None:
        self._send(b"{}", status, {"X-Error-Code": code, "X-Error-Message": code})


def _describe(folder: Path, name: str, kind: str | None) -> object:
    """Returns the model's entry in the API, or the tree of its files."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    names = [str(file.relative_to(folder)) for file in files]
    if kind == "tree":
        sizes = zip(names, files, strict=True)
        return [
            {
                **{"type": "file", "path": path, "size": file.stat().st_size},
                "oid": hashlib.sha1(file.read_bytes()).hexdigest(),
            }
            for path, file in sizes
        ]
    return {"id": name, "sha": SHA, "siblings": [{"rfilename": path} for path in names]}


class Hub:
    """A running server.

    Attributes:
        url: its address.
        requests: the method, the path and the range of every request so far.
    """

    def __init__(self, server: ThreadingHTTPServer, handler: type[_Handler]):
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        self.requests = handler.requests
        self.cut = handler.cut

    def downloads(self) -> list[str]:
        """Returns the names of the files that were downloaded, in order."""
        gets = (path for method, path, _ in self.requests if method == "GET")
        files = (path.partition("/resolve/")[2] for path in gets)
        return [file.partition("/")[2] for file in files if file]


@contextmanager
def serve(
    repositories: Mapping[str, Path], private: Collection[str] = (), gated: Collection[str] = ()
) -> Iterator[Hub]:
    """Serves folders as repositories, by name, on the loopback interface."""
    state = {"repositories": repositories, "private": private, "gated": gated}
    handler = type("Handler", (_Handler,), {**state, "requests": [], "cut": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield Hub(server, handler)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
