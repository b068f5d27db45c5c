"""An S3 that speaks over loopback: moto's server, with a proxy in front of it that fails, goes away, and counts."""

from __future__ import annotations

import http.client
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

BUCKET, SECRET_KEY = "bucket", "planted-key-of-the-store"
KINDS = ("503", "429", "reset", "lost")


class Proxy:
    """Passes requests on to an S3 server, apart from those that it fails.

    Attributes:
        address: host and port.
        share: of the requests that fail: with 503 or 429, a line that is cut before the request is passed on
            ("reset"), or after ("lost": the server has done what was asked).
        counts: requests by method.
        failed: those that failed, by kind.
    """

    def __init__(self, port: int, seed: int = 0) -> None:
        self.share, self.kinds, self.denies = 0.0, KINDS, False
        self.counts: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.requests: list[str] = []
        self._upstream, self._random, self._lock = port, random.Random(seed), threading.Lock()
        self._server: ThreadingHTTPServer | None = None
        self.port = 0
        self.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def options(self) -> str:
        """What stands after the path of a URI."""
        return f"?endpoint_override={self.address}&scheme=http&region=us-east-1"

    def start(self) -> None:
        """Listen, on the same port as before."""
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # else each answer waits 40 ms for an acknowledgement

            def log_message(self, format: str, *args: object) -> None:
                """Nothing."""

            def _pass(self) -> None:
                proxy._answer(self)

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass

        class Server(ThreadingHTTPServer):
            daemon_threads, allow_reuse_address = True, True

            def handle_error(self, request: Any, client_address: Any) -> None:
                """Lines that are cut are what this is for."""

        self._server = Server(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def stop(self) -> None:
        """Listen no more."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def go_away(self, seconds: float) -> threading.Thread:
        """Be gone for a while, from now on."""
        self.stop()

        def come_back() -> None:
            time.sleep(seconds)
            self.start()

        thread = threading.Thread(target=come_back, daemon=True)
        thread.start()
        return thread

    def _fails(self) -> str:
        with self._lock:
            if self._random.random() >= self.share:
                return ""
            return self._random.choice(self.kinds)

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        if "chunked" in request.headers.get("Transfer-Encoding", ""):
            body = _chunks(request.rfile)
        self.counts[request.command] += 1
        self.requests.append(f"{request.command} {request.path}")
        kind = "gone" if self._server is None else self._fails()
        if kind:
            self.failed[kind] += 1
        if kind in ("reset", "gone"):
            _cut(request)
            return
        if kind in ("503", "429") or self.denies:
            code, name = (403, "AccessDenied") if self.denies else (int(kind), "SlowDown")
            text = f"<?xml version='1.0'?><Error><Code>{name}</Code><Message>{name}</Message></Error>".encode()
            _send(request, code, {"Content-Type": "application/xml"}, text)
            return
        line = http.client.HTTPConnection("127.0.0.1", self._upstream, timeout=60)
        try:
            headers = {k: v for k, v in request.headers.items() if k.lower() not in ("connection", "transfer-encoding")}
            line.request(request.command, request.path, body or None, headers)
            answer = line.getresponse()
            held = answer.read()
        finally:
            line.close()
        if kind == "lost":
            _cut(request)
            return
        kept = {k: v for k, v in answer.getheaders() if k.lower() not in ("connection", "transfer-encoding", "date")}
        _send(request, answer.status, kept, held)


def _send(request: BaseHTTPRequestHandler, code: int, headers: dict[str, str], body: bytes) -> None:
    request.send_response(code)
    for name, value in headers.items():
        if name.lower() != "content-length":
            request.send_header(name, value)
    length = {k.lower(): v for k, v in headers.items()}.get("content-length")
    request.send_header("Content-Length", length if request.command == "HEAD" and length else str(len(body)))
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(body)


def _cut(request: BaseHTTPRequestHandler) -> None:
    request.close_connection = True
    request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    request.connection.close()


def _chunks(file: Any) -> bytes:
    held = b""
    while size := int(file.readline().split(b";")[0], 16):
        held += file.read(size)
        file.readline()
    file.readline()
    return held


@contextmanager
def server() -> Generator[int]:
    """A moto server with a bucket; its port."""
    import logging

    from moto.server import ThreadedMotoServer
    from werkzeug.serving import WSGIRequestHandler

    WSGIRequestHandler.disable_nagle_algorithm = True
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    port = moto.get_host_and_port()[1]
    client(port).create_bucket(Bucket=BUCKET)
    try:
        yield port
    finally:
        moto.stop()


def client(port: int) -> Any:
    """Of boto3, which shares no code with the package."""
    import boto3
    from botocore.config import Config

    keys = {"aws_access_key_id": "tester", "aws_secret_access_key": SECRET_KEY}
    config = Config(retries={"max_attempts": 1}, s3={"addressing_style": "path"})
    return boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", region_name="us-east-1", config=config, **keys)


class Bucket:
    """The bucket as boto3 sees it, past the proxy."""

    def __init__(self, port: int) -> None:
        self._client = client(port)

    def keys(self, prefix: str) -> dict[str, int]:
        """Objects under a prefix without it, and their bytes; folder markers are left out."""
        found: dict[str, int] = {}
        for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{prefix}/"):
            for item in page.get("Contents", []):
                if not item["Key"].endswith("/"):
                    found[item["Key"].removeprefix(f"{prefix}/")] = item["Size"]
        return found

    def read(self, key: str) -> bytes:
        """An object."""
        return bytes(self._client.get_object(Bucket=BUCKET, Key=key)["Body"].read())

    def write(self, key: str, content: bytes | Path) -> None:
        """Put an object."""
        body = content.read_bytes() if isinstance(content, Path) else content
        self._client.put_object(Bucket=BUCKET, Key=key, Body=body)

    def remove(self, key: str) -> None:
        """Remove an object."""
        self._client.delete_object(Bucket=BUCKET, Key=key)
