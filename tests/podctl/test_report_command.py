"""`podctl report`: the page is made here where it can be, of what came home; else the run's own will do."""

import json
import shutil
from pathlib import Path

import pytest
from support.person import converse
from support.podctl_cli import COMMAND, Cli, wait_for
from support.stand_in import quick_python, trained

from podctl.errors import BadInput, MissingHere, PodctlError
from podctl.page import can_show, make_page, place_of
from podctl.pods import Run
from remote.rundir import RunDir
from trainer.commands import NAMES

MAKES = """
import sys
from pathlib import Path
words = sys.argv[1:]
assert words[0] == "report", words
folders = words[1 : words.index("--out")]
Path(words[words.index("--out") + 1]).write_text(f"made of {[Path(f).name for f in folders]}, {words[-2:]}")
"""
NOTHING = (
    'import sys; print("x has measured nothing yet\\n→ wait for its first evaluation", file=sys.stderr); sys.exit(2)'
)


def tool(folder: Path, text: str) -> Path:
    """A tool whose trainer answers so."""
    (folder / "trainer").mkdir(parents=True)
    (folder / "trainer" / "__init__.py").touch()
    (folder / "trainer" / "__main__.py").write_text(text)
    return folder


def a_run(tmp_path: Path, name: str = "tiny", page: bool = False) -> Run:
    run = Run(f"{name}-261121-080000-abcd", "p", name, "local", "", 0.0, detail={"project_root": str(tmp_path)})
    home = RunDir(tmp_path / ".podctl" / "runs" / run.id)
    home.reports.mkdir(parents=True)
    if page:
        home.page.write_text("as the run made it")
    return run


def test_a_page_is_made_by_the_trainer_of_what_is_here(tmp_path: Path) -> None:
    run, other = a_run(tmp_path), a_run(tmp_path, "other")
    target = place_of(run, None, None)
    page = make_page(run, None, target, 1.23456, root=tool(tmp_path / "tool", MAKES))
    assert (page.path, page.made_here) == (tmp_path / ".podctl/runs" / run.id / "report.html", True)
    assert page.path.read_text() == f"made of ['{run.id}'], ['--usd', '1.2346']"
    both = make_page(run, other, place_of(run, other, tmp_path / "b.html"), 0.0, root=tmp_path / "tool")
    assert both.path == tmp_path / "b.html"
    assert other.id in both.path.read_text()


def test_without_the_trainers_packages_the_runs_own_page_will_do(tmp_path: Path) -> None:
    root = tool(tmp_path / "tool", "import plotly_that_nobody_has")
    run = a_run(tmp_path, page=True)
    page = make_page(run, None, place_of(run, None, None), 0.0, root=root)
    assert not page.made_here
    assert page.path == RunDir(tmp_path / ".podctl" / "runs" / run.id).page
    assert "plotly_that_nobody_has is not installed" in page.why
    copied = make_page(run, None, place_of(run, None, tmp_path / "x.html"), 0.0, root=root)
    assert copied.path.read_text() == "as the run made it"
    for second in (None, run):
        bare = a_run(tmp_path, f"bare{'s' if second else ''}")
        with pytest.raises(MissingHere) as e:
            make_page(bare, second, tmp_path / "y.html", 0.0, root=root)
        assert "podctl[train]" in e.value.hint


def test_what_the_trainer_says_is_passed_on_in_one_sentence(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    with pytest.raises(BadInput, match="measured nothing yet") as e:
        make_page(run, None, tmp_path / "x.html", 0.0, root=tool(tmp_path / "tool", NOTHING))
    assert e.value.hint == "wait for its first evaluation"
    with pytest.raises(PodctlError, match="could not be made: ZeroDivisionError"):
        make_page(run, None, tmp_path / "x.html", 0.0, root=tool(tmp_path / "broken", "1 / 0"))


def test_a_page_goes_where_there_is_room_for_it(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    with pytest.raises(BadInput, match="is a folder"):
        place_of(run, None, tmp_path)
    with pytest.raises(BadInput, match="there is no folder"):
        place_of(run, None, tmp_path / "no" / "x.html")


@pytest.mark.parametrize(
    ("environ", "platform", "terminal", "shown"),
    [
        ({"DISPLAY": ":0"}, "linux", True, True),
        ({"WAYLAND_DISPLAY": "w"}, "linux", True, True),
        ({}, "linux", True, False),
        ({}, "darwin", True, True),
        ({"SSH_CONNECTION": "1 2 3 4", "DISPLAY": ":0"}, "linux", True, False),
        ({"SSH_TTY": "/dev/pts/1"}, "darwin", True, False),
        ({"DISPLAY": ":0"}, "linux", False, False),
    ],
)
def test_a_browser_opens_where_a_person_would_see_it(
    environ: dict[str, str], platform: str, terminal: bool, shown: bool
) -> None:
    assert can_show(environ, platform, is_terminal=terminal) == shown


@pytest.fixture
def quick(cli: Cli, tmp_path: Path) -> Cli:
    """A machine whose podctl has a trainer beside it that makes pages at once."""
    cli.env["PODCTL_PYTHON"] = str(quick_python(tmp_path / "quick"))
    return cli


def test_evaluations_and_strangers_have_no_page_of_their_own(quick: Cli) -> None:
    none = quick("report")
    assert (none.code, "no run yet" in none.err) == (2, True), none
    assert quick("train", "-c", quick.experiment(trained()), "--local").code == 0
    run = quick.run_dir().name
    same = quick("report", run, run)
    assert (same.code, "a comparison needs two" in same.err) == (2, True), same


@pytest.mark.slow
def test_it_says_how_new_what_it_shows_is(quick: Cli) -> None:
    assert quick("train", "-c", quick.experiment(trained("60")), "--local", "--detach").code == 0
    wait_for(lambda: (quick.run_dir() / "reports" / "summary.json").exists())
    run = quick.run_dir().name
    going = quick("report", "--no-browser")
    assert f"{run} is still running: this is what it has measured so far" in going.err, going
    assert (quick.project / ".podctl" / "runs" / run / "reports" / "summary.json").exists(), "it was brought"
    assert quick("stop").code == 0
    shutil.rmtree(quick.home / "volume")
    gone = quick("report", "--no-browser")
    assert "this is what came home" in gone.err, gone


@pytest.mark.slow
@pytest.mark.skipif("report" not in NAMES, reason="this trainer makes no pages")
def test_a_browser_is_opened_on_the_page_that_was_made(quick: Cli, tmp_path: Path) -> None:
    row = {"step": 0, "metrics": {"wer": 0.5, "utterances": 4}, "table": [], "provenance": {}}
    measured = f"echo '{json.dumps(row)}' > $PODCTL_RUN_DIR/reports/dev.jsonl"
    assert quick("train", "-c", quick.experiment(f"{trained()}; {measured}"), "--local").code == 0
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/opened\n')
    browser.chmod(0o755)
    env = {k: v for k, v in quick.env.items() if not k.startswith("SSH_")} | {"BROWSER": str(browser)}
    code, seen = converse([*COMMAND, "report"], [], env=env, cwd=quick.project)
    assert code == 0, seen
    page = quick.project / ".podctl" / "runs" / quick.run_dir().name / "report.html"
    assert str(page) in seen
    wait_for(lambda: (tmp_path / "opened").exists())
    assert (tmp_path / "opened").read_text().strip() == page.as_uri()


@pytest.mark.slow
def test_an_evaluation_stands_in_the_report_of_its_run(quick: Cli) -> None:
    assert quick("train", "-c", quick.experiment(trained()), "--local").code == 0
    evaluated = quick("evaluate", "--json")
    own = quick("report", evaluated.lines[-1]["run"])
    assert (own.code, "stands in that one's report" in own.err) == (2, True), own
