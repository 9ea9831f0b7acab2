"""podctl's own SSH key: what opens the pods that it rents, so that nobody's personal key has to travel."""

import contextlib
import os
import tempfile
from pathlib import Path

from podctl import shell
from podctl.errors import MissingHere
from podctl.settings import state_dir
from podctl.sshkeys import is_encrypted, make_key, public_half

COMMENT = "podctl"


def own_key_path() -> Path:
    """Where its private half lies, made or not."""
    return state_dir() / "keys" / "podctl_ed25519"


def own_key() -> tuple[Path, str]:
    """The private key's path and the public line; made at first use, the same ever after, whoever asks at once.

    Raises MissingHere.
    """
    path = own_key_path()
    try:
        if not path.exists():
            _make(path)
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)  # ssh uses no key that others may read
        text = path.read_text(encoding="ascii", errors="replace")
    except OSError as e:
        raise MissingHere(
            f"{path} can't be made or read: {e.strerror or e}", "set PODCTL_HOME to a folder of yours"
        ) from e
    public = "" if is_encrypted(text) else public_half(text, path)
    if not public:
        raise MissingHere(
            f"{path} is no private key that podctl can use", f"rm {path}; the next command makes a new one"
        )
    return path, f"{public} {COMMENT}"


def _make(path: Path) -> None:
    """Beside, then linked: of two that make one at once, the first is kept by both."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(prefix=".new-", dir=path.parent) as beside:
        new = Path(beside) / path.name
        if shell.found("ssh-keygen"):
            make_key(new, COMMENT)
        else:
            _make_without_openssh(new)
        with contextlib.suppress(FileExistsError):
            try:
                os.link(new, path)
            except PermissionError:  # a disk without hard links
                new.rename(path)


def _make_without_openssh(path: Path) -> None:
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    text = key.private_bytes(s.Encoding.PEM, s.PrivateFormat.OpenSSH, s.NoEncryption())
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as f:
        f.write(text)
