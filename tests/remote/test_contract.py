"""remote/ keeps to what an old image has: Python 3.8 and its standard library."""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.pod import ROOT, Pod

from remote.rundir import SUCCEEDED

MODULES = sorted((ROOT / "remote").rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.name)
def test_it_parses_as_python_3_8(path):
    ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 8))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.name)
def test_it_imports_the_standard_library_and_itself_only(path):
    named = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            named |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            named.add((node.module or "").split(".")[0])
    assert named <= sys.stdlib_module_names | {"remote"}


def python_3_8():
    """An old Python where one is installed."""
    found = shutil.which("python3.8") or ""
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for python in (found, *map(str, versions.glob("3.8*/bin/python"))):
        if python and subprocess.run([python, "-c", ""], stderr=subprocess.DEVNULL).returncode == 0:
            return python
    return None


def test_a_run_goes_its_whole_way_under_python_3_8(tmp_path):
    python = python_3_8()
    if python is None:
        pytest.skip("no Python 3.8 here")
    with Pod(tmp_path, python=python) as pod:
        show = ["python", "-c", "import sys; print('version', sys.version_info[:2])"]
        assert pod.finish(*show, queue=True).state == SUCCEEDED
        assert "version (3, 8)" in pod.log
        control = [python, "-I", "-S", str(pod.tool / "remote" / "control.py")]
        for word in ("status", "stop", "lives"):
            done = subprocess.run([*control, word, str(pod.run)], env=pod.env, stdout=subprocess.PIPE, check=True)
            assert json.loads(done.stdout)


@pytest.mark.parametrize("name", ["run.sh", "bin/trainer"])
def test_what_is_launched_can_be_executed_and_parses(name):
    path = ROOT / "remote" / name
    assert os.access(path, os.X_OK)
    shell = path.read_text(encoding="utf-8").splitlines()[0].split("/")[-1].split()[-1]
    assert subprocess.run([shell, "-n", str(path)]).returncode == 0
