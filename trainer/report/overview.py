"""The top of a page: the number with its interval, what it was before, and what it took."""

from collections.abc import Mapping, Sequence
from typing import Any

from remote.clock import duration
from remote.rundir import FAILED, LOST, STOPPED, SUCCEEDED
from trainer.report.buckets import Score, whole_of
from trainer.report.html import Markup, el, text
from trainer.report.reading import ReadRun
from trainer.report.tables import count, facts, number
from trainer.results import Told

PILLS = {SUCCEEDED: "good", "trained": "good", FAILED: "bad", LOST: "bad", STOPPED: "wait"}

NAMES = {"lora": "LoRA", "dora": "DoRA", "qlora": "QLoRA"}


def title(read: ReadRun) -> Markup:
    """Name, state, and what ended it or how far it is."""
    said = [
        el("p", "run report", cls="over"),
        el("h1", text(read.name)),
        el("p", el("span", read.state, cls=f"pill {PILLS.get(read.state, 'wait')}"), " ", _state(read)),
    ]
    return el("header", said, cls="top")


def hero(read: ReadRun) -> Markup | None:
    """The number at the left, what it took at the right."""
    results = read.results
    told, before = read.headline, results.before if results else None
    return el("div", el("div", _number(read, told, before)), facts(facts_of(read)), cls="hero")


def facts_of(read: ReadRun) -> list[tuple[str, Any]]:
    """Model, length, time, dollars, machine, code."""
    train, progress = read.train, read.progress
    steps = None
    if progress is not None:
        of = progress.max_steps if progress.step != progress.max_steps else None
        steps = [number(progress.step), f" of {number(of)}" if of else "", f" ({progress.epoch:.3g} epochs)"]
    best = (
        read.summary.get("best_step") or (progress.best or {}).get("step")
        if progress
        else read.summary.get("best_step")
    )
    hours = next((h for line in reversed(read.lines) if isinstance(h := line.get("audio_h"), (int, float))), None)
    gpu = text(read.gpu) if read.gpu else None
    return [
        ("model", _model(train)),
        ("trained", _adapters(train)),
        ("steps", steps),
        ("best step", number(best) if best else None),
        ("audio trained on", f"{hours:,.1f} h" if hours else None),
        ("time", _time(read)),
        ("cost", _cost(read, hours)),
        ("machine", gpu),
        ("commit", _commit(read)),
    ]


def headline_of(told: Told) -> Score | None:
    """The line for all of a set; None where the task has no word error rate."""
    return whole_of(told.table)


def set_name(told: Told) -> str:
    """`test, greedy`, `dev at step 600`."""
    if told.set == "dev" and told.step is not None:
        return f"dev at step {told.step}" + (", before training" if told.step == 0 else "")
    return f"{told.set}, {told.what}" if told.what else told.set


def normaliser_name(provenance: Mapping[str, Any]) -> Markup:
    """`basic 1f2e3d4c`."""
    name, sha = provenance.get("normaliser", "unknown"), str(provenance.get("normaliser_sha256", ""))
    return el("span", text(name), " ", el("code", sha[:8], title=sha) if sha else None)


def _number(read: ReadRun, told: Told | None, before: Told | None) -> Sequence[Any]:
    score = headline_of(told) if told else None
    if told is None or score is None:
        said = read.summary.get("headline") or "Nothing was measured yet."
        return el("p", text(said), cls="was")
    spread = f"95 %: {100 * (score.low or 0):.1f}–{100 * (score.high or 0):.1f}" if score.has_interval else ""
    unit = told.table[0].get("unit")
    over = f", the interval over {unit}" if spread and unit else ""
    was = headline_of(before) if before and before is not told else None
    parts = [
        el("p", "WER on ", text(set_name(told)), cls="muted"),
        el("div", f"{100 * score.wer:.2f} %", el("small", spread), cls="number"),
        _change(was, score) if was else None,
        _made_of(score),
        el(
            "p",
            f"{count(score.words, 'word')} in {count(score.utterances, 'utterance')}{over}. Normaliser ",
            normaliser_name(told.provenance),
            f". CER {100 * score.cer:.2f} %." if score.cer is not None else ".",
            cls="muted small",
        ),
    ]
    missing = told.metrics.get("unusable") or 0
    if missing:
        parts.append(
            el("p", f"{count(int(missing), 'utterance')} without usable audio: counted as not heard.", cls="note")
        )
    return parts


def _change(was: Score, now: Score) -> Markup:
    points = 100 * (now.wer - was.wer)
    share = f", {abs(points) / (100 * was.wer):.0%} {'less' if points < 0 else 'more'}" if was.wer and points else ""
    kind = "good" if points < 0 else "bad" if points > 0 else "muted"
    return el(
        "p",
        el("span", "before training ", cls="muted"),
        el("b", f"{100 * was.wer:.1f} %"),
        el("span", " → ", cls="muted"),
        el("b", f"{100 * now.wer:.1f} %"),
        " ",
        el("span", f"({points:+.1f} points{share})".replace("-", "−"), cls=kind),
        cls="was",
    )


def _made_of(s: Score) -> Markup:
    """One bar of all reference words and what became of them, insertions at its end."""
    right = max(0, s.words - s.substitutions - s.deletions)
    parts = (
        ("ok", "right", right),
        ("S", "mistaken", s.substitutions),
        ("D", "missed", s.deletions),
        ("I", "added", s.insertions),
    )
    bar = [el("span", cls=kind, style=f"flex:{n} 0 0", title=f"{n} {name}") for kind, name, n in parts if n]
    key = [el("li", el("i", cls=kind), f"{number(n)} {name}") for kind, name, n in parts]
    return Markup(el("div", bar, cls="made", aria_hidden="true") + el("ul", key, cls="key"))


def _state(read: ReadRun) -> Markup | None:
    p = read.progress
    if read.state in (SUCCEEDED, "trained"):
        return None
    said = []
    if p is not None and p.max_steps:
        said.append(f"step {number(p.step)} of {number(p.max_steps)}")
    reason = read.receipt.get("reason") or (read.status.reason if read.status else "")
    if reason:
        said.append(str(reason))
    return text(": ".join(said)) if said else None


def _model(train: Mapping[str, Any]) -> Markup | None:
    model = train.get("model")
    model = model if isinstance(model, dict) else {}
    name = model.get("name")
    if isinstance(name, str):
        return text(name)
    if "from_scratch" in model:
        return el("span", text(train.get("task", "")), ", from scratch")
    return text(train["task"]) if train.get("task") else None


def _adapters(train: Mapping[str, Any]) -> Markup | str | None:
    adapters = train.get("adapters")
    if not train:
        return None
    if not isinstance(adapters, dict):
        return "all weights"
    kind = NAMES.get(str(adapters.get("kind", "lora")), adapters.get("kind"))
    rank = adapters.get("r")
    return el("span", text(kind), f", rank {rank}" if rank else "")


def _time(read: ReadRun) -> str | None:
    if read.duration_s is None:
        return None
    said = duration(read.duration_s)
    return f"{said} (attempt {read.attempts} alone)" if read.attempts > 1 else said


def _cost(read: ReadRun, hours: float | None) -> str | None:
    if read.usd is None:
        return None
    said = f"${read.usd:,.2f}"
    return f"{said} (${read.usd / hours:.3g} an hour of audio)" if hours and read.usd else said


def _commit(read: ReadRun) -> Markup | None:
    commit = read.source.get("commit")
    if not commit:
        told = read.headline
        commit = told.provenance.get("commit") if told else None
    if not commit:
        return None
    dirty = " + uncommitted changes" if read.source.get("dirty") else ""
    return el("span", el("code", str(commit)[:10], title=str(commit)), el("small", dirty) if dirty else None)
