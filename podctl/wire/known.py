"""Whom we trust: the host key that was announced, and our own ssh configuration that trusts nothing else."""

import base64
import binascii
import contextlib
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from podctl import shell
from podctl.errors import BadInput, MissingHere, Unreachable
from podctl.pods import SshAddress
from podctl.settings import state_dir

CONNECT_S = 10  # per address and hop
ALIVE_S = 5  # without ServerAlive a cut hangs a shared connection for ever, and the pipes of all that runs over it
ALIVE_COUNT = 3
IDLE_EXIT_S = 60  # how long a shared connection outlives its last user

ALGORITHMS = {  # a key's type → how a server may prove that it holds it
    "ssh-ed25519": ("ssh-ed25519",),
    "ssh-rsa": ("rsa-sha2-512", "rsa-sha2-256"),
    "ecdsa-sha2-nistp256": ("ecdsa-sha2-nistp256",),
    "ecdsa-sha2-nistp384": ("ecdsa-sha2-nistp384",),
    "ecdsa-sha2-nistp521": ("ecdsa-sha2-nistp521",),
    "sk-ssh-ed25519@openssh.com": ("sk-ssh-ed25519@openssh.com",),
    "sk-ecdsa-sha2-nistp256@openssh.com": ("sk-ecdsa-sha2-nistp256@openssh.com",),
}


@dataclass(frozen=True)
class Target:
    """Where an address leads once ~/.ssh/config has had its say, and where that host's keys may be written down."""

    host: str
    port: int
    user: str
    names: tuple[str, ...]  # as known_hosts may call it
    known_hosts: tuple[Path, ...]
    keys: tuple[str, ...]  # private keys that would be offered, paths
    route: str = ""  # a jump host or a proxy


@dataclass(frozen=True)
class Trust:
    """A folder of our own for one address: a configuration for ssh and the host keys it accepts."""

    config: Path  # connects; by a path that ssh hands on unquoted to a jump host's ssh (OpenSSH 9.2)
    shared: Path  # speaks over a connection that exists, never connects
    known_hosts: Path
    socket: Path
    alias: str
    target: Target
    host_keys: str


def announced_key(address: SshAddress, *, openssh: bool | None = None) -> str:
    """What the host at an address must prove to hold: `TYPE BASE64`, a line each.

    From the address itself, else, where the user's configuration has a say, what the user's known_hosts hold of it.
    Raises Unreachable where nothing is known, BadInput where `host_key` is no key.
    """
    by_openssh = shell.found("ssh") and shell.found("ssh-keygen") if openssh is None else openssh
    if address.host_key or not address.user_config:
        return _known(address, [])
    return _known(address, _looked_up(resolve(address)) if by_openssh else _looked_up_by_paramiko(address))


def make_trust(address: SshAddress, *, alive_s: int = ALIVE_S) -> Trust:
    """Write the configuration and the known host keys of an address; again is harmless. Raises as `announced_key`,
    and MissingHere where they can't be written."""
    target = resolve(address)
    wanted = address.user_config and not address.host_key
    host_keys = _known(address, _looked_up(target) if wanted else [])
    home = state_dir() / "known_hosts"
    what = [astuple(address), host_keys, alive_s, str(home), target.host, target.port, target.user, target.route]
    name = hashlib.sha256(json.dumps(what).encode("utf-8", "surrogateescape")).hexdigest()[:12]
    sockets, folder = socket_dir(), home / name
    trust = Trust(
        config=sockets / f"{name}.config",
        shared=sockets / f"{name}.shared",
        known_hosts=folder / "known_hosts",
        socket=sockets / name,
        alias=f"podctl-{name}",
        target=target,
        host_keys=host_keys,
    )
    _write_private(trust.known_hosts, "".join(f"{trust.alias} {key}\n" for key in host_keys.splitlines()))
    for path, text in ((trust.config, _connecting(address, trust, alive_s)), (trust.shared, _sharing(trust))):
        kept = folder / path.suffix[1:]
        _write_private(kept, text)
        _link(path, kept)
    return trust


def resolve(address: SshAddress) -> Target:
    """Where `ssh` would go for an address. Needs OpenSSH; nothing is connected."""
    folder = state_dir() / "known_hosts"
    asked = folder / f"asked-{os.getpid()}-{secrets.token_hex(4)}"
    _write_private(asked, "\n".join([*_whereto(address), *_includes(address)]) + "\n")
    try:
        said = shell.run(["ssh", "-G", "-F", str(asked), "--", address.host], timeout_s=CONNECT_S)
    finally:
        asked.unlink(missing_ok=True)
    if not said.ok:
        reason = (said.stderr.strip().splitlines() or ["it says nothing"])[-1].removeprefix(f"{asked}: ")
        raise Unreachable(f"ssh does not take its configuration: {reason}", "look at ~/.ssh/config")
    options: dict[str, list[str]] = {}
    for line in said.stdout.splitlines():
        key, _, value = line.partition(" ")
        options.setdefault(key.lower(), []).append(value)
    first = {k: v[0] for k, v in options.items()}
    host, port = first.get("hostname", address.host), int(first.get("port", "22"))
    alias = first.get("hostkeyalias", "none")
    plain = [alias] if alias != "none" else [*([f"[{host}]:{port}"] if port != 22 else []), host]
    files = [*paths_in(first.get("userknownhostsfile", "")), *paths_in(first.get("globalknownhostsfile", ""))]
    route = first.get("proxyjump", "none")
    if route == "none":
        route = "its ProxyCommand" if first.get("proxycommand", "none") != "none" else ""
    return Target(
        host=host,
        port=port,
        user=first.get("user", address.user),
        names=tuple(plain),
        known_hosts=tuple(files),
        keys=(address.key,) if address.key else tuple(options.get("identityfile", ())),
        route=route,
    )


def socket_dir() -> Path:
    """A private folder with a short, plain path: sockets' paths end near 104 bytes, ssh adds 17 while it makes one.

    Raises MissingHere where it belongs to somebody else.
    """
    name = f"podctl-{os.getuid()}"
    given = Path(os.environ.get("TMPDIR") or "/tmp") / name
    is_plain = re.fullmatch(r"/[A-Za-z0-9_./+-]{1,60}", str(given)) is not None
    folder = given if is_plain else Path("/tmp") / name
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        seen = folder.lstat()
    except OSError as e:
        raise MissingHere(f"{folder} can't be made: {e.strerror}", "set TMPDIR to a folder of yours") from e
    if folder.is_symlink() or not folder.is_dir() or seen.st_uid != os.getuid():
        raise MissingHere(f"{folder} belongs to somebody else", "set TMPDIR to a folder of yours")
    if seen.st_mode & 0o077:
        folder.chmod(0o700)
    return folder


def paths_in(text: str) -> list[Path]:
    """The files of a list that ssh prints without quotes, those that are there; their names may have blanks."""
    words = text.split(" ")
    found = []
    start = 0
    while start < len(words):
        for end in range(len(words), start, -1):
            path = Path(" ".join(words[start:end])).expanduser()
            if path.is_file():
                found.append(path)
                start = end - 1
                break
        start += 1
    return found


def _known(address: SshAddress, found: Sequence[str]) -> str:
    if address.host_key:
        return _checked(address.host_key)
    if not found:
        port = f"-p {address.port} " if address.port else ""
        name = f"{address.user}@{address.host}" if address.user else address.host
        raise Unreachable(
            f"the host key of {address.host} is not known",
            f"ssh {port}{name} once and compare its key, or set pod.ssh.host_key",
        )
    return "\n".join(found)


def _checked(text: str) -> str:
    """The keys of an announcement, comments dropped. Raises BadInput."""
    keys = [_plain_key(line.split()) for line in text.splitlines() if line.strip()]
    found = [k for k in keys if k]
    if not found or len(found) < len(keys):
        raise BadInput("pod.ssh.host_key is no public host key", "it reads like: ssh-ed25519 AAAAC3Nza…")
    return "\n".join(dict.fromkeys(found))


def _plain_key(words: Sequence[str]) -> str | None:
    if len(words) < 2 or words[0] not in ALGORITHMS:
        return None
    try:
        blob = base64.b64decode(words[1], validate=True)
    except (binascii.Error, ValueError):
        return None
    size = int.from_bytes(blob[:4], "big")
    return f"{words[0]} {words[1]}" if blob[4 : 4 + size] == words[0].encode() else None


def _looked_up(target: Target) -> list[str]:
    """By ssh-keygen, which knows hashed names. As ssh itself, a name with its port counts before the bare one."""
    for name in target.names:
        lines: list[str] = []
        for file in target.known_hosts:
            if file.is_file():
                lines += shell.run(["ssh-keygen", "-F", name, "-f", str(file)]).stdout.splitlines()
        keys = _trusted(line.split() for line in lines if not line.startswith("#"))
        if keys:
            return keys
    return []


def _trusted(entries: Iterable[Sequence[str]]) -> list[str]:
    """The plain keys of known_hosts entries. A revoked key is none; one that signs other keys is not the host's."""
    plain, revoked = [], set()
    for words in entries:
        if words and words[0] == "@revoked":
            revoked.add(_plain_key(words[2:]))
        elif words and not words[0].startswith("@"):
            plain.append(_plain_key(words[1:]))
    return list(dict.fromkeys(k for k in plain if k and k not in revoked))


def _looked_up_by_paramiko(address: SshAddress) -> list[str]:
    """Without OpenSSH: paramiko reads ~/.ssh/config and ~/.ssh/known_hosts."""
    from paramiko import HostKeys, SSHConfig

    folder = Path.home() / ".ssh"
    config = SSHConfig()
    with contextlib.suppress(FileNotFoundError):
        config = SSHConfig.from_path(str(folder / "config"))
    options = config.lookup(address.host)
    host = options.get("hostname", address.host)
    port = address.port or int(options.get("port", 22))
    alias = options.get("hostkeyalias")
    names = [alias] if alias else [*([f"[{host}]:{port}"] if port != 22 else []), host]
    given = options.get("userknownhostsfile", "")
    files = paths_in(given) if given else [folder / "known_hosts", folder / "known_hosts2"]
    text = "".join(f.read_text("utf-8", "replace") + "\n" for f in files if f.is_file())
    for name in names:
        entries = []
        for words in (line.split() for line in text.splitlines() if line.strip() and not line.startswith("#")):
            pattern = words[1:2] if words[0].startswith("@") else words[:1]
            if pattern and _names(HostKeys, pattern[0], name):
                entries.append(words)
        if keys := _trusted(entries):
            return keys
    return []


def _names(host_keys: type, pattern: str, name: str) -> bool:
    """Does a known_hosts entry speak of a host? Its name may be hashed."""
    if pattern.startswith("|1|"):
        return bool(host_keys.hash_host(name, pattern) == pattern)  # type: ignore[attr-defined]
    return name in pattern.split(",")


def _connecting(address: SshAddress, trust: Trust, alive_s: int) -> str:
    """The configuration that connects. ssh takes the first value it meets, so ours stand before the user's, and for
    this host alone: a jump host on the way keeps the user's own trust."""
    types = [key.split()[0] for key in trust.host_keys.splitlines()]
    algorithms = dict.fromkeys(a for t in types for a in ALGORITHMS[t])
    ours = {
        "HostKeyAlias": trust.alias,
        "UserKnownHostsFile": _quoted(trust.known_hosts),
        "GlobalKnownHostsFile": "/dev/null",
        "HostKeyAlgorithms": ",".join(algorithms),
        "StrictHostKeyChecking": "yes",
        "UpdateHostKeys": "no",
        "CheckHostIP": "no",
        "VerifyHostKeyDNS": "no",
        "BatchMode": "yes",
        "NumberOfPasswordPrompts": "0",
        "ConnectTimeout": CONNECT_S,
        "ConnectionAttempts": 1,
        "ServerAliveInterval": alive_s,
        "ServerAliveCountMax": ALIVE_COUNT,
        "TCPKeepAlive": "yes",
        "ForwardAgent": "no",
        "ForwardX11": "no",
        "Tunnel": "no",
        "PermitLocalCommand": "no",
        "ClearAllForwardings": "yes",
        "ControlPath": _quoted(trust.socket),
        "ControlPersist": IDLE_EXIT_S,
        "EscapeChar": "none",
        "LogLevel": "INFO",
    }
    return "\n".join([*_whereto(address), *(f"  {k} {v}" for k, v in ours.items()), *_includes(address)]) + "\n"


def _sharing(trust: Trust) -> str:
    """The configuration of everything that runs over the connection. Where there is none it must not make one of its
    own, unseen: it says UNSHARED and ends."""
    return (
        "Host *\n"
        f"  ControlPath {_quoted(trust.socket)}\n"
        "  ControlMaster no\n"
        f"  ProxyCommand sh -c 'echo {UNSHARED} >&2'\n"
        "  BatchMode yes\n"
        "  EscapeChar none\n"
        "  ForwardAgent no\n"
        "  ForwardX11 no\n"
        "  LogLevel ERROR\n"
    )


UNSHARED = "podctl-no-shared-connection"


def _whereto(address: SshAddress) -> Iterator[str]:
    yield f"Host {address.host}"
    if not address.user_config:
        yield f"  HostName {address.host.replace('%', '%%')}"
    if address.port:
        yield f"  Port {address.port}"
    if address.user:
        yield f"  User {_quoted(address.user, tokens=False)}"
    if address.key:
        yield f"  IdentityFile {_quoted(address.key)}"
        yield "  IdentitiesOnly yes"


def _includes(address: SshAddress) -> Iterator[str]:
    """The user's configuration and the system's, which `-F` leaves out."""
    if not address.user_config:
        return
    yield "Host *"
    for path in (Path.home() / ".ssh" / "config", Path("/etc/ssh/ssh_config")):
        if path.is_file():
            pattern = re.sub(r"([*?\[\]\\])", r"\\\1", str(path))  # Include takes patterns
            yield f"  Include {_quoted(pattern, tokens=False)}"


def _quoted(path: Path | str, *, tokens: bool = True) -> str:
    """One word of ssh's configuration. With `tokens` ssh would expand %h and its like."""
    text = str(path).replace("%", "%%") if tokens else str(path)
    if any(c in text for c in "\n\0"):
        raise BadInput(f"{text!r} can't stand in a configuration of ssh", "choose a path without a line break")
    return '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'


def _link(path: Path, to: Path) -> None:
    """A path that leads there, made at once whatever it was."""
    if path.is_symlink() and path.readlink() == to:
        return
    beside = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    beside.symlink_to(to)
    beside.replace(path)


def _write_private(path: Path, text: str) -> None:
    """0600 in a 0700 folder, whole or not at all. Raises MissingHere."""
    data = text.encode("utf-8", "surrogateescape")
    beside = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            if path.read_bytes() == data and path.stat().st_mode & 0o777 == 0o600:
                return
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(fd, "wb") as f:
                f.write(data)
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as e:
        raise MissingHere(f"{path} can't be written: {e.strerror}", "is there room, and may you write there?") from e
