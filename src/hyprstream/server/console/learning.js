// How an adapter learns: what goes on, its losses, what waits, and whether it may.

import { Refused, get, path, post } from "./api.js";
import { drawLosses } from "./chart.js";
import { at, make, offer } from "./dom.js";
import { count, digits } from "./format.js";

const PHASES = { screening: "looking at samples", learning: "learning", judging: "judging" };
const DRAW_MS = 200;

/** The learning panel. */
export class Learning {
  constructor(history) {
    this.history = history;
    this.adapters = [];
    this.due = null;
    at("learner").addEventListener("change", () => this.refresh());
    at("control").addEventListener("submit", (event) => {
      event.preventDefault();
      this.set("start", { learn: at("policy").value });
    });
    at("halt").addEventListener("click", () => this.set("stop"));
    new ResizeObserver(() => this.redraw()).observe(at("chart"));
  }

  get adapter() {
    return at("learner").value;
  }

  setAdapters(names) {
    this.adapters = names;
    if (!offer(at("learner"), [["Adapters", names]])) at("learner").value = names[0] ?? "";
    at("learner").disabled = at("start").disabled = at("halt").disabled = !names.length;
    this.refresh();
  }

  choose(name) {
    at("learner").value = name;
    this.refresh();
  }

  /** Draw soon: many steps make one drawing. */
  redraw() {
    this.due ??= setTimeout(() => {
      this.due = null;
      drawLosses(at("chart"), this.history.of(this.adapter));
      this.count();
      this.tellPhase();
    }, DRAW_MS);
  }

  /** Ask how it stands. */
  async refresh() {
    const name = this.adapter;
    this.redraw();
    if (!name) {
      at("counts").replaceChildren();
      return;
    }
    try {
      const status = await get(`v1/training/${path(name)}/status`);
      if (name === this.adapter) this.show(status);
    } catch (error) {
      if (error instanceof Refused) at("counts").replaceChildren();
    }
  }

  async set(what, body) {
    const name = this.adapter;
    try {
      this.show(await post(`v1/training/${path(name)}/${what}`, body));
      at("control-said").classList.remove("bad");
      at("control-said").textContent = what === "start"
        ? `${name} learns from now on` : `${name} learns no more`;
    } catch (error) {
      at("control-said").classList.add("bad");
      at("control-said").textContent = error.message;
    }
  }

  show(status) {
    this.status = status;
    const isOn = status.learn !== "off";
    this.isOn = isOn;
    at("halt").disabled = !isOn;
    at("start").disabled = isOn && status.learn === at("policy").value;
    at("policy").onchange = () => {
      at("start").disabled = isOn && status.learn === at("policy").value;
    };
    this.count();
    this.tellPhase();
  }

  /** Show the samples and the steps; those of a version that is being made count already. */
  count() {
    const { status } = this;
    if (!status || status.name !== this.adapter) return;
    const { samples, spent, budget } = status;
    const steps = spent.steps + (this.history.current(status.name)?.losses.length ?? 0);
    const rows = [
      ["Waiting", `${samples.waiting} (${status.min_waiting} needed)`, samples.waiting / status.min_waiting],
      ["Held out", `${samples.held_out} (${status.min_held_out} needed)`, samples.held_out / status.min_held_out],
      ["Used", String(samples.used), null],
      ["Steps today", `${steps} of ${budget.steps}`, steps / Math.max(1, budget.steps)],
    ];
    at("counts").replaceChildren(
      ...rows.map(([name, text, share]) =>
        make("div", {}, make("dt", {}, name), make("dd", { class: "mono" }, text),
             share === null ? null : make("progress", { max: "1", value: String(Math.min(1, share)),
                                                        "aria-label": name })),
      ),
    );
  }

  tellPhase() {
    const now = this.history.current(this.adapter);
    const last = this.history.of(this.adapter).findLast((lesson) => lesson.verdict !== null);
    let text = this.isOn ? "Waiting for samples" : "Not learning";
    let state = this.isOn ? "wait" : "off";
    if (now) {
      const loss = now.losses.length ? `, loss ${digits(now.losses.at(-1))}` : "";
      const step = now.phase === "learning" ? `, step ${now.losses.length} of ${now.numSteps}` : "";
      text = `${PHASES[now.phase] ?? now.phase}${step}${loss}`;
      text = text[0].toUpperCase() + text.slice(1);
      state = "busy";
    } else if (last) {
      const samples = last.numbers.samples ? ` from ${count(last.numbers.samples, "sample")}` : "";
      const why = last.reasons.length ? `: ${last.reasons.join("; ")}` : "";
      text += `. Last version${samples} ${last.verdict}${why}`;
    }
    // Read aloud is what begins, not every step of it.
    const phase = now ? `${this.adapter}: ${PHASES[now.phase] ?? now.phase}` : text;
    if (at("phase").textContent !== phase) at("phase").textContent = phase;
    const line = at("lesson");
    if (line.textContent !== text) line.textContent = text;
    line.dataset.state = state;
  }
}
