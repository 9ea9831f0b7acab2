"""The HTTP server on loopback: reads a request, has it answered, writes the answer, or cuts the connection."""

import contextlib
import socket
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

from podctl.sim.wire import Answer, Request

LOOK_S = 0.02
LARGEST_READ = 1 << 20


class Web:
    """Answers at `url` while it is open. `answer` is called in a thread of its own for every connection; `now` is what
    time it is by this server."""

    def __init__(
        self, answer: Callable[[Request], Answer], port: int = 0, now: Callable[[], float] = time.time
    ) -> None:
        self._closing = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True
            wbufsize = 1 << 16  # an answer in one piece

            def _serve(self) -> None:
                outer._serve(self, answer)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = _serve

            def date_time_string(self, timestamp: float | None = None) -> str:
                return super().date_time_string(now() if timestamp is None else timestamp)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = _Server(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(LOOK_S,), name="sim-web", daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _serve(self, handler: BaseHTTPRequestHandler, answer: Callable[[Request], Answer]) -> None:
        length = int(handler.headers.get("Content-Length") or 0)
        body = handler.rfile.read(min(length, LARGEST_READ))
        if length > LARGEST_READ:
            handler.close_connection = True
        at = urlsplit(handler.path)
        headers = {k.lower(): v for k, v in handler.headers.items()}
        told = answer(Request(handler.command, unquote(at.path), at.query, headers, body))
        if told.cut_after_s is not None:
            self._cut(handler, told.cut_after_s)
            return
        with contextlib.suppress(ConnectionError):
            self._write(handler, told)

    def _write(self, handler: BaseHTTPRequestHandler, told: Answer) -> None:
        handler.send_response(told.status)
        for name, value in told.headers.items():
            handler.send_header(name, value)
        if told.type:
            handler.send_header("Content-Type", told.type)
        if told.stream is None:
            if told.status != 204:
                handler.send_header("Content-Length", str(len(told.body)))
            handler.end_headers()
            handler.wfile.write(b"" if handler.command == "HEAD" else told.body)
            handler.wfile.flush()
            return
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for piece in told.stream():
            if self._closing.is_set():
                handler.close_connection = True
                return
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            handler.wfile.flush()
        handler.wfile.write(b"0\r\n\r\n")
        handler.wfile.flush()

    def _cut(self, handler: BaseHTTPRequestHandler, after_s: float) -> None:
        """Say nothing, then end the connection."""
        until = time.monotonic() + after_s
        while time.monotonic() < until and not self._closing.wait(LOOK_S):
            pass
        with contextlib.suppress(OSError):
            handler.connection.shutdown(socket.SHUT_RDWR)
        handler.close_connection = True


class _Server(ThreadingHTTPServer):
    """Bears clients that leave in the middle of an answer: whoever follows a log does, every time."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)
