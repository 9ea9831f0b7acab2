"""A model meets other audio: runs that evaluate a run, on its own machine, beside its history and never in it."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from support.machines import sshd_machine
from support.podctl_cli import Cli, wait_for
from support.stand_in import quick_python, trained

from podctl.apply import Subject, Wanted, command_of, experiment_for, name_of, purpose, refuse_odd_inputs
from podctl.cli.apply import _words
from podctl.errors import BadInput, PodctlError
from podctl.handing import hand_on
from podctl.inputs import Around, resolve
from podctl.pods import Run


@pytest.fixture
def quick(cli: Cli, tmp_path: Path) -> Cli:
    cli.env["PODCTL_PYTHON"] = str(quick_python(tmp_path / "quick"))
    return cli


def ids(cli: Cli) -> list[str]:
    return list(dict.fromkeys(e["run"] for e in cli.events()))


def home_of(cli: Cli, run: str) -> Path:
    return cli.project / ".podctl" / "runs" / run / "reports"


def test_an_evaluation_is_a_run_of_its_own_whose_results_lie_beside_the_run_that_it_is_of(quick: Cli) -> None:
    file = quick.experiment(trained())
    assert quick("train", "-c", file, "--local").code == 0
    (run,) = ids(quick)
    before = {p: p.stat().st_mtime_ns for p in quick.run_dir().rglob("*")}
    (quick.project / "test.jsonl").write_text("{}\n")
    done = quick("evaluate", "test.jsonl", "--set", "eval.decode.beams=5", "--json", "--", "--no-before")
    assert done.code == 0, done
    receipt = done.lines[-1]
    assert receipt["run"].startswith("tiny-eval-")
    assert (receipt["headline"], receipt["metrics"]) == ("WER 25.00 % on a", {"wer": 0.25})
    (copy,) = receipt["copies"]
    assert Path(copy).parent == home_of(quick, run)
    told = json.loads(Path(copy).read_text())
    assert told["manifests"] == ["test.jsonl"]
    assert (
        told["words"][-6:] == ["--no-before", "--set", "eval.decode.beams=5", "--", "test.jsonl"][-6:] or told["words"]
    )
    assert told["words"][5:] == ["--no-before", "--set", "eval.decode.beams=5", "--", "test.jsonl"]
    assert Path(copy).with_suffix(".rows.jsonl").exists()
    assert "WER  25.00 %" in "".join(line["text"] for line in done.lines if line["event"] == "log")
    after = {p: p.stat().st_mtime_ns for p in Path(quick.home / "volume" / "runs" / run).rglob("*")}
    assert after == before, "the run itself is only read"


@pytest.mark.slow
def test_a_training_goes_on_from_trainings_and_so_does_what_speaks_of_one(quick: Cli) -> None:
    file = quick.experiment(trained())
    assert quick("train", "-c", file, "--local").code == 0
    (run,) = ids(quick)
    assert quick("evaluate").code == 0
    again = quick("train", "-c", file, "--local", "--json")
    assert again.code == 0, again
    assert again.lines[0]["because"] == f"{run} succeeded"
    quick("evaluate", run)
    assert f"{again.lines[0]['run']} succeeded: there is nothing to resume" in quick("resume").err
    assert quick("attach").stdout.count("trained") == 0  # the newest of all
    names = [line["name"] for line in quick("ps", "--json").lines]
    assert names == ["tiny", "tiny-eval", "tiny", "tiny-eval"]


@pytest.mark.slow
def test_predictions_come_home_to_the_file_that_was_named_and_never_over_another(quick: Cli) -> None:
    assert quick("train", "-c", quick.experiment(trained()), "--local").code == 0
    (quick.project / "in.jsonl").write_text("{}\n")
    done = quick("predict", "--input", "in.jsonl", "--to", "out.jsonl")
    assert done.code == 0, done
    assert (quick.project / "out.jsonl").read_text() == '{"id": "in.jsonl", "text": "two left"}\n'
    (quick.project / "out.jsonl").write_text("mine")
    refused = quick("predict", "--input", "in.jsonl", "--to", "out.jsonl")
    assert (refused.code, "--overwrite" in refused.err) == (2, True)
    assert (quick.project / "out.jsonl").read_text() == "mine"
    (quick.project / "broken.wav").write_text("")
    some = quick("predict", "tiny", "-i", "broken.wav", "--to", "out.jsonl", "--overwrite", "--json")
    assert some.code == 1, some
    assert some.lines[-1]["copies"] == [str(quick.project / "out.jsonl")]
    assert "broken.wav" in (quick.project / "out.jsonl").read_text()


def test_what_can_not_be_evaluated_is_one_sentence_before_anything_is_begun(quick: Cli) -> None:
    assert quick("train", "-c", quick.experiment("true"), "--local").code == 0
    (run,) = ids(quick)
    refused = quick("evaluate")
    assert refused.code == 2, refused
    assert f"{run} holds no complete checkpoint" in refused.err
    assert "podctl status" in refused.err
    assert ids(quick) == [run]


@pytest.mark.slow
def test_the_exit_code_is_the_commands_and_the_same_words_begin_it_anew(quick: Cli) -> None:
    assert quick("train", "-c", quick.experiment(trained()), "--local").code == 0
    run_dir = quick.run_dir()
    (quick.home / "volume" / "data").mkdir()
    (quick.home / "volume" / "data" / "far.jsonl").write_text("{}")
    missing = quick("evaluate", "tiny", "absent.jsonl")
    assert missing.code == 2, missing
    assert "absent.jsonl is not in the project, and the volume's data/ has no absent.jsonl" in missing.err
    assert f"podctl push FILE --run {run_dir.name} first" in missing.err
    (run_dir / "checkpoints" / "step-00000001" / "COMPLETE").rename(run_dir / "kept")
    (run_dir / "checkpoints" / "step-00000002").mkdir()
    (run_dir / "checkpoints" / "step-00000002" / "COMPLETE").touch()
    assert quick("evaluate", "tiny", "far.jsonl", "--detach").code == 0
    there = quick("attach")
    assert there.code == 0, there
    assert list(home_of(quick, run_dir.name).glob("evaluate-*.json")), "whoever attaches brings it too"
    bad = quick("evaluate", "tiny", "/absent.jsonl", "--json")
    assert bad.code == bad.lines[-1]["exit_code"] == 2, bad
    assert f"podctl evaluate {run_dir.name} with the same words begins it anew" in bad.err
    again = quick("evaluate", "tiny", "/absent.jsonl", "--json")
    assert (again.code, again.lines[0]["run"]) == (2, bad.lines[0]["run"]), "the same words go on with the same run"
    other = quick("evaluate", "tiny", "far.jsonl", "--json")
    assert (other.code, other.lines[0]["resumes"]) == (0, False), other
    assert "asked for something else" in other.lines[0]["because"]
    named = quick.experiment("echo another", name="tiny-eval", file="y.yaml")
    assert quick("evaluate", "tiny", "/absent.jsonl").code == 2
    assert quick("train", "-c", named, "--local").code == 0, "an evaluation stands in no training's way"
    refused = quick("evaluate", bad.lines[0]["run"])
    assert (refused.code, "is no training" in refused.err) == (2, True), refused


@pytest.mark.slow
def test_a_run_that_still_trains_is_evaluated_as_it_is_and_it_is_said(quick: Cli) -> None:
    assert quick("train", "-c", quick.experiment(trained("60")), "--local", "--detach").code == 0
    wait_for(lambda: (quick.run_dir() / "checkpoints" / "step-00000001" / "COMPLETE").exists())
    done = quick("evaluate")
    assert done.code == 0, done
    assert "still going: its best model so far" in done.err
    assert quick("stop", "tiny").code == 0
    stopped = json.loads(quick("status", "tiny", "--json").stdout)
    assert (stopped["name"], stopped["state"]) == ("tiny", "stopped")
    again = quick("evaluate")
    assert again.code == 0, again


def subject(tmp_path: Path, **pod: object) -> Subject:
    experiment = {
        "name": "tiny",
        "pod": {"provider": "runpod", "volume": "data", "max_hours": 12, "gpu": ["4090"], "on_success": "stop", **pod},
        "prep": [{"run": "make"}],
        "train": {"task": "whisper"},
    }
    run = Run("tiny-261121-080000-abcd", "p", "tiny", "runpod", "pc-x", 0.0, detail={"volume": "v1"})
    return Subject(run, "succeeded", yaml.safe_dump(experiment).encode())


def test_its_experiment_is_the_runs_machine_and_nothing_of_its_training(tmp_path: Path) -> None:
    made = yaml.safe_load(experiment_for(subject(tmp_path, secrets=["HF_TOKEN"]), Wanted("evaluate"), tmp_path))
    assert made["name"] == "tiny-eval"
    assert set(made) == {"name", "pod"}
    command = made["pod"].pop("command")
    assert made["pod"] == {
        "provider": "runpod", "volume": "data", "max_hours": 2.0, "gpu": ["4090"], "secrets": ["HF_TOKEN"],
    }  # fmt: skip
    assert command[:2] == ["bash", "-c"]
    assert command[3:] == ["evaluate", "tiny-261121-080000-abcd", "reports"]
    short = yaml.safe_load(experiment_for(subject(tmp_path, max_hours=0.5), Wanted("evaluate"), tmp_path))
    assert short["pod"]["max_hours"] == 0.5


def test_an_unkind_name_stays_one_word(tmp_path: Path) -> None:
    nasty = "a'; touch pwned; $(touch pwned) `touch pwned` \n.jsonl"
    argv = command_of("r", Wanted("evaluate", [nasty], ["--no-before"]))
    (tmp_path / "trainer").write_text('#!/bin/sh\nfor a; do printf "%s\\0" "$a"; done > "$PODCTL_RUN_DIR/seen"\n')
    (tmp_path / "trainer").chmod(0o755)
    import subprocess

    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PODCTL_VOLUME": "/v", "PODCTL_RUN_DIR": str(tmp_path)}
    subprocess.run(argv, env=env, cwd=tmp_path, check=True)
    seen = (tmp_path / "seen").read_text().split("\0")[:-1]
    assert seen == ["evaluate", "--run", "/v/runs/r", "--out", f"{tmp_path}/reports", "--no-before", "--", nasty]
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("option", ["--run=x", "--out", "--ou", "--model=y", "--rows", "--format=z"])
def test_what_podctl_says_itself_is_not_said_twice(option: str) -> None:
    with pytest.raises(BadInput, match="said by podctl"):
        command_of("r", Wanted("evaluate", (), [option]))


def test_a_set_that_leads_away_from_the_checkpoints_or_that_no_recipe_has_is_refused(tmp_path: Path) -> None:
    s = subject(tmp_path)
    for text in ("pod.volume=other", "pod.provider=local"):
        with pytest.raises(BadInput, match="lies at runpod, volume data"):
            experiment_for(s, Wanted("evaluate", sets=[text]), tmp_path)
    experiment_for(s, Wanted("evaluate", sets=["pod.volume=v1"]), tmp_path)
    with pytest.raises(BadInput, match="takes no such --set") as e:
        experiment_for(s, Wanted("evaluate", sets=["eval.decode.beans=5"]), tmp_path)
    assert any("beans" in m for m in e.value.mistakes)


def test_names_leave_room_and_a_purpose_says_whose_it_is(tmp_path: Path) -> None:
    s = subject(tmp_path)
    long = Run("x", "p", "a" * 24 + "-bcdef", "local", "", 0.0)
    assert name_of(s.run, "predict") == "tiny-predict"
    assert name_of(long, "evaluate") == "a" * 24 + "-eval"
    assert purpose(s, Wanted("evaluate")) == {"of": s.run.id, "does": "evaluate"}
    assert purpose(s, Wanted("predict"), Path("/x"))["to"] == "/x"


@pytest.mark.parametrize(
    ("typed", "word", "names", "options"),
    [
        ((), "", [], []),
        (("a.jsonl", "b.jsonl"), "", ["a.jsonl", "b.jsonl"], []),
        (("tiny", "a.jsonl"), "tiny", ["a.jsonl"], []),
        (("--", "--no-before"), "", [], ["--no-before"]),
        (("tiny", "--", "--x", "y"), "tiny", [], ["--x", "y"]),
    ],
)
def test_words_of_an_evaluation(typed: tuple[str, ...], word: str, names: list[str], options: list[str]) -> None:
    assert _words(typed[0] if typed else "", typed[1:]) == (word, names, options)


def test_a_file_is_sent_or_lies_there_or_is_missed_and_all_mistakes_come_at_once(tmp_path: Path) -> None:
    root = tmp_path / "project"
    (root / "sub").mkdir(parents=True)
    for name in ("sent.jsonl", "sub/sent.jsonl", "ignored.jsonl", "pushed.jsonl"):
        (root / name).write_text("{}")
    (tmp_path / "outside.jsonl").write_text("{}")
    around = Around(
        root, {"sent.jsonl", "sub/sent.jsonl"}, root, lambda names: set(names) & {"pushed.jsonl", "v.jsonl"}
    )
    found = resolve(["sent.jsonl", str(root / "sub/sent.jsonl"), "v.jsonl", "pushed.jsonl", "/there.jsonl"], around)
    assert [m.name for m in found] == ["sent.jsonl", "sub/sent.jsonl", "v.jsonl", "pushed.jsonl", "/there.jsonl"]
    assert [bool(m.note) for m in found] == [False, False, False, True, False]
    below = Around(root, around.sent, root / "sub", around.look)
    assert resolve(["sent.jsonl", "../sent.jsonl"], below)[1].name == "sent.jsonl"
    bad = ["ignored.jsonl", "../outside.jsonl", "nowhere.jsonl", "sub", "", "../../up.jsonl", "a\0b"]
    with pytest.raises(BadInput) as e:
        resolve(bad, around, "podctl", "tiny-1")
    assert len(e.value.mistakes) == len(bad)
    assert "podctl push FILE --run tiny-1" in e.value.hint
    off = Around(root, around.sent, root)
    notes = [m.note for m in resolve(["ignored.jsonl", "nowhere.jsonl"], off)]
    assert "is not sent: data/ignored.jsonl" in notes[0]
    assert "looked for on the volume" in notes[1]
    same = Around(root, around.sent, root, around.look, same_machine=True)
    assert resolve(["../outside.jsonl"], same)[0].name == str(tmp_path / "outside.jsonl")


def test_a_file_of_this_machine_that_is_not_sent_is_missed_however_its_name_is_typed(tmp_path: Path) -> None:
    """A rented machine would look for it at this machine's path, once it is paid for."""
    (tmp_path / "ignored.jsonl").write_text("{}")
    for look in (None, lambda names: set(names)):
        with pytest.raises(BadInput) as e:
            resolve([str(tmp_path / "ignored.jsonl")], Around(tmp_path, set(), tmp_path, look))
        assert "is not sent, since git or .podignore leaves it out" in str(e.value.mistakes)
    same = Around(tmp_path, set(), tmp_path, same_machine=True)
    assert resolve([str(tmp_path / "ignored.jsonl")], same)[0].name == str(tmp_path / "ignored.jsonl")


def test_a_file_that_is_named_twice_is_heard_once(tmp_path: Path) -> None:
    """Two manifests with the same ids would be refused as one that is half unusable."""
    around = Around(tmp_path, {"a.jsonl", "b.jsonl"}, tmp_path)
    meant = resolve(["a.jsonl", "./a.jsonl", "b.jsonl", str(tmp_path / "b.jsonl")], around)
    assert command_of("r", Wanted("evaluate", [m.name for m in meant]))[-3:] == ["--", "a.jsonl", "b.jsonl"]


def test_a_submissions_format_is_told_before_what_is_transcribed() -> None:
    assert command_of("r", Wanted("predict", ["a.jsonl"], format="f.jsonl"))[6:] == [
        "--format",
        "f.jsonl",
        "--",
        "a.jsonl",
    ]


@pytest.mark.slow
def test_on_a_machine_that_one_has_it_asks_before_two_share_it(quick: Cli, tmp_path: Path) -> None:
    with sshd_machine(tmp_path) as machine:
        quick.env |= machine.env
        pod = {"provider": "ssh", **machine.pod_section}
        pod["ssh"] = {**machine.pod_section["ssh"], "python": str(quick_python(tmp_path / "quick"))}
        file = quick.experiment(trained("60"), **pod)
        assert quick("train", "-c", file, "--detach").code == 0
        (run,) = (machine.volume / "runs").iterdir()
        wait_for(lambda: (run / "checkpoints" / "step-00000001" / "COMPLETE").exists())
        busy = quick("evaluate")
        assert (busy.code, "--beside" in busy.err) == (8, True), busy
        elsewhere = quick("evaluate", "--local")
        assert (elsewhere.code, "lies at ssh, not on this machine" in elsewhere.err) == (2, True), elsewhere
        beside = quick("evaluate", "--beside")
        assert beside.code == 0, beside
        assert list(home_of(quick, run.name).glob("evaluate-*.json"))
        assert quick("stop", "tiny").code == 0


@pytest.mark.slow
def test_a_volume_that_is_gone_is_said(quick: Cli) -> None:
    assert quick("train", "-c", quick.experiment(trained()), "--local").code == 0
    shutil.rmtree(quick.home / "volume")
    lost = quick("evaluate")
    assert (lost.code, "its volume with it" in lost.err) == (1, True), lost


def test_a_file_that_was_touched_since_is_never_replaced(tmp_path: Path) -> None:
    to = tmp_path / "out.jsonl"
    detail = {"of": "x", "does": "predict", "to": str(to), "overwrite": True, "project_root": str(tmp_path)}
    run = Run("tiny-predict-1", "p", "tiny-predict", "local", "", 0.0, launched_at=2e9, detail=detail)
    (home_of_run := tmp_path / ".podctl" / "runs" / run.id / "reports").mkdir(parents=True)
    (home_of_run / "predictions.jsonl").write_text("new")
    to.write_text("old")
    assert hand_on(run, {}) == (str(to),)
    assert to.read_text() == "new"
    to.write_text("corrected by hand")
    with pytest.raises(PodctlError, match="was there already, and stays"):
        hand_on(replace(run, launched_at=1e9), {})
    assert to.read_text() == "corrected by hand"


def test_what_was_written_while_the_pod_booted_is_never_replaced(tmp_path: Path) -> None:
    to = tmp_path / "out.jsonl"
    told = purpose(subject(tmp_path), Wanted("predict"), to, overwrite=True, asked_at=1e9)
    detail = {**told, "project_root": str(tmp_path)}
    run = Run("tiny-predict-1", "p", "tiny-predict", "local", "", 0.0, launched_at=1e9 + 300, detail=detail)
    (home_of_run := tmp_path / ".podctl" / "runs" / run.id / "reports").mkdir(parents=True)
    (home_of_run / "predictions.jsonl").write_text("new")
    to.write_text("written while it booted")
    os.utime(to, (1e9 + 60, 1e9 + 60))
    with pytest.raises(PodctlError, match="was there already, and stays"):
        hand_on(run, {})
    os.utime(to, (1e9 - 60, 1e9 - 60))
    assert hand_on(run, {}) == (str(to),)


def test_inputs_that_the_trainer_would_refuse_are_refused_for_nothing() -> None:
    for does, names in (("evaluate", ["a.jsonl", "b.wav"]), ("predict", ["a.jsonl", "b.wav"])):
        with pytest.raises(BadInput):
            refuse_odd_inputs(does, names)
    for does, names in (("evaluate", []), ("evaluate", ["a.jsonl"]), ("predict", ["a.wav", "b.wav"])):
        refuse_odd_inputs(does, names)
