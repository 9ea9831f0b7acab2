"""The image for pods: linted, and its first process tried as one. No engine is needed: a pod of namespaces runs it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import netpod
from support.netpod import NetPod, make_key
from support.pod import wait_until

from podctl.source import train_requirements
from remote import environment
from remote.clock import SystemClock

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
ENTRY = (ROOT / "image" / "entry.sh").read_text(encoding="utf-8")
needs_pods = pytest.mark.skipif(bool(netpod.why_not()), reason=netpod.why_not())


def tool(name: str) -> str:
    found = shutil.which(name, path=f"{BIN}{os.pathsep}{os.environ['PATH']}")
    assert found, f"{name} is missing: pip install '.[dev]'"
    return found


def test_every_shell_script_passes_shellcheck() -> None:
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    files = [f for f in listed.stdout.splitlines() if is_shell(ROOT / f)]
    assert len(files) >= 6
    done = subprocess.run([tool("shellcheck"), *files], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def is_shell(path: Path) -> bool:
    return path.is_file() and path.open("rb").readline().startswith((b"#!/usr/bin/env bash", b"#!/bin/sh"))


def test_the_dockerfile_passes_hadolint() -> None:
    done = subprocess.run([tool("hadolint"), "Dockerfile"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_base_is_pinned_and_what_is_copied_exists_and_is_sent() -> None:
    bases = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert bases[0].startswith("nvidia/cuda:13.0.")
    assert set(bases[1:]) == {"system"}
    sent = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for line in re.findall(r"^COPY (?!--from)(?:--\S+ )?(.+)$", DOCKERFILE, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert any(source == s or source.startswith(f"{s}/") for s in sent), f"{source} is in .dockerignore"
    assert not re.search(r"^ADD ", DOCKERFILE, re.MULTILINE)
    assert not re.search(r"PRIVATE KEY|ssh-(rsa|ed25519) AAAA\w", DOCKERFILE + ENTRY)


def test_the_environment_that_the_image_makes_is_the_one_that_a_run_accepts(tmp_path: Path) -> None:
    """The stage `needs`, done here, and the stamp read by who has to believe it."""
    src, needs = tmp_path / "src", tmp_path / "needs"
    src.mkdir()
    for name in ("pyproject.toml", "constraints.txt", "podctl", "remote"):
        (src / name).symlink_to(ROOT / name)
    (script,) = re.findall(r"^RUN (mkdir -p /needs.*?)\n\n", DOCKERFILE + "\n\n", re.MULTILINE | re.DOTALL)
    script = script.replace("\\\n", " ").replace("/needs", str(needs)).replace("python3 -c", f"{sys.executable} -S -c")
    subprocess.run(["bash", "-c", script], cwd=src, check=True)
    assert (needs / "requirements.txt").read_text() == "\n".join(train_requirements(ROOT)) + "\n"

    (needs / "requirements.txt").write_text("# nothing, so that no package is fetched here\n")
    image, said = tmp_path / "image", []
    by_path = [sys.executable, str(needs / "remote" / "environment.py")]
    subprocess.run([*by_path, "make", str(needs), str(image)], check=True)
    printed = subprocess.run([*by_path, "hash", str(needs)], check=True, capture_output=True, text=True).stdout
    assert (image / "STAMP").read_text() == f"{printed.strip()}\n{image}\n"
    environ = {"PATH": os.environ["PATH"], "PODCTL_IMAGE_ENV": str(image)}
    python = environment.resolve(
        needs, environment.Volume(tmp_path / "v"), tmp_path / "disk", environ, SystemClock(), said.append, no_run
    )
    assert python == str(image / "bin" / "python")
    assert "from the image" in said[0]


def no_run(argv, cwd) -> int:
    raise AssertionError(f"nothing is to be built: {argv}")


def test_without_an_engine_make_says_one_sentence_and_ends(tmp_path: Path) -> None:
    broken = tmp_path / "docker"
    broken.write_text("#!/bin/sh\nexit 1\n")  # installed, and its daemon does not run
    broken.chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:/usr/bin:/bin", "ENGINE": "docker"}
    for target in ("build", "push", "run"):
        done = subprocess.run(
            [ROOT / "image" / "engine.sh", target, "podctl:1"], env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 9
        assert done.stderr.count("\n") == 1
        assert "Docker or Podman" in done.stderr


def test_with_an_engine_the_image_is_built_from_this_folder_and_pushed_only_to_a_registry(tmp_path: Path) -> None:
    engine = tmp_path / "podman"
    engine.write_text('#!/bin/sh\n[ "$1" = info ] || echo "$PWD: $*"\n')
    engine.chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:/usr/bin:/bin", "ENGINE": "podman"}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        argv = [ROOT / "image" / "engine.sh", *words]
        return subprocess.run(argv, env=env, capture_output=True, text=True, check=False)

    assert run("build", "me/podctl:1").stdout == f"{ROOT}: build --platform linux/amd64 --tag me/podctl:1 .\n"
    assert run("push", "me/podctl:1").stdout == f"{ROOT}: push me/podctl:1\n"
    assert run("push", "podctl:1").returncode == 2
    assert "names no registry" in run("push", "podctl:1").stderr


# the entry script as the first process of a pod


def image_pod(tmp: Path, files: dict[str, str] | None = None, **env: str) -> NetPod:
    bare = {"/opt/podctl/entry.sh": ENTRY, "/root/.ssh/authorized_keys": "", **(files or {})}
    return NetPod(tmp, "image", tmp / "volume", files=bare, entry=["bash", "/opt/podctl/entry.sh"], env=env)


@pytest.fixture
def key(tmp_path: Path) -> Path:
    make_key(tmp_path / "mine")
    return tmp_path / "mine"


def announced(pod: NetPod) -> str:
    (key,) = re.findall(r"entry: host key (ssh-ed25519 \S+)", pod.said)[-1:]
    return key


@needs_pods
def test_who_is_named_by_public_key_may_log_in_and_the_log_announces_the_host_key(tmp_path: Path, key: Path) -> None:
    other = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHSqqYmsVyFQwGYG6kJ6TBfAMq7PeNBnyUqpJyZ0Hq3K a colleague's"
    keys = f"# mine\n{key.with_suffix('.pub').read_text()}\r\n\n{other}"
    with image_pod(tmp_path, PUBLIC_KEY=keys, RUNPOD_POD_ID="abc", RUNPOD_API_KEY="s3cret", CUDA_V="13 0") as pod:
        pod.key = key
        assert (
            announced(pod)
            in subprocess.run(["ssh-keyscan", pod.host], capture_output=True, text=True, check=True).stdout
        )
        pod.host_key_file.with_suffix(".pub").write_text(announced(pod))
        assert pod.ssh("cat", "/proc/1/comm").stdout == "sshd\n"
        assert pod.run("cat", "/root/.ssh/authorized_keys").stdout.splitlines()[1] == other
        assert pod.run("stat", "-c", "%a", "/root/.ssh/authorized_keys", "/root/.ssh").stdout.split() == ["600", "700"]
        env = pod.ssh("env").stdout
        assert "RUNPOD_POD_ID=abc\n" in env
        assert "CUDA_V=13 0\n" in env
        assert "s3cret" not in env + pod.said
        first = announced(pod)
        pod.stop()
        pod.start()
        assert announced(pod) != first  # none was given, and none lies in the image


@needs_pods
def test_a_key_whose_lines_end_in_two_characters_is_read(tmp_path: Path, key: Path) -> None:
    text = key.with_suffix(".pub").read_text().strip()
    with image_pod(tmp_path, PUBLIC_KEY=f"{text}\\n{text}\\n") as pod:
        assert "2 public keys may log in" in pod.said
        assert pod.run("wc", "-l", "/root/.ssh/authorized_keys").stdout.startswith("2 ")


@needs_pods
def test_the_pod_is_known_by_the_host_key_that_it_was_given_which_no_process_keeps(tmp_path: Path, key: Path) -> None:
    make_key(tmp_path / "host")
    secret = (tmp_path / "host").read_text()
    with image_pod(tmp_path, PUBLIC_KEY=key.with_suffix(".pub").read_text(), HOST_KEY=secret) as pod:
        pod.key = key
        pod.host_key_file = tmp_path / "host"
        for _ in range(2):
            assert pod.ssh("true").returncode == 0
            assert announced(pod) == pod.host_key
            inside = pod.run("sh", "-c", "cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline | tr '\\0' '\\n'").stdout
            assert "RUNPOD" in inside or "PATH=" in inside
            assert secret.splitlines()[1] not in inside + pod.said
            pod.stop()
            pod.start()


@needs_pods
def test_junk_is_named_and_never_printed_and_the_pod_lives(tmp_path: Path, key: Path) -> None:
    private = key.read_text()  # what people paste by mistake
    with image_pod(tmp_path, PUBLIC_KEY=private, HOST_KEY="not a key") as pod:
        assert "line 1 of PUBLIC_KEY is not a public key" in pod.said
        assert "nobody can log in → give what is in a .pub file" in pod.said
        assert "HOST_KEY is not a private key" in pod.said
        assert private.splitlines()[1] not in pod.said
        pod.key = key
        pod.host_key_file.with_suffix(".pub").write_text(announced(pod))
        assert pod.ssh("true").returncode == 255
    with image_pod(tmp_path / "none") as pod:
        assert "PUBLIC_KEY is not set: nobody can log in" in pod.said


@needs_pods
def test_an_image_with_a_start_of_its_own_is_started_by_it(tmp_path: Path, key: Path) -> None:
    """As the official images': it lets in by itself and starts sshd as a service; the host key is ours."""
    start = (
        "#!/bin/bash\nset -e\necho the image starts\n"
        'echo "$PUBLIC_KEY" >>~/.ssh/authorized_keys\nmkdir -p /run/sshd\n/usr/sbin/sshd\nexec sleep infinity\n'
    )
    make_key(tmp_path / "host")
    env = {"PUBLIC_KEY": key.with_suffix(".pub").read_text(), "HOST_KEY": (tmp_path / "host").read_text()}
    with image_pod(tmp_path, {"/start.sh": start}, **env) as pod:
        pod.key, pod.host_key_file = key, tmp_path / "host"
        wait_until(lambda: "the image starts" in pod.said, "its own start")
        assert pod.ssh("cat", "/proc/1/comm").stdout == "sleep\n"
        assert "HOST_KEY" not in pod.run("sh", "-c", "tr '\\0' '\\n' </proc/1/environ").stdout


@needs_pods
def test_a_start_that_ends_in_the_entry_does_not_go_round(tmp_path: Path, key: Path) -> None:
    start = "#!/bin/bash\necho a guard starts\nexec bash /opt/podctl/entry.sh\n"
    with image_pod(tmp_path, {"/start.sh": start}, PUBLIC_KEY=key.with_suffix(".pub").read_text()) as pod:
        assert pod.said.count("a guard starts") == 1
        assert pod.run("cat", "/proc/1/comm").stdout == "sshd\n"
