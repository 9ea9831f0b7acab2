"""The card's figures are those of the report, whatever the buckets are called, and people's own words on it stay."""

import argparse
import html
import json
import re
from pathlib import Path

import pytest
import yaml
from support.measured import RECIPE, measured_run, whole_model

from remote.files import read_json
from remote.rundir import RunDir
from trainer.card_file import END, Card, card_file, is_ours, read_front
from trainer.errors import BadData
from trainer.model_card import Facts, cell, make_card, percent
from trainer.parcel import pack, without_places
from trainer.push import Wanted, make_push
from trainer.results import read_results


def facts_of(run: RunDir, **more: object) -> Facts:
    provenance = read_json(run.export / "provenance.json")
    return Facts(
        **{"repo": "ada/ears", "what": "export", "recipe": RECIPE, "provenance": provenance,
           "results": read_results(run), "license": "apache-2.0", **more}
    )  # fmt: skip


def wanted(run: RunDir, model: Path | None = None) -> Wanted:
    return make_push(argparse.Namespace(run=run.root, model=model, repo="ada/ears", what="export"))


def tables(page: str) -> dict[str, list[str]]:
    """First cell → cells of every table, as a reader of the page sees them."""
    found = {}
    for line in page.splitlines():
        if line.startswith("| "):
            cells = [c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]]
            shown = [html.unescape(re.sub(r"\\(.)", r"\1", c)) for c in cells]
            found[shown[0]] = shown
    return found


def test_every_figure_of_the_report_stands_on_the_card_and_no_other(tmp_path: Path) -> None:
    run = measured_run(tmp_path / "run-1")
    page = card_file(make_card(facts_of(run)))
    before, told, other = [json.loads(line) for line in (run.reports / "test.jsonl").read_text().splitlines()]
    earlier = {line["set"]: line for line in before["table"]}
    read = tables(page)
    read.pop("set")
    shown = [line for line in told["table"] if not line["set"].startswith("speaker=")]
    assert len(read) == len(shown) > 5
    for line in shown:
        cells = read[" ".join(line["set"].split())]
        assert cells[1] == percent(line["wer"])
        assert cells[2] == f"{percent(line['low'])} – {percent(line['high'])}"
        assert cells[3] == percent(earlier[line["set"]]["wer"])
        assert cells[4] == percent(line["cer"])
        assert [int(c) for c in cells[5:]] == [line[k] for k in ("S", "D", "I", "N", "utterances")]
    metrics = {m["type"]: m["value"] for m in read_front(page)["model-index"][0]["results"][0]["metrics"]}
    assert metrics == {k: round(100 * told["metrics"][k], 2) for k in ("wer", "cer")}
    assert f"padded to the full window: WER {percent(other['metrics']['wer'])}" in page
    assert told["provenance"]["normaliser_sha256"] in page
    assert told["provenance"]["data_sha256"] in page
    assert "12.35 h, 4321 utterances" in page
    assert "for $12.50" in page
    assert "1.50 h" in page
    assert "NVIDIA H100" in page
    assert "0123abcd" in page


def test_people_are_not_named_on_it(tmp_path: Path) -> None:
    run = measured_run(tmp_path / "run-1")
    page = card_file(make_card(facts_of(run)))
    parcel = pack(run.export, "export")
    assert b"child" not in b"".join(f for n, f in parcel.files.items() if isinstance(f, bytes) and n != "recipe.json")
    assert "child" not in page
    assert "By speaker (4)" in page


def test_front_matter_is_what_the_hub_s_index_asks_for(tmp_path: Path) -> None:
    page = card_file(make_card(facts_of(measured_run(tmp_path / "run-1"))))
    front = yaml.safe_load(page.split("---\n")[1])
    assert front["language"] == ["he"]
    assert front["license"] == "apache-2.0"
    assert front["base_model"] == "openai/whisper-small"
    assert front["pipeline_tag"] == "automatic-speech-recognition"
    assert front["library_name"] == "transformers"
    result = front["model-index"][0]["results"][0]
    assert result["task"]["type"] == "automatic-speech-recognition"
    assert {"name", "type"} <= result["dataset"].keys()


@pytest.mark.parametrize(
    "name", ["</script>", "a|b", "x\ny", "`code`", "**loud**", "[l](http://x)", "<!-- end", "", "א"]
)
def test_a_bucket_s_name_is_shown_and_does_nothing(name: str, tmp_path: Path) -> None:
    run = measured_run(tmp_path / "run", ages=[name, "other"])
    page = card_file(make_card(facts_of(run)))
    assert f"age={' '.join(name.split())}".strip() in tables(page)
    assert "</script>" not in page
    assert page.count("<!--") == 2, "our two marks"
    widths = {len(re.split(r"(?<!\\)\|", line)) for line in page.splitlines() if line.startswith("|")}
    assert len(widths) == 1
    assert card_file(make_card(facts_of(run)), page) == page


def test_no_path_of_anybody_s_machine_travels(tmp_path: Path) -> None:
    run = measured_run(tmp_path / "run")
    recipe = {**RECIPE, "model": {"name": "/volume/models/base"}, "augment": {"noise_dir": "/home/ada/noise"}}
    (run.export / "recipe.json").write_text(json.dumps(recipe))
    page = card_file(make_card(facts_of(run, recipe=recipe)))
    parcel = pack(run.export, "export")
    sent = page + "".join(f.decode() if isinstance(f, bytes) else f.read_text("latin-1") for f in parcel.files.values())
    for place in ("/home", "/volume", "C:\\", str(tmp_path)):
        assert place not in sent
    kept = json.loads(parcel.files["recipe.json"])
    assert kept["data"]["train"] == ["train.jsonl"]
    assert kept["data"]["test"] == ["test.jsonl"]
    assert "base_model" not in read_front(page)


def test_names_that_are_no_paths_stay() -> None:
    told = {"name": "openai/whisper-small", "share": "1/2", "fine": ["a/b.jsonl", "/", "~"], "n": 3}
    assert without_places(told) == told
    assert without_places("../../x/y.wav") == "y.wav"


def test_only_files_of_a_model_travel_and_what_stays_is_named(tmp_path: Path) -> None:
    folder = whole_model(tmp_path / "m", {})
    for name in (".runpod.env", "notes.txt", "parity.json", "optimizer.pt", "README.md", "client_secret.json"):
        (folder / name).write_text("SECRET")
    parcel = pack(folder, "export")
    assert set(parcel.left_out) == {".runpod.env", "notes.txt", "parity.json", "optimizer.pt", "client_secret.json"}
    assert not any(b"SECRET" in (f if isinstance(f, bytes) else f.read_bytes()) for f in parcel.files.values())


def test_what_an_export_lacks_is_named_all_at_once(tmp_path: Path) -> None:
    folder = whole_model(tmp_path / "m", {})
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "recipe.json").unlink()
    with pytest.raises(BadData, match=r"recipe.json, model-00001-of-00002.safetensors, model-00002") as e:
        pack(folder, "export")
    assert e.value.hint


def test_a_model_that_nobody_measured_says_so(tmp_path: Path) -> None:
    facts = Facts("ada/ears", "export", RECIPE, {})
    page = card_file(make_card(facts))
    assert "Nobody measured this model" in page
    assert "model-index" not in read_front(page)


def test_a_run_with_a_dev_set_alone_says_that_it_flatters(tmp_path: Path) -> None:
    run = measured_run(tmp_path / "run")
    line = json.loads((run.reports / "test.jsonl").read_text().splitlines()[1])
    (run.reports / "test.jsonl").unlink()
    (run.reports / "dev.jsonl").write_text(json.dumps({**line, "step": 90, "what": ""}) + "\n")
    page = card_file(make_card(facts_of(run)))
    assert "flatter" in page
    assert read_front(page)["model-index"][0]["results"][0]["dataset"]["split"] == "dev"


def dev_alone(run: RunDir, *steps: int) -> dict[int, dict]:
    """A run that was measured on dev at these steps, each time another figure, and on no test set."""
    line = json.loads((run.reports / "test.jsonl").read_text().splitlines()[1])
    (run.reports / "test.jsonl").unlink()
    lines = {}
    for step in steps:
        table = [{**row, "wer": step / 1000} for row in line["table"]]
        own = {**line["provenance"], "weights": f"step {step}"}
        metrics = {**line["metrics"], "wer": step / 1000}
        lines[step] = {**line, "step": step, "what": "", "table": table, "metrics": metrics, "provenance": own}
    (run.reports / "dev.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines.values()))
    return lines


def test_without_a_test_set_the_figures_are_of_the_step_that_is_sent_and_not_of_the_last(tmp_path: Path) -> None:
    run = measured_run(tmp_path / "run")
    dev_alone(run, 80, 90, 100)
    page = card_file(make_card(wanted(run).facts))
    assert "Weights: step 90." in page
    assert "On the run's dev set, at step 90:" in page
    assert tables(page)["all"][1] == "9.00 %"
    assert read_front(page)["model-index"][0]["results"][0]["metrics"][0]["value"] == 9.0
    assert "dev WER 9.00 %" in wanted(run).message


def test_of_a_mean_of_steps_the_figures_are_the_mean_s(tmp_path: Path) -> None:
    run = measured_run(tmp_path / "run")
    last = dev_alone(run, 80, 90)[90]
    own = {**last["provenance"], "weights": "mean of steps 80, 90"}
    mean = {**last, "table": [{**last["table"][0], "wer": 0.05}], "metrics": {"wer": 0.05}, "provenance": own}
    (run.reports / "dev-mean.json").write_text(json.dumps(mean) + "\n")
    made = read_json(run.export / "provenance.json")
    (run.export / "provenance.json").write_text(json.dumps({**made, "weights": "mean of steps 80, 90"}))
    page = card_file(make_card(wanted(run).facts))
    assert "On the run's dev set, mean of steps 80, 90:" in page
    assert tables(page)["all"][1] == "5.00 %"
    assert "flatter" in page


@pytest.mark.parametrize(
    "made",
    [{"run": "other", "weights": "step 90"}, {"run": "run", "weights": "step 7"}, {"weights": "mean of 2 models"}],
)
@pytest.mark.parametrize("has_test", [True, False])
def test_figures_of_one_model_never_stand_on_the_card_of_another(tmp_path: Path, made: dict, has_test: bool) -> None:
    run = measured_run(tmp_path / "run")
    if not has_test:
        dev_alone(run, 90, 100)
    with pytest.raises(BadData, match="the card would be wrong") as e:
        wanted(run, whole_model(tmp_path / "m", made))
    assert "leave --run out" in e.value.hint
    assert wanted(run, whole_model(tmp_path / "same", {"run": "run", "weights": "step 90"})).facts.results


def test_of_a_run_that_was_resumed_the_time_is_the_last_attempt_s_and_the_dollars_are_all(tmp_path: Path) -> None:
    run = measured_run(tmp_path / "run")
    receipt = {**read_json(run.receipt), "attempts": 3}
    run.receipt.write_text(json.dumps(receipt))
    page = card_file(make_card(facts_of(run)))
    assert "- in 3 attempts, the last of 1.50 h, for $12.50 in all" in page


def test_adapters_of_a_folder_are_not_silently_those_of_the_run(tmp_path: Path) -> None:
    run = measured_run(tmp_path / "run")
    with pytest.raises(BadData, match="not from a folder"):
        make_push(argparse.Namespace(run=run.root, model=tmp_path, repo="ada/ears", what="adapters"))


def test_a_run_that_was_fetched_under_another_name_keeps_its_figures(tmp_path: Path) -> None:
    run = measured_run(tmp_path / "run")
    run.root.rename(tmp_path / "results")
    moved = RunDir(tmp_path / "results")
    assert wanted(moved).facts.results
    assert wanted(moved, whole_model(tmp_path / "m", {"run": "results", "weights": "step 90"})).facts.results


@pytest.mark.parametrize(("samples", "has_class"), [(480_000, False), (96_000, True)])
def test_how_to_load_a_converted_model_is_code_that_parses(tmp_path: Path, samples: int, has_class: bool) -> None:
    decode = {"pad_to_samples": samples, "transcribe": {}}
    page = card_file(make_card(facts_of(measured_run(tmp_path / "run"), what="ct2", decode=decode)))
    code = page.split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")
    assert ("class OwnWindow" in code) == has_class
    assert 'snapshot_download("ada/ears")' in code
    assert "nobody compared" in page


def test_parity_of_a_converted_model_stands_on_its_card(tmp_path: Path) -> None:
    run = measured_run(tmp_path / "run")
    parity = {"differing": 3, "utterances": 200, "wer_ours": 0.1234, "wer_theirs": 0.1245}
    provenance = {**read_json(run.export / "provenance.json"), "quantisation": "int8", "parity": parity}
    page = card_file(make_card(facts_of(run, what="ct2", provenance=provenance)))
    assert "3 of 200 texts differ" in page
    assert "WER 12.45 %, before conversion 12.34 %" in page


# ---- what people write on the page

CARD = Card({"license": "mit", "tags": ["a"], "model-index": [{"name": "old"}]}, "# ears\n\nfirst figures\n")
NEWER = Card({"license": "mit", "tags": ["b"], "model-index": [{"name": "new"}]}, "# ears\n\nsecond figures\n")


def test_a_page_that_nobody_touched_is_renewed_whole() -> None:
    assert card_file(NEWER, card_file(CARD)) == card_file(NEWER)
    assert card_file(CARD, card_file(CARD)) == card_file(CARD)


def test_what_stands_above_and_below_our_part_stays() -> None:
    page = card_file(CARD)
    page = page.replace("---\n<!--", "---\nMy own words.\n\n<!--") + "\nAnd my thanks.\n"
    renewed = card_file(NEWER, page)
    assert "My own words." in renewed
    assert renewed.endswith("\nAnd my thanks.\n")
    assert "second figures" in renewed
    assert "first figures" not in renewed


def test_what_was_changed_inside_our_part_is_never_lost() -> None:
    page = card_file(CARD).replace("first figures", "better figures")
    with pytest.raises(BadData, match="edited inside the part") as e:
        card_file(NEWER, page)
    assert "--keep-card" in e.value.hint


def test_a_changed_front_matter_wins_but_for_what_was_measured() -> None:
    page = card_file(CARD).replace("license: mit", "license: cc0-1.0\ninference: false")
    front = read_front(card_file(NEWER, page))
    assert (front["license"], front["inference"]) == ("cc0-1.0", False)
    assert front["model-index"] == [{"name": "new"}]


def test_a_page_of_somebody_s_own_stays_above_ours() -> None:
    renewed = card_file(CARD, "---\nlicense: cc0-1.0\n---\n# My model\n\nI made it.\n")
    assert renewed.index("I made it.") < renewed.index("first figures")
    assert read_front(renewed)["license"] == "cc0-1.0"
    assert is_ours(renewed)
    assert card_file(CARD, renewed) == renewed


def test_an_empty_page_and_one_from_windows_are_pages() -> None:
    assert "first figures" in card_file(CARD, "")
    assert card_file(CARD, card_file(CARD).replace("\n", "\r\n")) == card_file(CARD)


@pytest.mark.parametrize("front", ["{: [", "date: 2026-13-45", "- a\n- b", "words"])
def test_front_matter_that_is_none_is_left_to_its_author(front: str) -> None:
    with pytest.raises(BadData, match="is not YAML"):
        card_file(CARD, f"---\n{front}\n---\n")


def test_a_text_that_quotes_our_mark_does_not_end_our_part() -> None:
    card = Card({}, f"# x\n\n{cell(END)}\n")
    page = card_file(card)
    assert page.count(END) == 1
    assert card_file(card, page) == page
