"""The boot guard: the real script under a real sh, as a container's first process, against a provider on loopback."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from support.guarded import HOST_KEY, KEY, GuardedPod, Provider
from support.pod import ROOT, is_alive, wait_until

BOOT = ROOT / "remote" / "boot.sh"
SHELLS = [name for name in ("dash", "busybox sh", "bash --posix") if shutil.which(name.split()[0])]


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as p:
        yield p


@pytest.fixture
def pod(tmp_path: Path, provider: Provider) -> Iterator[GuardedPod]:
    with GuardedPod(tmp_path, provider) as p:
        yield p


def shell(pod: GuardedPod, name: str) -> None:
    """This shell is the pod's sh, for the script and for all that it starts again."""
    program, *words = name.split()
    pod.program(pod.bin / "sh", '#!/bin/bash\nexec {} {} "$@"\n'.format(shutil.which(program), " ".join(words)))


def only(pod: GuardedPod, *more: str) -> None:
    """The image has these programs beside the plainest, and no others."""
    plain = ["sh", "od", "tr", "mkdir", "chmod", "rm", "mv", "date", "sleep", "cut", "head", "tail", "grep", "setsid"]
    for tool in [*plain, "env", "cat", "rsync", "ssh-keygen", "sshd", *more]:
        (pod.bin / tool).symlink_to(shutil.which(tool) or f"/usr/sbin/{tool}")
    pod.environ["PATH"] = str(pod.bin)


@pytest.mark.parametrize("name", SHELLS)
def test_every_shell_parses_it(name: str) -> None:
    subprocess.run([*name.split(), "-n", str(BOOT)], check=True)


def test_it_travels_in_an_environment_variable() -> None:
    """Linux starts a process with at most 128 KiB a variable, and a create call takes at most 102400 bytes in all."""
    assert len(BOOT.read_bytes()) * 4 / 3 < 24_000


@pytest.mark.parametrize("name", [SHELLS[0], *[pytest.param(s, marks=pytest.mark.slow) for s in SHELLS[1:]]])
def test_a_pod_that_nobody_takes_over_ends_at_its_boot_grace(pod: GuardedPod, name: str) -> None:
    shell(pod, name)
    pod.boot()
    assert "the image has started" in wait_until(lambda: "has started" in pod.log and pod.log, "the image's own start")
    pod.move_clock(pod.grace_s - 60)
    wait_until(lambda: looks_since(pod, pod.grace_s - 60), "a look at the moved clock")
    assert not pod.provider.asked
    pod.move_clock(pod.grace_s)
    pod.wait_for_end()
    assert pod.provider.ends == [("v2", "terminate")]
    assert pod.provider.agents == {"podctl-guard"}
    ending = wait_until(lambda: pod.read("ending.json"), "the ending")
    assert (ending["by"], ending["how"]) == ("boot guard", "terminate")
    assert ending["tried"] == [{"route": "v2", "answer": "terminate: 204"}]


def test_it_says_who_the_pod_is_and_again_when_its_host_key_changes(pod: GuardedPod) -> None:
    pod.boot()
    boot = pod.read("boot.json")
    assert f"podctl-boot 1 boot={boot['boot']} dir={pod.dir} key={HOST_KEY}\n" in pod.log
    assert len(boot["boot"]) == 8
    assert (boot["grace_s"], boot["end"], boot["schema"]) == (900, "terminate", 1)
    pod.move_clock(61)  # looks at a log read its end
    wait_until(lambda: pod.log.count(HOST_KEY) == 2, "the line once more")
    pod.host_key.with_suffix(".pub").write_text("ssh-ed25519 AAAANew pod\n")
    wait_until(lambda: "key=ssh-ed25519 AAAANew\n" in pod.log, "the new key")


def test_it_makes_a_host_key_where_there_is_none(pod: GuardedPod) -> None:
    for path in (pod.host_key, pod.host_key.with_suffix(".pub")):
        path.unlink()
    pod.announces = "key=ssh-ed25519 AAAA"
    pod.boot()
    assert pod.host_key.stat().st_mode & 0o077 == 0
    assert " ".join(pod.host_key.with_suffix(".pub").read_text().split()[:2]) in pod.log


def test_its_folder_is_for_its_owner_alone_and_nothing_of_an_earlier_boot_counts(pod: GuardedPod) -> None:
    (pod.dir / "claims").mkdir(parents=True)
    (pod.dir / "claims" / "old.json").write_text("{}")
    for name in ("armed", "ending.json", "verdict.json", "alive"):
        (pod.dir / name).write_text("old")
    pod.boot()
    assert pod.dir.stat().st_mode & 0o777 == 0o700
    assert not [
        p for p in pod.dir.rglob("*") if p.is_file() and p.read_text(errors="replace").startswith(("old", "{}"))
    ]


def test_what_is_told_to_the_image_is_its_own_environment_without_the_script(pod: GuardedPod) -> None:
    pod.program(pod.start, "#!/bin/sh\numask\nenv\nexec sleep 1000\n")
    pod.environ["USERS_OWN"] = 'it\'s "one"'
    pod.boot()
    wait_until(lambda: "USERS_OWN" in pod.log, "the image's start")
    assert "PODCTL_BOOT" not in pod.log
    assert f"{subprocess.run(['sh', '-c', 'umask'], capture_output=True, text=True).stdout.strip()}\n" in pod.log


@pytest.mark.slow
def test_the_guard_outlives_an_image_whose_start_fails(pod: GuardedPod) -> None:
    pod.program(pod.start, "#!/bin/sh\nexit 3\n")
    pod.boot()
    assert pod.starts[0].wait(10) == 3
    pod.move_clock(pod.grace_s)
    pod.wait_for_end()


def test_a_container_that_is_started_again_and_again_gets_one_grace(pod: GuardedPod) -> None:
    for begin_s in (0, 300, 600):
        pod.move_clock(begin_s)
        pod.boot()
        pod.move_clock(begin_s + 280)
        wait_until(lambda s=begin_s + 280: looks_since(pod, s), "a look")
        pod.halt()
        assert not pod.provider.ends
        pod.out.unlink()
    pod.move_clock(901)
    pod.boot()
    pod.wait_for_end()


def looks_since(pod: GuardedPod, seconds: int) -> bool:
    """Whether the guard has seen so much time go by without a watchdog."""
    try:
        _, now, last = pod.seen.read_text().split()
    except FileNotFoundError:
        return False
    return int(now) - int(last) >= seconds


@pytest.mark.slow
def test_a_pod_that_was_stopped_and_is_started_later_gets_a_new_grace(pod: GuardedPod) -> None:
    pod.boot()
    pod.move_clock(800)
    wait_until(lambda: looks_since(pod, 800), "a look")
    pod.halt()
    pod.out.unlink()
    pod.move_clock(800 + 3600)
    pod.boot()
    wait_until(lambda: not looks_since(pod, 100), "a look")
    assert not pod.provider.ends


def test_a_clock_on_the_wall_that_jumps_ends_nothing(pod: GuardedPod) -> None:
    pod.boot()
    for s, wall_s in ((20, 10 * 86400), (40, -10 * 86400)):
        pod.move_clock(s, wall_s)
        wait_until(lambda s=s: looks_since(pod, s), "a look")
    assert not pod.provider.asked
    assert not looks_since(pod, 100)


@pytest.mark.slow
def test_a_stop_that_is_ignored_is_asked_for_again_every_minute_over_every_route(pod: GuardedPod) -> None:
    pod.end = "stop"
    pod.provider.ignores = True
    pod.boot()
    pod.move_clock(900)
    wait_until(lambda: pod.provider.ends, "the first asking")
    expected = [("v2", "stop")] + [("v2", "stop"), ("graphql", "stop")] * 2
    for moved_s in range(900, 1500, 20):
        pod.move_clock(moved_s)
        time.sleep(0.15)  # two or three looks
        if len(pod.provider.ends) >= len(expected):
            break
    assert pod.provider.ends[: len(expected)] == expected
    times = [t for t, way, _ in pod.provider.asked if way == "v2"]
    assert all(59 <= later - earlier < 120 for earlier, later in pairwise(times))


def test_a_key_that_may_not_over_v2_is_tried_over_graphql_and_then_by_the_program(pod: GuardedPod) -> None:
    pod.provider.rights = {"v2": "read", "graphql": "read"}
    pod.program(pod.bin / "runpodctl", f'#!/bin/sh\necho "$@" >>"{pod.root}/ran"\ntest "$1" = remove\n')
    pod.boot()
    pod.move_clock(900)
    ending = wait_until(lambda: pod.read("ending.json"), "the ending")
    assert pod.provider.ends == [("v2", "terminate"), ("graphql", "terminate")]
    assert (pod.root / "ran").read_text() == "remove pod pod0abc\n"
    assert [t["route"] for t in ending["tried"]] == ["v2", "graphql", "runpodctl"]
    assert "403" in ending["tried"][0]["answer"]
    assert "Unauthorized" in ending["tried"][1]["answer"]


@pytest.mark.slow
def test_a_newer_program_is_spoken_to_in_its_own_words(pod: GuardedPod) -> None:
    pod.provider.rights = {"v2": "gone", "graphql": "gone"}
    pod.program(pod.bin / "runpodctl", f'#!/bin/sh\necho "$@" >>"{pod.root}/ran"\ntest "$1 $2" = "pod delete"\n')
    pod.boot()
    pod.move_clock(900)
    wait_until(lambda: pod.read("ending.json"), "the ending")
    assert (pod.root / "ran").read_text() == "remove pod pod0abc\npod delete pod0abc\n"


@pytest.mark.slow
def test_a_pod_that_cannot_be_destroyed_is_stopped(pod: GuardedPod) -> None:
    pod.provider.rights = {"v2": "stop", "graphql": "read"}
    pod.boot()
    pod.move_clock(900)
    pod.wait_for_end()
    assert pod.provider.state == "EXITED"


@pytest.mark.slow
def test_without_curl_python_asks(pod: GuardedPod) -> None:
    only(pod, "tmux")
    (pod.bin / "python3").symlink_to(sys.executable)
    pod.boot()
    pod.move_clock(900)
    pod.wait_for_end()
    assert pod.provider.agents == {"podctl-guard"}


@pytest.mark.slow
@pytest.mark.parametrize("missing", ["RUNPOD_API_KEY", "RUNPOD_POD_ID"])
def test_a_pod_that_cannot_end_itself_says_so(pod: GuardedPod, missing: str) -> None:
    pod.environ[missing] = ""
    pod.boot()
    wait_until(lambda: "trouble=RUNPOD_POD_ID or RUNPOD_API_KEY is not set" in pod.log, "the trouble")
    pod.move_clock(900)
    assert wait_until(lambda: pod.read("ending.json"), "an ending that was tried")["tried"]


@pytest.mark.parametrize("grace", ["", "soon", "-5", "0900"])
def test_a_grace_that_is_none_is_the_usual_one(pod: GuardedPod, grace: str) -> None:
    pod.environ["PODCTL_GUARD_S"] = grace
    pod.boot()
    assert pod.read("boot.json")["grace_s"] == 900


def test_what_the_image_lacks_is_installed_beside_its_start_and_without_the_key(pod: GuardedPod) -> None:
    only(pod, "curl")
    pod.program(pod.bin / "apt-get", f'#!/bin/sh\necho "$@" >>"{pod.root}/apt"\nenv >>"{pod.root}/apt-env"\n')
    pod.boot()
    wait_until(lambda: "boot guard: installed tmux" in pod.log, "the installation")
    assert (pod.root / "apt").read_text().endswith("install --no-install-recommends tmux\n")
    assert KEY not in (pod.root / "apt-env").read_text()


@pytest.mark.slow
def test_an_image_without_a_package_manager_says_what_it_lacks(pod: GuardedPod) -> None:
    only(pod, "curl")
    pod.boot()
    wait_until(lambda: "trouble=this image lacks tmux" in pod.log, "the trouble")


@pytest.mark.slow
def test_where_the_image_has_no_start_sshd_is_run_and_the_key_may_log_in(pod: GuardedPod) -> None:
    pod.start.unlink()
    pod.program(pod.bin / "sshd", f'#!/bin/sh\necho "$@" >>"{pod.root}/sshd"\nexec sleep 1000\n')
    pod.environ |= {"HOME": str(pod.root / "home"), "PUBLIC_KEY": "ssh-ed25519 AAAAme a'b"}
    pod.boot()
    wait_until((pod.root / "sshd").exists, "sshd")
    assert (pod.root / "sshd").read_text() == f"-D -e -o HostKey={pod.host_key}\n"
    keys = pod.root / "home" / ".ssh" / "authorized_keys"
    assert keys.read_text() == "ssh-ed25519 AAAAme a'b\n"
    assert keys.stat().st_mode & 0o777 == 0o600
    assert is_alive(pod.starts[0].pid)


@pytest.mark.slow
def test_a_lying_provider_and_a_log_that_nobody_reads_hold_up_no_ending(pod: GuardedPod) -> None:
    read_end, write_end = os.pipe()  # a container log whose reader is gone
    env = pod.env
    process = subprocess.Popen(["sh", str(BOOT)], env=env, stdin=subprocess.DEVNULL, stdout=write_end, stderr=write_end)
    pod.starts.append(process)
    os.close(read_end)
    os.close(write_end)
    pod.provider.cut = True
    wait_until(lambda: pod.read("boot.json"), "the boot")
    pod.move_clock(900)
    pod.wait_for_end()
