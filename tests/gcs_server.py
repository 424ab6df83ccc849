"""A bucket on this machine: what gcsfs, TensorStore and google-cloud-storage ask of Cloud Storage.

The JSON API of objects: list, get, media, upload (media, multipart, resumable), copy, compose,
delete and batches of deletions, with generations and their preconditions.
"""

import base64
import hashlib
import json
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

BUCKET = "bucket"
TO_ANOTHER = rf"(?:(?:copyTo|rewriteTo)/b/{BUCKET}|moveTo)"


class Objects:
    """The objects of the bucket, with a generation that grows with each change."""

    def __init__(self) -> None:
        self.data: dict[str, tuple[int, bytes]] = {}
        self.uploads: dict[str, tuple[str, bytes]] = {}  # resumable ones: name and content so far
        self.generation = 1
        self.lock = threading.RLock()

    def put(self, name: str, content: bytes) -> None:
        with self.lock:
            self.generation += 1
            self.data[name] = self.generation, content

    def describe(self, name: str) -> dict[str, Any]:
        generation, content = self.data[name]
        return {
            "kind": "storage#object",
            "bucket": BUCKET,
            "name": name,
            "generation": str(generation),
            "metageneration": "1",
            "size": str(len(content)),
            "md5Hash": base64.b64encode(hashlib.md5(content).digest()).decode(),
            "crc32c": "AAAAAA==",
            "etag": str(generation),
            "timeCreated": "2026-01-01T00:00:00.000Z",
            "updated": "2026-01-01T00:00:00.000Z",
            "contentType": "application/octet-stream",
            "storageClass": "STANDARD",
        }


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer is one packet
    objects: Objects

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, content: bytes | dict | None = None, **headers: str) -> None:
        body = json.dumps(content).encode() if isinstance(content, dict) else content or b""
        self.send_response(status)
        kind = "application/json" if isinstance(content, dict) else "application/octet-stream"
        self.send_header("Content-Type", headers.pop("content_type", kind))
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def parse(self) -> tuple[str, dict[str, str]]:
        url = urlsplit(self.path)
        return url.path, {name: values[0] for name, values in parse_qs(url.query, True).items()}

    def missing(self) -> None:
        self.answer(404, {"error": {"code": 404, "message": "Not Found"}})

    def fails(self, name: str, query: dict[str, str]) -> bool:
        """Whether a precondition does not hold, which is answered."""
        now = str(self.objects.data[name][0]) if name in self.objects.data else "0"
        wanted, not_wanted = query.get("ifGenerationMatch"), query.get("ifGenerationNotMatch")
        if wanted is not None and wanted != now:
            self.answer(412, {"error": {"code": 412, "message": "Precondition Failed"}})
            return True
        if not_wanted is not None and not_wanted == now:
            self.answer(304)
            return True
        return False

    def do_GET(self) -> None:
        path, query = self.parse()
        self.body()
        if found := re.fullmatch(rf"(?:/download)?/storage/v1/b/{BUCKET}/o/(.+)", path):
            self.get_object(unquote(found[1]), query, "download" in path)
        elif re.fullmatch(rf"/storage/v1/b/{BUCKET}/o/?", path):
            self.list_objects(query)
        elif re.fullmatch(rf"/storage/v1/b/{BUCKET}/?", path):
            self.answer(200, {"kind": "storage#bucket", "name": BUCKET, "id": BUCKET})
        elif path.endswith("/storageLayout"):
            self.answer(200, {"bucket": BUCKET, "locationType": "region"})
        else:
            self.missing()

    do_HEAD = do_GET

    def get_object(self, name: str, query: dict[str, str], is_download: bool) -> None:
        with self.objects.lock:
            if self.fails(name, query):
                return None
            if name not in self.objects.data:
                return self.missing()
            about = self.objects.describe(name)
            content = self.objects.data[name][1]
        if query.get("alt") != "media" and not is_download:
            return self.answer(200, about)
        shared = {"x_goog_generation": about["generation"], "etag": about["etag"]}
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if wanted is None or not content:
            return self.answer(200, content, **shared)
        if wanted[1] == "":
            start, stop = max(len(content) - int(wanted[2]), 0), len(content)
        else:
            start = int(wanted[1])
            stop = min(int(wanted[2]) + 1 if wanted[2] else len(content), len(content))
        if start >= len(content):
            return self.answer(416, b"")
        place = f"bytes {start}-{stop - 1}/{len(content)}"
        return self.answer(206, content[start:stop], content_range=place, **shared)

    def list_objects(self, query: dict[str, str]) -> None:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        start, end = query.get("startOffset", ""), query.get("endOffset", "")
        items, prefixes = [], set()
        with self.objects.lock:
            for name in sorted(self.objects.data):
                if not name.startswith(prefix) or name < start or (end and name >= end):
                    continue
                inner = name[len(prefix) :]
                if delimiter and delimiter in inner:
                    prefixes.add(prefix + inner.split(delimiter)[0] + delimiter)
                else:
                    items.append(self.objects.describe(name))
        found: dict[str, Any] = {"kind": "storage#objects"}
        self.answer(200, found | {"items": items, "prefixes": sorted(prefixes)})

    def do_POST(self) -> None:
        path, query = self.parse()
        body = self.body()
        if "upload_id" in query:
            self.resume(query["upload_id"], body)
        elif re.fullmatch(rf"/(?:resumable/)?upload/storage/v1/b/{BUCKET}/o/?", path):
            self.upload(query, body)
        elif path == "/batch/storage/v1":
            self.batch(body)
        elif found := re.fullmatch(rf"/storage/v1/b/{BUCKET}/o/(.+)/{TO_ANOTHER}/o/(.+)", path):
            source, target = unquote(found[1]), unquote(found[2])
            with self.objects.lock:
                if source not in self.objects.data:
                    return self.missing()
                self.objects.put(target, self.objects.data[source][1])
                if "/moveTo/" in path:
                    del self.objects.data[source]
                about = self.objects.describe(target)
            done = {"kind": "storage#rewriteResponse", "done": True, "resource": about}
            self.answer(200, done if "rewriteTo" in path else about)
        else:
            self.missing()
        return None

    def upload(self, query: dict[str, str], body: bytes) -> None:
        kind = query.get("uploadType")
        if kind == "resumable":
            name = query.get("name") or json.loads(body)["name"]
            number = f"u{len(self.objects.uploads)}"
            self.objects.uploads[number] = name, b""
            address = f"http://{self.headers['Host']}{urlsplit(self.path).path}"
            return self.answer(200, {}, Location=f"{address}?upload_id={number}")
        if kind == "multipart":
            boundary = self.headers["Content-Type"].split("boundary=")[1].strip("'\"").encode()
            _, about, content, _ = body.split(b"--" + boundary)
            name = json.loads(about.split(b"\n\n" if b"\r\n" not in about else b"\r\n\r\n", 1)[1])
            name, body = name["name"], content.split(b"\r\n\r\n" if b"\r\n\r\n" in content
                                                     else b"\n\n", 1)[1]  # fmt: skip
            body = body[: -2 if body.endswith(b"\r\n") else -1]
        else:
            name = query["name"]
        with self.objects.lock:
            if not self.fails(name, query):
                self.objects.put(name, body)
                self.answer(200, self.objects.describe(name))
        return None

    def do_PUT(self) -> None:
        _, query = self.parse()
        self.resume(query["upload_id"], self.body())

    def resume(self, upload: str, body: bytes) -> None:
        """Takes a part of a resumable upload; the last one says how long all are."""
        name, before = self.objects.uploads[upload]
        content = before + body
        total = self.headers.get("Content-Range", "").rpartition("/")[2]
        if total == "*":
            self.objects.uploads[upload] = name, content
            return self.answer(308, b"", Range=f"bytes=0-{len(content) - 1}")
        with self.objects.lock:
            self.objects.put(name, content)
            return self.answer(200, self.objects.describe(name))

    def do_DELETE(self) -> None:
        path, query = self.parse()
        self.body()
        name = unquote(path.partition(f"/b/{BUCKET}/o/")[2])
        with self.objects.lock:
            if self.fails(name, query):
                return None
            if self.objects.data.pop(name, None) is None:
                return self.missing()
        return self.answer(204)

    def batch(self, body: bytes) -> None:
        parts = []
        for name in re.findall(rb"DELETE /storage/v1/b/%b/o/(\S+)" % BUCKET.encode(), body):
            with self.objects.lock:
                gone = self.objects.data.pop(unquote(name.decode().split("?")[0]), None)
            status = "204 No Content" if gone else "404 Not Found"
            parts.append(f"--x\r\nContent-Type: application/http\r\n\r\nHTTP/1.1 {status}\r\n\r\n")
        self.answer(200, "".join([*parts, "--x--\r\n"]).encode(),
                    content_type="multipart/mixed; boundary=x")  # fmt: skip


class Server(ThreadingHTTPServer):
    """A server of many connections, which clients may close at any time."""

    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: object) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(*_)


@contextmanager
def bucket() -> Iterator[tuple[str, Objects, dict[str, str]]]:
    """Serves an empty bucket while the context lasts.

    Yields:
        Its address `gs://bucket`, what it holds, and the environment variables that lead clients
        to it.
    """
    objects = Objects()
    handler = type("BoundHandler", (Handler,), {"objects": objects})
    server = Server(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    variables = {
        "STORAGE_EMULATOR_HOST": address,
        "TENSORSTORE_GCS_HTTP_URL": address,
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        "FSSPEC_GCS_TOKEN": "anon",
        "NO_GCE_CHECK": "true",
        "GCE_METADATA_ROOT": "127.0.0.1:1",
    }
    try:
        yield f"gs://{BUCKET}", objects, variables
    finally:
        server.shutdown()
        server.server_close()
