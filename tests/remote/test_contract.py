"""remote/ keeps to what an old image has: Python 3.8 and its standard library."""

import ast
import json
import os
import subprocess
import sys

import pytest
from support.pod import ROOT, Pod
from support.pythons import installed

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


def test_a_run_goes_its_whole_way_under_python_3_8(tmp_path):
    python = installed("3.8")
    if not python:
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
