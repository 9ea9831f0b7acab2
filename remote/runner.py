"""Runs one attempt of a run on the pod: environment, prep, training. Launched by path: `python runner.py RUN_DIR`.

It owns `status.json`, `log`, `env.json` and `writer/`. Asked to stop (SIGTERM, SIGINT, SIGHUP) it asks the job to save,
waits `grace_s`, and kills. Its exit code is the job's: 0 done, 1 failed, 2 bad input, 75 saved and resumable (also: a
newer attempt took over), 128+n killed by signal n.

It holds a ticket (`turn.py`) from its first moment to its last, so that others on this machine see it. A queued run
waits until those that came before it are gone, with its environment ready, since making one needs no GPU; prep may,
and comes after. Its secrets are read, and their file is gone, before it waits; `max_hours` counts from its turn. A
queued run is promised the machine, so it also ends what a run left behind whose runner died: asked to save, then
killed. A run that is not queued starts beside the others, and touches none of theirs.
"""

import os
import sys

if __name__ == "__main__":  # take our own package, not a folder of the same name beside the user's code
    _HERE = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [os.path.dirname(_HERE), *(p for p in sys.path if p and os.path.abspath(p) != _HERE)]

import dataclasses
import shutil
import signal
import socket
import threading
import traceback
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import remote
from remote import machine
from remote.clock import clock_from_env, duration, utc
from remote.environment import NoEnvironment, resolve
from remote.fence import Fence, Superseded, take_epoch
from remote.files import StrPath, write_json
from remote.jobfile import (
    SECRETS_ENV,
    BadJob,
    bare_environment,
    environment_of,
    forget_secrets,
    read_job,
    read_secrets,
    secrets_are_open,
)
from remote.place import Place
from remote.prep import PrepFailed, prepare
from remote.reporter import Reporter
from remote.rundir import (
    DISK_ENV,
    EXIT_BAD_INPUT,
    EXIT_FAILED,
    EXIT_SAVED,
    FAILED,
    RUNNING,
    STARTING,
    STOPPED,
    SUCCEEDED,
    VOLUME_ENV,
    Job,
    RunDir,
    Status,
    Volume,
    state_after,
    write_dataclass,
)
from remote.runlog import RunLog
from remote.supervisor import Ended, Signals, Stopping, Supervisor

VOLUME_PATIENCE_S = 30.0  # for the last bytes of log and status, on a volume that answers slowly
FACTS_PATIENCE_S = 5.0
EXIT_NOT_RUNNABLE, EXIT_NOT_FOUND = 126, 127  # as shells have it


class Failed(Exception):
    """The attempt cannot go on; the reason for a person, and the exit code."""

    def __init__(self, reason: str, exit_code: int = EXIT_FAILED) -> None:
        super().__init__(reason)
        self.exit_code = exit_code


class Attempt:
    """One attempt, from taking the run over to its final status."""

    def __init__(self, run: RunDir, signals: Signals, place: Place) -> None:
        """Take the run over and say so in its status and log. Raises OSError where the volume cannot be written."""
        self._run = run
        self._place = place
        self._clock = clock_from_env()
        self._began = self._clock.elapsed()
        self._epoch = take_epoch(run.writer)
        self._fence = Fence(run.writer, self._epoch)
        self._started_at = self._clock.now()
        status = Status(
            run_id=run.root.name,
            attempt=self._epoch,
            boot_id=machine.boot_id(),
            state=STARTING,
            phase="environment",
            pid=os.getpid(),
            started_at=self._started_at,
            heartbeat_at=self._started_at,
            disk=place.disk,
        )
        try:
            self._log = RunLog(run.log)
        except OSError as e:
            reason = "cannot write {}: {}".format(run.log, e.strerror or e)
            failed = dataclasses.replace(
                status, state=FAILED, reason=reason, exit_code=EXIT_FAILED, ended_at=self._started_at
            )
            write_dataclass(run.status, failed)
            raise
        self._reporter = Reporter(run, self._fence, self._clock, self._log, status)
        self._supervisor = Supervisor(signals, self._clock, self._log, self._reporter, place.asked_grace_s)
        self._facts: Optional[threading.Thread] = None
        self._ran_out_of_memory = False

    def go(self) -> int:
        """Run it to its end. The exit code; whatever goes wrong, there is a final status with a reason."""
        began = "=== attempt {} · {} · {} ===".format(self._epoch, utc(self._started_at), socket.gethostname())
        self._log.say(began)
        reason = ""
        try:
            ended = self._phases()
            state = state_after(ended.exit_code, bool(self._supervisor.stop_reason))
            reason = self._reason(ended, state)
        except Stopping as e:  # the job itself had not begun: there is nothing that could be lost
            ended, state, reason = Ended(EXIT_SAVED, None), STOPPED, str(e)
        except Failed as e:
            ended, state, reason = Ended(e.exit_code, None), FAILED, str(e)
        except Exception as e:
            self._log.say(traceback.format_exc().rstrip())
            ended, state = Ended(EXIT_FAILED, None), FAILED
            reason = "the runner itself failed: {}: {}".format(type(e).__name__, e)
        return self._finish(ended, state, reason)

    def _phases(self) -> Ended:
        try:
            job = read_job(self._run)
            self._reporter.update(run_id=job.run_id)
            self._supervisor.set_limits(self._began, job.max_hours, job.grace_s)
            secrets = read_secrets(os.environ)
        except BadJob as e:
            raise Failed(str(e), EXIT_BAD_INPUT) from e
        self._log.hide(secrets.values())
        if secrets and secrets_are_open(os.environ[SECRETS_ENV]):
            self._log.say("others on this machine can read {}: chmod 600 it".format(os.environ[SECRETS_ENV]))
        forget_secrets(os.environ)
        volume = Volume.from_env()
        if volume is None or not self._place.disk:
            raise Failed(
                "the runner needs {} and {}: start it through run.sh".format(VOLUME_ENV, DISK_ENV), EXIT_BAD_INPUT
            )
        if not job.queue:
            self._link_current_log(volume)
            self._place.look_around(self._log.say)

        self._supervisor.end_all(lambda: machine.left_by_earlier(self._run.root, self._epoch), "an earlier attempt")
        python = self._environment(job, volume, Path(self._place.disk))
        self._facts = threading.Thread(target=self._write_facts, args=(python,), daemon=True)
        self._facts.start()
        env = environment_of(job, self._run, volume, self._epoch, python, os.environ, secrets)
        if job.queue:
            self._place.wait_for_turn(
                self._clock, self._log.say, self._supervisor, lambda: self._reporter.update(phase="queue")
            )
            self._started_at = self._clock.now()  # its time, and what it costs, count from its turn
            self._reporter.update(started_at=self._started_at)
            self._link_current_log(volume)

        self._supervisor.check()
        self._reporter.update(state=RUNNING, phase="prep" if job.prep else "train")
        self._prep(job, volume, env)

        self._supervisor.check()
        self._reporter.update(state=RUNNING, phase="train")
        return self._train(job, env)

    def _environment(self, job: Job, volume: Volume, disk: Path) -> str:
        bare = bare_environment(job, os.environ)

        def run(argv: Sequence[str], cwd: StrPath) -> int:
            return self._supervisor.step(argv, cwd, bare)

        try:
            return resolve(Path(job.tool_dir), volume, disk, bare, self._clock, self._log.say, run)
        except NoEnvironment as e:
            raise Failed(str(e)) from e

    def _prep(self, job: Job, volume: Volume, env: Dict[str, str]) -> None:
        shell = shutil.which("bash", path=env["PATH"]) or "/bin/sh"

        def run(command: str) -> int:
            self._fence.check()
            return self._supervisor.step([shell, "-c", command], job.source_dir, env)

        try:
            prepare(job.prep, volume, self._clock, self._log.say, run)
        except PrepFailed as e:
            raise Failed(str(e)) from e
        except Superseded as e:
            raise Stopping(str(e)) from e

    def _train(self, job: Job, env: Dict[str, str]) -> Ended:
        oom_kills = machine.oom_kills()
        try:
            ended = self._supervisor.run(job.command, job.source_dir, env)
        except FileNotFoundError as e:
            program = job.command[0]
            if "/" in program and os.path.exists(os.path.join(job.source_dir, program)):
                reason = "{} begins with a #! line that names a program which is not on this machine".format(program)
            else:
                reason = "there is no program {}: install it, or correct pod.command".format(program)
            raise Failed(reason, EXIT_NOT_FOUND) from e
        except OSError as e:
            reason = "cannot start {}: {}: make it executable and begin it with #!".format(job.command[0], e.strerror)
            raise Failed(reason, EXIT_NOT_RUNNABLE) from e
        self._ran_out_of_memory = machine.oom_kills() > oom_kills
        return ended

    def _reason(self, ended: Ended, state: str) -> str:
        """Why it ended, in one sentence; nothing needs saying of success."""
        asked = self._supervisor.stop_reason
        if state == SUCCEEDED:
            return ""
        if asked and ended.exit_code == EXIT_SAVED:
            return asked
        how = "exit code {}".format(ended.exit_code)
        if ended.signal is not None:
            how = "killed by {}".format(_signal_name(ended.signal))
        if asked and self._supervisor.killed:
            return "{}; it did not save in time and was killed".format(asked)
        if asked:
            return "{}; it ended with {}".format(asked, how)
        if ended.exit_code == EXIT_SAVED:
            return "it saved and left by itself (exit code 75)"
        if self._ran_out_of_memory:
            return "the machine's memory ran out (not the GPU's): fewer data workers, or a machine with more of it"
        what = "the command ended with " if ended.signal is None else "the command was "
        hint = {EXIT_BAD_INPUT: ", bad input", 137: ", as when memory runs out"}.get(ended.exit_code, "")
        return "{}{}{}: the end of the log says why".format(what, how, hint)

    def _finish(self, ended: Ended, state: str, reason: str) -> int:
        if self._facts and not self._reporter.superseded_by():
            self._facts.join(FACTS_PATIENCE_S)
        if self._is_superseded():
            return EXIT_SAVED
        if self._log.lost:
            lost = "the log lacks {} bytes: {}".format(self._log.lost, self._log.trouble)
            reason = "{}; {}".format(reason, lost) if reason else lost
        now = self._clock.now()
        took = duration(self._clock.elapsed() - self._began)
        self._log.say("=== {} after {}{} ===".format(state, took, ": " + reason if reason else ""))
        if not self._log.close(VOLUME_PATIENCE_S):
            reason = "; ".join(filter(None, [reason, "the volume did not take the end of the log in time"]))
        was_written = self._reporter.finish(
            VOLUME_PATIENCE_S,
            state=state,
            ended_at=now,
            exit_code=ended.exit_code,
            signal=ended.signal,
            reason=reason,
            limit="" if state == SUCCEEDED else self._supervisor.limit,
        )
        if self._reporter.superseded_by():
            return EXIT_SAVED
        if not was_written:
            _complain("the volume did not take the final status: {} {}".format(state, reason))
        return ended.exit_code

    def _is_superseded(self) -> bool:
        """Looks anew: the newer attempt may have ended our job before we heard of it."""
        try:
            self._fence.check()
        except (Superseded, OSError) as e:
            return isinstance(e, Superseded)
        return bool(self._reporter.superseded_by())

    def _link_current_log(self, volume: Volume) -> None:
        link = volume.current_log
        beside = link.with_name(".current.log.{}.tmp".format(os.getpid()))
        try:
            link.parent.mkdir(parents=True, exist_ok=True)
            try:  # relative where it can be: the volume may be mounted elsewhere tomorrow
                self._run.log.relative_to(volume.root)
                target = os.path.relpath(str(self._run.log), str(link.parent))
            except ValueError:
                target = str(self._run.log)
            os.symlink(target, str(beside))
            os.replace(str(beside), str(link))
        except OSError as e:
            self._log.say("no link {}: {}; read {}".format(link, e.strerror or e, self._run.log))
            if beside.is_symlink():
                beside.unlink()

    def _write_facts(self, python: str) -> None:
        """`env.json`, while the job already runs: a sick GPU takes its time to answer."""
        value: Dict[str, Any] = {"attempt": self._epoch, "written_at": self._started_at}
        value.update(machine.facts(), python=machine.python_facts(python))
        try:
            self._fence.check()
            write_json(self._run.env, value)
        except (OSError, Superseded):
            pass  # it describes the run, it does not decide it


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "signal {}".format(number)


def _keep_standard_streams() -> None:
    """Closed ones are opened on nothing: else the log would become the screen."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, so this one


def _complain(text: str) -> None:
    try:
        os.write(2, (text + "\n").encode("utf-8", "backslashreplace"))
    except OSError:
        pass


def main(argv: List[str]) -> int:
    """One attempt. The exit code is the job's, or 2 where there is nothing to run."""
    _keep_standard_streams()
    if len(argv) != 2:
        _complain("usage: python runner.py RUN_DIR")
        return EXIT_BAD_INPUT
    run = RunDir(os.path.abspath(argv[1]))
    if not run.root.is_dir():
        _complain("there is no run directory {}".format(run))
        return EXIT_BAD_INPUT
    signals = Signals()
    place = Place(os.environ.get(DISK_ENV, ""), run.root.name)
    try:
        try:
            attempt = Attempt(run, signals, place)
        except OSError as e:
            _complain("cannot write to {}: {}: is the volume mounted, and not full?".format(run, e.strerror or e))
            return EXIT_FAILED
        return attempt.go()
    finally:
        place.leave()


if __name__ == "__main__":
    if os.path.dirname(os.path.abspath(remote.__file__ or "")) != _HERE:
        _complain("{} is not this tool's remote package".format(remote.__file__))
        os._exit(EXIT_FAILED)
    os._exit(main(sys.argv))  # no interpreter shutdown: a thread may hang in a write that never returns
