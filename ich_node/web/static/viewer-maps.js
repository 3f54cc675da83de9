// The likelihood maps of a reading: unpacked, colored, and outlined.

const SEEN_FROM = 32; // of 255: less would be a veil over everything
const SOLID = 0.5 * 255;
const DASHED = 0.25 * 255;

export class LikelihoodMaps {
  static async load(address) {
    const response = await fetch(address);
    if (!response.ok) return null;
    const bytes = new Uint8Array(await response.arrayBuffer());
    const end = bytes.indexOf(10);
    const head = JSON.parse(new TextDecoder().decode(bytes.subarray(0, end)));
    return head.format === 1 ? new LikelihoodMaps(head, bytes.subarray(end + 1)) : null;
  }

  constructor(head, cells) {
    Object.assign(this, head);
    this.cells = cells;
    this.places = new Map(head.maps.map(([index, code], place) => [`${index} ${code}`, place]));
    this.tints = new Map();
    this.lines = new Map();
  }

  values(index, code) {
    const place = this.places.get(`${index} ${code}`);
    if (place === undefined) return null;
    const size = this.rows * this.columns;
    return this.cells.subarray(place * size, (place + 1) * size);
  }

  // Source pixel coordinates of the middle of a cell.
  middle(row, column) {
    return [this.first + 0.5 + column * this.step, this.first + 0.5 + row * this.step];
  }

  // Left, top, width and height that a tint covers, in source pixels.
  get extent() {
    const corner = this.first + 0.5 - this.step / 2;
    return [corner, corner, this.columns * this.step, this.rows * this.step];
  }

  // A canvas of rows x columns in a color whose density is the likelihood.
  tint(index, code, color) {
    const key = `${index} ${code}`;
    if (!this.tints.has(key)) this.tints.set(key, this.draw(this.values(index, code), color));
    return this.tints.get(key);
  }

  draw(values, color) {
    if (!values) return null;
    const canvas = document.createElement("canvas");
    canvas.width = this.columns;
    canvas.height = this.rows;
    const image = new ImageData(this.columns, this.rows);
    const [red, green, blue] = [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16));
    values.forEach((value, cell) => image.data.set([red, green, blue, value < SEEN_FROM ? 0 : value], 4 * cell));
    canvas.getContext("2d").putImageData(image, 0, 0);
    return canvas;
  }

  // Outlines in source pixels: where it is likely, or dashed where it is only possible; and the place of its letters.
  outline(index, code) {
    const key = `${index} ${code}`;
    if (!this.lines.has(key)) this.lines.set(key, this.trace(this.values(index, code)));
    return this.lines.get(key);
  }

  trace(values) {
    if (!values) return null;
    let peak = 0;
    values.forEach((value, cell) => {
      if (value > values[peak]) peak = cell;
    });
    if (values[peak] < DASHED) return null;
    const isSolid = values[peak] >= SOLID;
    const place = this.middle(Math.floor(peak / this.columns), peak % this.columns);
    return { path: this.contour(values, isSolid ? SOLID : DASHED), isSolid, place };
  }

  // Marching squares.
  contour(values, level) {
    const path = new Path2D();
    const at = (row, column) => values[row * this.columns + column];
    for (let row = 0; row + 1 < this.rows; row += 1) {
      for (let column = 0; column + 1 < this.columns; column += 1) {
        const corners = [
          [row, column],
          [row, column + 1],
          [row + 1, column + 1],
          [row + 1, column],
        ];
        const crossings = [];
        corners.forEach(([r, c], k) => {
          const [nextR, nextC] = corners[(k + 1) % 4];
          const [one, other] = [at(r, c) - level, at(nextR, nextC) - level];
          if (one >= 0 === other >= 0) return;
          const part = one / (one - other);
          crossings.push(this.middle(r + part * (nextR - r), c + part * (nextC - c)));
        });
        for (let k = 0; k + 1 < crossings.length; k += 2) {
          path.moveTo(...crossings[k]);
          path.lineTo(...crossings[k + 1]);
        }
      }
    }
    return path;
  }
}
