"""What podctl says to a rented pod's watchdog, and the watchdog itself; on the pod, launched by path.

    python guard.py arm DIR                      an order on stdin: {"claim": {…}, "python": …, "wait_s": 60}
    python guard.py fetched DIR RUN_ID           the results are home
    python guard.py hold DIR RUN_ID SECONDS      keep the pod so long from now, though not beyond the deadline
    python guard.py status DIR
    python guard.py watch DIR                    the watchdog; the boot guard starts it

Each but the last prints one line of JSON. `python -I -S guard.py …` starts quickest. docs/adr/0013 has the files.
"""

import os
import sys

if __name__ == "__main__":  # take our own package, not a folder of the same name beside the user's code
    _HERE = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [os.path.dirname(_HERE), *(p for p in sys.path if p and os.path.abspath(p) != _HERE)]

import binascii
import contextlib
import hashlib
import json
import math
import time
from pathlib import Path
from typing import Any, Dict, List, Optional

import remote
from remote.boottime import elapsed_s
from remote.claims import RUN_ID, SCHEMA, BadClaim, parse_boot, parse_claim
from remote.files import read_json, write_atomic, write_json
from remote.guardfiles import GuardDir
from remote.limited import run, without_secrets
from remote.looking import attempt_of
from remote.rundir import DISK_ENV, FINAL, LOST

WAIT_S = 60.0  # for the verdict, unless the order says otherwise
LOOK_LIMIT_S = 10.0
POLL_S = 0.02
ENDED = FINAL | {LOST}
EXIT_OK, EXIT_REFUSED, EXIT_USAGE = 0, 1, 2


class Refused(Exception):
    """What was asked cannot be done on this pod; says why."""


def arm(files: GuardDir, order: Any) -> Dict[str, Any]:
    """Leave a run's claim, have the watchdog started, and wait for what it may do.

    `python`: which the watchdog is to run on, else this one; it runs a copy of this tool in DIR. Gives the verdict of
    this boot, with `living`: has the watchdog's heart beaten since? Without a verdict in time `routes` is empty and
    `best` is "none". Raises Refused where this pod ends, or no boot guard has started.
    """
    boot = parse_boot(read_json(files.boot))
    if boot is None:
        raise Refused("no boot guard has started on this pod: there is no {}".format(files.boot))
    _still_lives(files)
    if not isinstance(order, dict):
        raise Refused("the order is not a JSON object")
    try:
        claim = parse_claim(order.get("claim"))
    except BadClaim as e:
        raise Refused("the claim is not complete: {}".format(e)) from e
    python = str(order.get("python") or sys.executable)
    program = str(_own_copy(files))
    if "\n" in python + program or not python:
        raise Refused("{!r} is no Python to run the watchdog on".format(python))
    value = dict(order["claim"], schema=SCHEMA, serial=binascii.hexlify(os.urandom(8)).decode("ascii"))
    value["after_attempt"] = _attempts_so_far(claim.run_dir, claim.disk)
    for folder in (files.claims, files.fetched, files.holds):
        folder.mkdir(mode=0o700, exist_ok=True)
    for path in (files.fetched / claim.run_id, files.holds / (claim.run_id + ".json")):
        with contextlib.suppress(FileNotFoundError):  # of this run's earlier attempt
            path.unlink()
    beat = files.read_text(files.alive)
    write_json(files.claims / (claim.run_id + ".json"), value)
    write_atomic(files.armed, "{}\n{}\n".format(python, program).encode("utf-8", "surrogateescape"), mode=0o600)
    wait_s = order.get("wait_s", WAIT_S)
    verdict = _verdict(files, boot.boot, beat, float(wait_s) if isinstance(wait_s, (int, float)) else WAIT_S)
    return dict(verdict, elapsed_s=elapsed_s(boot))


def _own_copy(files: GuardDir) -> Path:
    """This tool beside what it guards: where a run's own copy lies is not the watchdog's to rely on."""
    here = Path(os.path.abspath(__file__)).parent
    sources = {p.name: p.read_bytes() for p in sorted(here.glob("*.py"))}
    digest = hashlib.sha256(repr(sorted(sources.items())).encode("utf-8")).hexdigest()[:12]
    there = files.root / "tool" / digest / "remote"  # another version has another path, and is another `armed`
    there.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, source in sources.items():
        write_atomic(there / name, source, durable=False)
    return there / "guard.py"


def _verdict(files: GuardDir, boot: str, beat: str, wait_s: float) -> Dict[str, Any]:
    until = time.monotonic() + wait_s
    while True:
        value = read_json(files.verdict)
        verdict = value if isinstance(value, dict) and value.get("boot") == boot else None
        living = files.read_text(files.alive) not in ("", beat)
        if (living and verdict and verdict.get("settled")) or time.monotonic() >= until:
            break
        time.sleep(POLL_S)
    _still_lives(files)
    return dict(verdict or {"schema": SCHEMA, "boot": boot, "routes": [], "best": "none"}, living=living)


def _still_lives(files: GuardDir) -> None:
    ending = read_json(files.ending)
    if ending is not None:
        raise Refused("this pod is being ended: {}".format(ending.get("why") if isinstance(ending, dict) else ending))


def _attempts_so_far(run_dir: str, disk: str) -> int:
    """What earlier attempts left behind is not the end of the one to come. -1: the volume does not answer."""
    control = str(Path(os.path.abspath(__file__)).with_name("control.py"))
    env = dict(without_secrets(os.environ), **({DISK_ENV: disk} if disk else {}))
    attempt = attempt_of(run([sys.executable, "-I", "-S", control, "status", run_dir], env, LOOK_LIMIT_S))
    return -1 if attempt is None else attempt


def fetched(files: GuardDir, run_id: str) -> Dict[str, Any]:
    """The run's results are home: nobody needs its fetch grace any more."""
    _claim_of(files, run_id)
    files.fetched.mkdir(mode=0o700, exist_ok=True)
    (files.fetched / run_id).touch()
    return {"fetched": run_id}


def _needing(files: GuardDir) -> List[str]:
    """The runs that have not ended, as far as the watchdog has seen."""
    watched = read_json(files.watch)
    runs = watched.get("runs", {}) if isinstance(watched, dict) else {}
    ended = set()
    for run_id, record in runs.items():
        with contextlib.suppress(LookupError, TypeError):  # of another version
            if record[1][0] in ENDED:
                ended.add(run_id)
    return sorted(p.stem for p in files.claims.glob("*.json") if p.stem not in ended)


def hold(files: GuardDir, run_id: str, seconds: float) -> Dict[str, Any]:
    """Keep the pod for so long from now, whatever becomes of this run; its deadline stays."""
    claim = parse_claim(_claim_of(files, run_id))
    _still_lives(files)
    boot = parse_boot(read_json(files.boot))
    if boot is None:
        raise Refused("no boot guard has started on this pod: there is no {}".format(files.boot))
    until_s = min(elapsed_s(boot) + seconds, claim.deadline_s)
    files.holds.mkdir(mode=0o700, exist_ok=True)
    write_json(files.holds / (run_id + ".json"), {"schema": SCHEMA, "until_s": until_s})
    return {"hold": run_id, "until_s": until_s, "deadline_s": claim.deadline_s}


def _claim_of(files: GuardDir, run_id: str) -> Any:
    value = read_json(files.claims / (run_id + ".json")) if RUN_ID.match(run_id) else None
    if value is None:
        raise Refused("no run {} has a claim on this pod".format(run_id))
    return value


def status(files: GuardDir) -> Dict[str, Any]:
    """All that the guard directory tells, for a person and for podctl."""
    value = read_json(files.boot)
    boot = parse_boot(value)
    return {
        "boot": value,
        "elapsed_s": elapsed_s(boot) if boot else None,
        "armed": files.armed.exists(),
        "beat_age_s": _age_s(files.alive),
        "claims": {p.stem: read_json(p) for p in sorted(files.claims.glob("*.json"))},
        "needing": _needing(files),
        "fetched": sorted(p.name for p in files.fetched.glob("*")),
        "holds": {p.stem: read_json(p) for p in sorted(files.holds.glob("*.json"))},
        "watch": read_json(files.watch),
        "verdict": read_json(files.verdict),
        "ending": read_json(files.ending),
        "log": files.read_text(files.log)[-4000:],
    }


def _age_s(path: Path) -> Optional[float]:
    try:
        return max(0.0, time.time() - os.stat(str(path)).st_mtime)
    except OSError:
        return None


def main(argv: List[str]) -> int:
    """0 with a line of JSON; 1 with `{"error": …}` where the pod refuses; 2 for a command that is none."""
    words = argv[1:]
    lengths = {"arm": 2, "fetched": 3, "hold": 4, "status": 2, "watch": 2}
    seconds = 0.0
    if len(words) == 4:
        try:
            seconds = float(words[3])
        except ValueError:
            seconds = -1.0
    if not words or len(words) != lengths.get(words[0], 0) or not 0 <= seconds < math.inf:
        print("usage: guard.py arm|status|watch DIR | fetched DIR RUN_ID | hold DIR RUN_ID SECONDS", file=sys.stderr)
        return EXIT_USAGE
    files = GuardDir(words[1])
    if words[0] == "watch":
        from remote.watchdog import watch  # the others need no HTTP, and answer sooner without

        return watch(files)
    try:
        if words[0] == "arm":
            try:
                order = json.loads(sys.stdin.buffer.read().decode("utf-8", "replace"))
            except ValueError as e:
                raise Refused("the order is not JSON: {}".format(e)) from e
            answer = arm(files, order)
        elif words[0] == "fetched":
            answer = fetched(files, words[2])
        elif words[0] == "hold":
            answer = hold(files, words[2], seconds)
        else:
            answer = status(files)
    except Refused as e:
        print(json.dumps({"error": str(e)}))
        return EXIT_REFUSED
    except OSError as e:
        print(json.dumps({"error": "cannot write {}: {}".format(e.filename or files, e.strerror or e)}))
        return EXIT_REFUSED
    print(json.dumps(answer))
    return EXIT_OK


if __name__ == "__main__":
    if os.path.dirname(os.path.abspath(remote.__file__ or "")) != _HERE:
        sys.exit("{} is not this tool's remote package".format(remote.__file__))
    os.umask(0o077)
    code = main(sys.argv)
    sys.stdout.flush()
    os._exit(code)  # no interpreter shutdown: a thread may wait for an answer that never comes
