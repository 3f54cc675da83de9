// Draws a slice through its window, the overlays above it, and the profile of the series.

const AIR_HU = -1024;
const VALUES = 4096;
const FONT = "600 13px system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif";
const RIM = "#000c";

// Gray of each HU by the linear window of PS3.3 C.11.2.1.2.
export function windowTable(width, level) {
  const table = new Uint32Array(VALUES);
  for (let value = 0; value < VALUES; value += 1) {
    const part = (value + AIR_HU - (level - 0.5)) / Math.max(1, width - 1) + 0.5;
    const gray = Math.round(255 * Math.min(1, Math.max(0, part)));
    table[value] = 0xff000000 | (gray * 0x010101);
  }
  return table;
}

// A canvas of the size of the slice, to be filled again and again.
export class SliceCanvas {
  constructor(rows, columns) {
    this.canvas = document.createElement("canvas");
    this.canvas.width = columns;
    this.canvas.height = rows;
    this.context = this.canvas.getContext("2d", { alpha: false });
    this.image = new ImageData(columns, rows);
    this.pixels = new Uint32Array(this.image.data.buffer);
  }

  fill(hu, table) {
    for (let at = 0; at < hu.length; at += 1) this.pixels[at] = table[hu[at] - AIR_HU];
    this.context.putImageData(this.image, 0, 0);
  }
}

// Maps source pixels to the stage: as large as fits, in the patient's proportions, then zoomed and moved.
export function placement(stage, geometry, view) {
  const [down, across] = geometry.pixel_spacing_mm;
  const width = geometry.columns * across;
  const height = geometry.rows * down;
  const scale = Math.min(stage.width / width, stage.height / height) * view.zoom;
  return {
    x: scale * across,
    y: scale * down,
    left: (stage.width - scale * width) / 2 + view.x,
    top: (stage.height - scale * height) / 2 + view.y,
  };
}

export function drawSlice(context, slice, at) {
  context.setTransform(at.x, 0, 0, at.y, at.left, at.top);
  context.imageSmoothingEnabled = true;
  context.imageSmoothingQuality = "high";
  context.drawImage(slice, 0, 0);
}

// The maps of one class, its outline and its letters.
export function drawMap(context, maps, index, { code, color, letters, fills }, opacity, at, ratio) {
  const tint = maps.tint(index, code, color);
  if (!tint) return;
  context.setTransform(at.x, 0, 0, at.y, at.left, at.top);
  context.globalAlpha = fills ? opacity : 0;
  context.drawImage(tint, ...maps.extent);
  context.globalAlpha = 1;
  const outline = maps.outline(index, code);
  if (!outline || opacity === 0) return;
  context.strokeStyle = color;
  context.lineWidth = (1.5 * ratio) / at.x;
  context.setLineDash(outline.isSolid ? [] : [(5 * ratio) / at.x, (4 * ratio) / at.x]);
  context.stroke(outline.path);
  context.setLineDash([]);
  letter(context, letters, color, outline.place, at, ratio);
}

// A place that the model marked: a circle around a point, or a box.
export function drawPlace(context, place, { color, letters }, at, ratio) {
  context.setTransform(1, 0, 0, 1, 0, 0);
  const x = (value) => at.left + value * at.x;
  const y = (value) => at.top + value * at.y;
  const shape = new Path2D();
  let corner;
  if (place.kind === "box") {
    const [left, top, right, bottom] = place.at;
    shape.rect(x(left), y(top), x(right) - x(left), y(bottom) - y(top));
    corner = [right, top];
  } else {
    const [column, row] = place.at;
    shape.arc(x(column), y(row), 9 * ratio, 0, 2 * Math.PI);
    corner = place.at;
  }
  for (const [style, width] of [
    [RIM, 4],
    [color, 2],
  ]) {
    context.strokeStyle = style;
    context.lineWidth = width * ratio;
    context.stroke(shape);
  }
  letter(context, `${letters} ${place.percent}`, color, corner, at, ratio, 13);
}

function letter(context, text, color, [column, row], at, ratio, aside = 4) {
  context.setTransform(ratio, 0, 0, ratio, at.left + column * at.x, at.top + row * at.y);
  context.font = FONT;
  context.lineJoin = "round";
  context.lineWidth = 4;
  context.strokeStyle = RIM;
  context.strokeText(text, aside, -5);
  context.fillStyle = color;
  context.fillText(text, aside, -5);
}

// The likelihood over the slices as bars, the lowest slice below; peaks are marked by a dot.
export function drawProfile(canvas, slices, current, colors) {
  const ratio = devicePixelRatio || 1;
  const box = canvas.getBoundingClientRect();
  canvas.width = Math.max(1, Math.round(box.width * ratio));
  canvas.height = Math.max(1, Math.round(box.height * ratio));
  const context = canvas.getContext("2d");
  const step = canvas.height / slices.length;
  const room = canvas.width - 12 * ratio;
  slices.forEach((slice, index) => {
    const top = canvas.height - (index + 1) * step;
    context.fillStyle = slice.suspicious ? colors.suspicious : colors.other;
    context.fillRect(0, top, Math.max(ratio, slice.score * room), Math.max(1, step - Math.min(ratio, step / 4)));
    if (isPeak(slices, index)) {
      context.beginPath();
      context.arc(canvas.width - 6 * ratio, top + step / 2, 3 * ratio, 0, 2 * Math.PI);
      context.fill();
    }
  });
  context.strokeStyle = colors.current;
  context.lineWidth = 2 * ratio;
  const height = Math.max(step, 4 * ratio);
  const middle = canvas.height - (current + 0.5) * step;
  context.strokeRect(ratio, middle - height / 2, canvas.width - 2 * ratio, height);
}

// Of a slab, the slice that shows it is the peak.
export function isPeak(slices, index) {
  const { score, suspicious, shown_on: shownOn } = slices[index];
  if (!suspicious || shownOn !== index) return false;
  const beyond = (step) => {
    let at = index + step;
    while (slices[at]?.shown_on === index) at += step;
    return slices[at]?.score ?? -1;
  };
  return score > beyond(-1) && score >= beyond(1);
}
