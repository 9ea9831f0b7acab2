"""Pythons older than the one that the tests run on."""

import os
import shutil
import subprocess
from pathlib import Path


def installed(version: str) -> str:
    """The path of a Python of that version ("3.8") that runs here; "" where there is none."""
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for python in (shutil.which(f"python{version}") or "", *map(str, versions.glob(f"{version}.*/bin/python3"))):
        if python and subprocess.run([python, "-c", ""], stderr=subprocess.DEVNULL, check=False).returncode == 0:
            return python
    return ""
