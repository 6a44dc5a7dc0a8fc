// The adapters: what they take, their versions, and which one serves.

import { Refused, get, path, post } from "./api.js";
import { confirm } from "./confirm.js";
import { at, button, make } from "./dom.js";
import { MOVES, bytes, moment, short } from "./format.js";

/** The list of adapters. */
export class AdapterList {
  /** `chosen(name)` is called for an adapter that somebody wants to look at. */
  constructor({ chosen, changed }) {
    this.chosen = chosen;
    this.changed = changed;
    this.open = new Set();
    this.sizes = new Map();
    this.shown = "";
  }

  /** Take how much adapters take: `/v1/stats` or, without compression, `/v1/adapters`. */
  setSizes(sizes) {
    for (const size of sizes) this.sizes.set(size.name, size);
    const known = sizes.filter((size) => size.dense_bytes);
    const stored = known.reduce((sum, size) => sum + size.stored_bytes, 0);
    const dense = known.reduce((sum, size) => sum + size.dense_bytes, 0);
    at("total").textContent = known.length
      ? `${bytes(stored)} stored, ${bytes(dense)} dense` : "";
    this.render();
  }

  /** Take the adapters of this model: name and version of each. */
  setAdapters(adapters) {
    this.adapters = adapters;
    this.render();
  }

  render() {
    const adapters = this.adapters ?? [];
    const facts = JSON.stringify([adapters, [...this.sizes]]);
    if (facts === this.shown) return;
    this.shown = facts;
    const focus = document.activeElement?.dataset?.keep;
    at("adapter-list").replaceChildren(
      ...(adapters.length
        ? adapters.map((adapter) => this.row(adapter))
        : [make("li", { class: "empty" }, "There are none for this model yet: hyprstream lora create --name NAME")]),
    );
    if (focus) document.querySelector(`[data-keep="${CSS.escape(focus)}"]`)?.focus();
  }

  row({ name, version }) {
    const size = this.sizes.get(name);
    const ratio = size?.compression;
    const box = make("div", { class: "versions" });
    const details = make(
      "details",
      { open: this.open.has(name) },
      make(
        "summary",
        { "data-keep": name },
        make("span", { class: "name" }, name),
        make("span", { class: "mono version" }, short(version)),
        make("span", { class: "mono size" }, size ? `${size.codec} ${bytes(size.stored_bytes ?? size.size_bytes)}` : ""),
        this.ratio(ratio, size),
      ),
      box,
    );
    details.addEventListener("toggle", () => {
      if (details.open) this.open.add(name);
      else this.open.delete(name);
      if (details.open) this.fill(box, name);
    });
    if (details.open) this.fill(box, name);
    return make("li", {}, details);
  }

  ratio(ratio, size) {
    if (!ratio) return make("span", { class: "ratio" });
    const label = `${bytes(size.stored_bytes)} of ${bytes(size.dense_bytes)} dense`;
    const bar = make("meter", { min: "0", max: "1", value: String(Math.min(1, 1 / ratio)), "aria-label": label });
    return make("span", { class: "ratio mono", title: label }, bar, `${ratio.toFixed(ratio < 10 ? 1 : 0)}\u00d7`);
  }

  async fill(box, name) {
    try {
      const { data: moves } = await get(`v1/adapters/${path(name)}/history`);
      box.replaceChildren(
        make("div", { class: "actions" },
             button("Show learning", () => this.chosen(name), { class: "quiet" }),
             button("Roll back", () => this.rollBack(name), { class: "quiet", "data-keep": `${name}/back` })),
        this.table(name, moves),
      );
    } catch (error) {
      box.replaceChildren(make("p", { class: "said bad" }, error.message));
    }
  }

  /** The versions that a name has pointed at: the latest first, each once. */
  table(name, moves) {
    const current = moves.at(-1).version;
    const latest = new Map();
    for (const move of moves) {
      latest.delete(move.version);
      latest.set(move.version, move);
    }
    return make(
      "ul",
      {},
      ...[...latest.values()].reverse().map((move) =>
        make(
          "li",
          { class: move.version === current ? "current" : "" },
          make("span", { class: "mono" }, short(move.version)),
          make("span", { class: "when" }, moment(move.at)),
          make("span", { class: "why" }, move.why || `${MOVES[move.action] ?? move.action} by ${move.by || "somebody"}`),
          move.version === current
            ? make("span", { class: "tag" }, "serves")
            : button("Promote", () => this.promote(name, move.version), {
              class: "small",
              "aria-label": `Promote ${short(move.version)}`,
              "data-keep": `${name}@${move.version}`,
            }),
        ),
      ),
    );
  }

  async promote(name, version) {
    const yes = await confirm(
      `Promote ${short(version)}`,
      `From now on ${name} answers with version ${short(version)}. Answers under way end with theirs.`,
      "Promote",
    );
    if (yes) await this.move(name, "promote", { version, why: "promoted in the console" });
  }

  async rollBack(name) {
    const yes = await confirm(
      `Roll ${name} back`,
      "The last promotion is undone: the version before it answers from now on.",
      "Roll back",
    );
    if (yes) await this.move(name, "rollback", { why: "rolled back in the console" });
  }

  async move(name, action, body) {
    const said = at("adapters-said");
    try {
      const { version } = await post(`v1/adapters/${path(name)}/${action}`, body);
      said.classList.remove("bad");
      said.textContent = `${name} answers with ${short(version)}`;
      await this.changed();
    } catch (error) {
      said.classList.add("bad");
      said.textContent = error instanceof Refused && error.status === 403
        ? "This key may not move adapters: that needs the scope admin." : error.message;
    }
  }
}
