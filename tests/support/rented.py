"""`podctl train` on an emulated RunPod: something happens just when a phase begins, and the laws hold afterwards."""

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from support.podctl_cli import COMMAND, Cli, Done
from support.witness import Witness

from podctl.sim.records import RUNNING, Pod, Timing, Volume
from podctl.sim.sim import ACCOUNT_KEY, Sim
from podctl.sim.wire import Answer, Request

PHASES = ("offers", "create", "boot", "arm", "send", "start", "run", "end")
MOMENTS = ("intent", "created", "ordered")  # boundaries within: written down, made, and told to begin
CANARY = "canary-3f9a71c2e8"
RATE = 10.0
STEP_S = 10.0  # of virtual time, while nobody but the pod's own guard does anything
LAPS_LIMIT_S = 6.0  # real: a guard that asks for its pod's end makes no laps
BOOT_GRACE_S, FETCH_GRACE_S = 600, 120
LATE_S = 60.0  # of virtual time: what the guard may take beyond its graces
BOTH_S = 75.0 + 90.0  # until a list is believed, and for a pod to be seen ended
POLL_S = 0.005
LIMIT_S = 240.0  # real seconds, for one command
TIMING = Timing(provision_s=3.0, start_s=3.0, address_s=3.0)
FINAL = ("succeeded", "failed", "stopped")


class Rented:
    """A project, a cloud with one volume, and a witness. What it starts it ends."""

    def __init__(self, root: Path, *, rate: float = RATE, timing: Timing = TIMING, **sim: Any) -> None:
        self.rate = rate
        self.sim = Sim(root / "sim", rate=rate, timing=timing, **sim)
        self.cli = Cli(root)
        self.cli.env |= self.sim.env() | {"HOME": str(root / "h"), "CANARY_TOKEN": CANARY}
        (root / "h").mkdir()
        self.out = root / "out"
        self.witness = Witness(self.sim, (ACCOUNT_KEY, CANARY), (self.cli.home, self.cli.project, self.out))
        self.entered: dict[str, float] = {}  # phase → when, of this command
        self.process: subprocess.Popen[bytes] | None = None
        self.hurry = rate  # while no container runs: nobody's patience but podctl's is at stake
        self._orders: dict[str, Callable[[], None]] = {}
        self._lock = threading.RLock()
        self._ledger_before = 0
        self.trouble: list[str] = []

    def __enter__(self) -> Self:
        self.sim.__enter__()
        self.volume: Volume = self.sim.create_volume("data")
        self.sim.before_request.append(self._asked)
        self.sim.after_answer.append(self._answered)
        self.witness.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.kill()
        self.witness.__exit__(kind, e, tb)
        self.cli.close()
        self.sim.__exit__(kind, e, tb)

    # what happens

    def experiment(self, command: str = "echo hello; sleep 0.3; echo bye", **pod: Any) -> Path:
        given = {
            "provider": "runpod", "gpu": ["4090"], "volume": "data", "max_hours": 2, "secrets": ["CANARY_TOKEN"],
            "guard": {"boot_grace": f"{BOOT_GRACE_S}s", "fetch_grace": f"{FETCH_GRACE_S}s"}, **pod,
        }  # fmt: skip
        return self.cli.experiment(command, **{k: v for k, v in given.items() if v is not None})

    def at(self, phase: str, do: Callable[[], None]) -> None:
        """Once the next command enters that phase. What has its beginning in a file is seen there, and podctl stands
        still meanwhile; what begins with a request is done before that goes on."""
        assert phase in (*PHASES, *MOMENTS)
        self._orders[phase] = do

    def __call__(self, *args: object, limit_s: float = LIMIT_S, env: dict[str, str] | None = None) -> Done:
        """A command until its end; a phase that is waited for happens to it."""
        self.start(*args, env=env)
        return self.wait(limit_s)

    def train(self, config: Path, *args: object, limit_s: float = LIMIT_S) -> Done:
        return self("train", "-c", config, "--yes", *args, limit_s=limit_s)

    def start(self, *args: object, env: dict[str, str] | None = None) -> None:
        ledger = self.cli.home / "ledger.jsonl"
        self.entered, self._ledger_before = {}, ledger.stat().st_size if ledger.exists() else 0
        self.out.mkdir(exist_ok=True)
        with (self.out / "out").open("wb") as out, (self.out / "err").open("wb") as err:
            self.process = subprocess.Popen(
                [*COMMAND, *map(str, args)], env={**self.cli.env, **(env or {})}, cwd=self.cli.project,
                stdin=subprocess.DEVNULL, stdout=out, stderr=err,
            )  # fmt: skip

    def wait(self, limit_s: float = LIMIT_S) -> Done:
        assert self.process is not None
        until = time.monotonic() + limit_s
        while self.process.poll() is None:
            if time.monotonic() > until:
                self.kill()
                self.trouble.append(f"podctl did not end within {limit_s:.0f} real seconds")
                break
            runs = any(p.status == RUNNING for p in list(self.sim.cloud.pods.values()))
            self.sim.clock.rate = self.rate if runs else self.hurry
            self._look_for_phases()
            time.sleep(POLL_S)
        self.sim.clock.rate = self.rate
        code = self.process.wait()
        return Done(code, (self.out / "out").read_bytes(), (self.out / "err").read_text("utf-8", "replace"))

    def kill(self) -> None:
        """podctl ends without a word."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def let_time_pass(self, limit_s: float, until: Callable[[], bool] | None = None, step_s: float = STEP_S) -> bool:
        """So much virtual time, or until it holds: did it come to hold? The clock is moved by hand, and goes on once
        every pod's guard has had its turn, so that it does not matter how busy this machine is."""
        until = until or (lambda: not self.paid())
        self.sim.clock.rate = 1.0
        end = self.now + limit_s
        try:
            while not until():
                if self.now > end:
                    return False
                self.sim.advance(min(step_s, max(0.1, end - self.now)))
                self._let_the_guards_look()
            return True
        finally:
            self.sim.clock.rate = self.rate

    def _let_the_guards_look(self) -> None:
        """A lap of every boot guard, and two beats of every watchdog, which knows of runs that ended; one that ends its
        pod is let do so."""
        limit = time.monotonic() + LAPS_LIMIT_S
        due = _uptime_s() + float(self.sim.clock.path.read_text().split()[0])
        for pod in self.sim.pods():
            guard = self.sim.backend.guard_dir(pod.id)
            beats: set[int] = set()
            seen = guard.with_suffix(".seen")
            while pod.status == RUNNING and time.monotonic() < limit:
                if _lap(seen) and not self.sim.backend.main_pid(pod.id):
                    break  # between two starts, or its machine is dead
                beats.add(_stamp(guard / "alive"))
                has_beaten = len(beats) > 2 or not (guard / "armed").exists()
                is_up_to_date = _lap(seen) >= int(due) and has_beaten and self._ends_seen(guard)
                if is_up_to_date and not (guard / "ending.json").exists():
                    break
                time.sleep(POLL_S)

    def _ends_seen(self, guard: Path) -> bool:
        """Has a pod's watchdog seen the end of its runs that have ended?"""
        if not (guard / "armed").exists():
            return True
        try:
            told = json.loads((guard / "watch.json").read_text())["runs"]
            return all(
                told[k][1][0] == s["state"] for k, s in self.begun().items() if k in told and s["state"] in FINAL
            )
        except (OSError, ValueError, LookupError):
            return False

    # what there is

    @property
    def now(self) -> float:
        return self.sim.clock.now()

    def paid(self) -> list[Pod]:
        """Pods that cost a GPU's price now, broken ones too."""
        return [p for p in self.sim.pods() if p.is_paid_compute]

    def runs(self) -> dict[str, dict[str, Any]]:
        """Run id → its status on the volumes, {} where it has none yet."""
        found = {}
        folders = [*self.sim.root.glob("volumes/*/runs/*"), *self.sim.root.glob("disks/*/runs/*")]
        for folder in folders:
            if folder.name.startswith("."):
                continue
            found[folder.name] = {}
            with contextlib.suppress(OSError, ValueError):
                found[folder.name] = json.loads((folder / "status.json").read_text())
        return found

    def begun(self) -> dict[str, dict[str, Any]]:
        """The runs whose runner has spoken."""
        return {k: v for k, v in self.runs().items() if v}

    def logs(self, run_id: str) -> tuple[bytes, bytes]:
        """What a run has said, and what of it came home."""
        (there,) = [
            *self.sim.root.glob(f"volumes/*/runs/{run_id}/log"),
            *self.sim.root.glob(f"disks/*/runs/{run_id}/log"),
        ]
        here = self.cli.project / ".podctl" / "runs" / run_id / "log"
        return there.read_bytes(), here.read_bytes() if here.exists() else b""

    def events(self) -> list[dict[str, Any]]:
        path = self.cli.home / "ledger.jsonl"
        return self.cli.events() if path.exists() else []

    # the laws

    def check(self, done: Done, *, ended_at: float, can_end: bool = True) -> None:
        """What holds whatever happened, once a command has ended: a, b, d and e of the matrix."""
        told = f"{done!r}\n{self.story()}"
        assert not self.trouble, f"{self.trouble}\n{told}"
        begun = self.begun()
        launched = any(e["event"] == "launched" for e in self.events())
        if can_end:
            grace_s = (FETCH_GRACE_S if launched else BOOT_GRACE_S) + LATE_S
            self.let_time_pass(BOOT_GRACE_S + FETCH_GRACE_S + 4 * LATE_S)
            assert not self.paid(), f"pods are paid for ever\n{told}\n{self.story()}"
            for pod in self.sim.pods(gone=True):
                over_s = paid_until(pod, self.now) - max(ended_at, run_ended_at(begun))
                assert over_s <= grace_s + LATE_S, f"{pod.id} went on for {over_s:.0f} s\n{told}"
        if done.code == 0:
            states = {s["state"] for s in begun.values()}
            assert states == {"succeeded"}, f"exit 0, but {begun}\n{told}"
            for run_id in begun:
                there, here = self.logs(run_id)
                assert here == there, f"the log did not come home whole: {here!r}, {there!r}\n{told}"
        assert self.witness.longest_both_s <= BOTH_S, f"two pods of a run for {self.witness.longest_both_s} s\n{told}"
        self.keeps_secrets(told)

    def keeps_secrets(self, told: str = "") -> None:
        self.witness.look_everywhere()
        assert not self.witness.leaks, f"a secret stands in {self.witness.leaks}\n{told}"
        for stranger in self.sim.strangers:
            assert stranger.received == b"", f"a stranger was told {stranger.received!r}\n{told}"

    def succeeds_again(self, config: Path) -> Done:
        """With nothing wrong any more the same command brings the same run to its end on one pod, and nothing is paid
        for afterwards."""
        before = {k: v for k, v in self.begun().items() if v.get("state") != "succeeded"}
        had_succeeded = [k for k, v in self.begun().items() if v.get("state") == "succeeded"]
        begun_at = self.now
        done = self("attach", had_succeeded[0]) if had_succeeded else self.train(config)
        if done.code == 8:  # it goes on
            done = self("attach")
        if done.code == 6 and had_succeeded:  # its pod is no more: another one looks at its volume
            done = self.train(config)
        told = f"{done!r}\n{self.story()}"
        assert not self.trouble, f"{self.trouble}\n{told}"
        assert done.code == 0, told
        begun = self.begun()
        assert all(v["state"] == "succeeded" for v in begun.values()), f"{begun}\n{told}"
        if before:
            assert set(before) == set(begun), f"a run was begun beside {set(before)}: {set(begun)}\n{told}"
        assert len(begun) == 1, f"{set(begun)}\n{told}"
        made = [p for p in self.sim.pods(gone=True) if p.created_at >= begun_at]
        assert len(made) <= 1, f"{len(made)} pods for one run\n{told}"
        for run_id in begun:
            there, here = self.logs(run_id)
            assert here == there, f"the log did not come home whole: {here!r}, {there!r}\n{told}"
        self.let_time_pass(BOOT_GRACE_S + FETCH_GRACE_S)
        assert not self.paid(), f"something is still paid for\n{told}"
        assert self.witness.longest_both_s <= BOTH_S, f"two pods of a run for {self.witness.longest_both_s} s\n{told}"
        self.keeps_secrets(told)
        return done

    def story(self) -> str:
        """What happened, for whoever has to find out why."""
        began = self.sim.cloud.began
        lines = [(e.t - began, f"{e.key} {e.method} {e.path} {e.status} {_words(e.body)}") for e in self.sim.requests]
        lines += [(e["t"] - began, f"ledger: {e['event']} {e['pod']}") for e in self.events()]
        lines += [(t - began, f"phase {phase}") for phase, t in self.entered.items()]
        for pod in self.sim.pods(gone=True):
            lines += [(line.t - began, f"{pod.id} {line.source}: {line.text[:150]}") for line in pod.log]
        told = "\n".join(f"{t:8.1f}  {text}" for t, text in sorted(lines))
        now = f"now {self.now - began:.1f}, fired {self.sim.faults.fired[-20:]}, runs {self.runs()}"
        return f"{told}\n{now}\n{self.sim.table()}"

    # helpers

    def _enter(self, phase: str, *, stands_still: bool) -> None:
        with self._lock:
            if phase in self.entered:
                return
            self.entered[phase] = self.now
            do = self._orders.pop(phase, None)
        if do is None:
            return
        assert self.process is not None
        if not stands_still:
            do()
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGSTOP)
        do()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGCONT)

    def _asked(self, request: Request) -> None:
        if request.bearer != ACCOUNT_KEY or self.process is None or self.process.poll() is not None:
            return
        if request.method == "GET":
            self._enter("offers", stands_still=False)
        if _makes_a_pod_run(request):
            self._enter("create", stands_still=False)

    def _answered(self, request: Request, answer: Answer) -> None:
        if _makes_a_pod_run(request) and 200 <= answer.status < 300 and request.bearer == ACCOUNT_KEY:
            self._enter("boot", stands_still=False)

    def _look_for_phases(self) -> None:
        if not self._orders:
            return
        events = self._new_events()
        for event, phase in (("intent", "intent"), ("created", "created"), ("started", "arm"), ("ready", "start"),
                             ("launched", "run")):  # fmt: skip
            if event in events:
                self._enter(phase, stands_still=True)
        if "started" in events and any((p / "guard/verdict.json").exists() for p in self.sim.backend.pods.iterdir()):
            self._enter("send", stands_still=True)
        if "ready" in events and any(self.sim.root.glob("volumes/*/runs/*/job.json")):
            self._enter("ordered", stands_still=True)
        if "launched" in events and any(s.get("state") in FINAL for s in self.runs().values()):
            self._enter("end", stands_still=True)

    def _new_events(self) -> set[str]:
        try:
            with (self.cli.home / "ledger.jsonl").open("rb") as f:
                f.seek(self._ledger_before)
                return {json.loads(line)["event"] for line in f if line.endswith(b"\n")}
        except (OSError, ValueError):
            return set()


def _uptime_s() -> float:
    return float(Path("/proc/uptime").read_text().split()[0])


def _lap(seen: Path) -> int:
    """When a boot guard looked last, by what it wrote down."""
    try:
        return int(seen.read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0


def _stamp(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def paid_until(pod: Pod, now: float) -> float:
    """When its GPUs were paid for last."""
    return max((s.end if s.end is not None else now for s in pod.meter.spans if s.kind == "gpu"), default=0.0)


def run_ended_at(begun: dict[str, dict[str, Any]]) -> float:
    return max((float(s.get("ended_at") or 0.0) for s in begun.values()), default=0.0)


def _makes_a_pod_run(request: Request) -> bool:
    if request.path == "/graphql":
        return b"podRentInterruptable" in request.body
    if request.path == "/v2/pods":
        return request.method == "POST"
    return request.path.endswith("/action") and b'"start"' in request.body


def _words(body: bytes) -> str:
    return body[:60].decode("utf-8", "replace") if len(body) < 100 else ""
