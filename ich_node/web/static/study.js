// Browses the overlays one at a time, and tells when the study has changed since the page was made.

import { poll } from "./live.js";

const study = document.getElementById("study");
const pictures = Array.from(document.querySelectorAll(".picture"));
const strip = Array.from(document.querySelectorAll(".strip a"));
const announcer = document.getElementById("announcer");
const controls = document.getElementById("controls");
let at = 0;

function show(index, { quiet = false } = {}) {
  at = Math.min(Math.max(index, 0), pictures.length - 1);
  pictures.forEach((picture, i) => (picture.hidden = i !== at));
  strip.forEach((link, i) => {
    if (i === at) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  });
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
      show(index);
    }),
  );
  show(0, { quiet: true });
}

document.addEventListener("keydown", (event) => {
  if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
  if (event.key === "Escape") location.assign("/");
  else if (pictures.length > 0 && event.key in KEYS) {
    KEYS[event.key]();
    event.preventDefault();
  }
});

poll(`/studies/${study.dataset.uid}/version`, (text) => {
  const { version, shown_at: shownAt } = JSON.parse(text);
  const changed = version !== study.dataset.version;
  document.getElementById("changed").hidden = !changed;
  return shownAt;
});
