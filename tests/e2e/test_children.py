"""From raw files to a submission and a report, on an emulated pod: all by commands that a person types."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.machines import Machine, runpod_machine
from support.podctl_cli import Cli, Done
from support.speech import make_corpus, recipe_dict

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
