// Draws the charts in the colours of the day or the night, and sorts tables. Runs without a network.
(() => {
  "use strict";
  const told = JSON.parse(document.getElementById("told").textContent);
  const night = matchMedia("(prefers-color-scheme: dark)");
  const config = { responsive: true, displayModeBar: false }; // its buttons send charts to a server of plotly's
  let onPaper = false;

  function coloured(value) {
    if (typeof value === "string") return told.night[value] || value;
    if (Array.isArray(value)) return value.length && typeof value[0] === "number" ? value : value.map(coloured);
    if (value && typeof value === "object")
      return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, coloured(v)]));
    return value;
  }

  function draw() {
    for (const [id, figure] of Object.entries(told.figures)) {
      const place = document.getElementById(id);
      const { data, layout } = night.matches && !onPaper ? coloured(figure) : structuredClone(figure);
      try {
        Plotly.react(place, data, layout, config);
        const alt = place.querySelector(".alt");
        if (alt) alt.remove();
      } catch (e) {
        console.error(id, e); // its text stays where it would have been
      }
    }
  }

  function sort(head) {
    const row = head.parentElement, body = head.closest("table").tBodies[0];
    const column = [...row.children].indexOf(head);
    const isNumber = head.classList.contains("n");
    const was = head.getAttribute("aria-sort");
    const up = was ? was === "descending" : !isNumber; // numbers begin with the largest
    for (const other of row.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const of = (line) => {
      const cell = line.children[column];
      return isNumber ? ("v" in cell.dataset ? Number(cell.dataset.v) : -Infinity) : cell.textContent;
    };
    const compare = (a, b) => (isNumber ? of(a) - of(b) : of(a).localeCompare(of(b), undefined, { numeric: true }));
    const lines = [...body.rows].sort((a, b) => (up ? compare(a, b) : compare(b, a)));
    body.append(...lines);
  }

  for (const head of document.querySelectorAll("table.sortable th[scope=col]"))
    head.addEventListener("click", () => sort(head));
  if (typeof Plotly !== "undefined") {
    draw();
    night.addEventListener("change", draw);
    for (const fold of document.querySelectorAll("details")) // what was folded had no width to be drawn in
      fold.addEventListener("toggle", () => {
        for (const place of fold.querySelectorAll(".js-plotly-plot")) if (fold.open) Plotly.Plots.resize(place);
      });
    addEventListener("beforeprint", () => { onPaper = true; draw(); });
    addEventListener("afterprint", () => { onPaper = false; draw(); });
  }
  addEventListener("beforeprint", () => document.querySelectorAll("details.more, details.set").forEach((d) => (d.open = true)));
  document.documentElement.dataset.drawn = "yes";
})();
