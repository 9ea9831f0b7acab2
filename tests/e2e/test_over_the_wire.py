"""A run on a machine that is reached over SSH: begun, left, cut off, come back to, stopped, resumed, fetched."""

import base64
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from support.machines import Machine, netpod_machine, runpod_machine, sshd_machine
from support.podctl_cli import Cli
from support.speech import make_corpus, recipe_dict

CANARY = "canary/+ä:" + "q" * 24
LONG = {"loop": {"steps": 200_000, "save_every_steps": 200}, "eval": {"every_steps": 100_000}}


MACHINES = {"sshd": sshd_machine, "netpod": netpod_machine, "runpod": runpod_machine}


@pytest.fixture(params=["sshd", "netpod", pytest.param("runpod", marks=pytest.mark.slow)])
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Machine]:
    with MACHINES[request.param](tmp_path) as machine:
        yield machine


@pytest.fixture(params=[pytest.param("sshd", marks=pytest.mark.slow), "netpod"])
def own_machine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Machine]:
    """One that somebody has: several runs may meet on it."""
    with MACHINES[request.param](tmp_path) as machine:
        yield machine


def experiment(cli: Cli, machine: Machine, name: str = "tiny", **sections: dict) -> Path:
    """The real trainer, on a corpus that a prep stage lays onto the volume, with a secret and curves."""
    corpus = cli.project / "corpus"
    if not corpus.exists():
        for part, n in (("train", 20), ("dev", 4), ("test", 4)):
            make_corpus(corpus, n, seed=n, name=part)
    train = recipe_dict(Path("corpus"), **{"log": {"every_steps": 5, "tensorboard": True}, **sections})
    stage = {
        # a job that prints its secret in every form, as a careless library does
        "run": 'mkdir -p "$PODCTL_VOLUME/data" && cp -R corpus "$PODCTL_VOLUME/data/" && echo "told: $MY_TOKEN" &&'
        + ' python -c \'import base64, json, os, urllib.parse as u; s = os.environ["MY_TOKEN"]; print(u.quote(s,'
        + ' safe=""), json.dumps(s), *(base64.b64encode(b":" * n + s.encode()) for n in range(3)))\'',
        "outputs": ["corpus/train.jsonl"],
    }
    pod = {"provider": "ssh", "max_hours": 0.2, "secrets": ["MY_TOKEN"], **machine.pod_section}
    path = cli.project / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"name": name, "pod": pod, "prep": [stage], "train": train}), encoding="utf-8")
    return path


def until(true: Callable[[], object], what: str, timeout_s: float = 90) -> None:
    end = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end, f"it never came true: {what}"
        time.sleep(0.05)


def progress(run: Path) -> int:
    try:
        return int(json.loads((run / "progress.json").read_text())["step"])
    except (OSError, ValueError):
        return 0


def the_run(machine: Machine) -> Path:
    (run,) = sorted((machine.volume / "runs").iterdir())
    return run


class Leaks:
    """Every process argument that was seen while it watched, and every file that may not hold the secret."""

    def __init__(self) -> None:
        self.seen: set[bytes] = set()
        self.tmux: set[bytes] = set()

    def sample(self, machine: Machine) -> None:
        self.tmux.update(machine.tmux_environments())
        for process in Path("/proc").iterdir():
            if process.name.isdigit():
                try:
                    self.seen.add((process / "cmdline").read_bytes())
                except OSError:
                    continue

    def assert_nowhere(self, *places: Path, texts: dict[str, bytes]) -> None:
        plain = CANARY.encode()
        forms = [plain, base64.b64encode(plain).rstrip(b"="), urllib.parse.quote(CANARY, safe="").encode()]
        forms += [json.dumps(CANARY)[1:-1].encode()]
        for form in forms:
            assert not any(form in argv for argv in self.seen), "in the arguments of a process"
            for what, text in texts.items():
                assert form not in text, what
            for place in places:
                for path in place.rglob("*"):
                    if path.is_file() and not path.is_symlink():
                        assert form not in path.read_bytes(), path


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.timeout(600)
def test_the_whole_way_over_a_link_that_breaks(machine: Machine, cli: Cli, tmp_path: Path) -> None:
    cli.env |= {"MY_TOKEN": CANARY, **machine.env}
    file, leaks, texts = experiment(cli, machine, **LONG), Leaks(), {}

    # begun and left: training goes on
    process = cli.start("train", "--config", file, "--yes")
    until(lambda: (leaks.sample(machine), any(progress(r) > 5 for r in machine.volume.glob("runs/tiny-*")))[1], "steps")
    run = the_run(machine)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    texts |= {"train's stdout": out, "train's stderr": err}
    assert process.returncode == 0, err.decode()
    assert b"attach" in err
    before = progress(run)
    until(lambda: progress(run) > before + 20, "it goes on without us")

    # come back to, over sessions that die and a link that is cut, for a moment and for longer
    with (tmp_path / "attached").open("wb") as f:
        attached = subprocess.Popen(
            [sys.executable, "-m", "podctl", "attach"], cwd=cli.project, env=cli.env, stdin=subprocess.DEVNULL,
            stdout=f, stderr=subprocess.PIPE,
        )  # fmt: skip
        cli.started.append(attached)
        seen = lambda: (tmp_path / "attached").stat().st_size  # noqa: E731
        until(lambda: seen() > 200, "the log comes")
        for trouble in (machine.kill_sessions, lambda: machine.cut_for(1.5), lambda: machine.cut_for(30)):
            trouble()
            at = (run / "log").stat().st_size
            until(lambda at=at: seen() > at, "the log goes on")
            leaks.sample(machine)

        # curves, through a tunnel that is made again
        board = cli.start("tensorboard", "--no-browser", "--json")
        assert board.stdout is not None
        url = json.loads(board.stdout.readline())["url"]
        tag = first_scalar(url)
        machine.kill_sessions()
        until(lambda: first_scalar_or_none(url) == tag, "the same address serves again")
        screenshot(url, tmp_path)
        board.send_signal(signal.SIGINT)
        board.communicate(timeout=30)
        until(lambda: not machine.has_process("tensorboard.main"), "nothing is left of it there")

        # stopped: it saves first
        stopped = cli("stop", timeout=120)
        texts |= {"stop": stopped.out + stopped.err.encode()}
        assert stopped.code == 0, stopped
        assert attached.wait(60) == 75
        _, err = attached.communicate()
        texts |= {"attach's stderr": err}
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("stopped", 75), status
    log = (run / "log").read_bytes()
    assert (tmp_path / "attached").read_bytes() == log, "not a byte lost or doubled"
    saved = max(int(p.name.removeprefix("step-")) for p in (run / "checkpoints").glob("step-*"))
    assert saved == status_step(run), "the last step was saved"

    # begun again: it resumes, to the end
    done = cli("train", "--config", file, "--yes", "--set", f"train.loop.steps={saved + 20}", timeout=180)
    texts |= {"train": done.out + done.err.encode()}
    assert done.code == 0, done
    assert f"resumed from step {saved}".encode() in done.out
    assert the_run(machine) == run
    assert "code is there already" in done.err or machine.is_rented

    # fetched; from a volume whose pod was given back by way of another one
    if machine.is_rented:
        gone = cli("pull", run.name, "--to", tmp_path / "pulled")
        assert (gone.code, "podctl up" in gone.err) == (6, True), gone
        up = cli("up", "--config", file, "--yes", timeout=120)
        assert up.code == 0, up
    pulled = cli("pull", run.name, "--to", tmp_path / "pulled", timeout=120)
    assert pulled.code == 0, pulled
    for name in ("log", "metrics.jsonl", "export/config.json", "reports/summary.json"):
        assert (tmp_path / "pulled" / name).read_bytes() == (run / name).read_bytes(), name

    assert leaks.tmux
    assert b"told: ***" in log
    texts |= {f"environment of tmux {i}": text for i, text in enumerate(leaks.tmux)}
    leaks.assert_nowhere(machine.volume, cli.home, cli.project / ".podctl", *machine.disks, texts=texts)


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.timeout(400)
def test_a_run_moves_to_another_pod_and_ends_with_the_same_parameters(cli: Cli, tmp_path: Path) -> None:
    with runpod_machine(tmp_path) as machine:
        cli.env |= {"MY_TOKEN": CANARY, **machine.env}
        sim = machine.extra["sim"]
        short = {"loop": {"steps": 120, "save_every_steps": 10}, "eval": {"every_steps": 60}}
        file = experiment(cli, machine, **short)
        assert cli("train", "-c", file, "--yes", "--detach", timeout=120).code == 0
        until(lambda: any(progress(r) > 15 for r in machine.volume.glob("runs/tiny-*")), "steps")
        run, first = the_run(machine), sim.pod()
        assert cli("stop", timeout=120).code == 0
        assert first.status == "EXITED"
        assert 0 < status_step(run) < 120
        spent = sim.bill()
        sim.advance(3600)
        assert sim.bill() == pytest.approx(spent, abs=0.01), "a pod that is switched off costs next to nothing"

        sim.fill_host(first)
        done = cli("train", "-c", file, "--yes", timeout=200)
        assert done.code == 0, done
        assert "its old machine is full" in done.err
        assert the_run(machine) == run
        assert [p.status for p in sim.pods(gone=True)] == ["TERMINATED", "TERMINATED"]
        assert json.loads((run / "status.json").read_text())["attempt"] == 2

        # the same without a break, and without a cloud
        straight = cli("train", "-c", file, "--local", "--force-restart", timeout=200)
        assert straight.code == 0, straight
        ours, theirs = (weights(r / "checkpoints") for r in (run, cli.run_dir()))
        assert ours == theirs


def weights(checkpoints: Path) -> dict[str, str]:
    """The hash of every file of the last checkpoint's model."""
    last = max(p for p in checkpoints.glob("step-*") if (p / "COMPLETE").exists())
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted((last / "model").iterdir())}


def status_step(run: Path) -> int:
    return int(json.loads((run / "progress.json").read_text())["step"])


def first_scalar(url: str) -> str:
    end = time.monotonic() + 60
    while not (tag := first_scalar_or_none(url)):
        assert time.monotonic() < end, "no scalar came through the tunnel"
        time.sleep(0.3)
    return tag


def first_scalar_or_none(url: str) -> str | None:
    """`run/tag=value` of some curve's first point."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        tags = json.load(direct.open(f"{url}data/plugin/scalars/tags", timeout=5))
        for run, of_run in sorted(tags.items()):
            for tag in sorted(of_run):
                query = urllib.parse.urlencode({"run": run, "tag": tag})
                points = json.load(direct.open(f"{url}data/plugin/scalars/scalars?{query}", timeout=5))
                return f"{run}/{tag}={points[0][2]}"
    except (OSError, ValueError):
        return None
    return None


def screenshot(url: str, tmp: Path) -> None:
    """The page as a browser draws it, where there is one; PODCTL_SCREENSHOTS keeps it."""
    browser = shutil.which("chromium")
    if browser is None:
        return
    target = Path(os.environ.get("PODCTL_SCREENSHOTS", str(tmp))) / "tensorboard.png"
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic"]
    flags += ["--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    flags += [f"--user-data-dir={tmp / 'browser'}", "--virtual-time-budget=20000", "--window-size=1280,900"]
    subprocess.run([browser, *flags, f"--screenshot={target}", url], capture_output=True, timeout=120, check=False)
    assert target.stat().st_size > 10_000


@pytest.mark.e2e
@pytest.mark.timeout(180)
def test_a_stop_reaches_the_job_though_the_first_process_forwards_nothing(machine: Machine, cli: Cli) -> None:
    cli.env |= machine.env
    command = "trap 'echo saved; exit 75' TERM; echo begun; while :; do sleep 0.05; done"
    file = cli.experiment(command, **{"provider": "ssh", **machine.pod_section})
    assert cli("train", "-c", file, "--yes", "--detach", timeout=60).code == 0
    run = the_run(machine)
    until(lambda: b"begun" in (run / "log").read_bytes() if (run / "log").exists() else False, "it runs")
    done = cli("stop", timeout=60)
    assert done.code == 0, done
    assert b"saved" in (run / "log").read_bytes()
    assert json.loads((run / "status.json").read_text())["state"] == "stopped"


@pytest.mark.e2e
@pytest.mark.timeout(180)
def test_runs_of_one_machine_wait_for_their_turn(own_machine: Machine, cli: Cli) -> None:
    machine = own_machine
    cli.env |= machine.env
    command = 'while [ ! -e "$PODCTL_VOLUME/go" ]; do sleep 0.05; done; echo first >>"$PODCTL_VOLUME/order"'
    first = cli.experiment(command, name="first", file="1.yaml", **{"provider": "ssh", **machine.pod_section})
    command = 'echo second >>"$PODCTL_VOLUME/order"'
    second = cli.experiment(command, name="second", file="2.yaml", **{"provider": "ssh", **machine.pod_section})
    assert cli("train", "-c", first, "--detach", timeout=60).code == 0
    refused = cli("train", "-c", second, "--detach", timeout=60)
    assert refused.code == 8, refused
    assert "--queue" in refused.err
    queued = cli("train", "-c", second, "--queue", "--detach", timeout=60)
    assert queued.code == 0, queued
    status = cli("status", "second", "--json", timeout=60).lines[-1]
    assert (status["state"], status["phase"]) == ("starting", "queue"), status
    (machine.volume / "go").touch()
    done = cli("attach", "second", timeout=60)
    assert done.code == 0, done
    assert (machine.volume / "order").read_text() == "first\nsecond\n"
    assert cli("status", "first", "--json", timeout=60).lines[-1]["state"] == "succeeded"


@pytest.mark.e2e
@pytest.mark.timeout(180)
def test_a_machine_that_starts_anew_is_a_lost_run_that_resumes(machine: Machine, cli: Cli) -> None:
    cli.env |= machine.env
    command = 'echo begun; [ -e "$PODCTL_VOLUME/go" ] || exec sleep 60'
    file = cli.experiment(command, **{"provider": "ssh", **machine.pod_section})
    assert cli("train", "-c", file, "--yes", "--detach", timeout=60).code == 0
    run = the_run(machine)
    until(lambda: b"begun" in (run / "log").read_bytes() if (run / "log").exists() else False, "it runs")
    machine.restart()
    until(lambda: cli("status", "--json", timeout=60).lines[-1].get("state") == "lost", "it is known to be lost")
    (machine.volume / "go").touch()
    done = cli("train", "-c", file, "--yes", timeout=60)
    assert done.code == 0, done
    assert json.loads((run / "status.json").read_text())["attempt"] == 2


@pytest.mark.e2e
@pytest.mark.timeout(180)
def test_another_laptop_finds_the_run_and_does_not_begin_it_twice(
    own_machine: Machine, cli: Cli, tmp_path: Path
) -> None:
    machine = own_machine
    cli.env |= machine.env
    command = 'echo begun; while [ ! -e "$PODCTL_VOLUME/go" ]; do sleep 0.05; done; echo over'
    file = cli.experiment(command, **{"provider": "ssh", **machine.pod_section})
    assert cli("train", "-c", file, "--yes", "--detach", timeout=60).code == 0
    other = {"PODCTL_HOME": str(tmp_path / "other")}
    unknown = cli("train", "-c", file, "--beside", "--dry-run", env=other, timeout=60)
    assert unknown.code == 0, unknown
    refused = cli("train", "-c", file, env=other, timeout=60)
    assert refused.code == 8, refused
    found = cli("recover", "-c", file, env=other, timeout=60)
    assert found.stdout.split() == [the_run(machine).name], found
    assert cli("recover", "-c", file, env=other, timeout=60).stdout == ""
    assert cli("train", "-c", file, env=other, timeout=60).code == 8
    (machine.volume / "go").touch()
    attached = cli("attach", env=other, timeout=60)
    assert attached.code == 0, attached
    assert attached.out == (the_run(machine) / "log").read_bytes()
