"""The way over SSH keeps its promises when the other side, the link, the keys or the terminal do not."""

import contextlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pytest
from support.pod import is_alive, wait_until
from support.sshd import Sshd, free_port, laptop, make_key, masters, nap, public, ssh_agent

from podctl.errors import BadInput, MissingHere, PodctlError, Unreachable
from podctl.host import write
from podctl.pods import SshAddress
from podctl.wire.base import Wire
from podctl.wire.command import command_of, line_of
from podctl.wire.faults import explain
from podctl.wire.host import SshHost, best_wire
from podctl.wire.known import Target, announced_key, make_trust
from podctl.wire.openssh import OpenSsh
from podctl.wire.paramiko import Paramiko

WIRES = {"openssh": OpenSsh, "paramiko": Paramiko}


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    with laptop(tmp_path) as home:
        yield home


@pytest.fixture
def sshd(tmp_path: Path, home: Path) -> Iterator[Sshd]:
    with Sshd(tmp_path / "sshd") as sshd:
        yield sshd


Make = Callable[..., Wire]


@pytest.fixture(params=WIRES)
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    made: list[Wire] = []

    def make(address: SshAddress, **options: int) -> Wire:
        made.append(WIRES[request.param](address, **options))
        return made[-1]

    yield make
    for wire in made:
        wire.close()


@pytest.fixture
def openssh() -> Iterator[Make]:
    made: list[Wire] = []

    def make(address: SshAddress, **options: int) -> Wire:
        made.append(OpenSsh(address, **options))
        return made[-1]

    yield make
    for wire in made:
        wire.close()


def runs(words: str) -> list[int]:
    """Who has these words in its command line over there; the ssh that sent them is here."""
    found = []
    for path in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            line = (path / "cmdline").read_bytes()
            here = line.startswith((b"ssh\0", sys.executable.encode()))
            if words.encode() in line and not here and is_alive(int(path.name)):
                found.append(int(path.name))
    return found


def gone(words: str) -> None:
    wait_until(lambda: not runs(words), f"nothing is left of {words!r}", 10)


def hear(pieces: Iterable[bytes], then: Callable[[], None], heard: list[bytes] | None = None) -> None:
    """Listen to the end; do that once something was heard."""
    for piece in pieces:
        if piece:
            then()
            if heard is not None:
                heard.append(piece)


def refusal(wire: Wire) -> PodctlError:
    with pytest.raises(PodctlError) as caught:
        wire.run(["echo", "canary"])
    assert "canary" not in caught.value.message + caught.value.hint
    return caught.value


# whom we speak to


def test_a_stranger_that_lets_everybody_in_receives_nothing(tmp_path: Path, home: Path, make: Make):
    with Sshd(tmp_path / "stranger", accept_any=True) as stranger:
        pod_key = public(make_key(tmp_path / "pod"))
        e = refusal(make(replace(stranger.address, host_key=pod_key)))
        assert (e.exit_code, stranger.logins, stranger.received) == (6, 0, b"")
        assert "another host key" in e.message
        assert "nothing was sent" in e.message
        with pytest.raises(Unreachable), make(replace(stranger.address, host_key=pod_key)).stream(["x"]) as stream:
            list(stream)
        assert (stranger.logins, stranger.received) == (0, b"")
        # and it would have been told all:
        make(stranger.address).run(["echo", "canary"], stdin=b"secret")
        assert b"canary" in stranger.received
        assert b"secret" in stranger.received


@pytest.mark.parametrize("type", ["ed25519", "rsa", "ecdsa"])
def test_a_server_of_many_keys_shows_the_announced_one(tmp_path: Path, home: Path, make: Make, type: str):
    with Sshd(tmp_path / "sshd", host_key_types=("rsa", "ecdsa", "ed25519")) as sshd:
        announced = public(tmp_path / "sshd" / f"host_{type}")
        assert make(replace(sshd.address, host_key=announced)).run(["echo", "yes"]).stdout == "yes\n"


def test_of_several_announced_keys_one_is_enough(tmp_path: Path, home: Path, make: Make):
    with Sshd(tmp_path / "sshd", host_key_types=("rsa", "ed25519")) as sshd:
        lost = public(make_key(tmp_path / "lost", type="ecdsa"))
        announced = f"{lost}\n{public(tmp_path / 'sshd' / 'host_rsa')}"
        assert make(replace(sshd.address, host_key=announced)).run(["echo", "yes"]).stdout == "yes\n"


def test_a_server_that_has_only_other_types_of_key_is_another_one(tmp_path: Path, sshd: Sshd, make: Make):
    e = refusal(make(replace(sshd.address, host_key=public(make_key(tmp_path / "k", type="rsa")))))
    assert "another host key" in e.message


def test_what_was_announced_must_be_a_key(sshd: Sshd):
    for text in ("ssh-ed25519 AAAA", "ssh-rsa " + sshd.host_key.split()[1], "nonsense", "ssh-ed25519 !!"):
        with pytest.raises(BadInput):
            announced_key(replace(sshd.address, host_key=text))
    with_comment = f"\n{sshd.host_key} root@pod\n"
    assert announced_key(replace(sshd.address, host_key=with_comment)) == sshd.host_key


def test_without_an_announced_key_nothing_is_connected(sshd: Sshd, make: Make):
    for user_config in (False, True):
        e = refusal(make(replace(sshd.address, host_key="", user_config=user_config)))
        assert e.exit_code == 6
        assert e.message == "the host key of 127.0.0.1 is not known"
        assert e.hint.startswith(f"ssh -p {sshd.port} {sshd.user}@127.0.0.1 once and compare its key")
    assert sshd.logins == 0


def user_files(home: Path, config: str, known_hosts: str) -> Path:
    """The user's own ~/.ssh. The real ssh takes ~ from the user database, so the configuration names its files."""
    known = home / ".ssh" / "known_hosts"
    known.write_text(known_hosts)
    (home / ".ssh" / "config").write_text(f'{config}\nHost *\n  UserKnownHostsFile "{known}"\n')
    return known


@pytest.mark.parametrize("openssh", [True, False])
def test_the_user_s_own_known_hosts_announce(sshd: Sshd, home: Path, openssh: bool):
    config = f"Host box\n  HostName 127.0.0.1\n  Port {sshd.port}\nHost other\n  HostKeyAlias by-name\n"
    theirs, rsa = sshd.host_key, public(make_key(home / "rsa", type="rsa"))
    box, other = SshAddress("box", user_config=True), SshAddress("other", user_config=True)
    at_port = f"[127.0.0.1]:{sshd.port}"
    for entry in (f"{at_port} {theirs}", f"x,{at_port} {theirs} comment", f"# c\n\n127.0.0.1 {theirs}"):
        known = user_files(home, config, entry + "\n")
        assert announced_key(box, openssh=openssh) == theirs, entry
    user_files(home, config, f"{at_port} {theirs}\n{at_port} {rsa}\nby-name {rsa}\n")
    assert announced_key(box, openssh=openssh).splitlines() == [theirs, rsa]
    assert announced_key(other, openssh=openssh) == rsa
    known = user_files(home, config, f"{at_port} {theirs}\nnobody {rsa}\n")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(known)], check=True, capture_output=True)
    assert "127.0.0.1" not in known.read_text()
    assert announced_key(box, openssh=openssh) == theirs
    for entry in (f"@cert-authority {at_port} {theirs}", f"{at_port} {theirs}\n@revoked {at_port} {theirs}", "junk"):
        user_files(home, config, entry + "\n")
        with pytest.raises(Unreachable, match="is not known"):
            announced_key(box, openssh=openssh)


def test_an_alias_of_the_user_s_configuration_leads_there(sshd: Sshd, home: Path, make: Make):
    config = f'Host box\n  HostName 127.0.0.1\n  Port {sshd.port}\n  User {sshd.user}\n  IdentityFile "{sshd.key}"\n'
    # what the user has set for terminals must not disturb commands
    config += "  RequestTTY force\n  ForwardAgent yes\n  LocalForward 1 localhost:1\n  ControlMaster auto\n"
    user_files(home, config, f"[127.0.0.1]:{sshd.port} {sshd.host_key}\n")
    assert make(SshAddress("box", user_config=True)).run(["sh", "-c", "test -t 0 || echo no tty"]).stdout == "no tty\n"


def test_a_jump_host_is_crossed_by_the_user_s_own_trust(tmp_path: Path, sshd: Sshd, home: Path, make: Make):
    with Sshd(tmp_path / "bastion") as bastion:
        config = (
            f'Host bastion\n  HostName 127.0.0.1\n  Port {bastion.port}\n  IdentityFile "{bastion.key}"\n'
            f"  User {bastion.user}\nHost inner\n  HostName 127.0.0.1\n  Port {sshd.port}\n  ProxyJump bastion\n"
            f'  User {sshd.user}\n  IdentityFile "{sshd.key}"\n'
        )
        inner = f"[127.0.0.1]:{sshd.port} {sshd.host_key}\n"
        user_files(home, config, f"{inner}[127.0.0.1]:{bastion.port} {bastion.host_key}\n")
        wire = make(SshAddress("inner", user_config=True))
        assert wire.run(["echo", "there"]).stdout == "there\n"
        assert (sshd.logins, bastion.logins) == (1, 1)
        wire.close()
        user_files(home, config, inner)
        e = refusal(make(SshAddress("inner", user_config=True)))
        assert e.message.startswith("the way to inner leads over bastion, whose host key")
        assert (sshd.logins, bastion.logins) == (1, 1)


# who we are


def test_a_key_that_is_not_accepted_is_named(tmp_path: Path, sshd: Sshd, make: Make):
    wrong = make_key(tmp_path / "a key")
    e = refusal(make(replace(sshd.address, key=str(wrong))))
    assert e.message == f"{sshd.user}@127.0.0.1 does not accept the key {wrong}"
    assert "authorized_keys" in e.hint


def test_a_key_with_a_passphrase_needs_an_agent(tmp_path: Path, sshd: Sshd, make: Make, monkeypatch):
    locked = make_key(tmp_path / "locked key", passphrase="canary")
    sshd.authorized.write_text(public(locked))
    address = replace(sshd.address, key=str(locked))
    e = refusal(make(address))
    assert e.message.endswith(f"the key {locked} has a passphrase and no agent holds it")
    assert e.hint == f"ssh-add {shlex.quote(str(locked))}"
    agent_socket = Path(os.environ["TMPDIR"], "agent")
    with ssh_agent(agent_socket):
        monkeypatch.setenv("SSH_AUTH_SOCK", str(agent_socket))
        say = tmp_path / "say"
        say.write_text("#!/bin/sh\necho canary\n")
        say.chmod(0o700)
        asking = {**os.environ, "SSH_ASKPASS": str(say), "SSH_ASKPASS_REQUIRE": "force"}
        subprocess.run(["ssh-add", "-q", str(locked)], env=asking, check=True, stdin=subprocess.DEVNULL)
        assert make(address).run(["true"]).ok


def test_a_key_that_is_missing_or_none_is_said_to_be(tmp_path: Path, sshd: Sshd, make: Make):
    assert "there is no key" in refusal(make(replace(sshd.address, key=str(tmp_path / "none")))).message
    (tmp_path / "text").write_text("hello\n")
    (tmp_path / "text").chmod(0o600)
    assert "is no private key" in refusal(make(replace(sshd.address, key=str(tmp_path / "text")))).message


def test_a_key_that_others_may_read_is_not_used(sshd: Sshd, openssh: Make):
    sshd.key.chmod(0o644)
    e = refusal(openssh(sshd.address))
    assert "others may read the key" in e.message
    assert e.hint == f"chmod 600 {sshd.key}"


@pytest.mark.skipif(os.getuid() == 0, reason="root reads everything")
def test_a_key_that_can_t_be_read_is_said_to_be(sshd: Sshd, make: Make):
    sshd.key.chmod(0)
    assert "can't be read" in refusal(make(sshd.address)).message


@pytest.mark.parametrize("name", ["with blank", "q'uo\"te", "per%cent%h", "back\\slash", "br[ack]et*"])
def test_paths_may_have_unkind_names(tmp_path: Path, make: Make, name: str):
    with laptop(tmp_path / name), Sshd(tmp_path / "sshd") as sshd:
        key = tmp_path / name / "key"
        shutil.copy(sshd.key, key)
        (Path.home() / ".ssh" / "config").write_text("Host *\n  ServerAliveInterval 7\n")
        assert make(replace(sshd.address, key=str(key), user_config=True)).run(["echo", "yes"]).stdout == "yes\n"


# where it does not go


def test_a_port_where_nobody_listens_refuses(sshd: Sshd, make: Make):
    sshd.stop()
    e = refusal(make(sshd.address))
    assert (e.exit_code, e.message) == (6, f"127.0.0.1 port {sshd.port} refuses connections")


@pytest.mark.slow
def test_a_port_that_never_answers_is_given_up(sshd: Sshd, make: Make):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        e = refusal(make(replace(sshd.address, port=silent.getsockname()[1])))
        assert "does not answer" in e.message
        assert time.monotonic() - began < 25


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ("ssh: Could not resolve hostname gpubox: Name or service not known", "there is no host named gpubox"),
        ("ssh: connect to host 10.0.0.9 port 22: Connection refused", "refuses connections"),
        ("ssh: connect to host 10.0.0.9 port 22: No route to host", "no route"),
        ("ssh: connect to host 10.0.0.9 port 22: Network is unreachable", "no route"),
        ("ssh: connect to host 10.0.0.9 port 22: Connection timed out", "does not answer"),
        ("Connection timed out during banner exchange", "does not answer"),
        ("ssh: connect to host 10.0.0.9 port 22: Operation timed out", "does not answer"),
        ("@@@\nWARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!\nHost key verification failed.", "another host key"),
        ("Unable to negotiate with 10.0.0.9: no matching host key type found. Their offer: ssh-rsa", "another host"),
        ("root@10.0.0.9: Permission denied (publickey).", "does not accept any key of yours"),
        ("kex_exchange_identification: Connection closed by remote host", "hung up"),
        ("unix_listener: path too long for Unix domain socket", "control socket"),
        ("something new\nof ssh's", "of ssh's"),
        ("", "ssh says nothing"),
    ],
)
def test_what_ssh_says_becomes_a_sentence(said: str, sentence: str):
    e = explain(SshAddress("gpubox", key=""), Target("10.0.0.9", 22, "root", (), (), ()), said)
    assert sentence in e.message
    assert e.hint


def test_a_state_folder_that_can_t_be_written_is_said_to_be(sshd: Sshd, tmp_path: Path, monkeypatch, openssh: Make):
    (tmp_path / "file").touch()
    monkeypatch.setenv("PODCTL_HOME", str(tmp_path / "file" / "state"))
    e = refusal(openssh(sshd.address))
    assert isinstance(e, MissingHere)
    assert "can't be written" in e.message


def test_a_socket_folder_of_somebody_else_is_not_used(sshd: Sshd, tmp_path: Path, openssh: Make):
    Path(os.environ["TMPDIR"], f"podctl-{os.getuid()}").symlink_to(tmp_path)
    assert "belongs to somebody else" in refusal(openssh(sshd.address)).message


def test_our_files_are_private(sshd: Sshd, home: Path):
    trust = make_trust(sshd.address)
    for path in (trust.config, trust.shared, trust.known_hosts):
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.parent.stat().st_mode & 0o777 == 0o700
    assert trust.socket.parent.stat().st_mode & 0o777 == 0o700
    assert len(os.fsencode(trust.socket)) <= 80
    assert trust.known_hosts.read_text() == f"{trust.alias} {sshd.host_key}\n"
    assert [p.name for p in trust.known_hosts.parent.parent.iterdir()] == [trust.known_hosts.parent.name]


def test_a_long_tmpdir_is_not_too_long(sshd: Sshd, tmp_path: Path, monkeypatch, openssh: Make):
    long = tmp_path / ("n" * 100)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    wire = openssh(sshd.address)
    assert wire.run(["true"]).ok
    assert isinstance(wire, OpenSsh)
    wire.close()


# the shared connection


def test_a_second_wire_finds_the_connection_of_the_first(sshd: Sshd, openssh: Make):
    assert openssh(sshd.address).run(["true"]).ok
    assert openssh(sshd.address).run(["true"]).ok
    assert sshd.logins == len(masters()) == 1


def test_another_announced_key_is_another_connection(tmp_path: Path, sshd: Sshd, openssh: Make):
    assert openssh(sshd.address).run(["true"]).ok
    other = public(make_key(tmp_path / "other"))
    assert "another host key" in refusal(openssh(replace(sshd.address, host_key=other))).message


SHARE = """
import sys
from podctl.host import write
from podctl.pods import SshAddress
from podctl.wire.openssh import OpenSsh
a = SshAddress(sys.argv[1], int(sys.argv[2]), *sys.argv[3:6])
wire = OpenSsh(a)
"""


def process(sshd: Sshd, script: str) -> subprocess.Popen[bytes]:
    a = sshd.address
    return subprocess.Popen(
        [sys.executable, "-c", SHARE + script, a.host, str(a.port), a.user, a.key, a.host_key],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def test_processes_that_begin_at_once_make_one_connection(sshd: Sshd, openssh: Make):
    started = [process(sshd, "print(wire.run(['echo', 'hi']).stdout)") for _ in range(4)]
    for p in started:
        out, err = p.communicate(timeout=30)
        assert out == b"hi\n\n", err
    assert sshd.logins == len(masters()) == 1
    assert openssh(sshd.address).run(["true"]).ok
    assert sshd.logins == 1


STREAM = """
with wire.stream(["sh", "-c", "echo ready; sleep NAP"]) as stream:
    for piece in stream:
        if piece:
            print(piece.decode(), flush=True)
""".replace("NAP", nap(1004))


def test_ctrl_c_ends_the_command_and_not_the_connection(sshd: Sshd, openssh: Make):
    assert openssh(sshd.address).run(["true"]).ok
    p = process(sshd, STREAM)
    assert p.stdout is not None
    assert p.stdout.readline() == b"ready\n"
    master = masters()
    os.killpg(p.pid, signal.SIGINT)
    _, err = p.communicate(timeout=10)
    assert b"KeyboardInterrupt" in err
    assert b"Unreachable" not in err
    gone(f"sleep\x00{nap(1004)}")
    assert masters() == master
    assert len(master) == 1


def test_a_podctl_that_is_killed_leaves_no_command_there(sshd: Sshd, openssh: Make):
    p = process(sshd, STREAM)
    assert p.stdout is not None
    assert p.stdout.readline() == b"ready\n"
    wait_until(lambda: runs(f"sleep\x00{nap(1004)}"), "it sleeps over there")
    p.kill()
    p.communicate(timeout=10)
    gone(f"sleep\x00{nap(1004)}")


def test_a_dead_master_is_replaced(sshd: Sshd, openssh: Make):
    wire = openssh(sshd.address)
    assert wire.run(["true"]).ok
    (master,) = masters()
    os.kill(master, signal.SIGKILL)  # its socket stays
    assert wire.run(["true"]).ok
    assert masters() != [master]
    assert openssh(sshd.address).run(["true"]).ok
    assert sshd.logins == 2


def test_a_socket_of_nobody_is_replaced(sshd: Sshd, openssh: Make):
    path = make_trust(sshd.address).socket
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(path))
    assert openssh(sshd.address).run(["true"]).ok


@pytest.mark.slow
def test_a_hung_master_is_ended_and_replaced(sshd: Sshd, openssh: Make):
    wire = openssh(sshd.address)
    assert wire.run(["true"]).ok
    (master,) = masters()
    os.kill(master, signal.SIGSTOP)
    assert wire.run(["true"]).ok
    assert not is_alive(master)
    assert len(masters()) == 1


def test_a_command_never_travels_over_a_connection_of_its_own(sshd: Sshd, openssh: Make):
    trust = make_trust(sshd.address)
    done = subprocess.run(["ssh", "-F", str(trust.shared), "127.0.0.1", "true"], capture_output=True, timeout=10)
    assert done.returncode == 255
    assert b"podctl-no-shared-connection" in done.stderr
    assert "Connection from" not in sshd.log.read_text() or sshd.logins == 0


def test_more_commands_than_sessions_wait_for_their_turn(tmp_path: Path, home: Path, make: Make):
    from concurrent.futures import ThreadPoolExecutor

    with Sshd(tmp_path / "sshd", max_sessions=2) as sshd:
        wire = make(sshd.address)
        with wire.stream(["sleep", "3"]), ThreadPoolExecutor(5) as pool:
            said = list(pool.map(lambda i: wire.run(["sh", "-c", f"sleep 0.05; echo {i}"]).stdout, range(6)))
        assert said == [f"{i}\n" for i in range(6)]
        assert sshd.logins == 1


def test_rsync_travels_over_the_shared_connection(sshd: Sshd, tmp_path: Path, openssh: Make):
    wire = openssh(sshd.address)
    (tmp_path / "f").write_text("text")
    shell = wire.rsync_shell()
    assert shell is not None
    there = tmp_path / "there"
    there.mkdir()
    subprocess.run(["rsync", "-a", "-e", shell, str(tmp_path / "f"), f"pod:{there}/"], check=True, timeout=30)
    assert (there / "f").read_text() == "text"
    assert sshd.logins == 1


def test_closing_ends_the_connection(sshd: Sshd, openssh: Make):
    wire = openssh(sshd.address)
    assert wire.run(["true"]).ok
    wire.close()
    assert masters() == []
    assert wire.run(["true"]).ok


# a link that breaks


def test_sshd_killed_in_mid_stream_is_unreachable_and_then_reached_again(sshd: Sshd, make: Make):
    wire = make(sshd.address)
    with wire.stream(["sh", "-c", f"echo canary; sleep {nap(1005)}"]) as stream, pytest.raises(Unreachable) as caught:
        hear(stream, sshd.kill_sessions)
    assert stream.exit_code is None
    assert "canary" not in caught.value.message
    gone(f"sleep\x00{nap(1005)}")
    assert wire.run(["echo", "again"]).stdout == "again\n"


def test_a_cut_with_much_on_its_way_is_unreachable_too(sshd: Sshd, make: Make):
    wire = make(sshd.address)
    for _ in range(5):  # what breaks first is a matter of luck: the reading, the sending, the closing
        cutting = threading.Timer(0.1, sshd.kill_sessions)
        with wire.stream(["cat", "/dev/zero"], stdin=[b"x"]) as stream:
            cutting.start()
            with pytest.raises(Unreachable):
                hear(stream, lambda: None)
        cutting.join()
    assert wire.run(["true"]).ok


def test_a_link_that_breaks_while_a_command_runs_is_no_exit_code(sshd: Sshd, make: Make):
    wire = make(sshd.address)
    assert wire.run(["true"]).ok
    cut = threading.Timer(0.3, sshd.kill_sessions)
    cut.start()
    with pytest.raises(Unreachable):
        wire.run(["sleep", nap(1006)], timeout_s=20)
    cut.join()
    gone(f"sleep\x00{nap(1006)}")


def test_a_frozen_link_is_given_up_within_its_time_and_nothing_hangs(sshd: Sshd, make: Make):
    wire = make(sshd.address, alive_s=1)
    with wire.stream(["sh", "-c", f"echo; sleep {nap(1007)}"]) as stream, pytest.raises(Unreachable) as caught:
        hear(stream, sshd.freeze_sessions)
    began = sshd.frozen_at
    assert 2 < time.monotonic() - began < 8
    assert caught.value.message
    assert wire.run(["echo", "anew"]).stdout == "anew\n"
    sshd.thaw_sessions()
    gone(f"sleep\x00{nap(1007)}")


def test_a_time_out_in_a_frozen_link_does_not_wait_for_its_pipes(sshd: Sshd, make: Make):
    wire = make(sshd.address)
    assert wire.run(["true"]).ok
    sshd.freeze_sessions()
    began = time.monotonic()
    try:
        said = wire.run(["sleep", nap(1008)], timeout_s=0.5)
        assert said.exit_code == 124
    except Unreachable:
        pass
    assert time.monotonic() - began < 5
    sshd.thaw_sessions()


def test_a_frozen_link_lets_a_stream_be_left(sshd: Sshd, make: Make):
    wire = make(sshd.address)
    began = 0.0
    with wire.stream(["cat"], stdin=iter(lambda: b"x" * 65536, b"")) as stream:
        assert any(stream)
        sshd.freeze_sessions()
        time.sleep(0.2)
        began = time.monotonic()
    assert time.monotonic() - began < 5
    sshd.thaw_sessions()


def test_a_follower_goes_on_where_it_was_cut(sshd: Sshd, tmp_path: Path, make: Make):
    host = SshHost(make(sshd.address))
    log = tmp_path / "log"
    log.write_bytes(b"0123")
    heard: list[bytes] = []
    with pytest.raises(Unreachable):
        hear(host.follow(PurePosixPath(log)), sshd.kill_sessions, heard)
    got = b"".join(heard)
    with log.open("ab") as f:
        f.write(b"4567")
    for piece in host.follow(PurePosixPath(log), offset=len(got)):
        got += piece
        if len(got) >= 8:
            break
    assert got == b"01234567"


def test_a_file_that_was_cut_on_its_way_is_not_put_in_place(sshd: Sshd, tmp_path: Path, make: Make):
    host = SshHost(make(sshd.address))
    folder = tmp_path / "there"
    path = PurePosixPath(folder / "f")
    write(host, path, "old")

    def cut_in_the_middle() -> None:
        wait_until(lambda: any(p.stat().st_size for p in folder.glob("f.*.tmp")), "a part is there")
        sshd.kill_sessions()

    cutting = threading.Thread(target=cut_in_the_middle)
    cutting.start()
    with pytest.raises(PodctlError):
        write(host, path, "new" * (20 << 20))
    cutting.join()
    time.sleep(0.5)  # over there it ends a moment later
    assert Path(path).read_bytes()[:10] == b"old"
    assert [p.name for p in folder.iterdir()] == ["f"]


def test_a_server_that_comes_back_is_found_again(sshd: Sshd, make: Make):
    wire = make(sshd.address)
    assert wire.run(["true"]).ok
    sshd.stop()
    with pytest.raises(Unreachable):
        wire.run(["true"])
    sshd.start()
    assert wire.run(["true"]).ok


# which wire, and the line it carries


def test_the_wire_is_openssh_unless_told_otherwise(home: Path, monkeypatch):
    address = SshAddress("gpubox")
    assert isinstance(best_wire(address), OpenSsh)
    for name, kind in (("openssh", OpenSsh), ("fabric", Paramiko)):
        monkeypatch.setenv("PODCTL_SSH", name)
        assert isinstance(best_wire(address), kind)
    monkeypatch.setenv("PODCTL_SSH", "telnet")
    with pytest.raises(MissingHere):
        best_wire(address)
    monkeypatch.delenv("PODCTL_SSH")
    monkeypatch.setenv("PATH", "/nowhere")
    assert isinstance(best_wire(address), Paramiko)


WORDS = ["a'; b", 'c"d', "", "$HOME", "!x", "back\\slash\\'", "a\nb", "ü", "~", "*", "-n", "%h"]


@pytest.mark.parametrize("shell", ["sh", "dash", "bash", "zsh", "fish", "tcsh", "csh", "ksh", "busybox"])
def test_every_login_shell_runs_the_same_words(shell: str):
    if not shutil.which(shell):
        pytest.skip(f"no {shell} here")
    login = [shell, "sh"] if shell == "busybox" else [shell]
    for watched in (True, False):
        command = command_of(["printf", "%s|", *WORDS], watched=watched)
        with subprocess.Popen(["sleep", "5"], stdout=subprocess.PIPE) as open_input:
            done = subprocess.run(
                [*login, "-c", command.line], stdin=open_input.stdout, capture_output=True, start_new_session=True
            )
            open_input.kill()
        assert done.stdout.decode() == "".join(f"{w}|" for w in WORDS), done.stderr
        assert (done.returncode, done.stderr) == (0, b"")


def test_a_plain_command_is_readable_over_there():
    assert line_of(["sh", "-c", "echo a b"]) == "exec sh -c 'echo a b'"
    assert set(line_of(WORDS)) <= set("abcdefghijklmnopqrstuvwxyz \"$%'()-\\0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ")


def test_no_port_is_left_open(sshd: Sshd, make: Make):
    here, there = free_port(), free_port()
    wire = make(sshd.address)
    with wire.forward(there, here):
        with socket.create_connection(("127.0.0.1", here), 2):
            pass
        with pytest.raises(OSError), socket.create_connection(("127.0.0.2", here), 2):
            pass
    with pytest.raises(OSError), socket.create_connection(("127.0.0.1", here), 2):
        pass
    with wire.forward(there, here):
        pass
