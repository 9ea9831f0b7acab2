"""From raw files to a submission and a report, on an emulated pod: all by commands that a person types."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.machines import Machine, runpod_machine
from support.podctl_cli import Cli, Done
from support.speech import make_corpus, recipe_dict

from trainer.commands import NAMES

pytestmark = [pytest.mark.slow, pytest.mark.e2e, pytest.mark.timeout(900)]
LONG_S = 300.0  # real, for one command


@pytest.fixture
def machine(tmp_path: Path, cli: Cli) -> Iterator[Machine]:
    with runpod_machine(tmp_path) as machine:
        cli.env |= machine.env
        yield machine


def experiment(cli: Cli, machine: Machine, name: str, train: dict[str, Any], **top: Any) -> Path:
    path = cli.project / f"{name}.yaml"
    pod = {"max_hours": 1, **machine.pod_section}
    path.write_text(yaml.safe_dump({"name": name, "pod": pod, "train": train, **top}), encoding="utf-8")
    return path


def ok(done: Done) -> Done:
    assert done.code == 0, done
    return done


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_corpus_is_pushed_trained_on_evaluated_and_transcribed_on_rented_pods(
    machine: Machine, cli: Cli, tmp_path: Path
) -> None:
    sim = machine.extra["sim"]
    for part, n in (("train", 20), ("dev", 4), ("test", 6)):
        make_corpus(tmp_path / "corpus", n, seed=n, name=part)
    file = experiment(cli, machine, "words", recipe_dict(Path("corpus")))
    ok(cli("up", "-c", file, "--yes", timeout=LONG_S))
    ok(cli("push", tmp_path / "corpus", "--yes", timeout=LONG_S))
    trained = ok(cli("train", "-c", file, "--yes", "--json", timeout=LONG_S)).lines[-1]
    assert not sim.pods(), "its pod is given back"

    # another pod, on the same volume: the number is the one that the training reported
    evaluated = ok(cli("evaluate", "--yes", "--json", timeout=LONG_S)).lines[-1]
    assert evaluated["run"].startswith("words-eval-")
    assert evaluated["metrics"]["wer"] == trained["metrics"]["test/wer"]
    assert evaluated["headline"].startswith("WER")
    home = Path(trained["results"]) / "reports"
    (report,) = home.glob("evaluate-*.json")
    assert evaluated["copies"] == [str(report)]
    assert len(rows(report.with_suffix(".rows.jsonl"))) == 6

    told = ok(cli("predict", "words", "--input", "corpus/test.jsonl", "--to", "heard.jsonl", "--yes", timeout=LONG_S))
    assert "data/corpus/test.jsonl is looked for on the volume" in told.err
    heard = rows(cli.project / "heard.jsonl")
    assert {r["id"]: r["text"] for r in heard} == {r["id"]: r["text"] for r in rows(report.with_suffix(".rows.jsonl"))}
    assert not sim.pods()
    assert [p.status for p in sim.pods(gone=True)] == ["TERMINATED"] * 3
    spent = {e["run"]: e["usd"] for e in cli.events() if e["event"] == "billed"}
    assert len(spent) == 3
    assert all(usd > 0 for usd in spent.values())


NEEDS = ("audit", "compare", "report")  # beside `prepare children`, commands of the trainer that stand by themselves


def trainer(cli: Cli, *words: object) -> str:
    """The trainer on the laptop, on what came home."""
    argv = [sys.executable, "-m", "trainer", *map(str, words)]
    done = subprocess.run(argv, cwd=cli.project, env=cli.env, capture_output=True, text=True, timeout=LONG_S)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def children_recipe(steps: int) -> dict[str, Any]:
    """A tiny Whisper on what the prep stages made; its training set goes by its audit."""
    plain = recipe_dict(Path("kids"), loop={"steps": steps}, eval={"normaliser": "english", "buckets": ["age_bucket"]})
    keep = [{"drop": ["duplicate_sound"], "max_clipping": 0.2}]
    train = [{"manifest": "kids/train.jsonl", "audit": "kids/train.audit.jsonl", "keep": keep}]
    return {**plain, "data": {**plain["data"], "train": train, "dev": ["kids/dev_small.jsonl"]}}


def test_the_competitions_files_become_a_submission_and_a_report(machine: Machine, cli: Cli, tmp_path: Path) -> None:
    """push → prepare → audit → train, twice → evaluate → compare → predict → the format's check → the page."""
    missing = [name for name in NEEDS if name not in NAMES]
    if missing:
        pytest.skip(f"this trainer has no {', '.join(missing)}")
    from support.children import make_children

    sim = machine.extra["sim"]
    raw = make_children(tmp_path / "raw", n=150, n_test=8, n_long=2)
    kids = machine.volume / "data" / "kids"
    stages = [
        {
            "run": "trainer prepare children raw --out kids --dev 0.2 --test 0.2 --dev-small 16 --max-bad-share 0.2",
            "inputs": ["raw/train_word_transcripts.jsonl"],
            "outputs": [f"kids/{name}.jsonl" for name in ("train", "dev", "dev_small", "test", "submission")],
        },
        {
            "run": "trainer audit kids/train.jsonl kids/dev.jsonl kids/test.jsonl --buckets age_bucket",
            "inputs": ["kids/train.jsonl", "kids/dev.jsonl", "kids/test.jsonl"],
            "outputs": [f"kids/{name}.audit.jsonl" for name in ("train", "dev", "test")],
        },
    ]
    first = experiment(cli, machine, "kids-a", children_recipe(6), prep=stages)
    second = experiment(cli, machine, "kids-b", children_recipe(12), prep=stages)

    ok(cli("up", "-c", first, "--yes", timeout=LONG_S))
    pushed = ok(cli("push", raw.source, "--yes", "--json", timeout=LONG_S)).lines[-1]
    assert pushed["to"].endswith("/data")
    a = ok(cli("train", "-c", first, "--yes", "--json", timeout=LONG_S)).lines[-1]
    b = ok(cli("train", "-c", second, "--yes", "--json", timeout=LONG_S)).lines[-1]
    assert "unchanged" in (Path(b["results"]) / "log").read_text(), "what was prepared once is not prepared again"

    # what was made of the files: speakers on one side only, what is broken named, what is planted found
    sets = {name: rows(kids / f"{name}.jsonl") for name in ("train", "dev", "test", "quarantine")}
    speakers = {name: {r["speaker"] for r in sets[name] if "speaker" in r} for name in ("train", "dev", "test")}
    assert not speakers["train"] & (speakers["dev"] | speakers["test"])
    assert not speakers["dev"] & speakers["test"]
    assert {r["id"] for r in sets["quarantine"]} == raw.broken
    flags = {r["id"]: r["flags"] for name in ("train", "dev", "test") for r in rows(kids / f"{name}.audit.jsonl")}
    assert [i for i, found in flags.items() if "clipped" in found] == [raw.clipped]
    (copied,) = (i for i, found in flags.items() if "duplicate_sound" in found)
    assert copied in raw.duplicate

    # evaluated again on another pod: the number is the training's own, in every age bucket with an interval
    whole = {}
    for name, run in (("a", a), ("b", b)):
        done = ok(cli("evaluate", run["run"], "kids/test.jsonl", "--yes", "--json", timeout=LONG_S)).lines[-1]
        whole[name] = done["metrics"]["wer"]
        assert whole[name] == run["metrics"]["test/wer"]
        (copy,) = (Path(c) for c in done["copies"])
        assert copy.parent == Path(run["results"]) / "reports"
        assert list((Path(done["results"]) / "reports" / "audio").glob("*.flac")), "its worst can be listened to"
    trainer(cli, "compare", a["results"], b["results"])

    # a submission: the format's ids, in its order
    shape = tmp_path / "raw" / "test" / "submission_format.jsonl"
    words = ("--input", "kids/submission.jsonl", "--format", "kids/submission_format.jsonl", "--to", "answer.jsonl")
    predicted = ok(cli("predict", a["run"], *words, "--yes", "--json", timeout=LONG_S)).lines[-1]
    answer = cli.project / "answer.jsonl"
    assert predicted["copies"] == [str(answer)]
    assert [r["utterance_id"] for r in rows(answer)] == [r["utterance_id"] for r in rows(shape)]
    trainer(cli, "predict", "--check", answer, "--format", shape)

    # pages that need no other file, made here, of what came home
    for words in ((a["run"],), (a["run"], b["run"])):
        told = ok(cli("report", *words, "--no-browser", "--json", timeout=LONG_S)).lines[-1]
        assert told["made_here"]
        page = Path(told["file"]).read_text(encoding="utf-8")
        assert "<html" in page
        assert all(run in page for run in words)

    assert not sim.pods(), "nothing is paid for any more"
    assert all(p.status == "TERMINATED" for p in sim.pods(gone=True))
    billed = {e["run"] for e in cli.events() if e["event"] == "billed"}
    assert billed == {e["run"] for e in cli.events()}
