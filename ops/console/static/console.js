// Keys, dialogs and charts. Pages work without it, but for the live parts.
"use strict";

let leader = false;

function typing(target) {
  return target.closest("input, select, textarea, dialog[open]") !== null;
}

function step(by) {
  const rows = [...document.querySelectorAll("tbody tr a.row")];
  if (!rows.length) return;
  const here = rows.indexOf(document.activeElement);
  rows[Math.min(rows.length - 1, Math.max(0, here + by))].focus();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || typing(event.target)) return;
  const after = leader;
  leader = false;
  if (after) {
    const page = document.querySelector(`nav a[data-key="${CSS.escape(event.key)}"]`);
    if (page) page.click();
    return;
  }
  const acts = {
    g: () => { leader = true; },
    j: () => step(1),
    k: () => step(-1),
    "/": () => document.querySelector("form.filter input, form.filter select")?.focus(),
    "?": () => document.getElementById("keys")?.showModal(),
  };
  if (Object.hasOwn(acts, event.key)) {
    event.preventDefault();
    acts[event.key]();
  }
});

document.addEventListener("click", (event) => {
  const opener = event.target.closest("[data-dialog]");
  if (opener) document.getElementById(opener.dataset.dialog)?.showModal();
});

const CHARTS = [
  { at: "chart-attempts", least: 1, lines: [["sent", "sent", "--good"], ["failed", "failed", "--bad"]], shown: (v) => v.toFixed(1) + "/s" },
  { at: "chart-waiting", least: 10, lines: [["waiting", "waiting", "--wait"]], shown: (v) => v.toLocaleString("en") },
  { at: "chart-lateness", least: 0.01, lines: [["p99", "late_p99_s", "--bad"], ["p50", "late_p50_s", "--good"]], shown: (v) => (Math.abs(v) < 5 ? (v * 1000).toFixed(0) + " ms" : v.toFixed(1) + " s") },
];
let charts = [];

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function draw(series) {
  const muted = colour("--pico-muted-color"), grid = colour("--pico-muted-border-color");
  charts.forEach((chart) => chart.destroy());
  const zone = document.getElementById("charts").dataset.zone;
  charts = CHARTS.map(({ at, least, lines, shown }) => {
    const place = document.getElementById(at);
    const axis = { stroke: muted, grid: { stroke: grid, width: 1 }, ticks: { stroke: grid, width: 1 } };
    const tell = (plot, value) => (value === null || value === undefined ? "none" : shown(value));
    const plot = new uPlot({
      width: place.clientWidth, height: 180, tzDate: (at) => uPlot.tzDate(new Date(at * 1000), zone), cursor: { sync: { key: "time" } },
      scales: { y: { range: (plot, low, high) => [Math.min(0, low), Math.max(high, least)] } },
      axes: [{ ...axis, values: "{HH}:{mm}" }, { ...axis, size: 70, values: (plot, ticks) => ticks.map(shown) }],
      series: [{ label: "at", value: "{HH}:{mm}:{ss}" }, ...lines.map(([label, , stroke]) => ({
        label, stroke: colour(stroke), width: 1.5, value: tell,
      }))],
    }, columns(series, lines), place);
    plot.over.addEventListener("mouseleave", () => tellLast(plot));
    queueMicrotask(() => tellLast(plot)); // after its first drawing, which empties the legend
    return plot;
  });
}

// Without a pointer on the chart its legend tells the last step that is known.
function tellLast(plot) {
  const known = plot.data.slice(1).map((column) => column.findLastIndex((value) => value !== null && value !== undefined));
  const last = Math.max(...known);
  plot.setLegend({ idx: last < 0 ? plot.data[0].length - 1 : last });
}

function columns(series, lines) {
  return [series.at, ...lines.map(([, column]) => series[column])];
}

function show(json) {
  const series = JSON.parse(json);
  document.getElementById("charts").dataset.series = json;
  charts.forEach((chart, index) => {
    chart.setData(columns(series, CHARTS[index].lines));
    if (chart.cursor.idx === null || chart.cursor.idx === undefined) queueMicrotask(() => tellLast(chart));
  });
}

function redraw() {
  const place = document.getElementById("charts");
  if (place) draw(JSON.parse(place.dataset.series));
}

document.addEventListener("series", (event) => show(event.detail.data));
document.addEventListener("DOMContentLoaded", redraw);
window.addEventListener("resize", redraw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
