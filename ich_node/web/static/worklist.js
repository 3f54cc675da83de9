// Keeps the list current without disturbing focus, selection or scrolling: only what differs is replaced.

import { poll } from "./live.js";

const list = document.getElementById("worklist");
const lines = document.getElementById("lines");
const announcer = document.getElementById("announcer");

function sync(shown, current) {
  if (shown.outerHTML === current.outerHTML) return;
  for (const { name, value } of current.attributes) {
    if (shown.getAttribute(name) !== value) shown.setAttribute(name, value);
  }
  Array.from(current.children).forEach((cell, index) => {
    const old = shown.children[index];
    if (old.outerHTML !== cell.outerHTML) old.replaceWith(document.importNode(cell, true));
  });
}

function announce(before) {
  const stat = Array.from(lines.querySelectorAll('[data-priority="STAT"]'));
  const added = stat.filter((line) => before.get(line.id) !== "STAT");
  for (const line of added) line.classList.add("is-new");
  if (added.length > 0) {
    announcer.textContent = `New STAT: ${added.map((line) => line.dataset.name).join("; ")}`;
  }
  showCount();
}

function showCount() {
  const stat = lines.querySelectorAll('[data-priority="STAT"]').length;
  document.title = `${stat > 0 ? `(${stat} STAT) ` : ""}Worklist – ICH node`;
}

function take(html) {
  const current = new DOMParser().parseFromString(html, "text/html");
  const focused = document.activeElement?.closest?.("#lines tr")?.id;
  const before = new Map(Array.from(lines.children, (line) => [line.id, line.dataset.priority]));
  const wanted = Array.from(current.getElementById("lines").children);
  const ids = new Set(wanted.map((line) => line.id));
  for (const line of Array.from(lines.children)) if (!ids.has(line.id)) line.remove();
  wanted.forEach((line, index) => {
    const known = document.getElementById(line.id);
    if (known) sync(known, line);
    const here = known ?? document.importNode(line, true);
    if (lines.children[index] !== here) lines.insertBefore(here, lines.children[index] ?? null);
  });
  for (const id of ["tally", "below"]) {
    const shown = document.getElementById(id);
    const other = current.getElementById(id);
    if (shown.innerHTML !== other.innerHTML) shown.replaceWith(document.importNode(other, true));
  }
  if (focused && document.activeElement?.closest?.("#lines tr")?.id !== focused) {
    document.getElementById(focused)?.querySelector(".study-link").focus({ preventScroll: true });
  }
  announce(before);
  return current.getElementById("worklist").dataset.shownAt;
}

function step(by) {
  const links = Array.from(lines.querySelectorAll(".study-link"));
  const at = links.indexOf(document.activeElement);
  const next = at < 0 ? (by > 0 ? 0 : links.length - 1) : Math.min(Math.max(at + by, 0), links.length - 1);
  links[next]?.focus();
}

document.addEventListener("keydown", (event) => {
  if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
  if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    step(event.key === "ArrowDown" ? 1 : -1);
    event.preventDefault();
  }
});

lines.addEventListener("click", (event) => {
  const line = event.target.closest("tr");
  if (!line || event.target.closest("a") || String(getSelection()) !== "") return;
  line.querySelector(".study-link").click();
});

showCount();
poll("/worklist", take);
