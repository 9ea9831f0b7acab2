"""A run directory as a whole training of children's speech would have left it, out of nothing: for tests of reports."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import yaml
from support.speech import RATE

from remote.files import write_json
from remote.rundir import Progress, RunDir, Status, write_dataclass
from trainer.metrics.transcripts import score_transcripts
from trainer.recipe.eval import Eval
from trainer.results import sound_name
from trainer.task import Row

AGES = {"3-4": 0.16, "5-7": 0.09, "8-11": 0.05, "12+": 0.04, "unknown": 0.11}  # and how often a word is misheard
WORDS = ["the", "a", "my", "big", "red", "little", "dog", "ball", "cat", "runs", "jumps", "sees", "likes", "over"]
WORDS += ["under", "mommy", "said", "look", "there", "goes", "blue"]
MISHEARD = {"the": "a", "my": "by", "red": "bread", "cat": "hat", "runs": "rums", "goes": "does", "there": "where"}
BEGAN = 1_795_000_000.0
SECRET = "hf_ThisMustNeverBeSeenAnywhere"

UNKIND: Row = {
    "id": "</script><script>document.title='taken'</script>",
    "text": "<img src=x onerror=\"document.title='taken'\"> שלום <b>עולם</b> \ud800",
    "reference": "שלום עולם \u202e יפה מאוד",
    "speaker": "'\"><svg onload=alert(1)>",
    "duration_s": 2.0,
    "buckets": {"age": "<script>alert(1)</script>", "a'; rm -rf /": "\x00"},
}

EXPERIMENT: dict[str, Any] = {
    "name": "children",
    "pod": {
        "provider": "runpod",
        "gpu": ["NVIDIA L4"],
        "max_hours": 6,
        "env": {"MY_SETTING": SECRET},
        "secrets": ["HF_TOKEN"],
    },
    "train": {
        "task": "whisper",
        "model": {"name": "openai/whisper-small.en"},
        "data": {"train": ["train.jsonl"], "dev": ["dev.jsonl"], "test": ["test.jsonl"], "max_s": 30},
        "adapters": {"kind": "lora", "r": 16},
        "optim": {"lr": 1.0e-4},
        "loop": {"steps": 1200, "step_s": 240, "precision": "bf16"},
        "eval": {"normaliser": "basic", "every_steps": 200, "buckets": ["age", "noise", "duration", "speaker"]},
    },
}


def make_rows(n: int, harder: float = 1.0, seed: int = 0, n_speakers: int = 24) -> list[Row]:
    """Transcripts with errors, of all three kinds; the younger the speaker, the more of them."""
    rng = np.random.default_rng(seed)  # the same words whatever is heard
    chance = np.random.default_rng((seed, round(1e6 * harder)))
    rows: list[Row] = []
    for i in range(n):
        speaker = int(rng.integers(0, n_speakers))
        age = list(AGES)[speaker % len(AGES)]
        said = [str(w) for w in rng.choice(WORDS, size=rng.integers(2, 14))]
        noise = "noisy" if rng.random() < 0.3 else "quiet"
        share = min(0.97, AGES[age] * harder * (1.8 if noise == "noisy" else 1.0))
        heard: list[str] = []
        for word in said:
            if chance.random() > share:
                heard.append(word)
            elif chance.random() < 0.55:
                heard.append(MISHEARD.get(word, "uh"))
            elif chance.random() < 0.5:
                heard += [word, "and"]
        duration_s = round(0.4 + 0.35 * len(said), 2)
        length = next((f"under {edge} s" for edge in (1, 3, 10, 30) if duration_s < edge), "longer")
        buckets = {"age": age, "noise": noise, "duration": length, "speaker": f"child-{speaker:02d}"}
        rows.append(
            {"id": f"utt-{seed}-{i:04d}", "text": " ".join(heard), "reference": " ".join(said).capitalize() + ".",
             "speaker": f"child-{speaker:02d}", "duration_s": duration_s, "buckets": buckets}
        )  # fmt: skip
    return rows


def make_run(
    folder: Path,
    *,
    name: str = "children-261122-101500-ab12",
    quality: float = 1.0,
    steps: int = 1200,
    extra: Sequence[Row] = (),
    n_sounds: int = 6,
    ended: bool = True,
    experiment: Mapping[str, Any] = EXPERIMENT,
    bootstrap: int = 60,
) -> RunDir:
    """All files but checkpoints. `quality` scales the errors; `extra` rows join the test set."""
    run = RunDir(folder / name)
    run.reports.mkdir(parents=True)
    run.experiment.write_text(yaml.safe_dump(dict(experiment), sort_keys=False), encoding="utf-8")
    write_json(run.source, {"commit": "0123456789abcdef0123456789abcdef01234567", "dirty": True})
    write_json(run.env, {"cpus": 8, "gpus": [{"name": "NVIDIA L4"}], "python": {"packages": {"torch": "2.13.0"}}})
    how = Eval(normaliser="basic", every_steps=200, bootstrap=bootstrap)
    every = max(1, steps // 6)
    dev = []
    done = steps if ended else steps // 2
    for step in range(0, done + 1, every):
        rows = make_rows(60, quality * (1 + 6 * math.exp(-4 * step / steps)), seed=1)
        dev.append((step, _told(rows, how, name, step=step), rows))
    _write_lines(run.reports / "dev.jsonl", [told for _, told, _ in dev])
    _write_lines(run.reports / "dev.rows.jsonl", dev[-1][2])
    _write_metrics(run, steps, done, {step: told["metrics"] for step, told, _ in dev})
    best = {"step": done, "metric": "wer", "value": dev[-1][1]["metrics"]["wer"]}
    progress = Progress(done, steps, 3.2, "train", BEGAN, BEGAN, loss=0.2, eta_s=600.0, best=best, audio_s_per_s=310.0)
    write_dataclass(run.progress, progress)
    state = "succeeded" if ended else "running"
    ended_at = BEGAN + 4000 if ended else None
    status = Status(name, 1, "boot", state, "train", 1, BEGAN, BEGAN + 4000, ended_at, 0 if ended else None)
    write_dataclass(run.status, status)
    if not ended:
        return run
    rows = [*make_rows(240, quality, seed=2), *extra]
    before = [*make_rows(240, 7.0, seed=2), *extra]
    tests = [_told(before, how, name, what="before training"), _told(rows, how, name, what="greedy")]
    _write_lines(run.reports / "test.jsonl", tests)
    _write_lines(run.reports / "test-greedy.rows.jsonl", rows)
    _write_lines(run.quarantine, [{"id": f"q{i}", "reason": f"audio/q{i}.wav: no such file"} for i in range(7)])
    write_json(run.data_health, health())
    headline = f"test WER {100 * tests[1]['metrics']['wer']:.2f} %"
    write_json(run.summary, {"headline": headline, "best_step": steps, "metrics": tests[1]["metrics"]})
    receipt = {"run": name, "state": "succeeded", "reason": "", "usd": 1.87, "duration_s": 4000.0, "attempts": 1}
    write_json(run.receipt, receipt)
    _write_sounds(run, rows, n_sounds)
    return run


def health() -> dict[str, Any]:
    """What a training says of its sets, and an audit of its sources."""

    def of(name: str, n: int, hours: float, speakers: int) -> dict[str, Any]:
        shares = (0.1, 0.3, 0.35, 0.15, 0.1)
        buckets = [(f"age={a}", s) for a, s in zip(AGES, shares, strict=True)] + [
            ("noise=noisy", 0.3),
            ("noise=quiet", 0.7),
        ]
        return {
            "set": name,
            "utterances": n,
            "hours": hours,
            "speakers": speakers,
            "sha256": "b" * 64,
            "durations_s": {
                "edges": [0, 1, 2, 3, 5, 10, 20, 30],
                "utterances": [n // k for k in (20, 5, 4, 4, 6, 20, 90, 200)],
            },
            "chars_per_s": {"p1": 1.2, "p10": 3.4, "p50": 9.1, "p90": 15.0, "p99": 19.2},
            "buckets": [{"set": b, "utterances": round(n * s), "hours": round(hours * s, 2)} for b, s in buckets],
            "quarantined": {"utterances": 10, "reasons": {"no such file": 7, "shorter than … s": 3}},
        }

    rules = [
        {"where": {"age": ["3-4", "5-7"]}, "utterances": 1680, "left_out": 212, "left_out_h": 0.21,
         "by_limit": {"max_wer": 190, "max_chars_per_s": 31}},
        {"where": {}, "utterances": 2520, "left_out": 31, "left_out_h": 0.02, "by_limit": {"max_wer": 31}},
    ]  # fmt: skip
    source = {"source": "talkbank", "utterances": 4443, "hours": 4.1, "used": 4200, "used_hours": 3.9}
    source |= {"filtered": {"max_s": 0, "keep": 243}, "rules": rules, "audit_sha256": "c" * 64}
    source |= {"audit": {"utterances": 4443, "flags": {"clipped": 12, "duplicate_sound": 4, "disagrees": 260}}}
    return {
        "sets": [of("train", 4200, 3.9, 61), of("dev", 200, 0.2, 8), of("test", 240, 0.23, 24)],
        "sources": [source],
    }


def _told(rows: Sequence[Row], how: Eval, run: str, **more: Any) -> dict[str, Any]:
    report = score_transcripts(rows, how)
    provenance = {
        **report.provenance,
        "run": run,
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "decode": {"beams": 1, "max_new_tokens": 128, "window": "own"},
        "precision": "bf16",
        "data_sha256": "a" * 64,
    }
    return {**more, "metrics": dict(report.metrics), "table": list(report.table), "provenance": provenance}


def _write_metrics(run: RunDir, steps: int, end: int, dev: Mapping[int, Mapping[str, float]]) -> None:
    rng = np.random.default_rng(3)
    lines, t = [], BEGAN
    every = max(1, steps // 120)
    for step in range(0, end + 1, every):
        if step:
            t += every * 0.8 * float(rng.uniform(0.9, 1.2))
            done = step / steps
            loss = 0.25 + 3.5 * math.exp(-7 * done) + float(rng.normal(0, 0.06))
            values = {
                "loss/ce": loss,
                "lr": 1e-4 * min(1.0, 10 * done) * (1 - done),
                "grad_norm": 1 + float(rng.gamma(2, 0.3)),
            }
            values |= {
                "audio_s_per_s": float(rng.normal(310, 12)),
                "epoch": 3.2 * done,
                "skipped_steps": 0.0,
                "audio_h": 22 * done,
            }
            lines.append({"step": step, "t": t, **values, "phase": 1.0 if done < 0.3 else 2.0})
        if step in dev:
            t += 6.5
            lines.append({"step": step, "t": t, **{f"dev/{k}": v for k, v in dev[step].items()}})
    _write_lines(run.metrics, lines)


def _write_sounds(run: RunDir, rows: Sequence[Row], n: int) -> None:
    from trainer.metrics.normalise import normaliser_named
    from trainer.report.alignment import align_rows, worst

    run.sounds.mkdir()
    for aligned in worst(align_rows(rows, normaliser_named("basic")), n):
        t = np.arange(round(float(aligned.row["duration_s"]) * RATE)) / RATE
        wave = 0.2 * np.sin(2 * np.pi * 300 * t).astype(np.float32)
        soundfile.write(run.sounds / sound_name(str(aligned.row["id"])), wave, RATE, format="FLAC")


def _write_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
