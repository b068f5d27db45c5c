"""A bucket of S3 in this process: lists, sizes and ranges of files, refusals, or no answer at all."""

from __future__ import annotations

import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


@contextmanager
def bucket(files: Mapping[str, bytes], status: int = 200, lists: bool = False) -> Generator[str]:
    """Serve files of a bucket; gives what stands after the path in a URI.

    Args:
        files: by key, without the name of the bucket.
        status: 200; 403 refuses every request; 0 answers none.
        lists: whether folders are listed all the same.
    """
    ended = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

        def _send(self, code: int, body: bytes, headers: Mapping[str, str] | None = None, size: int = -1) -> None:
            self.send_response(code)
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body) if size < 0 else size))
            self.end_headers()
            self.wfile.write(body)

        def do_HEAD(self) -> None:
            self._answer(False)

        def do_GET(self) -> None:
            self._answer(True)

        def _answer(self, whole: bool) -> None:
            split = urlsplit(self.path)
            key, query = unquote(split.path).lstrip("/").partition("/")[2], parse_qs(split.query)
            if "list-type" in query and lists:
                self._list(query.get("prefix", [""])[0], "delimiter" in query)
                return
            if status == 0:
                ended.wait(60)
                return
            if status != 200:
                body = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
                self._send(status, body if whole else b"")
                return
            if "list-type" in query:
                self._list(query.get("prefix", [""])[0], "delimiter" in query)
            elif not key:
                self._send(200, b"")
            elif key not in files:
                self._send(404, b"<Error><Code>NoSuchKey</Code></Error>" if whole else b"")
            else:
                self._file(files[key], whole)

        def _list(self, prefix: str, folders: bool) -> None:
            keys, inner = [], set()
            for k in sorted(files):
                if k.startswith(prefix):
                    head, slash, _ = k[len(prefix) :].partition("/")
                    if folders and slash:
                        inner.add(prefix + head + "/")
                    else:
                        keys.append(k)
            rows = "".join(
                f"<Contents><Key>{escape(k)}</Key><Size>{len(files[k])}</Size>"
                "<LastModified>2024-01-01T00:00:00.000Z</LastModified></Contents>"
                for k in keys
            ) + "".join(f"<CommonPrefixes><Prefix>{escape(p)}</Prefix></CommonPrefixes>" for p in sorted(inner))
            count = len(keys) + len(inner)
            self._send(
                200,
                f'<?xml version="1.0"?><ListBucketResult><Name>b</Name><KeyCount>{count}</KeyCount>'
                f"<IsTruncated>false</IsTruncated>{rows}</ListBucketResult>".encode(),
                {"Content-Type": "application/xml"},
            )

        def _file(self, held: bytes, whole: bool) -> None:
            headers = {"Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT", "ETag": '"x"', "Accept-Ranges": "bytes"}
            wanted = self.headers.get("Range")
            if not whole:
                self._send(200, b"", headers, len(held))
            elif wanted:
                first, last = (int(v) for v in wanted.removeprefix("bytes=").split("-"))
                part = held[first : last + 1]
                headers["Content-Range"] = f"bytes {first}-{first + len(part) - 1}/{len(held)}"
                self._send(206, part, headers)
            else:
                self._send(200, held, headers)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"?endpoint_override=127.0.0.1:{server.server_port}&scheme=http&region=us-east-1"
    finally:
        ended.set()
        server.shutdown()
        server.server_close()
