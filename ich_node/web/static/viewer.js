// The slice viewer: scrolling, windows, overlays, pan and zoom, by mouse and by keyboard.

import { drawMap, drawPlace, drawProfile, drawSlice, isPeak, placement, SliceCanvas, windowTable } from "./viewer-draw.js";
import { LikelihoodMaps } from "./viewer-maps.js";
import { Slices } from "./viewer-slices.js";

const WHEEL_LINE = 40;
const WHEEL_SLICE = 50;
const WHEEL_NOTCH = 120;
const MOST_ZOOM = 16;
const PROFILE = { current: "#ffffff", suspicious: "#ff5a52", other: "#5b7a95" };
const find = (id) => document.getElementById(id);

export class Viewer {
  // Resolves to a viewer, or to null where there are no slices to show.
  static async open(element) {
    const response = await fetch(element.dataset.address, { cache: "no-store" });
    if (!response.ok) return null;
    const facts = await response.json();
    if (!facts.geometry || facts.slices.length === 0) return null;
    return new Viewer(element, facts);
  }

  constructor(element, facts) {
    Object.assign(this, { element, facts, maps: null, at: -1, view: { zoom: 1, x: 0, y: 0 }, turned: 0 });
    const { rows, columns } = facts.geometry;
    this.slices = new Slices(
      { address: facts.slices_at, of: facts.of, count: facts.slices.length, rows, columns },
      (index) => index === this.at && this.refresh(),
    );
    this.slice = new SliceCanvas(rows, columns);
    this.canvas = find("canvas");
    this.context = this.canvas.getContext("2d", { alpha: false });
    this.hidden = new Set();
    this.overlay = true;
    this.opacity = Number(find("opacity").value) / 100;
    this.presets = [...element.querySelectorAll("[data-window]")];
    element.hidden = false;
    this.name();
    this.listen();
    this.setWindow(...this.presets[0].dataset.window.split(" ").map(Number));
    this.go(this.mostSuspicious());
    if (facts.maps_at) this.loadMaps();
  }

  async loadMaps() {
    this.maps = await LikelihoodMaps.load(this.facts.maps_at).catch(() => null);
    this.element.classList.toggle("has-maps", this.maps !== null);
    this.redraw();
  }

  mostSuspicious() {
    const scores = this.facts.slices.map((slice) => slice.score);
    return this.facts.slices[scores.indexOf(Math.max(...scores))].shown_on;
  }

  // Toggles of classes, letters of the patient's sides, bounds of the slider.
  name() {
    for (const [side, words] of Object.entries(this.facts.geometry.edges)) {
      this.element.querySelector(`.edge-${side}`).textContent = words;
    }
    for (const kind of this.facts.classes) {
      const button = document.createElement("button");
      button.type = "button";
      button.setAttribute("aria-pressed", "true");
      button.title = kind.name;
      button.setAttribute("aria-label", `${kind.letters}: ${kind.name}`);
      const swatch = document.createElement("span");
      swatch.className = "swatch";
      swatch.style.background = kind.color;
      button.append(swatch, kind.letters);
      button.addEventListener("click", () => this.toggle(kind.code, button));
      find("classes").append(button);
    }
    find("rail").setAttribute("aria-valuemax", String(this.facts.slices.length));
  }

  listen() {
    const stage = find("stage");
    for (const preset of this.presets) {
      preset.addEventListener("click", () => this.setWindow(...preset.dataset.window.split(" ").map(Number)));
    }
    for (const id of ["window-width", "window-level"]) {
      find(id).addEventListener("change", () =>
        this.setWindow(Number(find("window-width").value), Number(find("window-level").value)),
      );
    }
    find("opacity").addEventListener("input", (event) => this.setOpacity(Number(event.target.value)));
    find("overlay").addEventListener("click", () => this.toggleOverlay());
    find("fit").addEventListener("click", () => this.fit());
    find("previous-hit").addEventListener("click", () => this.jump(-1));
    find("next-hit").addEventListener("click", () => this.jump(1));
    stage.addEventListener("wheel", (event) => this.onWheel(event), { passive: false });
    stage.addEventListener("dblclick", () => this.fit());
    stage.addEventListener("pointerdown", (event) => this.onDrag(event));
    stage.addEventListener("auxclick", (event) => event.preventDefault());
    const rail = find("rail");
    rail.addEventListener("pointerdown", (event) => {
      rail.setPointerCapture(event.pointerId);
      this.onRail(event);
    });
    rail.addEventListener("pointermove", (event) => rail.hasPointerCapture(event.pointerId) && this.onRail(event));
    new ResizeObserver(() => this.redraw()).observe(stage);
  }

  go(index, { tell = false } = {}) {
    const to = Math.min(Math.max(index, 0), this.facts.slices.length - 1);
    if (to === this.at) return;
    this.at = to;
    this.slices.want(to);
    const slice = this.facts.slices[to];
    const words = `Slice ${to + 1} of ${this.facts.slices.length} from below, ${slice.percent}`;
    const more = slice.suspicious ? (isPeak(this.facts.slices, to) ? ", suspicious, a peak" : ", suspicious") : "";
    find("position").textContent = words;
    find("rail").setAttribute("aria-valuenow", String(to + 1));
    find("rail").setAttribute("aria-valuetext", words + more);
    if (tell) find("announcer").textContent = words + more;
    this.element.dispatchEvent(new CustomEvent("slice", { detail: to }));
    this.refresh();
  }

  // To the next suspicious slice above (1) or below (-1), around the ends; of a slab to the one that shows it.
  jump(direction) {
    const { slices } = this.facts;
    for (let step = 1; step <= slices.length; step += 1) {
      const index = (this.at + direction * step + slices.length * 2) % slices.length;
      if (slices[index].suspicious && slices[index].shown_on === index) return this.go(index, { tell: true });
    }
    find("announcer").textContent = "No slice is suspicious.";
    return undefined;
  }

  setWindow(width, level) {
    this.width = Math.round(Math.min(Math.max(width || 1, 1), 4096));
    this.level = Math.round(Math.min(Math.max(level || 0, -1024), 3071));
    this.table = windowTable(this.width, this.level);
    find("window-width").value = this.width;
    find("window-level").value = this.level;
    for (const preset of this.presets) {
      preset.setAttribute("aria-pressed", String(preset.dataset.window === `${this.width} ${this.level}`));
    }
    this.refresh();
  }

  setOpacity(percent) {
    const kept = Math.min(Math.max(percent, 0), 100);
    this.opacity = kept / 100;
    find("opacity").value = kept;
    this.redraw();
  }

  toggle(code, button) {
    if (!this.hidden.delete(code)) this.hidden.add(code);
    button.setAttribute("aria-pressed", String(!this.hidden.has(code)));
    this.redraw();
  }

  toggleOverlay() {
    this.overlay = !this.overlay;
    find("overlay").setAttribute("aria-pressed", String(this.overlay));
    this.redraw();
  }

  fit() {
    this.view = { zoom: 1, x: 0, y: 0 };
    this.redraw();
  }

  // Keeps what is under (x, y), from the middle of the stage in device pixels, where it is.
  zoom(factor, x = 0, y = 0) {
    const zoom = Math.min(Math.max(this.view.zoom * factor, 1), MOST_ZOOM);
    const grown = zoom / this.view.zoom;
    this.view = { zoom, x: x - (x - this.view.x) * grown, y: y - (y - this.view.y) * grown };
    if (zoom === 1) this.view = { zoom, x: 0, y: 0 };
    this.redraw();
  }

  pan(x, y) {
    this.view = { ...this.view, x: this.view.x + x, y: this.view.y + y };
    this.redraw();
  }

  onWheel(event) {
    event.preventDefault();
    const pixels = event.deltaY * (event.deltaMode === 0 ? 1 : WHEEL_LINE);
    if (event.ctrlKey) {
      const box = this.canvas.getBoundingClientRect();
      const ratio = this.canvas.width / box.width;
      const x = (event.clientX - box.left - box.width / 2) * ratio;
      const y = (event.clientY - box.top - box.height / 2) * ratio;
      this.zoom(1.0015 ** -pixels, x, y);
      return;
    }
    // A notch of a wheel is one slice, whatever the browser makes of it; a finger on a pad adds up to one.
    this.turned = Math.sign(pixels) === Math.sign(this.turned) ? this.turned + pixels : pixels;
    if (Math.abs(this.turned) < WHEEL_SLICE) return;
    const steps = Math.max(1, Math.round(Math.abs(this.turned) / WHEEL_NOTCH));
    this.go(this.at - Math.sign(this.turned) * steps);
    this.turned = 0;
  }

  // Left button: window; with Shift, or the middle button: pan.
  onDrag(event) {
    if (event.button > 1) return;
    event.preventDefault();
    const stage = event.currentTarget;
    const pans = event.shiftKey || event.button === 1;
    const start = { x: event.clientX, y: event.clientY, width: this.width, level: this.level, view: this.view };
    const ratio = devicePixelRatio || 1;
    stage.setPointerCapture(event.pointerId);
    const move = (moved) => {
      const x = moved.clientX - start.x;
      const y = moved.clientY - start.y;
      if (pans) {
        this.view = { ...this.view, x: start.view.x + x * ratio, y: start.view.y + y * ratio };
        this.redraw();
      } else if (Math.abs(x) + Math.abs(y) > 2) {
        const speed = Math.max(0.5, start.width / 300);
        this.setWindow(start.width + x * speed, start.level + y * speed);
      }
    };
    stage.addEventListener("pointermove", move);
    stage.addEventListener("lostpointercapture", () => stage.removeEventListener("pointermove", move), { once: true });
  }

  onRail(event) {
    const box = find("profile").getBoundingClientRect();
    const part = 1 - (event.clientY - box.top) / box.height;
    this.go(Math.floor(part * this.facts.slices.length));
  }

  // Says whether the key was one of the viewer's.
  onKey(event) {
    const step = 40 * (devicePixelRatio || 1);
    if (event.shiftKey && event.key.startsWith("Arrow")) {
      const [x, y] = { ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
      this.pan(x * step, y * step);
      return true;
    }
    const keys = {
      ArrowUp: () => this.go(this.at + 1),
      ArrowRight: () => this.go(this.at + 1),
      ArrowDown: () => this.go(this.at - 1),
      ArrowLeft: () => this.go(this.at - 1),
      PageUp: () => this.go(this.at + 5),
      PageDown: () => this.go(this.at - 5),
      Home: () => this.go(0),
      End: () => this.go(this.facts.slices.length - 1),
      n: () => this.jump(1),
      p: () => this.jump(-1),
      o: () => this.toggleOverlay(),
      "[": () => this.setOpacity(this.opacity * 100 - 10),
      "]": () => this.setOpacity(this.opacity * 100 + 10),
      "+": () => this.zoom(1.25),
      "-": () => this.zoom(0.8),
      0: () => this.fit(),
    };
    if (event.key in keys) {
      keys[event.key]();
      return true;
    }
    const preset = this.presets[Number(event.key) - 1];
    preset?.click();
    return preset !== undefined;
  }

  // The slice or its window has changed.
  refresh() {
    const hu = this.slices.get(this.at);
    const fault = this.slices.fault(this.at);
    const note = find("stage-note");
    note.hidden = Boolean(hu);
    note.textContent = fault ?? "Loading …";
    this.element.classList.toggle("is-faulty", fault !== undefined);
    if (hu) this.slice.fill(hu, this.table);
    this.redraw();
  }

  redraw() {
    if (this.drawing) return;
    this.drawing = requestAnimationFrame(() => {
      this.drawing = 0;
      this.draw();
    });
  }

  draw() {
    const ratio = devicePixelRatio || 1;
    const box = find("stage").getBoundingClientRect();
    const [width, height] = [Math.round(box.width * ratio), Math.round(box.height * ratio)];
    if (this.canvas.width !== width || this.canvas.height !== height) Object.assign(this.canvas, { width, height });
    this.context.setTransform(1, 0, 0, 1, 0, 0);
    this.context.fillStyle = "#000";
    this.context.fillRect(0, 0, width, height);
    const at = placement(this.canvas, this.facts.geometry, this.view);
    const isHere = this.slices.get(this.at) !== undefined;
    if (isHere) {
      drawSlice(this.context, this.slice.canvas, at);
      if (this.overlay) this.drawOverlay(at, ratio);
    }
    drawProfile(find("profile"), this.facts.slices, this.at, PROFILE);
    this.describe(isHere);
  }

  drawOverlay(at, ratio) {
    const shown = this.facts.classes.filter(({ code }) => !this.hidden.has(code));
    const { places } = this.facts.slices[this.at];
    for (const kind of this.maps ? shown : []) {
      const letters = places.some(({ code }) => code === kind.code) ? "" : kind.letters; // the place has them
      drawMap(this.context, this.maps, this.at, { ...kind, letters }, this.opacity, at, ratio);
    }
    for (const place of places) {
      const kind = shown.find(({ code }) => code === place.code);
      if (kind) drawPlace(this.context, place, kind, at, ratio);
    }
  }

  describe(isHere) {
    const { places, percents, suspicious, shown_on: shownOn } = this.facts.slices[this.at];
    const scores = this.facts.classes.map(({ code, letters }) => `${letters} ${percents[code]}`).join(", ");
    const elsewhere = suspicious && shownOn !== this.at ? `, of a slab: see slice ${shownOn + 1}` : "";
    find("window-words").textContent =
      `W ${this.width}  L ${this.level}` + (this.view.zoom > 1 ? `  ${this.view.zoom.toFixed(1)} x` : "");
    find("scores").textContent = scores + elsewhere;
    const marks = places.length === 1 ? "1 place is marked" : `${places.length} places are marked`;
    const words = `${find("position").textContent}, window ${this.width} level ${this.level}, ${marks}${elsewhere}`;
    this.canvas.setAttribute("aria-label", words);
    this.canvas.dataset.slice = isHere ? String(this.at) : "";
    this.canvas.dataset.shownWindow = `${this.width} ${this.level}`;
  }
}
