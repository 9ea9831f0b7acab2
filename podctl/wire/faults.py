"""Why a connection was not made, or broke: ssh's words as a sentence, and what to type next."""

import base64
import binascii
import re
import shlex
import socket
from pathlib import Path

from podctl.errors import MissingHere, PodctlError, Unreachable, Untrusted
from podctl.pods import SshAddress
from podctl.wire.known import Target


def explain(address: SshAddress, target: Target, said: str, *, was_connected: bool = False) -> PodctlError:
    """`said`: what ssh wrote to its log or stderr. `was_connected`: it worked until then."""
    where = _where(address, target)
    if re.search(r"ControlPath.*too long|muxserver_listen|unix_listener|cannot bind to path|mux_client.*socket", said):
        return MissingHere(f"ssh can't make its control socket here: {_last(said)}", "set TMPDIR to a folder of yours")
    if re.search(r"HOST IDENTIFICATION HAS CHANGED|Host key verification failed|no matching host key type", said):
        return other_host_key(address)
    if "Permission denied (" in said or "Too many authentication failures" in said:
        return refused_key(address, target, said)
    if re.search(r"Could not resolve hostname|Name or service not known|nodename nor servname", said):
        return Unreachable(
            f"there is no host named {_named(said, target)}", "check its name, and this machine's network"
        )
    if "Connection refused" in said:
        return Unreachable(f"{where} refuses connections", "is sshd running there, and is this its port?")
    if re.search(r"No route to host|Network is unreachable|Host is unreachable|Network is down", said):
        return Unreachable(f"there is no route to {where}", "check this machine's network; is the machine on?")
    if re.search(r"[Tt]imed out|not responding|no answer within", said):
        if was_connected:
            return Unreachable(f"{address.host} does not answer any more", "check the network; podctl attach goes on")
        return Unreachable(f"{where} does not answer", "is the machine on, and does its firewall let you in?")
    if re.search(r"[Bb]ad configuration option|terminating, \d+ bad configuration", said):
        return Unreachable(f"ssh does not take its configuration: {_last(said)}", "look at ~/.ssh/config")
    if was_connected:
        return broken(address)
    if re.search(r"Connection (closed|reset)|kex_exchange_identification|Broken pipe", said):
        return Unreachable(
            f"{where} hung up before it let us in", "it may be starting, or be full; try again in a moment"
        )
    return Unreachable(f"{where} can't be reached: {_last(said) or 'ssh says nothing'}", f"try: ssh {address.host}")


def explain_route(address: SshAddress, target: Target, said: str) -> Unreachable:
    """Why a jump host did not lead on."""
    way = f"the way to {address.host} leads over {target.route}"
    if re.search(r"HOST IDENTIFICATION HAS CHANGED|[Hh]ost key", said):
        return Unreachable(
            f"{way}, whose host key is not known, or another one", f"ssh {target.route} once, and compare"
        )
    if "Permission denied" in said:
        return Unreachable(f"{way}, which accepts no key of yours", f"ssh {target.route} must work by itself")
    lines = [line for line in said.splitlines() if "UNKNOWN port" not in line and "kex_exchange" not in line]
    return Unreachable(f"{way}, which fails: {_last(chr(10).join(lines)) or 'it hangs up'}", f"try: ssh {address.host}")


def broken(address: SshAddress) -> Unreachable:
    return Unreachable(f"the connection to {address.host} broke", "try again: it is made anew")


def other_host_key(address: SshAddress) -> Untrusted:
    return Untrusted(
        f"{address.host} answers with another host key than the announced one; nothing was sent",
        "is this still your machine? If so, mend its line in ~/.ssh/known_hosts or pod.ssh.host_key",
    )


def refused_key(address: SshAddress, target: Target, said: str) -> Untrusted:
    """No key of ours was accepted. The reason is often on this side, and ssh does not say it."""
    who = f"{target.user}@{address.host}" if target.user else address.host
    for path in target.keys:
        key = Path(path).expanduser()
        reason = key_fault(key, said)
        if reason and (address.key or key.exists()):
            return Untrusted(f"{who} can't be logged into: {reason[0]}", reason[1])
    offered = f"the key {address.key}" if address.key else "any key of yours"
    return Untrusted(
        f"{who} does not accept {offered}",
        "put its .pub into ~/.ssh/authorized_keys there, or name another: pod.ssh.key, pod.ssh.user",
    )


def key_fault(key: Path, said: str = "") -> tuple[str, str] | None:
    """What is wrong with a private key of ours, and what to type; None where nothing is."""
    if not key.is_file():
        return f"there is no key {key}", "name one that is there: pod.ssh.key"
    try:
        text = key.read_bytes()
    except OSError as e:
        return f"the key {key} can't be read: {e.strerror}", f"chmod 600 {shlex.quote(str(key))}"
    if re.search(r"UNPROTECTED PRIVATE KEY|bad permissions", said) and key.stat().st_mode & 0o077:
        return f"others may read the key {key}, so ssh does not use it", f"chmod 600 {shlex.quote(str(key))}"
    if b"PRIVATE KEY-----" not in text:
        return f"{key} is no private key", "pod.ssh.key is the file without .pub"
    if is_encrypted(text):
        return f"the key {key} has a passphrase and no agent holds it", f"ssh-add {shlex.quote(str(key))}"
    return None


def is_encrypted(text: bytes) -> bool:
    """Does a private key need a passphrase? Its file says it."""
    if b"ENCRYPTED" in text:  # PEM and PKCS#8
        return True
    if b"OPENSSH PRIVATE KEY" not in text:
        return False
    body = b"".join(line for line in text.splitlines() if b"-----" not in line)
    try:
        blob = base64.b64decode(body)
    except binascii.Error:
        return False
    start = len(b"openssh-key-v1\0")
    size = int.from_bytes(blob[start : start + 4], "big")
    return blob[start + 4 : start + 4 + size] != b"none"


def full(address: SshAddress) -> Unreachable:
    return Unreachable(
        f"{address.host} lets no more commands run over one connection",
        "raise MaxSessions in its sshd_config, or leave a podctl that runs elsewhere",
    )


def busy_port(port: int) -> PodctlError:
    return PodctlError(f"port {port} of this machine is in use", "choose another port, or end what listens there")


def port_in_use(port: int) -> bool:
    """Does something listen on that port of loopback?"""
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def _where(address: SshAddress, target: Target) -> str:
    place = address.host if address.host == target.host else f"{address.host} ({target.host})"
    return place if target.port == 22 else f"{place} port {target.port}"


def _named(said: str, target: Target) -> str:
    """A jump host may be the one that has no such name."""
    found = re.search(r"Could not resolve hostname (\S+?):", said)
    return found[1] if found else target.host


def _last(said: str) -> str:
    lines = [line.strip() for line in said.strip().splitlines() if line.strip()]
    return lines[-1][:200] if lines else ""
