"""The page of one run: what it is worth, how it got there, where it fails, what it was fed, what it took."""

from collections.abc import Sequence
from statistics import median
from typing import Any

import yaml

from remote.clock import duration
from trainer.errors import BadData
from trainer.metrics.normalise import NORMALISERS, Normaliser
from trainer.report import overview
from trainer.report.alignment import Aligned, align_rows, frequent_errors, worst
from trainer.report.buckets import Bucket, fields_of, whole_of
from trainer.report.charts import bucket_chart, bucket_curves, curve_chart, dev_chart, loss_chart
from trainer.report.health import health_parts
from trainer.report.html import Markup, el, text
from trainer.report.parts import Figures, chart, section
from trainer.report.reading import ReadRun
from trainer.report.series import Curve, curve, evaluations, keys, paces, phases
from trainer.report.shell import document
from trainer.report.sounds import Sounds
from trainer.report.tables import Cell, bucket_table, count, facts, number, percent, spread, table
from trainer.report.utterances import card, frequent_lists, legend, some_at_once
from trainer.results import Told, sound_name

MOST_MEASURED = 8  # evaluations of dev in a table; of more, the first, the best and the last
MOST_HEARD = 30  # more utterances, of those whose sound was kept
WORST = 20  # utterances, where the recipe does not say how many
MOST_CURVES = 8  # values of a field whose curves can still be told apart


def run_page(read: ReadRun) -> bytes:
    """The file."""
    figures: Figures = {}
    head = Markup(overview.title(read) + (overview.hero(read) or ""))
    parts = [
        section("curves", "Training", _curves(read, figures)),
        section("buckets", "Error rates by bucket", _buckets(read, figures)),
        section("errors", "What goes wrong", _errors(read)),
        section("measured", "All measurements", _measurements(read)),
        section("data", "The data", health_parts(read.health, figures), _quarantine(read)),
        section("speed", "Speed and cost", _speed(read, figures)),
        section("provenance", "Where this comes from", _provenance(read)),
    ]
    names = {
        "curves": "Training", "buckets": "Buckets", "errors": "Errors", "measured": "Measurements", "data": "Data",
        "speed": "Speed", "provenance": "Provenance",
    }  # fmt: skip
    links = [(id, name) for (id, name), part in zip(names.items(), parts, strict=True) if part]
    return document(f"{read.name} – run report", [head, *parts], links, figures)


def dev_points(read: ReadRun) -> list[tuple[int, float, float | None, float | None]]:
    """(step, WER, low, high) of every evaluation of dev."""
    found = []
    for told in read.results.dev if read.results else []:
        score = whole_of(told.table)
        if score and told.step is not None:
            both = (score.low, score.high) if score.has_interval else (None, None)
            found.append((told.step, score.wer, *both))
    return found


def best_step(read: ReadRun) -> int | None:
    """The step whose weights the run stands for."""
    told = read.summary.get("best_step")
    if isinstance(told, int):
        return told
    after = [(wer, step) for step, wer, *_ in dev_points(read) if step > 0]
    return min(after)[1] if after else None


def normaliser_of(told: Told) -> tuple[Normaliser | None, str]:
    """The one by which it was scored, and what there is to say about that; None where this version has none."""
    name = str(told.provenance.get("normaliser", ""))
    found = NORMALISERS.get(name)
    if found is None:
        return None, f"This version has no normaliser {name!r}: its words cannot be aligned."
    sha = told.provenance.get("normaliser_sha256")
    if sha and sha != found.sha256:
        return (
            found,
            f"Aligned by the normaliser {name} of this version, which is not the one that the run was scored by.",
        )
    return found, ""


def _curves(read: ReadRun, figures: Figures) -> Sequence[Any]:
    lines, opened, shown = read.lines, phases(read.lines), []
    points, best = dev_points(read), best_step(read)
    if points:
        both = [f"{100 * wer:.1f} % at step {step}" for step, wer, *_ in (points[0], points[-1])]
        said = f"WER on dev over the steps: {both[0]}, {both[1]}."
        chosen = {read.name: best} if best is not None else {}
        shown.append(chart(figures, dev_chart({read.name: points}, chosen), "WER on dev", said))
    losses = {k.removeprefix("loss/"): curve(lines, k) for k in keys(lines, "loss/")}
    losses = {k: c for k, c in losses.items() if c}
    if losses:
        ends = ", ".join(f"{k} from {c.values[0]:.3g} to {c.values[-1]:.3g}" for k, c in losses.items())
        shown.append(chart(figures, loss_chart(losses, opened), "Loss", f"Loss over the steps: {ends}."))
    for field, named in _dev_by_field(read):
        said = f"WER on dev over the steps for each {field}."
        shown.append(chart(figures, bucket_curves(named), f"WER on dev by {field}", said))
    for key, name in (("lr", "Learning rate"), ("grad_norm", "Gradient norm")):
        found = curve(lines, key)
        if found:
            said = f"{name} over the steps, between {min(found.values):.3g} and {max(found.values):.3g}."
            shown.append(chart(figures, curve_chart({name: found}, name.lower(), opened), name, said))
    return el("div", shown, cls="two") if shown else []


def _dev_by_field(read: ReadRun) -> list[tuple[str, dict[str, Curve]]]:
    """Curves of the fields that have few enough values, where there are curves at all."""
    dev = [t for t in read.results.dev if t.step is not None] if read.results else []
    if len(dev) < 3:
        return []
    found: dict[str, dict[str, Curve]] = {}
    for field, buckets in fields_of(dev[-1].table).items():
        if 1 < len(buckets) <= MOST_CURVES:
            key = [(b.value, f"wer/{field}={b.value}") for b in buckets]
            found[field] = {
                value: Curve([t.step for t in dev if k in t.metrics], [t.metrics[k] for t in dev if k in t.metrics])  # type: ignore[misc]
                for value, k in key
            }
    return list(found.items())[:2]


def _buckets(read: ReadRun, figures: Figures) -> list[Markup]:
    results = read.results
    told = read.headline
    if results is None or told is None:
        return []
    before = results.before
    fields = fields_of(told.table, before.table if before and before is not told else ())
    if not fields:
        return []
    shown = [
        el(
            "p",
            f"On {overview.set_name(told)}. Lines are 95 % intervals. Before training: a ring, or a number (▸) at the "
            "edge where it lies far beyond. S, D, I count words mistaken, missed, added.",
            cls="muted",
        )
    ]
    for field, buckets in fields.items():
        said = f"WER by {field}: " + ", ".join(f"{b.value} {100 * b.after.wer:.1f} %" for b in buckets) + "."
        figure = chart(figures, bucket_chart(buckets), "", said)
        shown.append(el("h3", "By ", text(field)))
        shown.append(_beside(figure, bucket_table(field, buckets), buckets))
    return shown


def _beside(figure: Markup, numbers: Markup, buckets: Sequence[Bucket]) -> Markup:
    if len(buckets) > 12:
        return Markup(figure + el("details", el("summary", "as a table"), numbers, cls="fold"))
    return el("div", figure, numbers, cls="beside")


def _errors(read: ReadRun) -> list[Any]:
    told = read.headline
    try:
        rows = told.read_rows() if told else []
    except BadData as e:
        return [el("p", text(e.message), cls="note")]
    if told is None or not rows or "reference" not in rows[0]:
        return []
    normaliser, warning = normaliser_of(told)
    if normaliser is None:
        return [el("p", warning, cls="note")]
    aligned = align_rows(rows, normaliser)
    wrong = worst(aligned, _n_worst(read))
    in_it = {a.row["id"] for a in wrong}
    # what was kept with its sound was kept to be heard, however it was chosen
    heard = [a for a in worst(aligned, len(aligned)) if a.row["id"] not in in_it and _has_sound(read, a)]
    if not wrong:
        return [el("p", "Every utterance was heard as it was written.")]
    n_wrong = sum(a.errors > 0 for a in aligned)
    sounds = Sounds(read.run.sounds)
    cards = [card(a, sounds, n + 1) for n, a in enumerate([*wrong, *heard[:MOST_HEARD]])]
    return [
        el("p", warning, cls="note") if warning else None,
        el(
            "p",
            f"{number(n_wrong)} of {count(len(aligned), 'utterance')} with an error. The most frequent errors:",
            cls="muted",
        ),
        frequent_lists(frequent_errors(aligned)),
        el("h3", f"{count(len(wrong), 'utterance')} with most errors"),
        legend(),
        sounds.note(),
        some_at_once(cards),
    ]


def _has_sound(read: ReadRun, aligned: Aligned) -> bool:
    return (read.run.sounds / sound_name(str(aligned.row["id"]))).is_file()


def _n_worst(read: ReadRun) -> int:
    how = read.train.get("eval")
    told = how.get("worst") if isinstance(how, dict) else None
    return told if isinstance(told, int) and 0 < told <= 100 else WORST


def _measurements(read: ReadRun) -> list[Any]:
    results = read.results
    if results is None:
        return []
    chosen, dev = best_step(read), list(results.dev)
    few = [t for t in dev if t.step in (0, chosen) or t is dev[-1]] if len(dev) > MOST_MEASURED else dev
    rows = []
    for told in [*few, *results.test, *results.evaluated]:
        s = whole_of(told.table)
        if s:
            rows.append(
                [Cell(text(overview.set_name(told))), percent(s.wer, 2), spread(s), percent(s.cer), s.substitutions,
                 s.deletions, s.insertions, s.words, s.utterances]
            )  # fmt: skip
    return [table(["set", "WER", "95 %", "CER", "S", "D", "I", "words", "utterances"], rows)] if rows else []


def _quarantine(read: ReadRun) -> list[Any]:
    if not read.quarantine:
        return []
    n = sum(count for _, count in read.quarantine)
    rows = [[Cell(text(reason)), count] for reason, count in read.quarantine[:20]]
    more = len(read.quarantine) - 20
    return [
        el("h3", f"{number(n)} in quarantine"),
        table(["reason", "utterances"], rows, sortable=False),
        el("p", f"and {more} more reasons", cls="muted") if more > 0 else None,
    ]


def _speed(read: ReadRun, figures: Figures) -> list[Any]:
    lines = read.lines
    rate, made, evaluated = curve(lines, "audio_s_per_s"), paces(lines), evaluations(lines)
    skipped, lowered = curve(lines, "skipped_steps"), curve(lines, "scale_lowered")
    if not (rate or made):
        return []
    shown = []
    if rate:
        said = f"Seconds of audio trained on a second: {median(rate.values):.0f} in the middle."
        shown.append(
            chart(
                figures,
                curve_chart({"audio": rate}, "s of audio a second", from_nought=True),
                "Speed of training",
                said,
            )
        )
    if made:
        by_phase = {
            f"phase {n}": Curve([p.step for p in made if p.phase == n], [p.seconds for p in made if p.phase == n])
            for n in sorted({p.phase for p in made})
        }
        said = f"Seconds of wall time a step: {median(p.seconds for p in made):.3g} in the middle."
        shown.append(chart(figures, curve_chart(by_phase, "s a step", from_nought=True), "Time of a step", said))
    told = [
        ("audio a second, median", f"{median(rate.values):,.0f} s" if rate else None),
        ("a step, median", f"{median(p.seconds for p in made):.3g} s" if made else None),
        ("an evaluation of dev, median", duration(median(evaluated.values)) if evaluated else None),
        ("evaluations of dev, together", duration(sum(evaluated.values)) if evaluated else None),
        ("steps skipped, not finite", number(int(skipped.values[-1])) if skipped else None),
        ("steps skipped, fp16 scale", number(int(lowered.values[-1])) if lowered else None),
        (
            "whole run" if read.attempts < 2 else "the newest attempt",
            duration(read.duration_s) if read.duration_s else None,
        ),
        ("cost", f"${read.usd:,.2f}" if read.usd is not None else None),
        ("an hour of the machine", _per_hour(read)),
    ]
    return [facts(told), el("div", shown, cls="two")]


def _per_hour(read: ReadRun) -> str | None:
    if not read.usd or not read.duration_s or read.attempts > 1:  # the dollars are of all attempts
        return None
    return f"${3600 * read.usd / read.duration_s:.2f}"


def _provenance(read: ReadRun) -> list[Any]:
    told = read.headline
    said = told.provenance if told else {}
    known = ("normaliser", "normaliser_rules", "normaliser_sha256", "commit", "dirty", "run", "decode")
    pairs: list[tuple[str, Any]] = [
        ("run", el("code", text(read.name))),
        ("commit", el("code", text(read.source.get("commit") or said.get("commit") or "unknown"))),
        (
            "uncommitted changes",
            number(bool(read.source.get("dirty", said.get("dirty")))) if read.source or said else None,
        ),
        ("normaliser", overview.normaliser_name(said) if said else None),
        ("its rules", text(said["normaliser_rules"]) if said.get("normaliser_rules") else None),
        ("its sha256", el("code", text(said["normaliser_sha256"])) if said.get("normaliser_sha256") else None),
        ("decoding", _settings(said.get("decode"))),
        *[
            (k.replace("_", " "), text(_settings(v) or v))
            for k, v in said.items()
            if k not in known and v not in (None, "", {})
        ],
        ("machine", text(read.gpu) if read.gpu else None),
        ("packages", _settings((read.env.get("python") or {}).get("packages"))),
    ]
    rows = [el("tr", el("th", name, scope="row"), el("td", value)) for name, value in pairs if value not in (None, "")]
    shown: list[Any] = [el("div", el("table", el("tbody", rows)), cls="scroll")]
    if read.experiment:
        written = yaml.safe_dump(dict(read.experiment), sort_keys=False, allow_unicode=True, width=110)
        shown.append(
            el("details", el("summary", "the recipe, as it was sent (without secrets)"), el("pre", written), cls="fold")
        )
    return shown


def _settings(value: Any) -> Markup | None:
    if not isinstance(value, dict) or not value:
        return None
    return text(", ".join(f"{k} {v}" for k, v in value.items()))
