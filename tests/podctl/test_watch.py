"""Following a run over a link that breaks: the log is whole, nothing is said twice, and nobody waits for ever."""

import itertools
import json
import random
import threading
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest
from support.cut_host import CutHost, FarRun, Time

from podctl import ledger as events
from podctl import report
from podctl.errors import PodctlError, Unreachable, Untrusted
from podctl.fetch import close_books
from podctl.gauge import Gpu, parse_gpu
from podctl.ledger import Event, Ledger
from podctl.link import down_line
from podctl.live import Pulse, live_line, pulse_is_due
from podctl.localhost import LocalHost
from podctl.pods import Result
from podctl.runs import View, look, views
from podctl.ui import Ui, fit, table_lines
from podctl.watch import Watcher
from remote.rundir import Progress, Status

DAY_S = 86400.0


@pytest.fixture
def far(tmp_path: Path) -> FarRun:
    far = FarRun(tmp_path)
    far.status()
    return far


@pytest.fixture
def clock() -> Time:
    return Time()


@pytest.fixture
def host(clock: Time) -> CutHost:
    return CutHost(clock)


def watcher(far: FarRun, host: CutHost, clock: Time, *, as_json: bool = False) -> Watcher:
    return Watcher(far.run, host, Ui(as_json=as_json), clock)


def test_a_log_whose_link_breaks_anywhere_arrives_whole_and_once(far, host, clock, capfdbinary):
    draw = random.Random(1)
    log = draw.randbytes(300_000)
    far.say(log)
    host.cut_after = sorted(draw.sample(range(1, len(log)), 4))
    host.ends_after = sorted(draw.sample(range(1, len(log)), 2))
    clock.after(4, far.end)
    view = watcher(far, host, clock).follow()
    assert view.state == "succeeded"
    assert capfdbinary.readouterr().out == log
    assert host.cut_after == host.ends_after == []


def test_the_end_of_a_stream_is_not_the_end_of_a_run(far, host, clock, capfdbinary):
    far.say("one\n")
    host.ends_after = [4]
    clock.after(5, lambda: far.end("two\n"))
    assert watcher(far, host, clock).follow().state == "succeeded"
    assert capfdbinary.readouterr().out == b"one\ntwo\n"
    assert sum(clock.slept) > 0  # it does not ask without a pause


def test_of_a_blink_nothing_is_said(far, host, clock, capfd):
    far.say("x" * 100 + "\n")
    host.cut_after = [50]
    clock.after(5, far.end)
    watcher(far, host, clock).follow()
    assert capfd.readouterr().err == ""


def test_a_break_is_one_line_and_its_end_another(far, host, clock, capfd):
    clock.after(2, host.cut)
    clock.after(36, host.mend)
    clock.after(45, far.end)
    watcher(far, host, clock).follow()
    down, up = capfd.readouterr().err.splitlines()
    assert down.startswith("no link for ")
    assert down.endswith(": no route to box · training goes on · trying again")
    assert up == "the link is back after 46 s"  # tried at 16 and at 31 s


def test_in_json_a_break_is_two_events(far, host, clock, capfd):
    clock.after(2, host.cut)
    clock.after(36, host.mend)
    clock.after(45, far.end)
    watcher(far, host, clock, as_json=True).follow()
    said = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    down, up = [e for e in said if e["event"] == "link"]
    assert (down["state"], up["state"]) == ("down", "up")
    assert down["for_s"] < 10 < 34 < up["for_s"] < 50


def test_retries_come_slower_and_slower_but_never_slower_than_every_15_s(far, host, clock):
    times = []
    look_up = host.run

    def run(*args, **more):
        times.append(clock.now())
        return look_up(*args, **more)

    host.run = run
    clock.after(2, host.cut)
    clock.after(90, host.mend)
    clock.after(91, far.end)
    watcher(far, host, clock).follow()
    down = [t - clock.begun for t in times if 2 <= t - clock.begun <= 105]
    waits = [b - a for a, b in itertools.pairwise(down)]
    assert waits[:5] == pytest.approx([1, 2, 4, 8, 15])  # the first after half a second
    assert max(waits) == 15


def test_after_an_hour_awake_without_an_answer_it_gives_up_and_says_how_to_come_back(far, host, clock):
    clock.after(2, host.cut)
    with pytest.raises(Unreachable) as raised:
        watcher(far, host, clock).follow()
    assert raised.value.exit_code == 6
    assert raised.value.hint == f"podctl attach {far.run.id}"
    assert 3600 <= clock.now() - clock.begun < 3700


def test_a_day_asleep_counts_as_nothing_and_ends_a_stream_that_hangs(far, host, clock, capfd):
    far.say("before\n")

    def sleep_a_day() -> None:
        clock.t += DAY_S
        host.half_open = True
        far.say("after\n")

    clock.after(3, sleep_a_day)
    clock.after(DAY_S + 1, lambda: setattr(host, "half_open", False))
    clock.after(DAY_S + 5, lambda: far.end("end\n"))
    watcher(far, host, clock).follow()
    out, err = capfd.readouterr()
    assert out == "before\nafter\nend\n"
    assert "no link" not in err
    assert clock.now() - clock.begun < DAY_S + 9  # found out at once, not by a time-out


def test_a_link_that_is_down_while_the_laptop_sleeps_is_tried_again_at_once(far, host, clock, capfd):
    clock.after(2, host.cut)
    clock.after(50, lambda: clock.pass_by(2 * DAY_S))
    clock.after(2 * DAY_S + 60, host.mend)
    clock.after(2 * DAY_S + 65, far.end)
    watcher(far, host, clock).follow()
    assert "the link is back after 2 d" in capfd.readouterr().err


def test_a_stream_that_hangs_while_the_log_grows_is_begun_anew(far, host, clock, capfd):
    clock.after(2, lambda: (setattr(host, "half_open", True), far.say("more\n")))
    clock.after(4, lambda: setattr(host, "half_open", False))
    clock.after(30, far.end)
    watcher(far, host, clock).follow()
    assert capfd.readouterr().out == "more\n"
    assert host.calls["follow"] == 2


def test_a_machine_that_is_silent_though_nothing_broke_is_no_link_either(far, host, clock, capfd):
    silent = threading.Event()
    real = host.run

    def run(argv, *, timeout_s, **more):
        if not silent.is_set():
            return real(argv, timeout_s=timeout_s, **more)
        clock.pass_by(timeout_s)
        return Result(124, "", f"no answer within {timeout_s:g} s")

    host.run = run
    clock.after(2, silent.set)
    clock.after(35, silent.clear)
    clock.after(40, far.end)
    assert watcher(far, host, clock).follow().state == "succeeded"
    err = capfd.readouterr().err
    assert "no link for 1" in err  # ten seconds of silence are no blink
    assert "the link is back after" in err


def test_another_host_key_or_a_refused_key_is_not_tried_again(far, host, clock):
    host.error = Untrusted("box has another host key than before", "is it the same machine?")
    clock.after(2, host.cut)
    with pytest.raises(Untrusted):
        watcher(far, host, clock).follow()
    assert clock.slept == []


def test_a_log_that_was_cut_over_there_is_followed_from_its_new_beginning(far, host, clock, capfd):
    far.say("old " * 100 + "\n")
    clock.after(5, lambda: far.dir.log.write_text("new\n"))
    clock.after(20, lambda: far.end("end\n"))
    watcher(far, host, clock).follow()
    out, err = capfd.readouterr()
    assert out == "old " * 100 + "\nnew\nend\n"
    assert "was cut to 4 bytes" in err


def test_an_answer_that_makes_no_sense_for_a_moment_ends_nothing(far, host, clock, capfd):
    far.say("hello\n")
    clock.after(2, lambda: setattr(host, "is_odd", True))
    clock.after(12, lambda: setattr(host, "is_odd", False))
    clock.after(20, far.end)
    assert watcher(far, host, clock).follow().state == "succeeded"


def test_answers_that_make_no_sense_for_a_minute_are_believed(far, host, clock):
    clock.after(2, lambda: setattr(host, "is_odd", True))
    with pytest.raises(PodctlError, match=r"can't say how .*: MemoryError"):
        watcher(far, host, clock).follow()
    assert 60 < clock.now() - clock.begun < 70


def test_the_end_of_a_log_that_can_not_be_had_any_more_does_not_hide_how_the_run_ended(far, host, clock, capfd):
    far.say("begun\n")

    def end() -> None:
        far.end("never seen\n")
        host.half_open = True

    clock.after(3, end)
    clock.after(5, host.cut)
    view = watcher(far, host, clock).follow()
    assert view.state == "succeeded"
    assert "the end of the log did not come" in capfd.readouterr().err


def test_a_log_of_200_mb_takes_no_memory(far, host, clock):
    line = b"0123456789abcde\n" * 4096
    with far.dir.log.open("wb") as f:
        f.writelines(line for _ in range(200_000_000 // len(line)))
    far.status("succeeded")
    read = 0

    def count(chunk: bytes, offset: int) -> None:
        nonlocal read
        assert offset == read
        read += len(chunk)

    w = watcher(far, host, clock)
    w.show_log = count  # nobody wants to see it
    host.piece = 1 << 20
    tracemalloc.start()
    w.follow()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert read == far.dir.log.stat().st_size
    assert peak < 20e6


def test_without_a_terminal_a_minute_of_training_is_one_line(far, host, clock, capfd):
    far.progress()
    clock.after(125, far.end)
    watcher(far, host, clock).follow()
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "train 120/600 · loss 1.23 · ETA 2 m" in lines[0]


def test_a_change_of_phase_is_told_but_not_every_second():
    last = Pulse(100.0, "train")
    assert not pulse_is_due(last, 101, "evaluate")
    assert pulse_is_due(last, 111, "evaluate")
    assert not pulse_is_due(last, 159, "train")
    assert pulse_is_due(last, 160, "train")


def test_while_a_resumed_run_waits_its_turn_the_progress_of_its_last_attempt_is_not_shown(far, clock):
    far.progress()
    far.status("starting", phase="queue")
    view = look(far.run, CutHost(), clock.now())
    assert view.as_dict()["phase"] == "queue"
    assert live_line(view, 80).startswith("demo · queue · ")


def whole_view(far: FarRun) -> View:
    t = 1_000_000.0
    status = Status(far.run.id, 1, "b", "running", "train", 1, t - 70, t)
    progress = Progress(120, 600, 0.5, "train", t, t, 1.234, 120.0, {"step": 100, "metric": "wer", "value": 0.08}, 34.0)
    run = replace(far.run, started_at=t - 3600, usd_per_hour=0.12, detail={**far.run.detail, "rents": True})
    return View(run, "running", status, progress, 0, t, gpu=Gpu(1, 0.87, 60, 80))


def test_the_live_line_drops_what_tells_least_before_it_cuts(far):
    view = whole_view(far)
    wide = (
        "demo · train 120/600 · loss 1.23 · best wer 0.08 at 100 · 34 audio-s/s · ETA 2 m · GPU 87 % · 1 m 10 s · $0.12"
    )
    assert live_line(view, 200) == wide
    assert live_line(view, len(wide) - 1) == wide.removeprefix("demo · ")
    assert live_line(view, 95) == wide.removeprefix("demo · ").replace(" · 34 audio-s/s", "")
    assert live_line(view, 37) == "train 120/600 · loss 1.23 · ETA 2 m"
    long = replace(view, progress=replace(view.progress, eta_s=3670.0 * 2 + 60))
    assert live_line(long, 37) == "train 120/600 · loss 1.23 · ETA 2 h"
    assert "ETA 2 h 3 m" in live_line(long, 80)
    assert live_line(view, 24) == "train 120/600 · ETA 2 m"
    assert live_line(view, 10) == "train 120…"
    for width in range(1, 130):
        assert len(live_line(view, width)) <= width


def test_the_line_of_a_broken_link_fits_a_narrow_terminal():
    assert down_line(34, "training goes on", 80) == "no link for 34 s · training goes on · trying again"
    assert down_line(34, "training goes on", 39) == "no link for 34 s · training goes on"
    assert down_line(34, "", 39) == "no link for 34 s · trying again"


def test_what_fits_stays_in_its_order():
    assert fit([(2, "a"), (0, "b"), (1, "")], 5) == "a · b"
    assert fit([(2, "a"), (0, "b")], 4) == "b"
    assert fit([], 4) == ""


def test_a_table_drops_columns_where_the_terminal_is_narrow_and_wraps_nothing():
    head = ["RUN", "STATE", ">STEP", "BEST", ">AGE", ">$"]
    rows = [["demo-261121-080000-1a2b", "running", "120/600", "wer 0.08 at 100", "2 h 10 m", "$3.20"]]
    wide = table_lines(head, rows)
    assert wide[1] == "demo-261121-080000-1a2b  running  120/600  wer 0.08 at 100  2 h 10 m  $3.20"
    narrow = table_lines(head, rows, width=40, drop=report.DROP)
    assert narrow == ["RUN                      STATE", "demo-261121-080000-1a2b  running"]
    assert max(map(len, table_lines(head, rows, width=70, drop=report.DROP))) <= 70
    long = [["a-name-of-thirty-characters-xx-261121-080000-1a2b", "unreachable", "", "", "", ""]]
    for line in table_lines(head, long, width=40, drop=report.DROP):
        assert len(line) <= 40


def test_what_nvidia_smi_says_is_read_and_what_it_can_not_say_is_left_out():
    assert str(parse_gpu("87, 61234, 81559\n")) == "GPU 87 %"
    two = parse_gpu("80, 1000, 2000\n100, 3000, 4000\n")
    assert str(two) == "2 GPUs 90 %"
    assert two.used_gb == pytest.approx(4.194304)
    assert parse_gpu("[N/A], 1, 2\n") is None
    assert parse_gpu("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n") is None


@pytest.mark.parametrize("ahead_s", [DAY_S, -DAY_S])
def test_a_clock_that_is_a_day_off_over_there_changes_no_duration_and_no_bill(far, clock, tmp_path, ahead_s):
    offset = tmp_path / "clock"
    offset.write_text(str(ahead_s))
    t = clock.now()
    run = replace(far.run, started_at=t - 3600, usd_per_hour=2.0, detail={**far.run.detail, "rents": True})
    far.status(started_at=t + ahead_s - 600, heartbeat_at=t + ahead_s - 2)
    host = CutHost()
    host.run = lambda argv, **more: LocalHost().run(["env", f"PODCTL_CLOCK_FILE={offset}", *argv], **more)
    view = look(run, host, t)
    assert view.state == "running"
    assert view.ran_s == pytest.approx(600, abs=5)
    assert view.there_now - view.status.heartbeat_at == pytest.approx(2, abs=5)
    assert view.usd == pytest.approx(2.0, abs=0.01)
    far.status("succeeded", started_at=t + ahead_s - 600, ended_at=t + ahead_s - 300)
    ledger = Ledger(tmp_path / "ledger.jsonl")
    assert look(run, host, t).usd == pytest.approx(2.0, abs=0.01)  # a rented pod is paid until it ends itself
    owned = replace(run, detail={**run.detail, "rents": False})
    ledger.append(Event(t, events.LAUNCHED, run.id, "p", run.provider, run.name, run.pod))
    close_books(look(owned, host, t), ledger, "p")
    (bill,) = [e for e in ledger.events() if e.event == "billed"]
    assert bill.usd == pytest.approx(300 / 3600 * 2.0, abs=0.01)


def test_on_a_machine_that_one_has_a_run_pays_for_its_turn_and_not_for_its_wait(far, clock, tmp_path):
    t = clock.now()
    detail = {**far.run.detail, "rents": False}
    run = replace(far.run, started_at=t - 36_000, usd_per_hour=2.0, detail=detail)
    far.status("starting", phase="queue", started_at=t - 36_000, heartbeat_at=t)
    assert look(run, CutHost(), t).usd == 0.0
    far.status(started_at=t - 1800, heartbeat_at=t)
    assert look(run, CutHost(), t).usd == pytest.approx(1.0, abs=0.01)
    far.status("succeeded", started_at=t - 3600, ended_at=t - 1800)
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append(Event(t, events.LAUNCHED, run.id, "p", run.provider, run.name, run.pod))
    close_books(look(run, CutHost(), t), ledger, "p")
    (bill,) = [e for e in ledger.events() if e.event == "billed"]
    assert bill.usd == pytest.approx(1.0, abs=0.01)


def test_a_run_that_is_over_needs_nothing_but_its_volume(far, clock):
    far.status("failed", exit_code=1)
    far.run.detail.update(tool_dir="/nowhere")
    assert look(far.run, CutHost(), clock.now()).state == "failed"


def test_machines_that_do_not_answer_hold_no_table_up(tmp_path, clock):
    first, second, third = (FarRun(tmp_path / n, f"{n}-261121-080000-abcd") for n in ("one", "two", "six"))
    first.status("succeeded")
    second.status("running")
    third.status("running")
    runs = [
        replace(first.run, pod="good"),
        replace(third.run, pod="silent"),
        replace(second.run, pod="good"),
        replace(third.run, id="cut", pod="cut"),
    ]
    hosts = {"good": CutHost(), "silent": CutHost(), "cut": CutHost()}
    released = threading.Event()
    hosts["silent"].run = lambda *args, **more: Result(0 if released.wait(20) else 1, "", "")
    hosts["cut"].cut()
    reached = []

    def reach(run):
        reached.append(run.pod)
        return hosts[run.pod]

    begun = time.monotonic()
    seen = views(runs, clock.now(), limit_s=1.0, reach=reach)
    took_s = time.monotonic() - begun
    released.set()
    assert [v.state for v in seen] == ["succeeded", "unreachable", "running", "unreachable"]
    assert [v.run.id for v in seen] == [r.id for r in runs]
    assert sorted(reached) == ["cut", "good", "silent"]  # one connection a machine
    assert took_s < 4
    assert hosts["cut"].calls["run"] == 1


def test_runs_that_are_over_cost_one_command_together(tmp_path, clock):
    over = [FarRun(tmp_path / str(n), f"demo-261121-08000{n}-abcd") for n in range(5)]
    for far in over:
        far.progress(step=7)
        far.status("failed")
    host = CutHost()
    seen = views([f.run for f in over], clock.now(), reach=lambda run: host)
    assert {v.state for v in seen} == {"failed"}
    assert {v.progress.step for v in seen} == {7}
    assert sum(host.calls.values()) == 1
