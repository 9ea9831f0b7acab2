"""Somebody else's sshd at an address that was once ours: lets every key in, and writes down what it is told."""

import shutil
import subprocess
from pathlib import Path

from podctl.sim.processes import MARK, end_all
from podctl.sim.sshd import SSHD, current_user, make_key

CONFIG = """\
Port {port}
ListenAddress 127.0.0.1
HostKey "{root}/host"
PidFile none
UsePAM no
StrictModes no
UseDNS no
PasswordAuthentication no
KbdInteractiveAuthentication no
PrintMotd no
Subsystem sftp internal-sftp
AuthorizedKeysFile none
AuthorizedKeysCommand /bin/echo %t %k
AuthorizedKeysCommandUser {user}
ForceCommand sh '{root}/record.sh'
"""


class StrangerSshd:
    """Answers at a port of loopback until it is closed."""

    def __init__(self, root: Path, port: int, mark: str) -> None:
        self.port, self._mark = port, mark
        self._record = root / "record"
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        make_key(root / "host")
        record = self._record
        (root / "record.sh").write_text(f"printf '%s\\n' \"$SSH_ORIGINAL_COMMAND\" >>'{record}'; cat >>'{record}'\n")
        (root / "config").write_text(CONFIG.format(port=port, root=root, user=current_user()))
        self._process = subprocess.Popen(
            [SSHD or "sshd", "-D", "-f", str(root / "config"), "-E", str(root / "log")],
            stdin=subprocess.DEVNULL, start_new_session=True, env={MARK: mark},
        )  # fmt: skip

    @property
    def received(self) -> bytes:
        """All that anybody told it."""
        return self._record.read_bytes() if self._record.exists() else b""

    def close(self) -> None:
        end_all([self._process.pid], self._mark)
        self._process.wait()
