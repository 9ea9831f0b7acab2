"""Pages as Chromium shows them: every chart is drawn, nothing complains, no data runs, nothing sticks out."""

import html
import json
import re
from pathlib import Path

import pytest
from support.browser import needs_browser, served, show
from support.reported import UNKIND, make_run

from trainer.report.page import write_page

pytestmark = needs_browser
ASKING = """<!doctype html><title>asking</title><iframe id="f" src="{page}" style="width:{width}px;height:4000px">
</iframe><p id="answer">nothing</p><script>
const frame = document.getElementById("f");
frame.onload = () => setTimeout(() => {{
  const d = frame.contentDocument, size = (t) => t.tBodies[0].rows.length;
  const table = [...d.querySelectorAll("table.sortable")].sort((a, b) => size(b) - size(a))[0];
  const words = () => [...table.tBodies[0].rows].map((r) => Number(r.children[1].dataset.v));
  table.tHead.rows[0].children[1].querySelector("button").click();
  const down = words();
  table.tHead.rows[0].children[1].querySelector("button").click();
  const cut = [...d.querySelectorAll(".chart")].filter((c) => c.scrollWidth > c.clientWidth + 1).length;
  document.getElementById("answer").textContent = JSON.stringify(
    {{ wide: d.documentElement.scrollWidth, charts: d.querySelectorAll(".js-plotly-plot").length, cut, down,
      up: words() }});
}}, 1500);
</script>"""


def test_every_chart_is_drawn_and_nothing_of_the_data_runs(tmp_path: Path) -> None:
    run = make_run(tmp_path, extra=[UNKIND])
    write_page(run.root, run.page)
    shown = show(run.page.as_uri())
    assert shown.complaints == []
    assert 'data-drawn="yes"' in shown.dom
    assert "<title>children-261122-101500-ab12 – run report</title>" in shown.dom
    charts = len(re.findall(r'class="chart\b', shown.dom))
    assert charts == len(re.findall(r'class="chart[^"]*js-plotly-plot', shown.dom)) > 8
    assert "muted alt" not in shown.dom, "a chart stands where its text was"


@pytest.mark.slow
@pytest.mark.parametrize("width", [420, 1400])
def test_nothing_sticks_out_and_tables_sort(width: int, tmp_path: Path) -> None:
    a = make_run(tmp_path, extra=[UNKIND])
    b = make_run(tmp_path, name="b", quality=0.5)
    write_page(a.root, tmp_path / "one.html")
    write_page(a.root, tmp_path / "two.html", b.root)
    for page in ("one.html", "two.html"):
        (tmp_path / "asking.html").write_text(ASKING.format(page=page, width=width), encoding="utf-8")
        with served(tmp_path) as address:
            shown = show(f"{address}/asking.html", budget_ms=8000)
        assert [line for line in shown.complaints if "favicon" not in line] == []
        found = re.search(r'<p id="answer">([^<]*)</p>', shown.dom)
        assert found
        told = json.loads(html.unescape(found[1]))
        assert told["wide"] <= width
        assert told["cut"] == 0
        assert told["charts"] >= 4
        assert told["down"] == sorted(told["down"], reverse=True) != told["up"] == sorted(told["down"])


@pytest.mark.slow
def test_by_night_the_charts_have_the_colours_of_the_night(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    write_page(run.root, run.page)
    by_night = show(run.page.as_uri(), "--blink-settings=preferredColorScheme=0")
    assert by_night.complaints == []
    drawn = re.sub(r"<script.*?</script>|<style.*?</style>", "", by_night.dom, flags=re.DOTALL)
    assert "rgb(138, 165, 255)" in drawn
    assert "rgb(49, 87, 213)" not in drawn


@pytest.mark.slow
def test_what_a_browser_complains_of_is_seen(tmp_path: Path) -> None:
    """Else no complaint would mean nothing: a page that was changed may not run, and says so."""
    run = make_run(tmp_path, n_sounds=0)
    write_page(run.root, run.page)
    taken = tmp_path / "taken.html"
    page = run.page.read_text(encoding="utf-8")
    taken.write_text(page.replace("<main>", "<main><script>document.title='taken'</script>"), encoding="utf-8")
    shown = show(taken.as_uri())
    assert "Content Security Policy" in "".join(shown.complaints)
    assert "<title>taken" not in shown.dom
