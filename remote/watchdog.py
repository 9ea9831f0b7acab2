"""Watches over a rented pod, and ends it when no run has a claim on it any more. Started by the boot guard, one a pod.

It lives on the pod's local tmpfs and looks at the volume through children alone, so nothing there can hold it up. It
beats (`alive`) only while it gets through its own laps: one that hangs is killed and replaced by the boot guard.
"""

import os
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Set, Tuple

from remote import routes
from remote.boottime import elapsed_s
from remote.claims import (
    SCHEMA,
    STOP,
    TERMINATE,
    UNKNOWN,
    Act,
    BadClaim,
    Boot,
    Claim,
    Look,
    decide,
    parse_boot,
    parse_claim,
)
from remote.clock import clock_from_env, duration, utc
from remote.files import read_json, write_atomic, write_json
from remote.guardfiles import GuardDir
from remote.limited import Limited, without_secrets
from remote.looking import attempt_of, seen_in
from remote.routes import ALLOWED, Found, Route
from remote.rundir import DISK_ENV

TICK_ENV = "PODCTL_GUARD_TICK_S"
HERE = Path(os.path.abspath(__file__)).parent
BEAT_S = 2.0
LOOK_LIMIT_S = 10.0  # for a child's look at a run
EVIDENCE_S = 30.0  # for all of the black box
STUCK_S = 120.0  # without a lap for so long, it does not beat
AGAIN_S = 60.0  # between two askings that the pod end
PROBE_S = 3600.0  # rights can be taken away
PATIENT_ROUNDS = 3  # so often a pod is asked to be destroyed, before a stop is asked for as well


class Watchdog:
    """One boot's watch. `run` returns only when another takes over."""

    def __init__(self, files: GuardDir, boot: Boot) -> None:
        self._files = files
        self._boot = boot
        self._clock = clock_from_env()
        self._tick_s = _tick()
        self._look_limit_s = min(LOOK_LIMIT_S, max(1.0, LOOK_LIMIT_S * self._tick_s / 5))
        self._me = routes.Self.from_env(os.environ)
        self._found: List[Tuple[Route, Found]] = [
            (r, Found(routes.NONE, "not asked yet", False)) for r in routes.ROUTES
        ]
        self._good_at = -STUCK_S  # real time of the last whole lap
        self._armed = files.read_text(files.armed)
        self._records: Dict[str, _Record] = _read_records(files, boot)
        self._children: Dict[str, Tuple[float, Limited]] = {}
        self._looked: Dict[str, float] = {}  # when the newest look that came back was sent
        self._unsure: Optional[float] = None  # since when an ending waits for one more look
        self._savers: Dict[str, Limited] = {}
        self._complained: Dict[str, str] = {}
        self._kept: Dict[Path, Tuple[Any, bytes]] = {}  # file → what it was last, and its text

    def run(self) -> int:
        self._say("watches over boot {}, pid {}".format(self._boot.boot, os.getpid()))
        for work in (self._beat, self._probe):
            threading.Thread(target=work, daemon=True).start()
        while not self._is_replaced():
            try:
                act = self._lap()
                self._good_at = time.monotonic()
                if act.end and self._is_sure(act):
                    self._end(act)
            except Exception:  # a lap that fails is tried again; if none succeeds, there is no beat
                self._complain("lap", traceback.format_exc().strip())
            time.sleep(self._tick_s)
        return 0

    # --- looking ---

    def _is_sure(self, act: Act) -> bool:
        """What is known may be old: a machine that slept wakes with its time up. Only a deadline needs no new look."""
        if act.is_deadline:
            return True
        if self._unsure is None:
            self._unsure = time.monotonic()
            return False
        looked = all(began > self._unsure for began in self._looked.values())
        return looked or time.monotonic() > self._unsure + 2 * self._look_limit_s

    def _lap(self) -> Act:
        self._keep_files()
        claims = self._claims()
        for claim in claims:
            self._look(claim)
        now_s = self._elapsed_s()
        looks = {c.run_id: self._records[c.run_id].look for c in claims}
        fetched = [c.run_id for c in claims if (self._files.fetched / c.run_id).exists()]
        act = decide(self._boot, claims, looks, fetched, self._holds(claims), now_s)
        self._looked = {c.run_id: self._looked.get(c.run_id, 0.0) for c in claims}
        if not act.end:
            self._unsure = None
        for claim in claims:
            if claim.run_id in act.save and claim.serial not in self._savers:
                self._ask_to_save(claim)
        return act

    def _keep_files(self) -> None:
        """Somebody may empty the machine's tmpfs to make room: what was agreed on is written down again."""
        if self._files.boot.exists():
            paths = [self._files.boot, self._files.armed, self._files.verdict, *self._files.claims.glob("*.json")]
            if HERE.parent.parent == self._files.root / "tool":
                paths += HERE.glob("*.py")
            for path in paths:
                try:
                    about = (os.stat(str(path)).st_mtime_ns, os.stat(str(path)).st_ino)
                    if self._kept.get(path, (None, b""))[0] != about:
                        self._kept[path] = (about, path.read_bytes())
                except OSError:
                    continue
        elif self._kept:
            self._say("{} was emptied: it is filled again".format(self._files))
            for path, (_, data) in self._kept.items():
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                write_atomic(path, data, mode=0o600, durable=False)

    def _claims(self) -> List[Claim]:
        claims = []
        for path in sorted(self._files.claims.glob("*.json")):
            try:
                claim = parse_claim(read_json(path))
                if claim.run_id != path.stem:
                    raise BadClaim("it is of run {}".format(claim.run_id))
            except BadClaim as e:
                self._complain(path.name, "{} is no claim: {}".format(path.name, e))
                continue
            claims.append(claim)
            record = self._records.get(claim.run_id)
            if record is None or record.serial != claim.serial:
                self._say("{} claims this pod for {}".format(claim.run_id, duration(claim.deadline_s)))
                self._note(
                    claim.run_id, _Record(claim.serial, Look(UNKNOWN, self._elapsed_s()), 0, claim.after_attempt)
                )
        return claims

    def _look(self, claim: Claim) -> None:
        """Take in a look that has come back, and send the next one; nothing waits."""
        began, child = self._children.get(claim.run_id, (0.0, None))
        if child is not None:
            if not child.is_over:
                if child.is_late:
                    self._complain(claim.run_id, "{} does not answer: is the volume stalled?".format(claim.run_dir))
                return
            del self._children[claim.run_id]
            self._looked[claim.run_id] = began
            output = child.output() if child.succeeded else None
            child.close()
            self._take(claim, output)
        if time.monotonic() - began < max(self._tick_s, 0.2):
            return
        argv = [sys.executable, "-I", "-S", str(HERE / "control.py"), "status", claim.run_dir]
        self._children[claim.run_id] = (time.monotonic(), Limited(argv, self._child_env(claim), self._look_limit_s))

    def _take(self, claim: Claim, output: Optional[bytes]) -> None:
        """What cannot be known changes nothing: a run that was alive counts as alive, up to its deadline."""
        record = self._records[claim.run_id]
        after = record.after_attempt if record.after_attempt >= 0 else attempt_of(output)
        if output is None or after is None:
            return
        seen = seen_in(output, after)
        if seen is None:
            return
        look = record.look
        if (seen.state, seen.attempt) != (look.state, record.attempt):
            look = Look(seen.state, self._elapsed_s(), look.was_seen or seen.attempt > after, seen.reason)
            self._say("{} is {}{}".format(claim.run_id, seen.state, ": " + seen.reason if seen.reason else ""))
        if (look, seen.attempt, after) != (record.look, record.attempt, record.after_attempt):
            self._note(claim.run_id, _Record(record.serial, look, seen.attempt, after))

    def _holds(self, claims: List[Claim]) -> Dict[str, float]:
        holds = {}
        for claim in claims:
            value = read_json(self._files.holds / (claim.run_id + ".json"))
            if isinstance(value, dict) and isinstance(value.get("until_s"), (int, float)):
                holds[claim.run_id] = float(value["until_s"])
        return holds

    def _note(self, run_id: str, record: "_Record") -> None:
        """Kept beside, for the watchdog that comes after this one."""
        self._records[run_id] = record
        runs = {k: r.json() for k, r in self._records.items()}
        try:
            write_json(self._files.watch, {"boot": self._boot.boot, "runs": runs})
        except OSError as e:
            self._complain("watch", "cannot write {}: {}".format(self._files.watch, e))

    def _ask_to_save(self, claim: Claim) -> None:
        self._say("{} is asked to save: its deadline is near".format(claim.run_id))
        argv = [sys.executable, "-I", "-S", str(HERE / "control.py"), "stop", claim.run_dir]
        argv += ["--grace", str(claim.grace_s)]
        self._savers[claim.serial] = Limited(argv, self._child_env(claim), claim.grace_s + 60.0)

    # --- ending ---

    def _end(self, act: Act) -> None:
        """Evidence first, bounded; then every route in turn, again and again, for as long as this pod lives."""
        self._say("{}: {}".format(act.why, act.end))
        tried: List[Dict[str, Any]] = []
        self._write_ending(act, tried)
        for limited in [c for _, c in self._children.values()] + list(self._savers.values()):
            limited.kill()
        self._children, self._savers = {}, {}
        self._save_evidence()
        accepted: Set[str] = set()
        n_round = 0
        while True:
            n_round += 1
            # a pod that cannot be destroyed can perhaps be stopped, which ends most of the bill
            for how in [act.end, STOP] if act.end == TERMINATE else [act.end]:
                for route, _ in list(self._found):
                    answer = routes.ask_to_end(route, self._me, how)
                    self._good_at = time.monotonic()
                    self._say("{} by {}: {}".format(how, route.name, answer.words))
                    tried.append(
                        {"route": route.name, "answer": "{}: {}".format(how, answer.words), "accepted": answer.accepted}
                    )
                    self._write_ending(act, tried[-30:])
                    if answer.accepted:
                        accepted.add(how)
                        if n_round == 1:
                            break  # a yes that proves empty has the other routes asked too
                if how in accepted and n_round <= PATIENT_ROUNDS:
                    break
            self._keep(None)
            until_s = self._elapsed_s() + AGAIN_S
            while self._elapsed_s() < until_s:
                time.sleep(self._tick_s)
                self._good_at = time.monotonic()
                if self._is_of_another_boot():
                    return

    def _write_ending(self, act: Act, tried: List[Dict[str, Any]]) -> None:
        value = {"schema": SCHEMA, "boot": self._boot.boot, "by": "watchdog", "why": act.why, "how": act.end}
        try:
            write_json(self._files.ending, dict(value, at=self._clock.now(), tried=tried))
        except OSError as e:
            self._complain("ending", "cannot write {}: {}".format(self._files.ending, e))

    def _save_evidence(self) -> None:
        """The black box, within a time that does not depend on what it meets."""
        limit_s = min(EVIDENCE_S, max(3.0, EVIDENCE_S * self._tick_s / 5))
        until = time.monotonic() + limit_s
        argv = [sys.executable, "-I", "-S", str(HERE / "blackbox.py")]
        env = without_secrets(os.environ)
        facts = Limited([*argv, "facts", str(self._files), str(limit_s / 3)], env, limit_s / 2)
        self._await([facts], until)
        self._await(self._keep(utc(self._clock.now()).replace(":", "")), until)

    def _keep(self, name: Optional[str]) -> List[Limited]:
        """Children that copy what is known into each run's directory; `name`: of its black box, if it gets one."""
        argv = [sys.executable, "-I", "-S", str(HERE / "blackbox.py"), "keep", str(self._files), self._boot.boot]
        env = without_secrets(os.environ)
        return [Limited([*argv, c.run_dir, *([name] if name else [])], env, EVIDENCE_S) for c in self._claims()]

    def _await(self, children: List[Limited], until: float) -> None:
        while time.monotonic() < until and not all(c.is_over for c in children):
            time.sleep(0.02)
            self._good_at = time.monotonic()
        for child in children:
            if not child.is_over:
                self._say("the black box is not whole: the volume, or a tool, gave no answer in time")
            child.kill()

    # --- beside the laps ---

    def _beat(self) -> None:
        beat_s = min(BEAT_S, self._tick_s)
        while True:
            if time.monotonic() - self._good_at < STUCK_S:
                try:
                    _write_in_place(self._files.alive, b"%020d\n" % time.monotonic_ns())
                except OSError as e:
                    self._complain("alive", "cannot write {}: {}".format(self._files.alive, e))
            time.sleep(beat_s)

    def _probe(self) -> None:
        """What each route is allowed, now and every hour; soon again where it is not clear."""
        soon_s, told = 5.0, ""
        while True:
            found = routes.probe_all(self._me)
            self._found = found
            best = routes.best_of(found)
            settled = best == ALLOWED or all(f.settled for _, f in found)
            rows = [{"name": r.name, "level": f.level, "detail": f.detail} for r, f in found]
            verdict = {"schema": SCHEMA, "boot": self._boot.boot, "at": self._clock.now(), "routes": rows, "best": best}
            try:
                write_json(self._files.verdict, dict(verdict, settled=settled))
            except OSError as e:
                self._complain("verdict", "cannot write {}: {}".format(self._files.verdict, e))
            words = "; ".join("{} {} ({})".format(r.name, f.level, f.detail) for r, f in found)
            if words != told:
                told = words
                self._say("may end this pod: " + words)
            soon_s = PROBE_S if settled else min(60.0, soon_s * 2)
            until = self._clock.elapsed() + soon_s
            while self._clock.elapsed() < until:
                time.sleep(self._tick_s)

    # --- small things ---

    def _elapsed_s(self) -> float:
        return elapsed_s(self._boot)

    def _is_replaced(self) -> bool:
        return self._is_of_another_boot() or self._files.read_text(self._files.armed) not in (self._armed, "")

    def _is_of_another_boot(self) -> bool:
        boot = parse_boot(read_json(self._files.boot))
        return boot is not None and boot.boot != self._boot.boot

    def _child_env(self, claim: Claim) -> Dict[str, str]:
        return dict(without_secrets(os.environ), **({DISK_ENV: claim.disk} if claim.disk else {}))

    def _complain(self, about: str, text: str) -> None:
        """Once, not every lap."""
        if self._complained.get(about) != text:
            self._complained[about] = text
            self._say(text)

    def _say(self, text: str) -> None:
        try:
            print("{} watchdog: {}".format(utc(self._clock.now()), self._me.hide(text)), flush=True)
        except (OSError, ValueError):
            pass  # a log that cannot be written is no reason to leave a pod alone


class _Record(NamedTuple):
    """What is remembered of a claim's run."""

    serial: str
    look: Look
    attempt: int
    after_attempt: int  # -1: not known, the first look tells

    def json(self) -> List[Any]:
        return [self.serial, list(self.look.__dict__.values()), self.attempt, self.after_attempt]


def _write_in_place(path: Path, data: bytes) -> None:
    """Always of one length, over itself: that works on a tmpfs which a training has filled, where a new file does not.

    A reader in the middle of it sees yet another number, which is as good.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(str(path), os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        os.pwrite(fd, data, 0)
    finally:
        os.close(fd)


def _read_records(files: GuardDir, boot: Boot) -> Dict[str, _Record]:
    value = read_json(files.watch)
    if not isinstance(value, dict) or value.get("boot") != boot.boot:
        return {}
    try:
        return {k: _Record(s, Look(*look), n, after) for k, (s, look, n, after) in value["runs"].items()}
    except (AttributeError, KeyError, TypeError, ValueError):
        return {}  # of another version: it looks anew


def watch(files: GuardDir) -> int:
    """The watchdog, for good. 1 where there is no boot to watch over."""
    boot = parse_boot(read_json(files.boot))
    if boot is None:
        print("watchdog: {} is no boot of this pod".format(files.boot), file=sys.stderr)
        return 1
    return Watchdog(files, boot).run()


def _tick() -> float:
    try:
        return min(max(float(os.environ.get(TICK_ENV, "") or 5.0), 0.01), 5.0)
    except ValueError:
        return 5.0
