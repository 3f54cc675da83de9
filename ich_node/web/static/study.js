// The page of one study: slices or pictures, reviews, and word that the study has changed since the page was made.

import { poll } from "./live.js";
import { Viewer } from "./viewer.js";

const study = document.getElementById("study");
const pictures = Array.from(document.querySelectorAll(".picture"));
const strip = Array.from(document.querySelectorAll(".strip a"));
const announcer = document.getElementById("announcer");
const controls = document.getElementById("controls");
const keysDialog = document.getElementById("keys");
const KEYS_OFF = "ich-node-keys-off"; // set in the help of the worklist
const back = sessionStorage.getItem("ich-node-worklist") ?? "/";
let at = 0;
let viewer = null;
let sending = 0; // reviews: the node tells that the study has changed before the page knows that it changed it

const showsSlices = () => document.body.classList.contains("shows-slices");

function markCurrent(isCurrent) {
  strip.forEach((link, i) => {
    if (isCurrent(i)) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  });
}

function show(index, { quiet = false } = {}) {
  at = Math.min(Math.max(index, 0), pictures.length - 1);
  document.body.classList.remove("shows-slices");
  pictures.forEach((picture, i) => (picture.hidden = i !== at));
  markCurrent((i) => i === at);
  if (controls) {
    document.getElementById("previous").disabled = at === 0;
    document.getElementById("next").disabled = at === pictures.length - 1;
  }
  for (const near of [at, at + 1]) {
    const image = pictures[near]?.querySelector("img");
    if (image) image.loading = "eager";
  }
  if (!quiet) {
    announcer.textContent = pictures[at].querySelector("img").alt;
    strip[at]?.scrollIntoView({ block: "nearest", inline: "nearest" });
  }
}

function showSlices() {
  document.body.classList.add("shows-slices");
  viewer.redraw();
}

const KEYS = {
  ArrowLeft: () => show(at - 1),
  ArrowRight: () => show(at + 1),
  Home: () => show(0),
  End: () => show(pictures.length - 1),
};

for (const image of document.querySelectorAll(".picture img")) {
  const fail = () => image.closest("figure").classList.add("is-broken");
  image.addEventListener("error", fail);
  if (image.complete && image.naturalWidth === 0 && image.loading !== "lazy") fail();
}

// A key slice leads to the slice itself; the summary has none and is shown as a picture.
function choose(index) {
  const slice = pictures[index].dataset.slice;
  if (!viewer || slice === undefined) return show(index);
  showSlices();
  return viewer.go(Number(slice), { tell: true });
}

if (pictures.length > 0) {
  document.body.classList.add("has-viewer");
  if (controls) {
    controls.hidden = false;
    document.getElementById("previous").addEventListener("click", () => show(at - 1));
    document.getElementById("next").addEventListener("click", () => show(at + 1));
  }
  strip.forEach((link, index) =>
    link.addEventListener("click", (event) => {
      event.preventDefault();
      choose(index);
    }),
  );
  show(0, { quiet: true });
}

async function openSlices() {
  const element = document.getElementById("slices");
  if (!element) return;
  element.addEventListener("slice", (event) => {
    document.body.classList.add("has-viewer", "has-slices", "shows-slices");
    markCurrent((i) => pictures[i].dataset.slice === String(event.detail));
  });
  viewer = await Viewer.open(element).catch(() => null);
  document.getElementById("keys-open").addEventListener("click", () => keysDialog.showModal());
}

const isTyping = (target) => target.matches("textarea, select, input:not([type=range]):not([type=radio])");

function onKey(event) {
  if (event.altKey || event.ctrlKey || event.metaKey || keysDialog?.open) return false;
  if (event.key === "Escape") {
    if (isTyping(event.target)) event.target.blur();
    else location.assign(back);
    return true;
  }
  if (event.key.length === 1 && localStorage.getItem(KEYS_OFF) !== null) return false;
  const isArrow = /^(Arrow|Home|End|Page)/.test(event.key);
  if (isTyping(event.target) || (isArrow && event.target.matches("input"))) return false;
  if (event.key === "r") {
    document.querySelector("#review :is(button:enabled, summary)")?.focus();
    return true;
  }
  if (viewer) {
    if (event.key === "?") keysDialog.showModal();
    else if (isArrow && event.target.closest(".panel")) return false; // it scrolls
    else if (!viewer.onKey(event)) return false;
    else if (!showsSlices()) showSlices();
    return true;
  }
  if (event.shiftKey || pictures.length === 0 || !(event.key in KEYS)) return false;
  KEYS[event.key]();
  return true;
}

document.addEventListener("keydown", (event) => {
  if (onKey(event)) event.preventDefault();
});

// Which reading a page shows, and what comes of it.
const shownResult = (page) =>
  page.querySelector("#review [name=reading]")?.value +
  page.querySelector(".verdict").textContent +
  page.querySelector(".score").textContent;

// Sends a form without leaving the slice that is looked at; without scripts the form sends itself.
async function send(form) {
  const token = document.querySelector("meta[name=csrf-token]")?.content ?? "";
  const response = await fetch(form.action, {
    method: "POST",
    headers: { "X-CSRF-Token": token, Accept: "text/html;q=0.9" },
    body: new URLSearchParams(new FormData(form)),
  });
  const text = await response.text();
  const page = new DOMParser().parseFromString(text, "text/html");
  if (!response.ok) throw new Error(page.querySelector("h1")?.textContent ?? text.trim().slice(0, 200));
  if (!page.getElementById("review")) return location.reload(); // no page of ours
  const isSame = shownResult(page) === shownResult(document);
  for (const id of ["review", "state", "delivery", "audit"]) {
    document.getElementById(id).replaceWith(document.adoptNode(page.getElementById(id)));
  }
  // Else it is said soon that the study has changed: there is another result than the one that is shown.
  if (isSame) study.dataset.version = page.getElementById("study").dataset.version;
  announcer.textContent = document.querySelector(".reviewed")?.textContent ?? "Done";
  document.getElementById("review").querySelector("summary, button")?.focus();
}

document.addEventListener("submit", async (event) => {
  const form = event.target;
  if (!form.matches(".review-form")) return;
  event.preventDefault();
  const buttons = form.querySelectorAll("button");
  buttons.forEach((button) => (button.disabled = true));
  sending += 1;
  try {
    await send(form);
  } catch (error) {
    const fault = document.getElementById("review-fault");
    fault.textContent = error instanceof TypeError ? "This was not sent: the node does not answer." : error.message;
    fault.hidden = false;
    buttons.forEach((button) => (button.disabled = false));
  } finally {
    sending -= 1;
    refresh(); // what was asked meanwhile may be from before
  }
});

document.body.classList.add("has-script");
document.querySelector(".back").href = back;
sessionStorage.setItem("ich-node-study", study.dataset.uid);
openSlices();
const refresh = poll(`/studies/${study.dataset.uid}/version`, (text) => {
  const { version, shown_at: shownAt } = JSON.parse(text);
  if (sending === 0) document.getElementById("changed").hidden = version === study.dataset.version;
  return shownAt;
});
