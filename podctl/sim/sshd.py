"""What of OpenSSH's server is on this machine."""

import os
import pwd
import shutil
import socket
import subprocess
from pathlib import Path

from podctl.errors import MissingHere

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def need_sshd() -> str:
    """The program's path. Raises MissingHere."""
    if SSHD is None or shutil.which("ssh-keygen") is None:
        raise MissingHere(
            "emulated pods need OpenSSH's server, and there is none here",
            "install openssh-server (it need not run), then `podctl sim` again",
        )
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # root's sshd does not start without
    return SSHD


def current_user() -> str:
    return pwd.getpwuid(os.getuid()).pw_name


def make_key(path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "pod", "-f", str(path)], check=True)


def free_port() -> int:
    """A port of loopback that nobody has now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])
