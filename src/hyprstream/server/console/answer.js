// One answer as it comes, and what is said of it.

import { Gone, Refused, ask, frames, post } from "./api.js";
import { button, make } from "./dom.js";

const SAID = {
  waiting: "kept, to be learnt from",
  held_out: "kept, to judge versions by",
  duplicate: "known already",
  full: "no room to keep it",
  too_long: "too long to be learnt from",
  incomplete: "cut off: write how it should have ended",
  withdrawn: "nothing is learnt of this answer",
  off: "noted; this adapter does not learn",
  noted: "noted",
  refused: "not kept",
};

/** An answer of one model. */
export class Answer {
  constructor(model, { mayRate }) {
    this.mayRate = mayRate;
    this.id = "";
    this.node = document.createTextNode("");
    this.said = make("p", { class: "said", role: "status" });
    this.facts = make("span", { class: "facts mono" });
    this.body = make(
      "div",
      { class: "answer", "aria-live": "polite", "aria-busy": "true" },
      this.node,
    );
    this.foot = make("div", { class: "foot" });
    this.element = make(
      "section",
      { class: mayRate ? "cell adapter" : "cell", "aria-label": `Answer of ${model}` },
      make("h4", {}, make("span", { class: "who" }, model), this.facts),
      this.body,
      this.foot,
      this.said,
    );
  }

  get text() {
    return this.node.data;
  }

  /** Ask, and show what comes; `grown` is called when the answer has grown. */
  async stream(body, signal, grown) {
    const began = performance.now();
    try {
      const answer = await ask("v1/chat/completions", { method: "POST", body, signal });
      for await (const { data } of frames(answer)) {
        if (data) this.take(data, began);
        grown();
      }
    } catch (error) {
      this.fail(error, signal);
    }
    this.body.setAttribute("aria-busy", "false");
    if (this.mayRate && this.id && this.text) this.rate();
    grown();
  }

  take(data, began) {
    if (data.error) throw new Refused(500, data.error.message, data.error.code);
    this.id = data.id;
    const choice = data.choices[0];
    if (choice?.delta.content) this.node.appendData(choice.delta.content);
    if (choice?.finish_reason === "length") this.said.textContent = "cut off at the most tokens";
    if (data.usage) {
      const seconds = (performance.now() - began) / 1000;
      const tokens = data.usage.completion_tokens;
      const version = data.system_fingerprint.slice(3, 11);
      const which = this.mayRate ? `${version} \u00b7 ` : "";
      this.facts.textContent = `${which}${tokens} tok \u00b7 ${(tokens / seconds).toFixed(1)}/s`;
    }
  }

  fail(error, signal) {
    if (signal.aborted) {
      this.said.textContent = "stopped";
      return;
    }
    this.said.classList.add("bad");
    this.said.textContent = error.message;
    if (!(error instanceof Gone || error instanceof Refused)) console.error(error);
  }

  /** Offer to say what one thinks of it. */
  rate() {
    const thumbs = ["up", "down"].map((side) =>
      button(side === "up" ? "Good" : "Bad", () => this.judge({ thumbs: side }, side), {
        class: `quiet thumb ${side}`,
        "aria-pressed": "false",
        "data-side": side,
      }),
    );
    this.thumbs = thumbs;
    this.corrects = button("Correct", () => this.openCorrection(), { class: "quiet" });
    this.foot.replaceChildren(...thumbs, this.corrects);
  }

  async judge(opinion, side) {
    try {
      const { recorded } = await post("v1/feedback", { id: this.id, ...opinion });
      this.said.classList.remove("bad");
      this.said.textContent = SAID[recorded] ?? recorded;
      for (const thumb of this.thumbs) {
        thumb.setAttribute("aria-pressed", String(thumb.dataset.side === side));
      }
      return true;
    } catch (error) {
      const isForgotten = error instanceof Refused && error.code === "answer_not_found";
      this.said.classList.toggle("bad", !isForgotten);
      this.said.textContent = isForgotten
        ? "not kept: the adapter does not learn, or the answer was forgotten" : error.message;
      return false;
    }
  }

  openCorrection() {
    const text = make("textarea", { rows: "4", "aria-label": "What the answer should have been" });
    text.value = this.text;
    const close = () => {
      form.remove();
      this.foot.hidden = false;
      this.corrects.focus();
    };
    const save = async (event) => {
      event.preventDefault();
      const correction = text.value.trim();
      if (correction && (await this.judge({ correction }, null))) close();
    };
    const form = make(
      "form",
      { class: "correction", onsubmit: save },
      text,
      make(
        "div",
        { class: "actions" },
        button("Cancel", close, { class: "quiet" }),
        make("button", { type: "submit" }, "Save the correction"),
      ),
    );
    text.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
      if (event.key === "Escape") {
        event.stopPropagation();
        close();
      }
    });
    this.foot.hidden = true;
    this.foot.after(form);
    text.focus();
  }
}
