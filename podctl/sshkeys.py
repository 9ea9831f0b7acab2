"""This person's SSH keys: which there are, whether one can be used without asking for its passphrase."""

import base64
import os
from dataclasses import dataclass
from pathlib import Path

from podctl import shell
from podctl.errors import MissingHere, PodctlError

USUAL = ("id_ed25519", "id_ecdsa", "id_rsa", "id_ed25519_sk", "id_ecdsa_sk")  # as ssh tries them
_MAGIC = b"openssh-key-v1\0"


@dataclass(frozen=True)
class Keys:
    """What a connection could offer. `in_agent` holds public keys, `TYPE BASE64`."""

    directory: Path
    files: tuple[Path, ...] = ()
    locked: tuple[Path, ...] = ()  # have a passphrase, and no agent holds them
    in_agent: tuple[str, ...] = ()
    agent: bool = False  # does one answer?

    @property
    def usable(self) -> bool:
        """Is there a key that nobody has to unlock?"""
        return bool(self.in_agent) or len(self.files) > len(self.locked)


def look_at_keys(home: Path) -> Keys:
    """The usual keys below a home folder, and those that the agent holds."""
    directory = home / ".ssh"
    files = tuple(directory / name for name in USUAL if (directory / name).is_file())
    in_agent, agent = keys_in_agent()
    locked = tuple(f for f in files if is_locked(f, in_agent))
    return Keys(directory, files, locked, in_agent, agent)


def is_locked(key: Path, in_agent: tuple[str, ...]) -> bool:
    """Has this private key a passphrase that somebody would have to type?"""
    try:
        text = key.read_text(encoding="ascii", errors="replace")
    except OSError:
        return False  # ssh says better than we what is wrong with it
    return is_encrypted(text) and public_half(text, key) not in in_agent


def is_encrypted(private_key: str) -> bool:
    """Does a private key's text need a passphrase? Pure."""
    blob = _openssh_blob(private_key)
    if blob is None:
        return "ENCRYPTED" in private_key[:400]  # PEM says so in its heading
    return _strings(blob, 1)[0] != b"none"


def public_half(private_key: str, path: Path) -> str:
    """`TYPE BASE64` of a private key: from within it, where its format holds it in clear, else from the .pub beside."""
    blob = _openssh_blob(private_key)
    if blob is not None:
        _cipher, _kdf, options = _strings(blob, 3)
        rest = blob[3 * 4 + len(_cipher) + len(_kdf) + len(options) + 4 :]  # after the number of keys
        (public,) = _strings(rest, 1)
        return f"{_strings(public, 1)[0].decode('ascii', 'replace')} {base64.b64encode(public).decode()}"
    try:
        return " ".join(path.with_name(path.name + ".pub").read_text(errors="replace").split()[:2])
    except OSError:
        return ""


def keys_in_agent() -> tuple[tuple[str, ...], bool]:
    """The public keys that the agent holds, and whether there is one."""
    if not os.environ.get("SSH_AUTH_SOCK") or not shell.found("ssh-add"):
        return (), False
    told = shell.run(["ssh-add", "-L"], timeout_s=10)
    keys = tuple(" ".join(line.split()[:2]) for line in told.stdout.splitlines() if told.ok)
    return keys, told.exit_code in (0, 1)  # 1: it holds none


def make_key(path: Path, comment: str) -> None:
    """A new ed25519 key without a passphrase. Raises MissingHere, PodctlError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as e:
        raise MissingHere(f"{path.parent} can't be made: {e.strerror}", "make it yourself, with mode 700") from e
    made = shell.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(path)])
    if not made.ok:
        said = made.stderr.strip().splitlines()[-1:] or [f"exit code {made.exit_code}"]
        raise PodctlError(f"{path} could not be made: {said[0]}", f"ssh-keygen -t ed25519 -f {path}")


def _openssh_blob(private_key: str) -> bytes | None:
    """What OpenSSH's own format holds behind its magic word, None for any other format."""
    lines = [line.strip() for line in private_key.strip().splitlines()]
    if not lines or "BEGIN OPENSSH PRIVATE KEY" not in lines[0]:
        return None
    try:
        blob = base64.b64decode("".join(line for line in lines if not line.startswith("-----")))
        _strings(blob.removeprefix(_MAGIC), 3)
    except (ValueError, IndexError):
        return None
    return blob.removeprefix(_MAGIC) if blob.startswith(_MAGIC) else None


def _strings(blob: bytes, n: int) -> list[bytes]:
    """The first n strings of SSH's wire format: four bytes of length, then so many. Raises IndexError."""
    found, at = [], 0
    for _ in range(n):
        length = int.from_bytes(blob[at : at + 4], "big")
        if len(blob) < at + 4 + length:
            raise IndexError(n)
        found.append(blob[at + 4 : at + 4 + length])
        at += 4 + length
    return found
