// Keeps the list current without disturbing focus, selection or scrolling: only what differs is replaced. Filters by
// mouse and by keyboard; the address of the page always names the list that is shown.

import { follow } from "./live.js";

const lines = document.getElementById("lines");
const announcer = document.getElementById("announcer");
const form = document.getElementById("filters");
const search = document.getElementById("search");
const help = document.getElementById("help");
const singleKeys = document.getElementById("single-keys");
const TYPING_MS = 250;
const KEYS_OFF = "ich-node-keys-off";

// the list

function sync(shown, current) {
  if (shown.outerHTML === current.outerHTML) return;
  for (const { name } of Array.from(shown.attributes)) if (!current.hasAttribute(name)) shown.removeAttribute(name);
  for (const { name, value } of current.attributes) {
    if (shown.getAttribute(name) !== value) shown.setAttribute(name, value);
  }
  Array.from(current.children).forEach((cell, index) => {
    const old = shown.children[index];
    if (old.outerHTML !== cell.outerHTML) old.replaceWith(document.importNode(cell, true));
  });
}

function syncLines(wanted) {
  const ids = new Set(wanted.map((line) => line.id));
  for (const line of Array.from(lines.children)) if (!ids.has(line.id)) line.remove();
  wanted.forEach((line, index) => {
    const known = document.getElementById(line.id);
    if (known) sync(known, line);
    const here = known ?? document.importNode(line, true);
    if (lines.children[index] !== here) lines.insertBefore(here, lines.children[index] ?? null);
  });
}

function syncRest(current) {
  const counts = current.querySelectorAll("#tally .tally-count");
  document.querySelectorAll("#tally .tally-count").forEach((count, index) => {
    if (count.textContent !== counts[index].textContent) count.textContent = counts[index].textContent;
  });
  for (const id of ["notices", "below", "stations"]) {
    const shown = document.getElementById(id);
    const other = current.getElementById(id);
    if (shown.innerHTML !== other.innerHTML) shown.replaceWith(document.importNode(other, true));
  }
}

const waitingStat = () => Array.from(lines.querySelectorAll('[data-priority="STAT"]:not([data-reviewed])'));
const hiddenStat = () => Number(document.querySelector("[data-hidden-stat]")?.dataset.hiddenStat ?? 0);

function announce(before, hiddenBefore) {
  const added = waitingStat().filter((line) => !before.has(line.id));
  for (const line of added) line.classList.add("is-new");
  if (added.length > 0) {
    announcer.textContent = `New STAT: ${added.map((line) => line.dataset.name).join("; ")}`;
  } else if (hiddenStat() > hiddenBefore) {
    announcer.textContent = `STAT that this list does not show: ${hiddenStat()}`;
  }
}

// Of what nobody has seen, whether or not the list shows it.
function showCount() {
  const stat = waitingStat().length + hiddenStat();
  document.title = `${stat > 0 ? `(${stat} STAT) ` : ""}Worklist – ICH node`;
}

let shownFor = location.search;

function take(html) {
  const current = new DOMParser().parseFromString(html, "text/html");
  const links = () => Array.from(lines.querySelectorAll(".study-link"));
  const focused = document.activeElement?.closest?.("#lines tr")?.id;
  const place = links().indexOf(document.activeElement);
  const before = new Set(waitingStat().map((line) => line.id));
  const hiddenBefore = hiddenStat();
  syncLines(Array.from(current.getElementById("lines").children));
  syncRest(current);
  if (focused && document.activeElement?.closest?.("#lines tr") === null) {
    const same = document.getElementById(focused)?.querySelector(".study-link");
    (same ?? links()[Math.min(Math.max(place, 0), links().length - 1)])?.focus({ preventScroll: true });
  }
  if (shownFor === location.search) announce(before, hiddenBefore);
  else announcer.textContent = `${lines.children.length} studies shown`;
  shownFor = location.search;
  showCount();
  return current.getElementById("worklist").dataset.shownAt;
}

// filters

let typing = 0;

function apply() {
  clearTimeout(typing);
  const query = new URLSearchParams();
  for (const [name, value] of new FormData(form)) if (value.trim() !== "") query.append(name, value.trim());
  const text = query.toString();
  if (location.search === (text && `?${text}`)) return;
  history.replaceState(null, "", text ? `/?${text}` : "/");
  keepAddress();
  refresh();
}

// The study page leads back to this list.
function keepAddress() {
  sessionStorage.setItem("ich-node-worklist", `/${location.search}`);
}

// Who comes back from a study that nobody has seen goes on there; else the next one is on top.
function goOn() {
  const from = sessionStorage.getItem("ich-node-study");
  sessionStorage.removeItem("ich-node-study");
  const line = from && document.getElementById(`study-${from}`);
  if (line && !line.matches("[data-reviewed]")) line.querySelector(".study-link").focus();
}

function clear() {
  for (const box of form.querySelectorAll("input[type=checkbox]")) box.checked = false;
  for (const field of form.querySelectorAll("select, input[type=search], input[type=text]")) field.value = "";
  apply();
}

function toggle(box) {
  box.checked = !box.checked;
  apply();
}

form.addEventListener("change", apply);
form.addEventListener("input", (event) => {
  clearTimeout(typing);
  if (event.target.matches("input[type=search], input[type=text]")) typing = setTimeout(apply, TYPING_MS);
});
form.addEventListener("submit", (event) => {
  event.preventDefault();
  apply();
  lines.querySelector(".study-link")?.focus();
});

// keyboard

function step(to) {
  const links = Array.from(lines.querySelectorAll(".study-link"));
  const at = links.indexOf(document.activeElement);
  const next = to(at, links.length - 1);
  links[Math.min(Math.max(next, 0), links.length - 1)]?.focus();
}

function priority(number) {
  toggle(form.querySelectorAll("input[name=priority]")[number - 1]);
}

const down = () => step((at) => at + 1);
const up = () => step((at, last) => (at < 0 ? last : at - 1));
const ACTIONS = {
  ArrowDown: down,
  ArrowUp: up,
  Home: () => step(() => 0),
  End: () => step((_, last) => last),
  Escape: clear,
};
const SINGLE = {
  j: down,
  k: up,
  "/": () => search.select(),
  1: () => priority(1),
  2: () => priority(2),
  3: () => priority(3),
  4: () => priority(4),
  u: () => toggle(form.elements.unreviewed),
  "?": () => help.showModal(),
};

function inField(event) {
  if (event.key !== "Escape") return;
  event.preventDefault();
  if (event.target.value && event.target.matches("input")) {
    event.target.value = "";
    apply();
  } else {
    event.target.blur();
  }
}

document.addEventListener("keydown", (event) => {
  if (event.altKey || event.ctrlKey || event.metaKey || help.open) return;
  if (event.target.matches("select, input[type=search], input[type=text]")) {
    inField(event);
    return;
  }
  const action = ACTIONS[event.key] ?? (singleKeys.checked ? SINGLE[event.key] : undefined);
  if (action) {
    event.preventDefault();
    action();
  }
});

lines.addEventListener("click", (event) => {
  const line = event.target.closest("tr");
  if (!line || event.target.closest("a") || String(getSelection()) !== "") return;
  line.querySelector(".study-link").click();
});

singleKeys.checked = localStorage.getItem(KEYS_OFF) === null;
singleKeys.addEventListener("change", () => {
  if (singleKeys.checked) localStorage.removeItem(KEYS_OFF);
  else localStorage.setItem(KEYS_OFF, "1");
});
document.getElementById("help-open").addEventListener("click", () => help.showModal());
document.getElementById("help-close").addEventListener("click", () => help.close());
document.body.classList.add("has-script");

showCount();
keepAddress();
goOn();
const refresh = follow(() => `/worklist${location.search}`, take);
