"""Laws 11 and 12 over ranks: what several train, measure and save is what one does, however each of them is stopped."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.families import FAMILIES
from support.pod import wait_until
from support.speech import make_corpus, write_experiment
from support.steps import furthest
from support.trainings import command, environment, weights

ROOT = Path(__file__).parents[2]
CASES = {
    "phases": {
        "phases": [{"from_epoch": 0, "train": ["TOP"]}, {"from_epoch": 1 / 3, "train": "all"}],
        "optim": {"layer_decay": 0.8},
        "steps": 3,
    },
    "checkpointing": {"loop": {"gradient_checkpointing": True}},
    "fewer batches than ranks": {"loop": {"step_utts": 1}, "steps": 3},
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for name, n in (("train", 24), ("dev", 7), ("test", 5)):
        make_corpus(folder, n, seed=n, name=name)
    return folder


def run(tmp_path: Path, *argv: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command(*argv), env=environment(tmp_path), capture_output=True, text=True, timeout=240, cwd=tmp_path
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


def laws(corpus: Path, tmp_path: Path, families: str, sections: dict) -> list[dict]:
    argv = [sys.executable, "tests/support/ranks.py", "2", "support.laws:step_law", str(corpus), families]
    done = subprocess.run(
        [*argv, json.dumps(sections)],
        env=environment(tmp_path), capture_output=True, text=True, timeout=400, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.mark.slow
def test_the_update_of_two_ranks_is_that_of_one_for_every_family_and_cut_joined_and_dealt(
    corpus: Path, tmp_path: Path
) -> None:
    families = list(FAMILIES)
    cases = laws(corpus, tmp_path, ",".join(families), {})
    refused = {c["family"]: c["refused"] for c in cases if "refused" in c}
    assert refused.keys() == {"moonshine_streaming"}, refused
    assert "log_k is a single number" in refused["moonshine_streaming"]
    measured = [c for c in cases if "refused" not in c]
    assert len(measured) == 6 * len(families) - 3 * len(refused)
    for case in measured:
        assert case["off"] < 1e-9, case
        assert case["moved"] > 1e-3, "a test of equality must see a training that moves"


@pytest.mark.slow
@pytest.mark.parametrize("what", CASES)
def test_and_so_it_is(corpus: Path, tmp_path: Path, what: str) -> None:
    for family, top in (("whisper", "decoder"), ("parakeet", "head")):
        sections = json.loads(json.dumps(CASES[what]).replace("TOP", top))
        for case in laws(corpus, tmp_path, family, sections):
            assert case["off"] < 1e-9, case
            assert case["moved"] > 1e-5, case


def trained_alike(one: Path, two: Path, step: int, limit: float = 1e-9) -> None:
    assert furthest(weights(one, step), weights(two, step)) < limit
    for name in ("dev.rows.jsonl", "dev.jsonl"):
        a, b = ([json.loads(x) for x in (r / "reports" / name).read_text().splitlines()] for r in (one, two))
        if name == "dev.rows.jsonl":
            assert a == b
        else:
            assert [x["metrics"] for x in a] == [x["metrics"] for x in b]


HOW = {
    "loop": {"precision": "fp64", "steps": 6, "step_utts": 7, "ranks": 1, "keep_last": 9},
    "eval": {"every_steps": 2},
    "averaging": {"ema": 0.8},
    "log": {"every_steps": 1},
}


def experiment(tmp_path: Path, corpus: Path, name: str, family: str = "whisper", **loop: object) -> Path:
    how = {**HOW, "loop": {**HOW["loop"], **loop}}
    return write_experiment(tmp_path / f"{name}.yaml", FAMILIES[family](corpus, **how))


@pytest.fixture(scope="module")
def alone(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one rank leaves."""
    folder = tmp_path_factory.mktemp("alone")
    run(folder, "train", experiment(folder, corpus, "one"), "--run-dir", folder / "run")
    return folder / "run"


@pytest.mark.slow
@pytest.mark.parametrize("shard", [False, True])
def test_ranks_are_started_by_the_recipe_and_leave_what_one_leaves(
    corpus: Path, tmp_path: Path, alone: Path, shard: bool
) -> None:
    done = run(
        tmp_path, "train", experiment(tmp_path, corpus, "two", ranks=2, shard=shard), "--run-dir", tmp_path / "run"
    )
    assert done.stdout.count("2 rank(s)") == 1, "rank 0 alone tells"
    assert done.stderr == ""
    trained_alike(alone, tmp_path / "run", 6)
    means = [torch.load(r / "checkpoints/step-00000006/state/ema.pt")["mean"] for r in (alone, tmp_path / "run")]
    assert furthest(*means) < 1e-9
    states = [
        torch.load(r / "checkpoints/step-00000006/state/optimizer.pt")["adamw"] for r in (alone, tmp_path / "run")
    ]
    assert states[0]["param_groups"] == states[1]["param_groups"]
    for n, state in states[0]["state"].items():
        assert furthest(state, states[1]["state"][n]) < 1e-9
    a, b = (sorted(p.name for p in (r / "checkpoints/step-00000006").rglob("*")) for r in (alone, tmp_path / "run"))
    assert a == b


@pytest.mark.slow
def test_a_run_goes_on_with_other_numbers_of_ranks_dealt_or_not(corpus: Path, tmp_path: Path, alone: Path) -> None:
    """1 → 2 → 3 → dealt to 2 → dealt to 3 → 1, a step each."""
    ways = [{}, {"ranks": 2}, {"ranks": 3}, {"ranks": 2, "shard": True}, {"ranks": 3, "shard": True}, {}]
    for n, how in enumerate(ways, start=1):
        file = experiment(tmp_path, corpus, f"leg{n}", **how, save_every_steps=1)
        leg = subprocess.Popen(
            command("train", file, "--run-dir", tmp_path / "run"), env=environment(tmp_path),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path,
        )  # fmt: skip
        # the next leg begins from the checkpoint of step n: those beyond are taken away
        out, _ = leg.communicate(timeout=240)
        assert leg.returncode == 0, out
        if n < len(ways):
            for path in (tmp_path / "run/checkpoints").glob("step-*"):
                if int(path.name[5:]) > n:
                    shutil.rmtree(path)
    trained_alike(alone, tmp_path / "run", 6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "dora", "qlora"])
def test_so_it_is_with_adapters_over_a_base_that_is_dealt_too(
    corpus: Path, tmp_path: Path, alone: Path, kind: str
) -> None:
    sections = {
        "model": {"name": str(alone / "export"), "from_scratch": None},
        "adapters": {"kind": kind, "r": 2, "dropout": 0.0},
        "loop": {"gradient_checkpointing": True},
    }
    cases = laws(corpus, tmp_path, "whisper", sections)
    assert len(cases) == 6
    for case in cases:
        assert case["off"] < 1e-9, case
        assert case["moved"] > 1e-3, case


class Started:
    """A training under way."""

    def __init__(self, tmp_path: Path, file: Path, name: str = "run") -> None:
        self.folder = tmp_path / name
        self.log = tmp_path / f"{name}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command("train", file, "--run-dir", self.folder), env=environment(tmp_path), stdout=log, stderr=log,
                cwd=tmp_path, start_new_session=True,
            )  # fmt: skip

    @property
    def said(self) -> str:
        return self.log.read_text()

    def ranks(self) -> list[int]:
        """Processes of the ranks, the first rank first."""
        pids = subprocess.run(["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True).stdout.split()
        return sorted(map(int, pids), key=lambda p: (rank_of(p), p))

    def wait_for_step(self, step: int) -> None:
        def reached() -> bool:
            assert self.process.poll() is None, self.said
            return f"step {step}/" in self.said

        wait_until(reached, f"step {step}", 120)

    def end(self, within_s: float = 60) -> int:
        return self.process.wait(within_s)

    def close(self) -> None:
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait(10)


def rank_of(pid: int) -> int:
    try:
        env = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return 1 << 20
    return next((int(e[5:]) for e in env if e.startswith(b"RANK=")), 1 << 20)


@pytest.fixture
def long(corpus: Path, tmp_path: Path) -> Iterator[Started]:
    """Two ranks that would train for a while."""
    file = experiment(tmp_path, corpus, "long", ranks=2, steps=400, save_every_steps=2)
    started = Started(tmp_path, file)
    try:
        yield started
    finally:
        started.close()


def alone_until(step: int, corpus: Path, tmp_path: Path, **loop: object) -> Path:
    """What one rank leaves at a step of the same long training."""
    file = experiment(tmp_path, corpus, "short", **{"steps": 400, "save_every_steps": step, **loop})
    started = Started(tmp_path, file, "short")
    try:
        there = tmp_path / f"short/checkpoints/step-{step:08d}/COMPLETE"
        wait_until(there.exists, "its checkpoint", 120)
    finally:
        started.close()
    return tmp_path / "short"


def last_step(folder: Path) -> int:
    return max(int(p.parent.name[5:]) for p in folder.glob("checkpoints/step-*/COMPLETE"))


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["both, 0.6 s apart", "the second", "the first", "the launcher"])
def test_a_stop_of_any_rank_stops_and_saves_all_once(corpus: Path, tmp_path: Path, long: Started, whom: str) -> None:
    long.wait_for_step(3)
    first, second = long.ranks()
    if whom == "the launcher":
        os.kill(long.process.pid, signal.SIGTERM)
    else:
        os.kill(first if whom == "the first" else second, signal.SIGTERM)
    if whom.startswith("both"):
        time.sleep(0.6)
        if long.process.poll() is None:
            try:
                os.kill(first, signal.SIGTERM)
            except ProcessLookupError:
                pass
    assert long.end() == 75, long.said
    step = last_step(long.folder)
    assert long.said.count("; saved") == 1, long.said
    assert f"stopped after step {step} of 400; saved" in long.said
    assert furthest(weights(alone_until(step, corpus, tmp_path), step), weights(long.folder, step)) < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_dies_ends_the_run_within_seconds_and_costs_what_was_not_saved(
    tmp_path: Path, long: Started, rank: int
) -> None:
    long.wait_for_step(5)
    os.kill(long.ranks()[rank], signal.SIGKILL)
    began = time.monotonic()
    assert long.end(30) == 1, long.said
    assert time.monotonic() - began < 20
    assert f"rank {rank} of 2 was killed by signal 9" in long.said
    assert long.said.count("Traceback") == 0, long.said
    step = last_step(long.folder)
    again = Started(tmp_path, tmp_path / "long.yaml")
    try:
        again.wait_for_step(step + 2)
    finally:
        again.close()
    assert f"resumed from step {step} " in again.said


@pytest.mark.slow
def test_stopped_or_killed_where_weights_are_dealt_it_goes_on_from_what_was_saved(corpus: Path, tmp_path: Path) -> None:
    file = experiment(tmp_path, corpus, "dealt", ranks=2, shard=True, steps=400, save_every_steps=2)
    stopped = Started(tmp_path, file)
    try:
        stopped.wait_for_step(3)
        os.kill(stopped.ranks()[1], signal.SIGTERM)
        assert stopped.end() == 75, stopped.said
        step = last_step(stopped.folder)
        assert f"stopped after step {step} of 400; saved" in stopped.said
        killed = Started(tmp_path, file)
        try:
            killed.wait_for_step(step + 3)
            os.kill(killed.ranks()[1], signal.SIGKILL)
            assert killed.end(30) == 1, killed.said
        finally:
            killed.close()
    finally:
        stopped.close()
    assert f"resumed from step {step} " in killed.said
    assert "rank 1 of 2 was killed by signal 9" in killed.said
    assert "Traceback" not in killed.said
    last = last_step(stopped.folder)
    assert last > step
    assert furthest(weights(alone_until(last, corpus, tmp_path), last), weights(stopped.folder, last)) < 1e-9


@pytest.mark.slow
def test_no_rank_outlives_a_launcher_that_is_killed(long: Started) -> None:
    long.wait_for_step(3)
    ranks = long.ranks()
    assert len(ranks) == 2
    os.kill(long.process.pid, signal.SIGKILL)
    wait_until(lambda: not any(rank_of(p) < 2 for p in ranks), "the ranks are gone", 60)
    assert "; saved" in long.said, "they were asked, and saved"


@pytest.mark.slow
def test_a_rank_that_is_stuck_is_named_and_given_up(corpus: Path, tmp_path: Path) -> None:
    started = Started(tmp_path, experiment(tmp_path, corpus, "stuck", ranks=2, steps=400, wait_s=5))
    try:
        started.wait_for_step(4)
        second = started.ranks()[1]
        os.kill(second, signal.SIGSTOP)
        assert started.end(60) == 1, started.said
        assert "rank 1 of 2 did not come within 5 s" in started.said
    finally:
        started.close()


@pytest.mark.slow
def test_an_error_of_all_ranks_is_told_once(corpus: Path, tmp_path: Path) -> None:
    file = experiment(tmp_path, corpus, "bad", ranks=2)
    file.write_text(file.read_text().replace("train.jsonl", "nowhere.jsonl"))
    done = run(tmp_path, "train", file, "--run-dir", tmp_path / "run", code=2)
    assert done.stderr.count("nowhere.jsonl") == 1, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_two_ranks_write_the_rows_of_one_to_the_bit(corpus: Path, tmp_path: Path, alone: Path, command: str) -> None:
    (tmp_path / "dev").mkdir()
    lines = (corpus / "dev.jsonl").read_text().splitlines()
    shutil.copytree(corpus / "dev", tmp_path / "dev", dirs_exist_ok=True)
    (tmp_path / "dev" / "dev-3.wav").write_bytes(b"RIFF")
    (tmp_path / "dev.jsonl").write_text("\n".join(lines) + "\n")
    found = []
    for ranks in (1, 2, 3):
        out = tmp_path / f"out{ranks}"
        to = out / "rows.jsonl" if command == "predict" else out
        model = ["--model", alone / "export", "--set", "loop.micro_s=1.5", "--set", "loop.device=cpu"]
        model += ["--set", "data.max_bad_share=1"] if command == "evaluate" else []
        run(tmp_path, command, *model, tmp_path / "dev.jsonl", "--out", to, "--ranks", ranks,
            code=1 if command == "predict" else 0)  # fmt: skip
        found.append(next(out.glob("*rows.jsonl")).read_text())
    assert found[0] == found[1] == found[2]
    assert len(found[0].splitlines()) == 7
    assert any("reason" in json.loads(line) for line in found[0].splitlines())


@pytest.mark.slow
def test_two_ranks_decode_the_model_before_training_as_one_does_and_say_it_once(
    corpus: Path, tmp_path: Path, alone: Path
) -> None:
    found = []
    for ranks in (1, 2):
        out = tmp_path / f"out{ranks}"
        sets = ["--set", "loop.device=cpu", "--set", "eval.buckets=[duration]"]  # in other buckets: measured anew
        done = run(
            tmp_path, "evaluate", "--run", alone, corpus / "dev.jsonl", *sets, "--out", out, "--ranks", ranks, "--json"
        )
        said = [json.loads(line) for line in done.stdout.splitlines()]
        assert said[0]["what"] == "before training"
        assert all("wall_s" in line for line in said)
        found.append([(line["what"], line["metrics"], line["table"]) for line in said])
        found[-1] += [path.read_text() for path in sorted(out.glob("*.rows.jsonl"))]
        assert len(found[-1]) == 4
    assert found[0] == found[1]


FULL = """
import os
import re
from pathlib import Path

import torch.nn.functional as F

said, real, calls = Path(os.environ["SAID"]), F.cross_entropy, []

def cross_entropy(logits, *args, **kwargs):
    calls.append(1)
    if os.environ.get("RANK") == "1" and len(calls) > 2 and len(logits) > 24 and not said.exists():
        said.write_text("")
        raise RuntimeError("CUDA out of memory. Tried to allocate more than there is")
    return real(logits, *args, **kwargs)

F.cross_entropy = cross_entropy
"""


@pytest.mark.slow
def test_memory_that_runs_out_where_weights_are_dealt_costs_no_step(corpus: Path, tmp_path: Path, alone: Path) -> None:
    """One rank fails inside its forward pass, and the others wait for it inside theirs."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "sitecustomize.py").write_text(FULL)
    file = experiment(tmp_path, corpus, "full", ranks=2, shard=True, micro_s=1000)
    env = environment(tmp_path)
    env |= {"PYTHONPATH": f"{tmp_path / 'full'}:{env['PYTHONPATH']}", "SAID": str(tmp_path / "said")}
    done = subprocess.run(
        command("train", file, "--run-dir", tmp_path / "run"), env=env, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "said").exists()
    saved, resumed = (re.search(p, done.stdout) for p in (r"saved step (\d), out of", r"resumed from step (\d)"))
    assert saved, done.stdout
    assert resumed, done.stdout
    assert saved[1] == resumed[1] != "0"
    assert not (tmp_path / "run" / ".pieces").exists()
    assert json.loads((tmp_path / "run" / "cut.json").read_text())
    trained_alike(alone, tmp_path / "run", 6)
