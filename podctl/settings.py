"""Who you are and which keys you hold: the environment first, then the project's `.runpod.env`."""

import getpass
import io
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import SecretStr

from podctl import shell
from podctl.errors import BadInput, MissingHere

FILE = ".runpod.env"
HINT_NAME = "POD_ID"  # podctl's own note, rewritten by it: the file wins, and the ledger wins over both
OWNER_MAX = 12


@dataclass(frozen=True)
class Settings:
    """Keys and preferences of one person in one project. Values that could be secrets never show in a repr."""

    owner: str
    values: Mapping[str, SecretStr] = field(repr=False)

    def secret(self, name: str) -> str | None:
        """The plain value, for the one place that sends it; None where it is unset or empty."""
        value = self.values.get(name)
        return (value.get_secret_value() or None) if value is not None else None

    @property
    def gpu_type(self) -> str:
        """Fills an empty `pod.gpu`, and nothing else."""
        return self.secret("GPU_TYPE") or ""

    @property
    def pod_id(self) -> str:
        """A hint which pod was used last."""
        return self.secret(HINT_NAME) or ""


def state_dir() -> Path:
    """Where podctl keeps what it must not forget: `$PODCTL_HOME`, else `~/.local/state/podctl`."""
    given = os.environ.get("PODCTL_HOME", "")
    try:
        return Path(given).expanduser().absolute() if given else Path.home() / ".local" / "state" / "podctl"
    except RuntimeError as e:  # a user without a home, or ~ of a user who is not there
        raise MissingHere("there is no home folder to keep runs in", "set PODCTL_HOME to a folder of yours") from e


def load_settings(project_root: Path, environ: Mapping[str, str] | None = None) -> Settings:
    """What the environment and the project's `.runpod.env` say. Raises BadInput where that file is unreadable."""
    environ = os.environ if environ is None else environ
    in_file = read_env_file(project_root / FILE)
    values = {**in_file, **environ}
    if HINT_NAME in in_file:
        values[HINT_NAME] = in_file[HINT_NAME]
    owner = values.get("PODCTL_OWNER") or _user_name()
    return Settings(owner=clean_owner(owner), values={k: SecretStr(v) for k, v in values.items()})


def read_env_file(path: Path) -> dict[str, str]:
    """The names and values in a dotenv file; {} where there is none. Raises BadInput, never quoting a line of it."""
    from dotenv.main import DotEnv

    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as e:
        reason = "it is not UTF-8 text" if isinstance(e, UnicodeDecodeError) else (e.strerror or "")
        raise BadInput(f"{FILE} can't be read: {reason}", f"see {FILE}.example") from None
    values = DotEnv(dotenv_path=None, stream=io.StringIO(text), verbose=False, interpolate=False).dict()
    return {k: v for k, v in values.items() if v is not None}


def refuse_tracked_keys(project_root: Path) -> None:
    """Keys that git knows are keys that leave this machine. Raises BadInput."""
    if not (project_root / FILE).exists() or not shell.found("git"):
        return
    if shell.run(["git", "-C", str(project_root), "ls-files", "--error-unmatch", "--", FILE]).ok:
        raise BadInput(
            f"git tracks {FILE}: the keys in it would travel with every push",
            f"git rm --cached {FILE} && echo {FILE} >> .gitignore, commit, and make new keys: history keeps the old",
        )


def clean_owner(text: str) -> str:
    """A name that fits into a pod's: lower-case letters and digits, at most 12."""
    return re.sub(r"[^a-z0-9]", "", text.lower())[:OWNER_MAX] or "me"


def _user_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return f"u{os.getuid()}"
