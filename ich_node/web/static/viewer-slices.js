// Fetches slices, the nearest to the one that is looked at first, and keeps as many as memory allows.

const MOST_AT_ONCE = 4;
const MOST_BYTES = 192 * 2 ** 20;
const LIMIT_MS = 30000;

export class Slices {
  // `arrived(index)` is called when a slice, or why there is none, is here.
  constructor({ address, of, count, rows, columns }, arrived) {
    Object.assign(this, { address, of, count, pixels: rows * columns, arrived });
    this.most = Math.max(8, Math.floor(MOST_BYTES / (2 * this.pixels)));
    this.here = new Map();
    this.faults = new Map();
    this.underWay = new Set();
    this.center = 0;
    this.direction = 1;
  }

  // (rows x columns) HU, or undefined.
  get(index) {
    return this.here.get(index);
  }

  fault(index) {
    return this.faults.get(index)?.words;
  }

  want(index) {
    this.direction = index < this.center ? -1 : 1;
    this.center = index;
    if (this.faults.get(index)?.passes) this.faults.delete(index);
    this.pump();
  }

  pump() {
    for (const index of this.nearest()) {
      if (this.underWay.size >= MOST_AT_ONCE) return;
      if (!this.here.has(index) && !this.underWay.has(index) && !this.faults.has(index)) this.load(index);
    }
  }

  *nearest() {
    let left = this.most;
    for (let distance = 0; distance < this.count && left > 0; distance += 1) {
      for (const side of distance === 0 ? [0] : [this.direction, -this.direction]) {
        const index = this.center + side * distance;
        if (index < 0 || index >= this.count) continue;
        left -= 1;
        yield index;
      }
    }
  }

  async load(index) {
    this.underWay.add(index);
    try {
      const response = await fetch(`${this.address}${index}?of=${this.of}`, { signal: AbortSignal.timeout(LIMIT_MS) });
      if (!response.ok) {
        const words = (await response.text()).trim().slice(0, 300);
        this.faults.set(index, { words, passes: response.status >= 500 });
      } else {
        const slice = new Int16Array(await response.arrayBuffer());
        if (slice.length === this.pixels) this.here.set(index, slice);
        else this.faults.set(index, { words: "This slice is of another size than the others.", passes: false });
      }
    } catch {
      this.faults.set(index, { words: "This slice has not come: the node does not answer.", passes: true });
    }
    this.underWay.delete(index);
    this.forgetFar();
    this.arrived(index);
    this.pump();
  }

  forgetFar() {
    if (this.here.size <= this.most) return;
    const far = [...this.here.keys()].sort((a, b) => Math.abs(b - this.center) - Math.abs(a - this.center));
    for (const index of far.slice(0, this.here.size - this.most)) this.here.delete(index);
  }
}
