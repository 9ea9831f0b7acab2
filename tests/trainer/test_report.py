"""The page of a run, and of two: what it says, what it keeps to itself, and what no data can make of it."""

import base64
import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plotly.offline import get_plotlyjs
from support.reported import EXPERIMENT, SECRET, UNKIND, make_rows, make_run

from remote.files import read_json, write_json
from remote.rundir import RunDir
from trainer.__main__ import main
from trainer.errors import BadData
from trainer.metrics.normalise import normaliser_named
from trainer.metrics.wer import count_errors
from trainer.report.alignment import align, align_rows, frequent_errors, worst
from trainer.report.buckets import fields_of, in_order
from trainer.report.charts import difference_chart
from trainer.report.health import health_parts
from trainer.report.html import el, json_for_script, label
from trainer.report.pair_page import pair_page
from trainer.report.reading import kind_of, read_run
from trainer.report.run_page import run_page
from trainer.report.secrecy import HIDDEN, differences, without_secrets
from trainer.report.series import Curve, curve, evaluations, paces, read_lines, smooth, thin
from trainer.report.sounds import Sounds
from trainer.results import sound_name

WORDS = st.lists(st.sampled_from(["a", "b", "c", "שלום"]), max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=16,
)
PLOTLY = get_plotlyjs()
INLINE = ("bdi", "span", "b", "code", "small", "i")  # a word may go on behind these


class Reader(HTMLParser):
    """The text of a page, and its tags."""

    def __init__(self, page: str | bytes) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.said: list[str] = []
        self.sources: list[str] = []
        self.scripts: list[str] = []
        self._within: list[str] = []
        said = page if isinstance(page, str) else page.decode()
        self.feed(said.replace(PLOTLY, ""))  # 5 MB that are not ours to read

    @property
    def text(self) -> str:
        return " ".join("".join(self.said).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in INLINE:
            self.said.append(" ")
        self.sources += [v or "" for k, v in attrs if k in ("src", "href")]
        if tag in ("script", "style"):
            self._within.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self._within and self._within[-1] == tag:
            self._within.pop()

    def handle_data(self, data: str) -> None:
        (self.scripts if self._within else self.said).append(data)


def page_of(*runs: RunDir, **how: Any) -> Reader:
    read = [read_run(run.root, **how) for run in runs]
    return Reader(pair_page(*read) if len(read) > 1 else run_page(*read))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return make_run(tmp_path_factory.mktemp("whole"), extra=[UNKIND])


# what is computed


@given(WORDS, WORDS)
def test_an_alignment_has_the_errors_that_were_counted_and_reads_as_both_texts(
    said: list[str], heard: list[str]
) -> None:
    pairs = align(said, heard)
    counted = count_errors(said, heard)
    kinds = [p.kind for p in pairs]
    assert (kinds.count("S"), kinds.count("D"), kinds.count("I")) == (
        counted.substitutions, counted.deletions, counted.insertions,
    )  # fmt: skip
    assert [p.said for p in pairs if p.kind != "I"] == said
    assert [p.heard for p in pairs if p.kind != "D"] == heard


def test_the_worst_come_first_and_what_was_not_heard_at_all_is_none_of_them() -> None:
    rows = [{**r, "text": r["text"] if n % 9 else ""} for n, r in enumerate(make_rows(40, 2.0))]
    rows[3]["reason"] = "no such file"
    aligned = align_rows(rows, normaliser_named("basic"))
    first = worst(aligned, 10)
    assert len(aligned) == 39
    assert [a.errors for a in first] == sorted((a.errors for a in aligned), reverse=True)[:10]
    found = frequent_errors(aligned, most=1000)
    everything = [*found.substituted, *found.deleted, *found.inserted]
    assert sum(n for _, n in everything) == sum(a.errors for a in aligned)


NUMBERS = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300)


@given(NUMBERS, st.integers(4, 50))
def test_a_thinned_curve_keeps_its_ends_and_extremes_in_order(values: list[float], most: int) -> None:
    whole = Curve(list(range(len(values))), values)
    few = thin(whole, most)
    assert len(few.steps) <= max(most, 2)
    assert list(few.steps) == sorted(set(few.steps))
    assert [values[s] for s in few.steps] == list(few.values)
    assert {0, len(values) - 1} <= set(few.steps)
    assert (min(few.values), max(few.values)) == (min(values), max(values))


@given(NUMBERS, st.integers(1, 20))
def test_a_running_mean_stays_within_the_curve_and_lags_neither_way(values: list[float], over: int) -> None:
    at = list(range(len(values)))
    mean = smooth(Curve(at, values), over).values
    slack = 1e-6 * (1 + max(map(abs, values)))
    assert min(values) - slack <= min(mean)
    assert max(mean) <= max(values) + slack
    assert list(smooth(Curve(at, values[::-1]), over).values) == pytest.approx(list(mean)[::-1], abs=slack)


def test_torn_and_foreign_lines_are_no_numbers() -> None:
    lines = read_lines(
        '{"step": 1, "loss/ce": NaN}\n[1]\n"x"\n{"step": 2, "loss/ce": 3}\n{"step": 3, "loss/ce": "x"}\n{"st'
    )
    assert curve(lines, "loss/ce") == Curve([2], [3.0])


def test_of_a_run_that_was_resumed_the_time_is_said_to_be_the_last_attempts(tmp_path: Path) -> None:
    """The dollars are of all of them, so an hour of the machine is not known."""
    run = make_run(tmp_path / "run")
    write_json(run.receipt, {**read_json(run.receipt), "attempts": 3})
    said = Reader(run_page(read_run(run.root))).text
    assert "1 h 6 m (attempt 3 alone)" in said
    assert "in 3 attempts" not in said
    assert "an hour of the machine" not in said
    assert "the newest attempt" in said


def test_the_time_of_a_step_holds_neither_evaluations_nor_the_night_between_two_attempts() -> None:
    def log(step: int, t: float) -> dict[str, float]:
        return {"step": step, "t": t, "lr": 1.0}

    lines = [log(10, 100), log(20, 120), {"step": 20, "t": 150, "dev/wer": 0.5}, log(30, 170), log(40, 99_000)]
    lines += [{"step": 45, "t": 99_500, "dev/wer": 0.4}, log(50, 99_520), log(60, 99_540)]
    assert [(p.step, p.seconds) for p in paces(lines)] == [(20, 2.0), (30, 2.0), (60, 2.0)]
    assert evaluations(lines) == Curve([20], [30])


def test_of_many_values_the_largest_are_shown_and_the_rest_summed_without_loss() -> None:
    table = [{"set": "all", "wer": 0.1, "N": 999}]
    table += [
        {"set": f"speaker=s{n}", "wer": 0.5, "S": n, "D": 1, "I": 0, "N": 10 + n, "utterances": 1} for n in range(60)
    ]
    buckets = fields_of(table)["speaker"]
    assert len(buckets) == 41
    assert buckets[-1].value == "the rest (20)"
    assert sum(b.after.words for b in buckets) == sum(10 + n for n in range(60))
    assert sum(b.after.substitutions for b in buckets) == sum(range(60))
    assert buckets[-1].after.cer is None, "no row says how many characters"


def test_values_stand_in_the_order_that_people_expect() -> None:
    assert in_order(["unknown", "12+", "8-11", "3-4", "5-7"], str) == ["3-4", "5-7", "8-11", "12+", "unknown"]
    durations = ["longer", "under 10 s", "under 3 s", "under 30 s", "under 1 s"]
    assert in_order(durations, str) == ["under 1 s", "under 3 s", "under 10 s", "under 30 s", "longer"]


def test_reasons_of_one_kind_are_counted_together() -> None:
    assert kind_of("audio/a 1.wav: no such file") == kind_of("audio/b 2.wav: no such file")
    assert kind_of("0.02 s is too short") == kind_of("0.04 s is too short")
    assert kind_of("0.02 s is too short") != kind_of("an empty text")


# what may not leak, and what may not run


@given(st.text(), st.text())
def test_text_of_the_data_is_text_of_the_page(inside: str, attribute: str) -> None:
    reader = Reader(el("p", inside, title=attribute))
    assert reader.tags == ["p"]
    shown = "".join(reader.said)[1:]
    assert len(shown) == len(inside)
    assert all(a in (b, "\ufffd", "?") for a, b in zip(shown, inside, strict=True))


@given(JSON)
def test_json_in_a_script_never_ends_it_and_means_the_same(value: Any) -> None:
    written = json_for_script({"x": value})
    assert not set(written) & set("<>&\u2028\u2029")
    back = json.loads(written)["x"]
    if isinstance(value, str) and value.isprintable():
        assert back == value


@pytest.mark.parametrize("names", [("full", "lora"), ("beta", "alpha"), ("b is", "a is")])
def test_the_legend_of_differences_names_the_run_that_is_better(names: tuple[str, str]) -> None:
    rows = [("x", -1.0, -2.0, -0.5, 0.01, ""), ("y", 1.0, 0.5, 2.0, 0.01, ""), ("z", 0.1, -1.0, 1.0, 0.5, "")]
    found = [trace.name for trace in difference_chart(rows, names).data]
    assert found == [f"{names[1]} is better", f"{names[0]} is better", "may be chance"]


def test_a_chart_reads_no_tags_in_labels() -> None:
    assert "<" not in label("<a href='javascript:alert(1)'>x</a>", 100)


def test_of_secrets_the_names_are_shown_and_never_the_values() -> None:
    told = without_secrets(
        {
            "pod": {"env": {"A": "1", "B": ["2"]}, "secrets": ["HF_TOKEN"]},
            "train": {"api_key": "abc", "command": f"login --token={SECRET} https://me:pw@host/x", "max_tokens": 3},
            "note": SECRET,
        }
    )
    assert told["pod"] == {"env": {"A": HIDDEN, "B": HIDDEN}, "secrets": ["HF_TOKEN"]}
    assert (told["train"]["api_key"], told["train"]["max_tokens"]) == (HIDDEN, 3)
    assert not {SECRET, "pw", "me"} & set(
        json.dumps(told).replace(":", " ").replace("@", " ").replace('"', " ").split()
    )
    assert SECRET not in json.dumps(told)


def test_a_page_shows_no_secret_and_asks_nobody_for_anything(run: RunDir) -> None:
    reader = page_of(run)
    assert "MY_SETTING" in reader.text
    assert SECRET not in "".join([*reader.said, *reader.scripts, *reader.sources])
    assert all(s.startswith(("#", "data:audio/flac;base64,")) for s in reader.sources)


def test_whatever_stands_in_the_data_a_page_has_the_scripts_of_a_page(run: RunDir, tmp_path: Path) -> None:
    reader, plain = page_of(run), page_of(make_run(tmp_path))
    assert reader.tags.count("script") == plain.tags.count("script") == 3
    assert not {"img", "iframe", "object", "link", "svg", "b onload"} & set(reader.tags)
    assert "</script><script>document.title='taken'</script>" in reader.text


@settings(max_examples=60, deadline=None)
@given(JSON)
def test_data_health_is_drawn_whatever_is_in_it(health: Any) -> None:
    figures: dict[str, Any] = {}
    parts = "".join(health_parts({"train": health, "<marquee>": {"x": health}}, figures))
    assert not {"marquee", "script"} & set(Reader(parts).tags)


def test_data_health_becomes_tables_bars_and_histograms(run: RunDir) -> None:
    reader = page_of(run)
    assert "utterances hours speakers" in reader.text
    assert "max_wer 190; max_chars_per_s 31" in reader.text
    assert "5-7 1 260 1.17" in reader.text
    assert "duplicate_sound 4" in reader.text
    assert {"quarantined", "by limit", "left out, h"} <= {s.strip() for s in reader.said}


# what a page says


def test_a_page_begins_with_the_number_and_what_it_took(run: RunDir) -> None:
    told = read_run(run.root).headline
    assert told is not None
    text = page_of(run).text
    shown = told.table[0]
    for part in (
        f"{100 * shown['wer']:.2f} %", f"{100 * shown['low']:.1f}–{100 * shown['high']:.1f}", "before training",
        "$1.87", "1 h 6 m", "NVIDIA L4", "0123456789", "uncommitted changes", "openai/whisper-small.en", 
        "LoRA, rank 16",         told.provenance["normaliser_sha256"][:8], "7 in quarantine", "an hour of audio",
    ):  # fmt: skip
        assert part in text, part
    # the run's directory alone: its ids, texts and sounds
    assert text.index("Training") < text.index("Error rates by bucket") < text.index("What goes wrong")


def test_what_a_person_says_it_cost_is_what_it_cost(run: RunDir) -> None:
    assert "$12.00" in page_of(run, usd=12.0).text


def test_the_sounds_of_the_worst_are_in_the_page_up_to_its_size(run: RunDir) -> None:
    sources = [s for s in page_of(run).sources if s.startswith("data:audio")]
    assert len(sources) == 6
    held = {base64.b64decode(s.partition(",")[2]) for s in sources}
    assert held == {p.read_bytes() for p in run.sounds.iterdir()}
    ids = [
        a.row["id"] for a in worst(align_rows(read_run(run.root).headline.read_rows(), normaliser_named("basic")), 6)
    ]  # type: ignore[union-attr]
    small = Sounds(run.sounds, most_bytes=2 * 4 * (run.sounds / sound_name(ids[0])).stat().st_size // 3)
    players = [small.player(i) for i in ids]
    assert any(players)
    assert small.left_out == sum(p is None for p in players) > 0
    assert "left out" in (small.note() or "")


def test_each_part_is_there_only_where_its_data_is(run: RunDir, tmp_path: Path) -> None:
    bare = RunDir(tmp_path / "bare")
    bare.root.mkdir()
    bare.metrics.write_bytes(run.metrics.read_bytes())
    text = page_of(bare).text
    assert "Nothing was measured yet" in text
    assert "Loss" in text
    assert not any(part in text for part in ("Error rates by bucket", "What goes wrong", "The data", "Both runs"))
    empty = RunDir(tmp_path / "empty")
    empty.reports.mkdir(parents=True)
    assert "Nothing was measured yet" in page_of(empty).text


def test_a_run_that_goes_on_says_how_far_it_is(tmp_path: Path) -> None:
    text = page_of(make_run(tmp_path, ended=False)).text
    assert "running step 600 of 1 200" in text
    assert "WER on dev at step 600" in text


@pytest.mark.parametrize(
    "name",
    ["experiment.yaml", "receipt.json", "metrics.jsonl", "status.json", "progress.json", "env.json", "quarantine.jsonl",
     "reports/dev.jsonl", "reports/test.jsonl", "reports/summary.json", "reports/data.json"],
)  # fmt: skip
def test_a_file_that_is_torn_or_lies_costs_only_its_own_part(name: str, tmp_path: Path) -> None:
    run = make_run(tmp_path, steps=12, n_sounds=0, bootstrap=0)
    path = run.root / name
    whole = path.read_bytes()
    for lie in (whole[: len(whole) // 2], b'[3]\n3\n{"a": [3]}\n\xff'):
        path.write_bytes(lie)
        assert "children-261122-101500-ab12" in page_of(run).text


def test_of_two_runs_the_page_says_which_is_better_and_how_sure_that_is(run: RunDir, tmp_path: Path) -> None:
    experiment = {**EXPERIMENT, "train": {**EXPERIMENT["train"], "optim": {"lr": 3e-4}}}
    better = make_run(tmp_path, name="better", quality=0.4, experiment=experiment)
    text = page_of(run, better).text
    assert "better is better" in text
    assert "p ≤ 0.002" in text
    assert "1 utterance in the first alone" in text
    assert "train.optim.lr" in text
    assert "0.0003" in text
    assert "fewer errors of" in text
    backwards = page_of(better, run).text
    assert f"{run.root.name} is better" not in backwards


def test_curves_of_two_dev_sets_are_not_held_against_each_other(run: RunDir, tmp_path: Path) -> None:
    other = make_run(tmp_path, name="other", n_sounds=0, bootstrap=0)
    note = "not measured on the same dev set"
    assert note not in page_of(run, other).text
    dev = other.reports / "dev.jsonl"
    lines = [json.loads(line) for line in dev.read_text().splitlines()]
    for line in lines:
        line["provenance"]["data_sha256"] = "of another manifest"
    dev.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert note in page_of(run, other).text


def test_runs_that_cannot_be_compared_are_still_shown_side_by_side(run: RunDir, tmp_path: Path) -> None:
    other = make_run(tmp_path, name="other", n_sounds=0)
    rows = other.reports / "test-greedy.rows.jsonl"
    rows.write_text(rows.read_text().replace("utt-2-", "elsewhere-"))
    assert "no utterance in common" in page_of(run, other).text
    rows.unlink()
    text = page_of(run, other).text
    assert "transcripts of other are not here" in text
    assert "Both runs" in text
    assert "The recipes are the same." in text


# the command


def test_the_command_writes_beside_the_run_and_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path, steps=12, n_sounds=0, bootstrap=0)
    assert main(["report", str(run.root)]) == 0
    assert Path(capsys.readouterr().out.strip()) == run.page
    assert b"run report" in run.page.read_bytes()
    assert main(["report", str(run.root), "--out", str(run.reports)]) == 1
    assert "--out" in capsys.readouterr().err


def test_what_is_no_run_is_one_clear_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (tmp_path, tmp_path / "a'; rm -rf /", Path(__file__)):
        assert main(["report", str(path)]) == BadData.exit_code
        said = capsys.readouterr().err
        assert "is no run directory" in said
        assert "→" in said


def test_a_laptop_needs_no_torch_and_is_told_what_it_does_need(tmp_path: Path) -> None:
    run = make_run(tmp_path, steps=12, n_sounds=0, bootstrap=0)
    code = (
        "import sys; from trainer.__main__ import main; code = main(['report', sys.argv[1]])\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
        "sys.modules |= {'plotly': None, 'plotly.graph_objects': None, 'plotly.offline': None}\n"
        "sys.exit(10 * main(['report', sys.argv[1]]) + code)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(run.root)], capture_output=True, text=True, check=False)
    assert done.returncode == 10, done.stderr
    assert "needs plotly" in done.stderr
    assert "→ pip install plotly" in done.stderr
    assert differences({"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"c": 3}}) == [("b.c", 2, 3)]
