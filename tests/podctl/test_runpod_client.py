"""RunPod's client on real sockets: how long it waits, whom it shows the key, what stands in between."""

import itertools
import json
import logging
import threading
import time
from collections.abc import Callable
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from pydantic import SecretStr
from support.runpod import KEY, ManualClock

from podctl.errors import BadInput, MissingHere, NoRights, PodctlError, ProviderUnclear
from podctl.providers.runpod.account import Account, load_account, server
from podctl.providers.runpod.client import Client, retry_after_s
from podctl.providers.runpod.events import log_lines
from podctl.providers.runpod.provider import RunPodProvider

PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR")
EVENT = 'id: 1\ndata: {"source": "container", "line": "line %d", "ts": "2026-06-01T12:02:03Z"}\n\n'
Serve = Callable[[Callable[[BaseHTTPRequestHandler], None]], Account]


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("PODCTL_HOME", str(tmp_path))


@pytest.fixture
def serve():
    """A server on loopback that answers by a function; the account that it is for."""
    running = []

    def start(answer: Callable[[BaseHTTPRequestHandler], None]) -> Account:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answer(self)

            do_POST = do_CONNECT = do_GET

            def log_message(self, *_: object) -> None:
                pass

        httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        httpd.daemon_threads = True
        thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
        thread.start()
        running.append((httpd, thread))
        url = f"http://127.0.0.1:{httpd.server_port}"
        return Account(SecretStr(KEY), api_url=f"{url}/v2", graphql_url=f"{url}/graphql")

    yield start
    for httpd, thread in running:
        httpd.shutdown()
        thread.join()
        httpd.server_close()


def say(handler: BaseHTTPRequestHandler, status: int, body: object, **headers: str) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)


def events(
    n: int, gap_s: float, head_s: float = 0.0, *, ends: bool = False
) -> Callable[[BaseHTTPRequestHandler], None]:
    """A stream that begins after a while, says so many lines and then stays silent."""
    released = threading.Event()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        released.wait(head_s)
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.end_headers()
        for i in range(n):
            handler.wfile.write((EVENT % i).encode())
            released.wait(gap_s)
        if not ends:
            released.wait(20)

    return answer


def test_a_stream_is_left_once_it_is_silent_however_late_it_began(serve: Serve):
    client = Client(serve(events(3, 0.01, head_s=0.4)))
    begun = time.monotonic()
    lines = [*log_lines(client.lines("/pods/p/logs", {}, quiet_s=0.2, longest_s=60))]
    assert lines == ["line 0", "line 1", "line 2"]
    assert time.monotonic() - begun < 15, "it does not wait for the end of what has none"


def test_a_stream_that_ends_is_not_waited_for(serve: Serve):
    assert RunPodProvider(serve(events(2, 0, ends=True))).log_lines("p") == ["line 0", "line 1"]


def test_a_stream_that_never_falls_silent_is_left_in_time(serve: Serve):
    moments = itertools.count(0, 0.5)
    client = Client(serve(events(1000, 0.001)))
    lines = [*log_lines(client.lines("/pods/p/logs", {}, 1.0, 5.0, lambda: next(moments)))]
    assert 0 < len(lines) < 100


def test_a_redirect_is_not_followed_with_the_key(serve: Serve):
    seen: list[str] = []

    def stranger(handler: BaseHTTPRequestHandler) -> None:
        seen.append(handler.headers.get("authorization", ""))
        say(handler, 200, {"pods": []})

    elsewhere = serve(stranger).api_url
    provider = RunPodProvider(serve(lambda h: say(h, 302, b"", Location=elsewhere)))
    with pytest.raises(ProviderUnclear, match="not sent there"):
        provider.list()
    assert seen == []


def test_no_log_of_any_library_holds_the_key(serve: Serve, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    provider = RunPodProvider(serve(lambda h: say(h, 403, {"detail": h.headers["authorization"]})), ManualClock())
    with pytest.raises(NoRights) as e:
        provider.list()
    assert caplog.records, "there is something to look at"
    assert KEY not in caplog.text + str(e.value)


def test_a_server_that_hangs_up_is_tried_again_for_reads_only(serve: Serve):
    asked: list[str] = []

    def hang_up(handler: BaseHTTPRequestHandler) -> None:
        asked.append(handler.command)
        if asked.count("GET") < 3:
            handler.close_connection = True
            handler.connection.close()
        else:
            say(handler, 200, {"pods": []})

    clock = ManualClock()
    client = Client(serve(hang_up), clock)
    with pytest.raises(ProviderUnclear):
        client.send("POST", "/pods", {})
    assert client.get("/pods").ok
    assert asked == ["POST", "GET", "GET", "GET"]


def test_a_proxy_of_the_environment_is_used_and_its_refusal_told(serve: Serve, monkeypatch: pytest.MonkeyPatch):
    asked: list[str] = []

    def proxy(handler: BaseHTTPRequestHandler) -> None:
        asked.append(handler.path)
        say(handler, 407, b"", Proxy_Authenticate="Basic")

    account = serve(proxy)
    monkeypatch.setenv("HTTPS_PROXY", account.api_url.removesuffix("/v2"))
    with pytest.raises(ProviderUnclear, match=r"the proxy on the way to api\.runpod\.io says no: 407") as e:
        RunPodProvider(Account(SecretStr(KEY)), ManualClock()).list()
    assert set(asked) == {"api.runpod.io:443"}, "through it, and no key in the clear"
    assert KEY not in str(e.value)
    near = RunPodProvider(serve(lambda h: say(h, 200, {"pods": []})), ManualClock())
    monkeypatch.setenv("HTTP_PROXY", account.api_url)
    assert near.list() == [], "no proxy stands before this machine itself"


@pytest.mark.parametrize(
    ("name", "value", "kind", "said"),
    [
        ("ALL_PROXY", "socks5://127.0.0.1:9", MissingHere, "SOCKS"),
        ("HTTPS_PROXY", "gopher://127.0.0.1:9", BadInput, "proxy"),
        ("SSL_CERT_FILE", "/nowhere/ca.pem", MissingHere, "certificates"),
        ("HTTPS_PROXY", "http://127.0.0.1:9", ProviderUnclear, "can't be reached"),
    ],
)
def test_what_stands_in_between_is_named(name: str, value: str, kind: type, said: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(name, value)
    with pytest.raises(PodctlError) as e:
        RunPodProvider(Account(SecretStr(KEY)), ManualClock()).list()
    assert type(e.value) is kind or isinstance(e.value, kind)
    assert said in e.value.message
    assert e.value.hint


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("12", 12),
        ("0", 0),
        ("Sat, 21 Nov 2026 12:00:30 GMT", 30),
        ("Sat, 21 Nov 2026 11:00:00 GMT", 0),
        ("", None),
        ("-3", None),
        ("soon", None),
        ("1e9", None),
    ],
)
def test_how_long_to_wait_is_seconds_or_a_date(header: str, seconds: float | None):
    assert retry_after_s(header, 1795262400.0) == seconds


# the account


def dated(serve: Serve, clock: ManualClock, date: str) -> Client:
    """A client whose server says what time it is."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.date_time_string = lambda timestamp=None: date  # type: ignore[method-assign]
        say(handler, 200, {})

    return Client(serve(answer), clock)


@pytest.mark.parametrize("off_s", [86400, -86400])
def test_what_time_it_is_at_runpod_is_told_by_its_answers_whatever_our_clock_says(serve: Serve, off_s: float):
    clock = ManualClock()
    there = clock.t
    clock.t += off_s
    client = dated(serve, clock, formatdate(there, usegmt=True))
    assert client.now() == clock.now(), "before there was an answer"
    client.get("/pods")
    assert client.now() == there
    clock.sleep(60)
    assert client.now() == there + 60


@pytest.mark.parametrize("date", ["", "yesterday", formatdate(ManualClock().t + 3, usegmt=True)])
def test_a_date_that_is_none_or_nearly_ours_changes_nothing(date: str, serve: Serve):
    clock = ManualClock()
    client = dated(serve, clock, date)
    client.get("/pods")
    assert client.now() == clock.now()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    path = tmp_path / "project"
    path.mkdir()
    return path


def test_the_environment_wins_over_the_file_and_both_are_looked_at(project: Path):
    (project / ".runpod.env").write_text("RUNPOD_API_KEY=rpa_file\nPODCTL_RUNPOD_API_URL=https://evil.example\n")
    account = load_account({"RUNPOD_API_KEY": " rpa_env\n"}, project)
    assert account.key.get_secret_value() == "rpa_env"
    assert "unset RUNPOD_API_KEY" in account.advice
    account = load_account({}, project)
    assert account.key.get_secret_value() == "rpa_file"
    assert account.source == ".runpod.env"
    assert account.api_url == "https://api.runpod.io/v2", "a file that came with a project does not say where keys go"
    assert "rpa_file" not in repr(account) + str(vars(account))


def test_a_key_that_is_a_pods_own_is_recognised_by_where_we_are(project: Path):
    account = load_account({"RUNPOD_API_KEY": "k", "RUNPOD_POD_ID": "abc"}, project)
    assert "the pod's own key" in account.advice


def test_without_a_key_it_is_said_where_to_make_one(project: Path):
    (project / ".runpod.env").write_text("RUNPOD_API_KEY=\n")
    with pytest.raises(NoRights, match="there is no RUNPOD_API_KEY") as e:
        load_account({}, project)
    assert "console.runpod.io" in e.value.hint
    assert ".runpod.env" in e.value.hint


@pytest.mark.parametrize("key", ["Bearer rpa_x", "rpa_\nX-Evil: 1", "schlüssel", "a\x00b"])
def test_a_key_that_is_none_is_not_sent_and_not_shown(key: str, project: Path):
    with pytest.raises(NoRights) as e:
        load_account({"RUNPOD_API_KEY": key}, project)
    assert key not in str(e.value) + e.value.hint


@pytest.mark.parametrize(
    "url",
    ["http://api.example/v2", "ftp://x", "https://", "https://a:b@c/", "https://x/?q", "x", "https://[", "https://x:y"],
)
def test_an_address_that_would_give_the_key_away_is_refused(url: str):
    with pytest.raises(BadInput):
        server("PODCTL_RUNPOD_API_URL", url)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9/v2/", "http://localhost:9/v2", "http://[::1]:9/v2", "https://x.example/v2"]
)
def test_an_emulated_cloud_may_be_near(url: str):
    assert server("X", url) == url.rstrip("/")


def test_the_key_is_looked_for_when_a_call_needs_it(monkeypatch: pytest.MonkeyPatch, project: Path):
    monkeypatch.delenv("RUNPOD_API_KEY", raising=False)
    monkeypatch.chdir(project)
    provider = RunPodProvider()
    with pytest.raises(NoRights, match="there is no RUNPOD_API_KEY"):
        provider.list()
    monkeypatch.setenv("RUNPOD_API_KEY", "rpa_x")
    assert provider._client.account.source == "the environment"
