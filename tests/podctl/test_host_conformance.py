"""One suite for every host there is: this machine, OpenSSH, paramiko."""

import contextlib
import http.server
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import pytest
from support.pod import is_alive, wait_until
from support.sshd import Sshd, free_port, laptop, nap

from podctl.errors import PodctlError
from podctl.host import Host, write
from podctl.localhost import LocalHost
from podctl.wire.host import SshHost
from podctl.wire.openssh import OpenSsh
from podctl.wire.paramiko import Paramiko

KINDS = ("local", "openssh", "paramiko")


@pytest.fixture(scope="module", params=KINDS)
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    root = tmp_path_factory.mktemp("conformance")
    if request.param == "local":
        yield LocalHost()
        return
    with laptop(root), Sshd(root / "sshd") as sshd:
        wire = OpenSsh(sshd.address) if request.param == "openssh" else Paramiko(sshd.address)
        yield SshHost(wire)
        wire.close()


@pytest.fixture
def overland(host: Host) -> Host:
    if isinstance(host, LocalHost):
        pytest.skip("this machine is here already")
    return host


def test_it_has_a_name(host: Host):
    assert host.name in ("this machine", "127.0.0.1")


def test_output_and_exit_code_come_back(host: Host):
    said = host.run(["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert (said.exit_code, said.stdout, said.stderr) == (3, "out\n", "err\n")
    assert host.run(["true"]).ok


def test_an_exit_code_of_255_is_the_command_s_own(host: Host):
    said = host.run(["sh", "-c", "echo out; echo err >&2; exit 255"])
    assert (said.exit_code, said.stdout, said.stderr) == (255, "out\n", "err\n")
    assert host.run(["sh", "-c", "cat; exit 255"], stdin="in").exit_code == 255


def test_death_by_a_signal_is_128_and_its_number(host: Host):
    assert host.run(["sh", "-c", "kill -TERM $$"]).exit_code == 143
    assert host.run(["sh", "-c", "cat; kill -KILL $$"], stdin="x").exit_code == 137


def test_after_a_ctrl_c_the_next_command_is_answered(host: Host, tmp_path: Path):
    begun = tmp_path / "begun"
    host.run(["true"])

    def press() -> None:
        wait_until(begun.exists, "the command began")
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    finger = threading.Thread(target=press)
    finger.start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        host.run(["sh", "-c", f"cat; touch {begun}; exec sleep 60"], stdin="order", timeout_s=60)
    assert time.monotonic() - started < 20
    finger.join()
    assert host.run(["echo", "again"], timeout_s=20).stdout == "again\n"


def test_bytes_that_are_no_utf8_survive(host: Host):
    every = bytes(range(256)).decode("utf-8", "surrogateescape")
    assert host.run(["cat"], stdin=every).stdout == every
    assert host.run(["cat"], stdin=bytes(range(256))).stdout == every


@pytest.mark.parametrize(
    "word",
    [
        "a'; rm -rf /",
        '"quoted" `date` $(date)',
        "",
        " ",
        "$HOME",
        "~",
        "*",
        "!",
        "!!x",
        "a\nb\n",
        "back\\slash\\\\n\\'",
        "-n",
        "ü 日本 \udcff",
        "{a,b}",
        "#",
        "%h %% \\0101",
        "tab\there",
        "x" * 20_000,
    ],
)
def test_a_word_arrives_as_it_was_sent(host: Host, word: str):
    said = host.run(["printf", "%s|", word, "end"])
    assert (said.stdout, said.stderr) == (f"{word}|end|", "")


def test_a_command_may_have_a_weird_path(host: Host, tmp_path: Path):
    program = tmp_path / "a'; b $HOME\n!" / ("n" * 200)
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho $#\n")
    program.chmod(0o755)
    assert host.run([str(program), "", "x y"]).stdout == "2\n"


def test_ten_megabytes_go_through_both_ways(host: Host):
    data = os.urandom(10 << 20)
    assert host.run(["cat"], stdin=data).stdout.encode("utf-8", "surrogateescape") == data


def test_without_input_a_command_meets_its_end_at_once(host: Host):
    assert host.run(["cat"], timeout_s=10).stdout == ""


def test_a_time_out_ends_the_command_there(host: Host):
    began = time.monotonic()
    said = host.run(["sh", "-c", f"echo begun; sleep {nap(1001)}"], timeout_s=0.5)
    assert said.exit_code == 124
    assert said.stdout == "begun\n"
    assert "no answer within 0.5 s" in said.stderr
    assert time.monotonic() - began < 10
    gone(f"sleep\x00{nap(1001)}")


def test_a_stream_is_heard_while_it_speaks_and_ticks_while_it_does_not(host: Host):
    with host.stream(["sh", "-c", "echo a; sleep 0.8; printf b; echo err >&2; exit 4"]) as stream:
        assert stream.exit_code is None
        pieces = list(stream)
        assert stream.exit_code == 4
        assert stream.stderr == "err\n"
    assert pieces[0] == b"a\n"
    assert b"" in pieces
    assert b"".join(pieces) == b"a\nb"


def test_a_stream_without_input_keeps_its_input_open_and_empty(host: Host):
    with host.stream(["sh", "-c", "echo ready; sleep 0.2; exit 255"]) as stream:
        assert b"".join(stream) == b"ready\n"
    assert (stream.exit_code, stream.stderr) == (255, "")


def test_a_stream_takes_its_input_while_it_speaks(host: Host):
    size, piece = 100 << 20, os.urandom(1 << 20)
    total = 0
    with host.stream(["cat"], stdin=(piece for _ in range(size >> 20))) as stream:
        for out in stream:
            total += len(out)
    assert (total, stream.exit_code) == (size, 0)


def test_a_command_that_wants_no_more_input_ends_as_it_likes(host: Host):
    endless = iter(lambda: b"x" * 65536, b"")
    with host.stream(["sh", "-c", "head -c 10; exit 6"], stdin=endless) as stream:
        assert b"".join(stream) == b"x" * 10
    assert stream.exit_code == 6


def test_input_that_fails_is_not_taken_for_whole(host: Host, tmp_path: Path):
    def failing() -> Iterator[bytes]:
        yield b"first"
        raise ValueError("no more to be had")

    with pytest.raises(ValueError, match="no more"), host.stream(["cat"], stdin=failing()) as stream:
        list(stream)


def test_a_block_that_is_left_ends_the_command_even_if_it_never_writes(host: Host):
    with host.stream(["sh", "-c", f"sleep {nap(1002)}; true"]) as stream:
        assert next(iter(stream)) == b""
        assert processes(f"sleep\x00{nap(1002)}")
    gone(f"sleep\x00{nap(1002)}")


def test_a_command_that_ignores_sigterm_is_ended_too(host: Host):
    with host.stream(["sh", "-c", f"trap '' TERM; echo; sleep {nap(1003)}; sleep {nap(1003)}"]) as stream:
        assert next(iter(stream)) == b"\n"
    gone(f"sleep\x00{nap(1003)}")


def test_what_is_read_are_the_bytes(host: Host, tmp_path: Path):
    path = tmp_path / "-a' \n$b"
    data = os.urandom(1000) + b"\r\n\0"
    path.write_bytes(data)
    assert host.read(PurePosixPath(path)) == data


def test_reading_tells_nothing_there_from_not_readable(host: Host, tmp_path: Path):
    (tmp_path / "file").touch()
    assert host.read(PurePosixPath(tmp_path / "file")) == b""
    assert host.read(PurePosixPath(tmp_path / "nothing")) is None
    assert host.read(PurePosixPath(tmp_path / "file" / "below")) is None
    with pytest.raises(PodctlError, match="can't be read"):
        host.read(PurePosixPath(tmp_path))


def test_a_small_file_is_written_whole(host: Host, tmp_path: Path):
    path = PurePosixPath(tmp_path / "a'; b" / "f")
    write(host, path, "text ü\n", mode="600")
    assert host.read(path) == "text ü\n".encode()
    assert Path(path).stat().st_mode & 0o777 == 0o600


def following(host: Host, path: Path, offset: int = 0) -> "Following":
    return Following(host.follow(PurePosixPath(path), offset=offset))


class Following:
    """Takes a file's bytes as they come; `until` waits for so many."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self.pieces, self.data = pieces, b""

    def until(self, n: int) -> bytes:
        deadline = time.monotonic() + 10
        while len(self.data) < n:
            self.data += next(self.pieces)
            assert time.monotonic() < deadline, f"{n} bytes, there are {self.data!r}"
        return self.data

    def idle(self) -> None:
        while piece := next(self.pieces):
            self.data += piece


def test_following_begins_at_the_offset_and_splits_no_matter_where(host: Host, tmp_path: Path):
    path = tmp_path / "a log"
    path.write_bytes(b"abcdef")
    f = following(host, path, 2)
    assert f.until(4) == b"cdef"
    f.idle()
    with path.open("ab") as log:
        for byte in "ü\0".encode():
            log.write(bytes([byte]))
            log.flush()
            f.until(len(f.data) + 1)
    assert f.data == b"cdef" + "ü\0".encode()
    f.pieces.close()


def test_following_waits_for_a_file_that_is_not_there(host: Host, tmp_path: Path):
    path = tmp_path / "later" / "log"
    f = following(host, path)
    f.idle()
    path.parent.mkdir()
    path.write_bytes(b"here")
    assert f.until(4) == b"here"
    f.pieces.close()


def test_a_file_that_was_cut_or_replaced_doubles_nothing(host: Host, tmp_path: Path):
    path = tmp_path / "log"
    path.write_bytes(b"0123456789")
    f = following(host, path)
    f.until(10)
    path.write_bytes(b"01")
    f.idle()
    f.idle()
    beside = tmp_path / "beside"
    beside.write_bytes(b"0123456789abc")
    beside.replace(path)
    assert f.until(13) == b"0123456789abc"
    f.pieces.close()


def test_a_long_file_is_followed_byte_for_byte(host: Host, tmp_path: Path):
    path = tmp_path / "log"
    data = os.urandom(3 << 20)
    path.write_bytes(data[: 1 << 20])

    def grow() -> None:
        with path.open("ab") as log:
            for at in range(1 << 20, len(data), 50_000):
                log.write(data[at : at + 50_000])
                log.flush()
                time.sleep(0.005)

    growing = threading.Thread(target=grow)
    growing.start()
    f = following(host, path, 7)
    assert f.until(len(data) - 7) == data[7:]
    growing.join()
    f.pieces.close()


def test_nothing_follows_any_more_when_nobody_listens(overland: Host, tmp_path: Path):
    path = tmp_path / "log"
    f = following(overland, path)
    f.idle()
    wait_until(lambda: processes(str(path)), "it is followed")
    f.pieces.close()
    gone(str(path))


class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b"x" * 200_000
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@contextlib.contextmanager
def serving(port: int) -> Iterator[None]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Page)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def fetch(port: int) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as reply:
        return len(reply.read())


def test_a_remote_port_answers_here_while_it_is_forwarded(overland: Host):
    there, here = free_port(), free_port()
    with overland.forward(there, here):
        with pytest.raises(OSError):
            fetch(here)  # nobody listens there yet, and that is no reason to give up
        with serving(there):
            assert [fetch(here) for _ in range(3)] == [200_000] * 3
            with ThreadPoolExecutor(5) as pool:
                assert set(pool.map(fetch, [here] * 10)) == {200_000}
    with pytest.raises(OSError):
        fetch(here)


def test_a_port_that_is_taken_here_is_said_to_be(overland: Host):
    port = free_port()
    with serving(port), pytest.raises(PodctlError, match=f"port {port} of this machine is in use"):
        with overland.forward(free_port(), port):
            pass


def test_many_commands_share_one_connection(host: Host):
    with ThreadPoolExecutor(20) as pool:
        said = list(pool.map(lambda i: host.run(["sh", "-c", f"sleep 0.2; echo {i}"]), range(20)))
    assert [s.stdout for s in said] == [f"{i}\n" for i in range(20)]


def test_ctrl_c_is_not_ignored_by_what_runs_there(host: Host):
    # a shell ignores SIGINT in what it starts in the background: tmux and all in it would inherit that
    script = "import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    assert host.run([sys.executable, "-c", script]).stdout == "True\n"
    with host.stream([sys.executable, "-c", script]) as stream:
        assert b"".join(stream) == b"True\n"


def test_no_account_key_reaches_a_command(host: Host, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RUNPOD_API_KEY", "canary")
    assert "canary" not in host.run(["env"]).stdout


TERMINAL = """
import sys
from podctl.localhost import LocalHost
from podctl.pods import SshAddress
kind, argv = sys.argv[1], sys.argv[7:]
if kind == "local":
    host = LocalHost()
else:
    from podctl.wire.host import SshHost
    from podctl.wire.openssh import OpenSsh
    from podctl.wire.paramiko import Paramiko
    address = SshAddress(sys.argv[2], int(sys.argv[3]), sys.argv[4], sys.argv[5], sys.argv[6])
    host = SshHost((OpenSsh if kind == "openssh" else Paramiko)(address))
code = host.terminal(argv)
if kind == "paramiko":
    host.close()
sys.exit(code)
"""


def terminal(host: Host, *argv: str) -> list[str]:
    """The command line of a process that hands its terminal over."""
    if isinstance(host, LocalHost):
        words = ["local", "", "", "", "", ""]
    else:
        assert isinstance(host, SshHost)
        a = host.wire.address
        kind = "openssh" if isinstance(host.wire, OpenSsh) else "paramiko"
        words = [kind, a.host, str(a.port), a.user, a.key, a.host_key]
    return [sys.executable, "-c", TERMINAL, *words, *argv]


def test_a_command_gets_this_process_s_own_input_and_output(host: Host):
    argv = terminal(host, "sh", "-c", "cat; echo err >&2; exit 7")
    done = subprocess.run(argv, input=b"in\n", capture_output=True, timeout=30)
    assert (done.returncode, done.stdout) == (7, b"in\n"), done.stderr
    assert b"err\n" in done.stderr


def test_a_terminal_stays_a_terminal(host: Host):
    import pty

    screen = b""

    def typed(pid: int, fd: int, line: bytes, until: bytes) -> None:
        nonlocal screen
        os.write(fd, line)
        deadline = time.monotonic() + 15
        while until not in screen:
            assert time.monotonic() < deadline, screen
            screen += os.read(fd, 1024)

    argv = terminal(host, "sh", "-c", "test -t 0 && test -t 1 && echo is-a-tty; read x; echo got-$x; exit 9")
    pid, fd = pty.fork()
    if pid == 0:
        os.execve(argv[0], argv, {**os.environ, "TERM": "xterm"})
    try:
        typed(pid, fd, b"", b"is-a-tty")
        typed(pid, fd, b"word\n", b"got-word")
        with contextlib.suppress(OSError):
            while os.read(fd, 1024):
                pass
    finally:
        os.close(fd)
        _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 9, screen


def test_push_and_pull_bring_what_is_there(host: Host, tmp_path: Path):
    if not isinstance(host, LocalHost):
        pytest.importorskip("podctl.sync")
    source = tmp_path / "a b"
    (source / "d").mkdir(parents=True)
    (source / "d" / "f").write_bytes(b"1\xff")
    host.push(source, PurePosixPath(tmp_path / "there"))
    host.pull(PurePosixPath(tmp_path / "there"), tmp_path / "back")
    assert (tmp_path / "back" / "d" / "f").read_bytes() == b"1\xff"


def processes(words: str) -> list[int]:
    """Who over there has these words in its command line; the ssh that sent them is here."""
    found = []
    for path in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            line = (path / "cmdline").read_bytes()
            if words.encode() in line and not line.startswith(b"ssh\0") and is_alive(int(path.name)):
                found.append(int(path.name))
    return found


def gone(words: str) -> None:
    wait_until(lambda: not processes(words), f"no process is left of {words!r}", 10)
