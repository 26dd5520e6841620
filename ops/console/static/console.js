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
