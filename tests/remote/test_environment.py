"""Which Python a run gets, from what, and what a kill or a torn file on the way can do to it (nothing)."""

import fcntl
import json
import subprocess
import sys

import pytest
from support.pod import Pod

from remote.rundir import FAILED, STARTING, STOPPED, SUCCEEDED

PACKAGE = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "speechkit"
version = "3.1"
"""
BACKEND = '''
"""Builds a wheel with one module and one command, with no help from outside."""
import zipfile
def build_wheel(directory, config_settings=None, metadata_directory=None):
    name = "speechkit-3.1-py3-none-any.whl"
    info = "speechkit-3.1.dist-info/"
    with zipfile.ZipFile(directory + "/" + name, "w") as z:
        z.writestr("speechkit.py", "def main(): print('speechkit', __file__)")
        z.writestr(info + "METADATA", "Metadata-Version: 2.1\\nName: speechkit\\nVersion: 3.1\\n")
        z.writestr(info + "WHEEL", "Wheel-Version: 1.0\\nGenerator: x\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        z.writestr(info + "entry_points.txt", "[console_scripts]\\nspeechkit = speechkit:main\\n")
        z.writestr(info + "RECORD", "")
    return name
'''


@pytest.fixture
def pod(tmp_path):
    with Pod(tmp_path, python=None) as pod:
        yield pod


@pytest.fixture
def needs_package(pod):
    package = pod.tool / "package"
    package.mkdir()
    (package / "pyproject.toml").write_text(PACKAGE)
    (package / "backend.py").write_text(BACKEND)
    (pod.tool / "requirements.txt").write_text("./package\n")
    (pod.tool / "constraints.txt").write_text("speechkit==3.1\n")


def env_hash(pod):
    argv = [sys.executable, str(pod.tool / "remote" / "environment.py"), "hash", str(pod.tool)]
    return subprocess.run(argv, env=pod.env, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def used_python(pod):
    return json.loads(pod.run.env.read_text())["python"]["executable"]


def test_a_python_that_is_given_is_used_as_it_is(pod):
    pod.environ["PODCTL_PYTHON"] = sys.executable
    pod.finish("python", "-c", "import sys; print('runs', sys.executable)")
    assert used_python(pod) == sys.executable
    assert f"runs {sys.executable}" in pod.log
    assert not pod.volume.env.exists(), "no pip at all"


@pytest.mark.parametrize("python", ["/no/such/python", "/bin/false", "no-such-python"])
def test_a_given_python_that_does_not_run_fails_and_names_the_variable(pod, python):
    pod.environ["PODCTL_PYTHON"] = python
    status = pod.finish("true")
    assert (status.state, status.phase) == (FAILED, "environment")
    assert f"PODCTL_PYTHON is {python}" in status.reason


def test_with_nothing_to_go_by_the_run_fails_and_says_what_to_give(pod):
    status = pod.finish("true")
    assert status.state == FAILED
    assert "set PODCTL_PYTHON" in status.reason
    assert "requirements.txt" in status.reason


def test_an_environment_is_built_once_packed_and_unpacked_by_the_next_pod(pod, needs_package):
    """The long way round once: pip, this machine again, another machine, and a disk under another name."""
    wanted = env_hash(pod)
    job = ("bash", "-c", "speechkit; python -c 'import speechkit; print(speechkit.__file__)'; command -v speechkit")
    assert pod.finish(*job).state == SUCCEEDED, pod.log
    local = pod.disk / "env" / wanted[:16]
    assert f"speechkit {local}" in pod.log
    assert "built" in pod.log
    assert "kept on the volume" in pod.log
    assert [p.name for p in pod.volume.env.iterdir()] == [wanted + ".tar"]
    assert sorted(p.name for p in local.parent.iterdir()) == [local.name, local.name + ".lock"]
    assert json.loads(pod.run.env.read_text())["python"]["executable"] == str(local / "bin" / "python")

    pod.finish(*job)
    assert "from this machine" in pod.log

    pod.environ["PIP_INDEX_URL"] = "http://127.0.0.1:1/"  # whoever asks pip now fails
    (pod.tool / "package" / "backend.py").unlink()
    pod.disk = pod.home / "other-disk"
    assert pod.finish(*job).state == SUCCEEDED, pod.log
    assert "from the volume" in pod.log
    moved = pod.disk / "env" / wanted[:16]
    assert f"speechkit {moved}" in pod.log, "its commands start the Python that lies beside them"
    assert str(moved / "bin" / "speechkit") in pod.log


def packed_elsewhere(pod):
    """An environment on the volume, as another pod left it. Made without pip, so it costs little."""
    (pod.tool / "requirements.txt").write_text("")
    wanted = env_hash(pod)
    made = pod.home / "made"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(made)], check=True)
    (made / "STAMP").write_text(f"{wanted}\n{pod.disk / 'env' / wanted[:16]}\n")
    pod.volume.env.mkdir(parents=True)
    tar = pod.volume.env / (wanted + ".tar")
    subprocess.run(["tar", "-cf", str(tar), "-C", str(made), "./bin", "./lib", "./pyvenv.cfg", "./STAMP"], check=True)
    return tar


def test_a_packed_environment_of_the_volume_is_unpacked_without_pip(pod):
    packed_elsewhere(pod)
    assert pod.finish("true").state == SUCCEEDED
    assert "from the volume" in pod.log
    assert used_python(pod).startswith(str(pod.disk))


@pytest.mark.parametrize("tear", ["cut short", "no stamp", "another's stamp", "garbage", "no python in it"])
def test_a_packed_environment_that_is_not_whole_is_built_anew_and_replaced(pod, tear):
    tar = packed_elsewhere(pod)
    text = tar.read_bytes()
    if tear == "cut short":
        tar.write_bytes(text[: len(text) // 2])
    elif tear == "garbage":
        tar.write_bytes(b"not a tar")
    else:
        made = pod.home / "made"
        members = ["./bin", "./pyvenv.cfg", "./STAMP"]
        if tear == "no stamp":
            members.remove("./STAMP")
        elif tear == "another's stamp":
            (made / "STAMP").write_text("0" * 64 + "\n/x\n")
        else:
            (made / "bin" / "python").unlink()
            (made / "bin" / "python").symlink_to("/no/such/base")
        subprocess.run(["tar", "-cf", str(tar), "-C", str(made), *members], check=True)
    torn = tar.read_bytes()
    assert pod.finish("true").state == SUCCEEDED, pod.log
    assert "is not usable: building the environment anew" in pod.log
    assert tar.read_bytes() != torn
    assert not list(pod.volume.env.glob("*.tmp"))
    assert not list((pod.disk / "env").glob("*.t*"))


def test_a_half_built_environment_on_this_machine_is_not_believed(pod):
    tar = packed_elsewhere(pod)
    half = pod.disk / "env" / tar.stem[:16]
    (half / "bin").mkdir(parents=True)
    (half / "bin" / "python").symlink_to(sys.executable)
    pod.finish("true")
    assert "from the volume" in pod.log


def test_an_image_whose_stamp_fits_needs_no_volume_and_no_pip(pod):
    packed_elsewhere(pod)
    image = pod.home / "image"
    (pod.home / "made").rename(image)
    pod.finish("true")
    assert used_python(pod) == str(image / "bin" / "python")
    assert "from the image" in pod.log


def test_an_image_with_another_stamp_is_passed_over(pod):
    packed_elsewhere(pod)
    image = pod.home / "image"
    (pod.home / "made").rename(image)
    (image / "STAMP").write_text("0" * 64 + "\n")
    pod.finish("true")
    assert "from the volume" in pod.log


def test_a_volume_that_cannot_keep_the_environment_costs_the_next_pod_and_not_this_run(pod):
    (pod.tool / "requirements.txt").write_text("")
    pod.volume.env.parent.mkdir(parents=True, exist_ok=True)
    pod.volume.env.write_text("in the way")
    assert pod.finish("true").state == SUCCEEDED
    assert "not kept on the volume" in pod.log


def test_two_runs_that_start_at_once_share_one_environment(pod):
    packed_elsewhere(pod)
    second = Pod(pod.root, run_id="second", python=None)
    for each in (pod, second):
        each.job("python", "-c", "print('up')")
    processes = [pod.start(), second.start()]
    assert [p.wait(60) for p in processes] == [0, 0], pod.log + second.log
    origins = sorted("from the volume" in each.log for each in (pod, second))
    assert origins == [False, True]


def test_the_hash_moves_with_what_makes_an_environment_and_with_nothing_else(pod):
    seen = set()
    for name, text in [
        ("requirements.txt", "a"),
        ("constraints.txt", "a==1"),
        ("constraints.txt", "a==2"),
        ("requirements.txt", "a[train]"),
    ]:
        (pod.tool / name).write_text(text)
        seen.add(env_hash(pod))
    assert len(seen) == 4
    (pod.tool / "remote" / "extra.py").write_text("")
    assert env_hash(pod) in seen
    assert all(len(h) == 64 for h in seen)


@pytest.fixture
def lock(pod):
    """Held, as by another run that builds the same environment."""
    tar = packed_elsewhere(pod)
    path = pod.disk / "env" / (tar.stem[:16] + ".lock")
    path.parent.mkdir()
    with path.open("w") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield f


def test_a_run_waits_for_the_environment_that_another_one_makes(pod, lock):
    pod.job("true")
    process = pod.start()
    pod.wait_for("waiting for it")
    assert pod.status.state == STARTING
    fcntl.flock(lock, fcntl.LOCK_UN)
    assert process.wait(30) == 0


def test_asked_to_stop_before_there_is_an_environment_it_stops_at_once(pod, lock):
    pod.job("true")
    process = pod.start()
    pod.wait_for("waiting for it")
    process.terminate()
    assert process.wait(20) == 75
    assert (pod.status.state, pod.status.phase) == (STOPPED, "environment")


# whose code runs


def trainer_of(pod, text="import sys; print('the tool trains', sys.argv[1:], __file__)"):
    package = pod.tool / "trainer"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text(text)
    pod.environ["PODCTL_PYTHON"] = sys.executable


def test_a_users_own_folders_named_remote_and_trainer_are_not_picked_up(pod):
    trainer_of(pod)
    for name in ("remote", "trainer", "dataclasses"):
        (pod.source / name).mkdir()
        (pod.source / name / "__init__.py").write_text("raise SystemExit('the users own')")
    (pod.source / "json.py").write_text("raise SystemExit('the users own')")
    pod.environ["PYTHONPATH"] = str(pod.source)
    pod.job("trainer", "train", "a b", prep=[])
    process = pod.start(cwd=pod.source)
    assert process.wait(30) == 0, pod.log
    assert f"the tool trains ['train', 'a b'] {pod.tool / 'trainer' / '__main__.py'}" in pod.log
    assert "the users own" not in pod.log


def test_the_runner_and_control_take_their_own_package_however_they_are_called(pod):
    trainer_of(pod)
    pod.job("true")
    decoy = pod.home / "decoy"
    (decoy / "remote").mkdir(parents=True)
    (decoy / "remote" / "__init__.py").write_text("raise SystemExit('a decoy')")
    env = {**pod.env, "PYTHONPATH": str(decoy)}
    for argv in (["runner.py"], ["control.py", "status"]):
        for flags in ([], ["-I"], ["-P"], ["-I", "-S"]):
            call = [sys.executable, *flags, str(pod.tool / "remote" / argv[0]), *argv[1:], str(pod.run)]
            assert subprocess.run(call, env=env, cwd=decoy, stdout=subprocess.DEVNULL, timeout=30).returncode == 0


@pytest.mark.parametrize("name", ["plain", "two words", "a'; echo foo", "new\nline"])
def test_the_trainer_command_works_wherever_the_tool_lies(tmp_path, name):
    with Pod(tmp_path, name=name) as pod:
        trainer_of(pod, "import sys; sys.exit(len(sys.argv) + 40)")
        assert subprocess.run([str(pod.tool / "remote/bin/trainer"), "a b", ""], env=pod.env).returncode == 43
        relative = ["remote/bin/trainer"]
        assert subprocess.run(relative, env=pod.env, cwd=pod.tool).returncode == 41


def test_the_trainer_command_refuses_another_trainer(pod):
    trainer_of(pod)
    for path in (pod.tool / "trainer").iterdir():
        path.unlink()
    (pod.tool / "trainer").rmdir()
    (pod.source / "trainer").mkdir()
    (pod.source / "trainer" / "__init__.py").write_text("")
    env = {**pod.env, "PYTHONPATH": str(pod.source)}
    done = subprocess.run([str(pod.tool / "remote/bin/trainer")], env=env, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert str(pod.source / "trainer") in done.stderr
    assert "send the tool again" in done.stderr


def test_the_trainer_command_says_which_python_is_too_old(pod, tmp_path):
    """No old Python is at hand everywhere, so one is played: it reports 3.8 to whoever asks."""
    trainer_of(pod)
    old = tmp_path / "old-python"
    old.write_text(
        f"#!{sys.executable}\nimport sys\n"
        "assert '-P' not in sys.argv, 'an option it does not know'\n"
        "sys.version_info = (3, 8, 0)\nexec(sys.argv[sys.argv.index('-c') + 1])\n"
    )
    old.chmod(0o755)
    env = {**pod.env, "PODCTL_PYTHON": str(old)}
    done = subprocess.run([str(pod.tool / "remote/bin/trainer")], env=env, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert "trainer needs Python 3.11 or newer" in done.stderr
    assert "is 3.8" in done.stderr
