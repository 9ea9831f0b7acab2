"""While somebody is attached, what a run writes is here as well: whole, in few round trips, and nobody's trouble."""

import json
import os
import random
import threading
from pathlib import Path

import pytest
from support.cut_host import CutHost, FarRun, Time, wait_for

from podctl.ledger import Ledger
from podctl.localhost import LocalHost
from podctl.mirror import Frame, Garbled, Mirror, Taker, frames
from podctl.ui import Ui
from podctl.watch import Watcher
from remote.delta import OVERLAP


@pytest.fixture
def far(tmp_path: Path) -> FarRun:
    far = FarRun(tmp_path)
    far.status()
    return far


class Counting(CutHost):
    """Counts what comes over its streams, and may break after so many bytes of them."""

    n_bytes = 0
    break_after = 1 << 62

    def stream(self, argv, *, stdin=None):
        return Counted(self, super().stream(argv, stdin=stdin))


class Counted:
    def __init__(self, host, inner):
        self.host, self.inner = host, inner

    def __enter__(self):
        self.heard = self.inner.__enter__()
        return self

    def __exit__(self, *exc):
        return self.inner.__exit__(*exc)

    def __iter__(self):
        for piece in self.heard:
            self.host.n_bytes += len(piece)
            if self.host.n_bytes > self.host.break_after:
                yield piece[: len(piece) // 2]
                raise self.host.error
            yield piece

    exit_code = property(lambda self: self.heard.exit_code)
    stderr = property(lambda self: self.heard.stderr)


def cycle(mirror: Mirror) -> None:
    mirror.cycle(threading.Event())


def write(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def checkpoint(far: FarRun, step: int, *, adapter: bool = True, complete: bool = True) -> Path:
    path = far.dir.checkpoint(step)
    write(
        path / "model" / ("adapter_model.safetensors" if adapter else "model.safetensors"), bytes([step % 256]) * 5000
    )
    write(path / "model" / "adapter_config.json" if adapter else path / "model" / "config.json", "{}")
    write(path / "state" / "optimizer.pt", b"o" * 9000)
    if complete:
        write(path / "COMPLETE", "{}")
    return path


def test_what_a_run_writes_comes_home_in_one_round_trip_and_nothing_twice(far):
    host = Counting()
    mirror = Mirror(far.run, host)
    write(far.dir.metrics, "".join(json.dumps({"step": n}) + "\n" for n in range(20_000)))
    write(far.dir.tensorboard / "events.out.tfevents.1.box", random.Random(1).randbytes(700_000))
    write(far.dir.reports / "dev" / "ü b.json", "{}")
    far.progress()
    write(far.dir.export / "model.safetensors", b"x" * 1000)
    cycle(mirror)
    assert host.calls == {"stream": 1}
    for path in (far.dir.metrics, far.dir.status, far.dir.progress, far.dir.reports / "dev" / "ü b.json"):
        assert (far.results / path.relative_to(far.dir.root)).read_bytes() == path.read_bytes()
    assert (far.results / "tb" / "events.out.tfevents.1.box").stat().st_size == 700_000
    assert not (far.results / "export").exists()
    host.n_bytes = 0
    cycle(mirror)
    assert host.n_bytes < 100  # the last frame alone
    with far.dir.metrics.open("a") as f:
        f.write('{"step": 20000}\n')
    cycle(Mirror(far.run, host))  # also after a new attach
    assert (far.results / "metrics.jsonl").read_bytes() == far.dir.metrics.read_bytes()
    assert host.n_bytes < 100 + 100 + OVERLAP + 300
    assert not list(far.results.rglob("*.tmp"))


def test_a_growing_file_that_was_written_anew_comes_anew(far):
    mirror = Mirror(far.run, CutHost())
    write(far.dir.metrics, "".join(f'{{"step": {n}, "t": 1}}\n' for n in range(1000)))
    mirror.finish()
    write(far.dir.metrics, "".join(f'{{"step": {n}, "t": 2}}\n' for n in range(2000)))  # resumed from a step before
    mirror.finish()
    assert (far.results / "metrics.jsonl").read_bytes() == far.dir.metrics.read_bytes()
    write(far.dir.metrics, '{"step": 1}\n')
    mirror.finish()
    assert (far.results / "metrics.jsonl").read_bytes() == b'{"step": 1}\n'
    assert mirror.trouble == ""


def test_the_log_here_is_the_beginning_of_the_log_there_at_every_moment(far):
    draw = random.Random(2)
    log = draw.randbytes(100_000)
    mirror = Mirror(far.run, CutHost())
    far.results.mkdir(parents=True)
    far.say(log[:60_000])
    at = 40_000  # attached to a resumed run: what lies before was never streamed to here
    while at < len(log):
        n = draw.randrange(1, 9000)
        far.say(log[max(60_000, at) : at + n] if at + n > 60_000 else b"")
        mirror.log(log[at : at + n], at)
        at += n
        if 70_000 < at < 80_000:
            cycle(mirror)
        here = (far.results / "log").read_bytes() if (far.results / "log").exists() else b""
        assert here == log[: len(here)]
    assert len(here) == len(log)


def test_two_that_are_attached_write_the_same_mirror(far):
    log = random.Random(3).randbytes(50_000)
    far.say(log)
    first, second = Mirror(far.run, CutHost()), Mirror(far.run, CutHost())
    far.results.mkdir(parents=True)
    for at in range(0, len(log), 1000):
        first.log(log[at : at + 1000], at)
        second.log(log[at // 2 : at // 2 + 500], at // 2)
    write(far.dir.metrics, b"m" * 300_000)
    threads = [threading.Thread(target=cycle, args=(m,)) for m in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (far.results / "log").read_bytes() == log
    assert (far.results / "metrics.jsonl").read_bytes() == b"m" * 300_000


def test_adapters_of_the_newest_and_the_best_checkpoint_come_and_whole_models_do_not(far):
    for step in (100, 200, 300):
        checkpoint(far, step)
    checkpoint(far, 400, complete=False)
    write(far.dir.best, json.dumps({"step": 100, "metric": "wer", "value": 0.1}))
    mirror = Mirror(far.run, CutHost())
    cycle(mirror)
    there = far.results / "checkpoints"
    assert sorted(p.name for p in there.iterdir()) == ["step-00000100", "step-00000300"]
    assert (there / "step-00000100" / "model" / "adapter_model.safetensors").read_bytes() == bytes([100]) * 5000
    assert (there / "step-00000300" / "COMPLETE").exists()
    assert not (there / "step-00000100" / "state").exists()
    write(there / "step-00000050" / "state" / "optimizer.pt", "from a pull")
    write(there / "step-00000050" / "COMPLETE", "{}")
    write(far.dir.best, json.dumps({"step": 200, "metric": "wer", "value": 0.05}))
    cycle(mirror)
    assert sorted(p.name for p in there.iterdir()) == ["step-00000050", "step-00000200", "step-00000300"]


def test_a_model_that_is_no_adapter_stays_where_it_is(far):
    checkpoint(far, 100, adapter=False)
    cycle(Mirror(far.run, CutHost()))
    assert not (far.results / "checkpoints").exists()


def test_a_link_that_breaks_within_a_file_leaves_the_old_one(far):
    report = write(far.dir.reports / "dev.json", b"a" * 900_000)
    host = Counting()
    mirror = Mirror(far.run, host)
    cycle(mirror)
    write(report, b"b" * 900_000)
    host.n_bytes, host.break_after = 0, 400_000
    mirror.finish()
    assert (far.results / "reports" / "dev.json").read_bytes() == b"a" * 900_000
    assert mirror.trouble == "no route to box"
    assert not list(far.results.rglob("*.tmp"))
    host.break_after = 1 << 62
    mirror.finish()
    assert (far.results / "reports" / "dev.json").read_bytes() == b"b" * 900_000
    assert mirror.trouble == ""


def test_it_mirrors_in_the_background_and_the_following_does_not_wait_for_it(far, tmp_path, capfd):
    clock = Time()
    host = Counting(clock)
    host.break_after = 0  # nothing that is mirrored ever comes through
    far.say("hello\n")
    clock.after(5, lambda: far.end("over\n"))
    code = Watcher(far.run, host, Ui(), clock).attend(Ledger(tmp_path / "ledger.jsonl"))
    out, err = capfd.readouterr()
    assert code == 0
    assert out == "hello\nover\n"
    assert (far.results / "log").read_text() == "hello\nover\n"
    assert err.count("not everything could be mirrored here: no route to box") == 1


def test_what_is_mirrored_while_attached_is_there_before_the_end(far):
    mirror = Mirror(far.run, CutHost(), every_s=0.05)
    with mirror.going_on():
        write(far.dir.metrics, "one\n")
        wait_for(lambda: (far.results / "metrics.jsonl").exists())
        with far.dir.metrics.open("a") as f:
            f.write("two\n")
        wait_for(lambda: (far.results / "metrics.jsonl").read_text() == "one\ntwo\n")
    assert (far.results.parent.parent / ".gitignore").read_text() == "*\n"


def test_a_run_on_this_machine_is_not_mirrored(far, tmp_path):
    far.end("over\n")
    w = Watcher(far.run, LocalHost(), Ui(), Time())
    assert w.attend(Ledger(tmp_path / "ledger.jsonl")) == 0
    assert w._mirror is None


@pytest.mark.parametrize(
    "name",
    ["../x", "/etc/x", "tb/../../x", "", ".", "checkpoints/../../../x", "a\0b", "src/x.py", "tb/link/x", "link"],
)
def test_a_machine_that_names_other_files_writes_none_of_them(tmp_path, name):
    root = tmp_path / "results"
    (root / "tb").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (root / "tb" / "link").symlink_to(tmp_path / "elsewhere")
    (root / "link").symlink_to(tmp_path / "elsewhere" / "x")
    with pytest.raises(Garbled):
        Taker(root).take(Frame(name, 0, True, 0, b"evil"))
    assert not list((tmp_path / "elsewhere").iterdir())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["elsewhere", "results"]


@pytest.mark.parametrize(
    "answer",
    [
        b"bash: welcome\n",
        b"[]\n",
        b"{}\n",
        b"\xff\n",
        b"3\n",
        b'{"path": "a", "at": -1, "bytes": 0, "is_last": true, "mtime_ns": 0}\n',
        b'{"path": "a", "at": 0, "bytes": 99999999999, "is_last": true, "mtime_ns": 0}\n',
    ],
)
def test_an_answer_that_is_none_is_said_to_be_none(answer):
    with pytest.raises(Garbled):
        list(frames([answer]))


def test_frames_are_found_however_they_were_cut():
    data = b'{"path": "a", "at": 0, "bytes": 3, "is_last": true, "mtime_ns": 5}\nx\ny{"adapters": ["c"]}\n'
    whole = list(frames([data]))
    assert whole == [Frame("a", 0, True, 5, b"x\ny"), Frame(adapters=frozenset({"c"}))]
    assert [f for f in frames([bytes([b]) for b in data]) if f] == whole


def test_a_full_disk_here_is_told_and_ends_nothing(far, tmp_path):
    if os.getuid() == 0 and not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    far.results.mkdir(parents=True)
    (far.results / "log").symlink_to("/dev/full")
    mirror = Mirror(far.run, CutHost())
    mirror.log(b"hello", 0)
    assert mirror.trouble
