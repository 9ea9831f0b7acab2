"""A Hub to send models to, on this machine: it speaks what huggingface_hub 2.4 really asks for, keeps blobs by their
hash, believes no size and no hash, and can refuse, be slow, or hang up.

Run as a program it serves until its input ends; the first line that it writes is its address.
"""

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

LARGE = (".safetensors", ".bin")  # by name, as .gitattributes has it there


@dataclass(frozen=True)
class Account:
    """Whose token it is, and what it may do: read, write or fineGrained."""

    name: str
    role: str = "write"
    orgs: tuple[str, ...] = ()


@dataclass
class Fault:
    """What becomes of requests whose `METHOD path` fits, `times` of them, after `skip` that go well.

    `status`: refused with it. `cut`: it ends in the middle. `delay_s`: late. `lost`: done, but nobody hears.
    """

    where: str
    status: int = 0
    cut: bool = False
    lost: bool = False
    delay_s: float = 0.0
    times: int = 1
    skip: int = 0
    body: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Commit:
    oid: str
    title: str
    files: dict[str, str]  # path → sha256 of its bytes


@dataclass
class Repo:
    is_private: bool
    branches: dict[str, list[Commit]]

    def files(self, revision: str = "main") -> dict[str, str]:
        return self.branches[revision][-1].files


class Hub:
    """What it holds, and what it was asked."""

    def __init__(self, part_bytes: int = 0) -> None:
        self.accounts: dict[str, Account] = {}
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.parts: dict[tuple[str, int], bytes] = {}
        self.faults: list[Fault] = []
        self.asked: list[str] = []
        self.heard: list[str] = []  # everything but Authorization: where a token must never be
        self.cards: dict[str, dict[str, Any]] = {}  # what models of others say of themselves
        self.part_bytes = part_bytes  # above 0: large files come in parts of it
        self.url = ""
        self.lock = threading.RLock()

    def read(self, repo: str, path: str, revision: str = "main") -> bytes:
        return self.blobs[self.repos[repo].files(revision)[path]]

    def put(self, repo: str, files: dict[str, bytes], title: str = "by hand") -> None:
        """A commit that somebody made on the page."""
        known = self.repos.setdefault(repo, new_repo(True))
        commit(self, known, "main", title, {**known.files(), **{p: keep(self, b) for p, b in files.items()}})

    def fault_for(self, request: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if re.search(fault.where, request) and fault.times > 0:
                    if fault.skip:
                        fault.skip -= 1
                        return None
                    fault.times -= 1
                    return fault
        return None


def new_repo(is_private: bool) -> Repo:
    first = Commit(hashlib.sha1(b"first").hexdigest(), "initial commit", {})
    return Repo(is_private, {"main": [first]})


def keep(hub: Hub, data: bytes) -> str:
    sha = hashlib.sha256(data).hexdigest()
    hub.blobs[sha] = data
    return sha


def commit(hub: Hub, repo: Repo, branch: str, title: str, files: dict[str, str]) -> Commit:
    before = repo.branches[branch][-1]
    oid = hashlib.sha1(json.dumps([before.oid, title, files]).encode()).hexdigest()
    made = Commit(oid, title, files)
    repo.branches[branch].append(made)
    return made


class Refused(Exception):
    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


@contextmanager
def serving(part_bytes: int = 0) -> Iterator[Hub]:
    hub = Hub(part_bytes)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize, disable_nagle_algorithm = -1, True  # an answer is one packet: no 40 ms between its head and body

        def log_message(self, *_: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self._serve()

        def do_GET(self) -> None:
            self._serve()

        def do_POST(self) -> None:
            self._serve()

        def do_PUT(self) -> None:
            self._serve()

        def _serve(self) -> None:
            path = unquote(urlsplit(self.path).path)
            request = f"{self.command} {path}"
            fault = hub.fault_for(request)
            if fault and fault.delay_s:
                time.sleep(fault.delay_s)
            if fault and fault.cut:
                self.rfile.read(min(1000, int(self.headers.get("Content-Length", 0)) // 2))
                self.close_connection = True
                hub.asked.append(f"{request} ✗")
                return None
            body = self._body()
            with hub.lock:
                hub.asked.append(request)
                others = {k: v for k, v in self.headers.items() if k.lower() != "authorization"}
                hub.heard.append(f"{self.path} {json.dumps(others)} {body[:100_000]!r}")
            if fault and fault.status:
                return self._json(fault.body or {"error": "as the test says"}, fault.status, fault.headers)
            try:
                with hub.lock:
                    answer = self._answer(path, body)
            except Refused as e:
                headers = {"X-Error-Message": e.message} | ({"X-Error-Code": e.code} if e.code else {})
                return self._json({"error": e.message}, e.status, headers)
            if fault and fault.lost:
                self.close_connection = True
                return None
            if isinstance(answer, bytes):
                return self._bytes(answer)
            return self._json(*answer) if isinstance(answer, tuple) else self._json(answer)

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
                whole = b""
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    whole += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return whole
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def _bytes(self, data: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("X-Repo-Commit", "0" * 40)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def _json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
            data = json.dumps(value).encode()
            self.send_response(status)
            for name, text in {"Content-Type": "application/json", **(headers or {})}.items():
                self.send_header(name, text)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        # ---- what it knows

        def _answer(self, path: str, body: bytes) -> Any:
            for method, pattern, what in ROUTES:
                match = re.fullmatch(pattern, path)
                if match and self.command in method.split("|"):
                    return what(hub, self._account(), *match.groups(), body, dict(self.headers))
            raise Refused(404, "there is no such place here")

        def _account(self) -> Account | None:
            token = self.headers.get("Authorization", "").removeprefix("Bearer ").strip()
            if token and token not in hub.accounts:
                raise Refused(401, "Invalid credentials in Authorization header")
            return hub.accounts.get(token)

    return Handler


def _whoami(hub: Hub, who: Account | None, body: bytes, headers: Any) -> Any:
    if who is None:
        raise Refused(401, "Invalid username or password.")
    orgs = [{"name": o, "roleInOrg": "write"} for o in who.orgs]
    token = {"accessToken": {"displayName": "a token", "role": who.role}}
    return {"type": "user", "name": who.name, "orgs": orgs, "auth": {"type": "access_token", **token}}


def _may_write(who: Account | None, repo: str) -> None:
    owner = repo.partition("/")[0]
    if who is None:
        raise Refused(401, "Invalid username or password.")
    if who.role == "read" or owner not in (who.name, *who.orgs):
        raise Refused(403, f"You don't have the rights to create a model under the namespace {owner!r}")


def _create(hub: Hub, who: Account | None, body: bytes, headers: Any) -> Any:
    asked = json.loads(body)
    repo = f"{asked['organization'] or (who.name if who else '')}/{asked['name']}"
    _may_write(who, repo)
    if repo in hub.repos:
        raise Refused(409, "You already created this model repo")
    hub.repos[repo] = new_repo(asked.get("visibility", "public") == "private")
    return {"url": f"{hub.url}/{repo}", "name": repo}


def _seen(hub: Hub, who: Account | None, repo: str) -> Repo:
    known = hub.repos.get(repo)
    if known is None or (known.is_private and (who is None or repo.partition("/")[0] not in (who.name, *who.orgs))):
        raise Refused(404 if who else 401, "Repository not found", "RepoNotFound")
    return known


def _head(repo: Repo, revision: str) -> Commit:
    if revision in repo.branches:
        return repo.branches[revision][-1]
    for line in repo.branches.values():
        for made in line:
            if made.oid == revision:
                return made
    raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")


def _info(hub: Hub, who: Account | None, repo: str, revision: str | None, body: bytes, headers: Any) -> Any:
    if repo in hub.cards:
        return {"id": repo, "private": False, "cardData": hub.cards[repo], "siblings": [], "tags": [], "sha": "0" * 40}
    known = _seen(hub, who, repo)
    head = _head(known, revision or "main")
    siblings = [{"rfilename": p} for p in sorted(head.files)]
    return {"id": repo, "sha": head.oid, "private": known.is_private, "siblings": siblings, "tags": []}


def _branch(hub: Hub, who: Account | None, repo: str, name: str, body: bytes, headers: Any) -> Any:
    _may_write(who, repo)
    known = _seen(hub, who, repo)
    if name in known.branches:
        raise Refused(409, "Reference already exists")
    known.branches[name] = [known.branches["main"][-1]]
    return {}


def _yaml(hub: Hub, who: Account | None, body: bytes, headers: Any) -> Any:
    content = json.loads(body)["content"]
    match = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
    try:
        front = yaml.safe_load(match[1]) if match else {}
        for result in (front.get("model-index") or [{}])[0].get("results", []):
            assert {"type", "name"} <= result["dataset"].keys()
            assert result["task"]["type"]
            assert all({"type", "value"} <= m.keys() for m in result["metrics"])
    except (yaml.YAMLError, AssertionError, KeyError, AttributeError, TypeError) as e:
        return {"errors": [{"message": f"{type(e).__name__} {e}"}], "warnings": []}, 400
    return {"errors": [], "warnings": []}


def _preupload(hub: Hub, who: Account | None, repo: str, revision: str, body: bytes, headers: Any) -> Any:
    known = _seen(hub, who, repo)
    _may_write(who, repo)
    there = _head(known, revision).files
    answer = []
    for f in json.loads(body)["files"]:
        is_large = f["path"].endswith(LARGE) or f["size"] > 10_000_000
        oid = None
        if f["path"] in there:
            data = hub.blobs[there[f["path"]]]
            oid = there[f["path"]] if is_large else hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        mode = "lfs" if is_large else "regular"
        answer.append({"path": f["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
    return {"files": answer}


def _batch(hub: Hub, who: Account | None, repo: str, body: bytes, headers: Any) -> Any:
    _seen(hub, who, repo)
    _may_write(who, repo)
    objects = []
    for o in json.loads(body)["objects"]:
        entry: dict[str, Any] = {"oid": o["oid"], "size": o["size"]}
        if o["oid"] not in hub.blobs:
            upload: dict[str, Any] = {"href": f"{hub.url}/lfs/{o['oid']}/{o['size']}"}
            if 0 < hub.part_bytes < o["size"]:
                n = -(-o["size"] // hub.part_bytes)
                parts = {f"{k:05d}": f"{hub.url}/part/{o['oid']}/{k}" for k in range(1, n + 1)}
                upload = {"href": f"{hub.url}/whole/{o['oid']}/{o['size']}", "header": parts}
                parts["chunk_size"] = str(hub.part_bytes)
            verify = {"href": f"{hub.url}/verify/{o['oid']}"}
            entry["actions"] = {"upload": upload, "verify": verify}
        objects.append(entry)
    return {"transfer": "basic", "objects": objects}


def _checked(hub: Hub, oid: str, size: str, data: bytes) -> Any:
    if len(data) != int(size) or hashlib.sha256(data).hexdigest() != oid:
        raise Refused(400, "these bytes are not those that were announced")
    hub.blobs[oid] = data
    return {}


def _put(hub: Hub, who: Account | None, oid: str, size: str, body: bytes, headers: Any) -> Any:
    return _checked(hub, oid, size, body)


def _part(hub: Hub, who: Account | None, oid: str, number: str, body: bytes, headers: Any) -> Any:
    hub.parts[oid, int(number)] = body
    return {}, 200, {"ETag": hashlib.md5(body).hexdigest()}


def _whole(hub: Hub, who: Account | None, oid: str, size: str, body: bytes, headers: Any) -> Any:
    asked = json.loads(body)
    return _checked(hub, oid, size, b"".join(hub.parts[oid, p["partNumber"]] for p in asked["parts"]))


def _verify(hub: Hub, who: Account | None, oid: str, body: bytes, headers: Any) -> Any:
    if oid not in hub.blobs or len(hub.blobs[oid]) != json.loads(body)["size"]:
        raise Refused(404, "that object is not here")
    return {}


def _commit(hub: Hub, who: Account | None, repo: str, revision: str, body: bytes, headers: Any) -> Any:
    known = _seen(hub, who, repo)
    _may_write(who, repo)
    if revision not in known.branches:
        raise Refused(404, "no such branch", "RevisionNotFound")
    lines = [json.loads(line) for line in body.splitlines()]
    header, files = lines[0]["value"], dict(known.files(revision))
    parent = header.get("parentCommit")
    if parent and parent != known.branches[revision][-1].oid:
        raise Refused(412, "A commit has happened since. Please refresh and try again.")
    for line in lines[1:]:
        value = line["value"]
        if line["key"] == "file":
            files[value["path"]] = keep(hub, base64.b64decode(value["content"]))
        elif line["key"] == "lfsFile":
            if value["oid"] not in hub.blobs or len(hub.blobs[value["oid"]]) != value["size"]:
                raise Refused(400, f"{value['path']} was never uploaded")
            files[value["path"]] = value["oid"]
        elif line["key"] == "deletedFile":
            del files[value["path"]]
        else:
            raise Refused(400, f"what is a {line['key']}?")
    made = commit(hub, known, revision, header["summary"], files)
    return {"success": True, "commitOid": made.oid, "commitUrl": f"{hub.url}/{repo}/commit/{made.oid}"}


def _resolve(hub: Hub, who: Account | None, repo: str, revision: str, path: str, body: bytes, headers: Any) -> Any:
    files = _head(_seen(hub, who, repo), revision).files
    if path not in files:
        raise Refused(404, "Entry not found", "EntryNotFound")
    return hub.blobs[files[path]]


REPO = r"([^/]+/[^/]+?)"
ROUTES: list[tuple[str, str, Callable[..., Any]]] = [
    ("GET", "/api/whoami-v2", _whoami),
    ("POST", "/api/repos/create", _create),
    ("POST", "/api/validate-yaml", _yaml),
    ("GET", f"/api/models/{REPO}(?:/revision/(.+))?", _info),
    ("POST", f"/api/models/{REPO}/branch/(.+)", _branch),
    ("POST", f"/api/models/{REPO}/preupload/(.+)", _preupload),
    ("POST", f"/api/models/{REPO}/commit/(.+)", _commit),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", _batch),
    ("PUT", r"/lfs/(\w+)/(\d+)", _put),
    ("PUT", r"/part/(\w+)/(\d+)", _part),
    ("POST", r"/whole/(\w+)/(\d+)", _whole),
    ("POST", r"/verify/(\w+)", _verify),
    ("GET|HEAD", f"/{REPO}/resolve/([^/]+)/(.+)", _resolve),
]
