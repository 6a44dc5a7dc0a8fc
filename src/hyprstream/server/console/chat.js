// The conversation: one question, two models that answer it side by side.

import { at, make, offer } from "./dom.js";
import { Answer } from "./answer.js";

const SIDES = ["left", "right"];

/** The chat of the page. */
export class Chat {
  constructor() {
    this.turns = []; // {question, answers: {left, right}}
    this.running = null;
    at("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    at("prompt").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        this.send();
      }
    });
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && !document.querySelector("dialog[open]")) this.stop();
    });
    at("stop").addEventListener("click", () => this.stop());
    at("clear").addEventListener("click", () => this.clear());
    for (const side of SIDES) at(side).addEventListener("change", () => this.nameSides());
  }

  /** Take the models that there are: base models and adapters, by name. */
  setModels(bases, adapters) {
    const groups = [["Base model", bases], ["Adapters", adapters]];
    if (!offer(at("left"), groups)) at("left").value = bases[0] ?? "";
    if (!offer(at("right"), groups)) at("right").value = adapters[0] ?? bases[0] ?? "";
    this.bases = new Set(bases);
    this.nameSides();
  }

  /** Let the right side speak with a model, such as a version that was just clicked. */
  choose(name) {
    at("right").value = name;
    this.nameSides();
  }

  nameSides() {
    const both = at("left").value !== at("right").value;
    at("prompt").placeholder = both
      ? `Ask ${at("left").value} and ${at("right").value}`
      : `Ask ${at("left").value} twice`;
  }

  async send() {
    const question = at("prompt").value.trim();
    if (!question || this.running) return;
    at("prompt").value = "";
    const running = (this.running = new AbortController());
    this.show(true);
    const answers = {};
    for (const side of SIDES) {
      const model = at(side).value;
      answers[side] = new Answer(model, { mayRate: !this.bases.has(model) });
    }
    const turn = { question, answers };
    at("turns").append(
      make(
        "article",
        { class: "turn" },
        make("h3", { class: "question" }, question),
        make("div", { class: "pair" }, ...SIDES.map((side) => answers[side].element)),
      ),
    );
    this.keepAtEnd();
    await Promise.all(
      SIDES.map((side) =>
        answers[side].stream(this.body(side, question), running.signal, () => this.keepAtEnd()),
      ),
    );
    this.turns.push(turn);
    this.running = null;
    this.show(false);
    if (document.activeElement === document.body) at("prompt").focus();
  }

  stop() {
    this.running?.abort();
  }

  clear() {
    this.stop();
    this.turns = [];
    at("turns").replaceChildren();
    at("prompt").focus();
  }

  /** What is asked of one side: its own answers are its past. */
  body(side, question) {
    const messages = [];
    const system = at("system").value.trim();
    if (system) messages.push({ role: "system", content: system });
    for (const { question: asked, answers } of this.turns) {
      if (!answers[side].text) continue;
      messages.push({ role: "user", content: asked });
      messages.push({ role: "assistant", content: answers[side].text });
    }
    messages.push({ role: "user", content: question });
    return {
      model: at(side).value,
      messages,
      temperature: Number(at("temperature").value),
      max_tokens: Number(at("max-tokens").value),
      stream: true,
      stream_options: { include_usage: true },
    };
  }

  show(isRunning) {
    const hadFocus = document.activeElement;
    at("stop").hidden = !isRunning;
    at("send").hidden = isRunning;
    if (hadFocus === at("send")) at("stop").focus();
    if (hadFocus === at("stop")) at("prompt").focus();
  }

  /** Scroll on with the answers, unless somebody reads further up. */
  keepAtEnd() {
    const box = at("turns");
    if (box.scrollHeight - box.scrollTop - box.clientHeight < 160) box.scrollTop = box.scrollHeight;
  }
}
