"""An entry of ssh's configuration for a run's machine, so that editors and other programs reach it as podctl does."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from podctl.errors import BadInput
from podctl.pods import Run, SshAddress

FILE = "podctl_config"  # of ours, beside ~/.ssh/config
HEADING = "# Machines of podctl's runs; `podctl ssh-config RUN --write` keeps them. Edits within an entry are lost.\n"


@dataclass(frozen=True)
class Entry:
    """What ssh must know of a machine. `route`: a jump host, or a command that makes the way."""

    name: str
    host: str
    port: int
    user: str
    keys: Sequence[str]
    only_these_keys: bool
    known_hosts: str
    alias: str
    route: str = ""

    def text(self) -> str:
        """The lines, ending in one that is empty."""
        lines = [f"HostName {self.host.replace('%', '%%')}", f"Port {self.port}"]
        lines += [f"User {_quoted(self.user, tokens=False)}"] if self.user else []
        lines += [f"IdentityFile {_quoted(key)}" for key in self.keys]
        lines += ["IdentitiesOnly yes"] if self.only_these_keys else []
        lines += [f"UserKnownHostsFile {_quoted(self.known_hosts)}", f"HostKeyAlias {self.alias}"]
        lines += ["StrictHostKeyChecking yes", "ServerAliveInterval 5", "ServerAliveCountMax 3"]
        if self.route:
            is_command = bool(re.search(r"[\s%/]", self.route))
            lines.append(f"Proxy{'Command' if is_command else 'Jump'} {self.route}")
        return "\n".join([f"Host {self.name}", *(f"  {line}" for line in lines)]) + "\n\n"


def name_of(run: Run) -> str:
    """`podctl-demo`: it stays the same from run to run."""
    return f"podctl-{run.name}"


def entry_of(run: Run, address: SshAddress) -> Entry:
    """The entry of a run's machine; our known hosts are written down for it. Raises Unreachable, BadInput."""
    from podctl.wire.known import make_trust

    trust = make_trust(address)
    there = trust.target
    keys = [key for key in there.keys if address.key or Path(key).expanduser().is_file()]
    return Entry(
        name=name_of(run),
        host=there.host,
        port=there.port,
        user=there.user,
        keys=keys,
        only_these_keys=bool(address.key),
        known_hosts=str(trust.known_hosts),
        alias=trust.alias,
        route=there.route,
    )


def with_entry(text: str, name: str, entry: str) -> str:
    """Our file with this entry in place of the one of that name, or at its end. Pure."""
    head, *rest = re.split(r"(?m)^(?=Host )", text or HEADING)
    kept = [block for block in rest if block.split()[1] != name]
    at = next((i for i, block in enumerate(rest) if block.split()[1] == name), len(kept))
    return "".join([head, *kept[:at], entry, *kept[at:]])


def with_include(text: str, file: Path) -> str:
    """The user's configuration with ours included, at the top: within a Host block it counts for that alone. Pure."""
    pattern = re.sub(r"([*?\[\]])", r"[\1]", str(file))  # Include takes patterns
    line = f"Include {_quoted(pattern, tokens=False)}"
    newline = "\r\n" if "\r\n" in text else "\n"
    for there in text.splitlines():
        if re.match(r"\s*(Host|Match)\b", there, re.IGNORECASE):
            break
        if there.strip() == line:
            return text
    return f"{line}{newline}{newline if text else ''}{text}"


def _quoted(word: str, *, tokens: bool = True) -> str:
    if any(c in word for c in "\n\r\0"):
        raise BadInput(f"{word!r} can't stand in a configuration of ssh", "choose a path without a line break")
    word = word.replace("%", "%%") if tokens else word
    return '"' + re.sub(r'(["\\])', r"\\\1", word) + '"' if re.search(r'[\s"\\#=]', word) else word
