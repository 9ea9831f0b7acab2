"""A Hub on this machine: one data set's files over HTTP, as huggingface_hub asks for them."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

SHA = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """What it holds and what it was asked for. While `silent` is above 0, so many requests for files get no answer."""

    def __init__(self, repo: str, folder: Path) -> None:
        self.repo, self.folder = repo, folder
        self.silent = 0
        self.sent_bytes = 0
        self.asked: list[str] = []
        self.url = ""

    def files(self) -> list[dict[str, Any]]:
        found = []
        for p in sorted(self.folder.rglob("*")):
            if p.is_file():
                oid = hashlib.sha1(p.read_bytes()).hexdigest()
                name = p.relative_to(self.folder).as_posix()
                found.append({"type": "file", "oid": oid, "size": p.stat().st_size, "path": name})
        return found


@contextmanager
def serving(repo: str, folder: Path) -> Iterator[Hub]:
    hub = Hub(repo, folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def _json(self, value: Any, status: int = 200) -> None:
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            if status == 404:
                self.send_header("X-Error-Code", "RepoNotFound" if hub.repo not in self.path else "EntryNotFound")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            path = unquote(urlsplit(self.path).path)
            hub.asked.append(f"POST {path}")
            if path.startswith(f"/api/datasets/{hub.repo}/paths-info/"):
                raw = body.decode()
                wanted = json.loads(raw)["paths"] if raw.startswith("{") else _form(raw)
                folders = {p.as_posix() for f in hub.files() for p in Path(f["path"]).parents}
                rows = [f for f in hub.files() if f["path"] in wanted]
                rows += [{"type": "directory", "oid": "0" * 40, "path": p} for p in wanted if p in folders]
                return self._json(rows)
            return self._json({"error": "not found"}, 404)

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.asked.append(f"{self.command} {path}")
            if path in (f"/api/datasets/{hub.repo}", f"/api/datasets/{hub.repo}/revision/{SHA}") or path.startswith(
                f"/api/datasets/{hub.repo}/revision/main"
            ):
                siblings = [{"rfilename": f["path"]} for f in hub.files()]
                return self._json({"id": hub.repo, "sha": SHA, "siblings": siblings, "private": False, "tags": []})
            tree = f"/api/datasets/{hub.repo}/tree/"
            if path.startswith(tree):
                below = path[len(tree) :].partition("/")[2]
                rows = [f for f in hub.files() if not below or f["path"].startswith(below + "/")]
                if not rows:
                    return self._json({"error": "not found"}, 404)
                folders = {
                    p.as_posix() for f in rows for p in Path(f["path"]).parents if p.as_posix() not in (".", below)
                }
                rows += [{"type": "directory", "oid": "0" * 40, "path": p} for p in sorted(folders)]
                if "recursive=true" not in urlsplit(self.path).query.lower():
                    rows = [r for r in rows if Path(r["path"]).parent.as_posix() == (below or ".")]
                return self._json(rows)
            resolve = f"/datasets/{hub.repo}/resolve/"
            if path.startswith(resolve):
                return self._file(path[len(resolve) :].partition("/")[2])
            return self._json({"error": "not found"}, 404)

        def _file(self, name: str) -> None:
            file = hub.folder / name
            if not file.is_file():
                return self._json({"error": "not found"}, 404)
            if hub.silent > 0:
                hub.silent -= 1
                self.close_connection = True
                return None
            whole = file.read_bytes()
            first, end = 0, len(whole)
            asked = self.headers.get("Range")
            if asked:
                a, _, b = asked.removeprefix("bytes=").partition("-")
                first, end = int(a), min(int(b) + 1 if b else end, end)
            body = whole[first:end]
            self.send_response(206 if asked else 200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("ETag", f'"{hashlib.sha1(whole).hexdigest()}"')
            self.send_header("X-Repo-Commit", SHA)
            if asked:
                self.send_header("Content-Range", f"bytes {first}-{end - 1}/{len(whole)}")
            self.end_headers()
            if self.command == "GET":
                hub.sent_bytes += len(body)
                self.wfile.write(body)
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _form(raw: str) -> list[str]:
    return [unquote(v) for k, _, v in (part.partition("=") for part in raw.split("&")) if k == "paths"]
