// What the server does and holds, in a line; the last minutes of its throughput as a drawing.

import { at, draw, make } from "./dom.js";
import { bytes } from "./format.js";

const KEPT = 60;

/** The gauges in the bar. */
export class Gauges {
  constructor() {
    this.rates = [];
  }

  show(stats) {
    this.rates.push(stats.tokens.per_s);
    if (this.rates.length > KEPT) this.rates.shift();
    const { requests, kv } = stats;
    const share = kv.blocks ? Math.round((100 * kv.used_blocks) / kv.blocks) : 0;
    at("gauges").hidden = false;
    at("gauges").replaceChildren(
      gauge("tokens/s", stats.tokens.per_s.toFixed(1), this.curve()),
      gauge("requests", `${requests.running}${requests.waiting ? ` + ${requests.waiting} waiting` : ""}`),
      gauge("KV", `${share}% of ${bytes(kv.bytes)}`),
      gauge("memory", bytes(stats.resident_bytes)),
    );
  }

  curve() {
    const high = Math.max(1, ...this.rates);
    const points = this.rates.map((rate, n) => `${n + KEPT - this.rates.length},${15 - (14 * rate) / high}`);
    return draw(
      "svg",
      { class: "curve", viewBox: `0 0 ${KEPT} 16`, width: KEPT, height: 16, "aria-hidden": "true" },
      draw("line", { x1: 0, x2: KEPT, y1: 15.5, y2: 15.5 }),
      draw("polyline", { points: points.join(" ") }),
    );
  }
}

function gauge(name, text, ...more) {
  return make("div", {}, make("dt", {}, name), make("dd", { class: "mono" }, text, ...more));
}
