// The events as lines of text, the latest first.

import { at, make } from "./dom.js";
import { MOVES, clock, digits, short } from "./format.js";

const MOST = 200;
const ACTIONS = {
  published: "version published",
  rejected: "version rejected",
  stale: "version dropped: the name was moved",
  abandoned: "publication given up",
  failed: "learning failed",
  disabled: "learning switched off",
  rolled_back: "version taken back",
  canary: "version tried on a share of the requests",
  promoted: "version answers all requests",
  withdrawn: "version withdrawn",
};

/** Write an event down, if it is one for people. */
export function write(kind, data) {
  const line = kind === "decision" ? decision(data) : kind === "move" ? move(data) : null;
  if (line === null) return;
  const log = at("log");
  // A move is noticed a little later than it happens, or much later if nobody looked on.
  line.dataset.at = data.at;
  const older = [...log.children].find((one) => Number(one.dataset.at) <= data.at);
  log.insertBefore(line, older ?? null);
  while (log.children.length > MOST) log.lastElementChild.remove();
}

/** Forget all lines. */
export function wipe() {
  at("log").replaceChildren();
}

function decision(data) {
  const { numbers } = data;
  const facts = [];
  if (numbers.held_out_loss !== undefined) {
    facts.push(`held-out ${digits(numbers.parent_held_out_loss)} \u2192 ${digits(numbers.held_out_loss)}`);
  }
  if (numbers.steps) facts.push(`${numbers.steps} steps`);
  if (numbers.bad !== undefined) facts.push(`${numbers.bad} bad, ${numbers.good} good`);
  const version = data.version ? ` ${short(data.version)}` : "";
  const all = Object.entries(numbers).map(([name, value]) => make("li", {}, `${name} ${digits(value)}`));
  return entry(
    data,
    data.action,
    `${ACTIONS[data.action] ?? data.action}${version}`,
    [...data.reasons, ...facts].join("; "),
    all.length ? make("details", {}, make("summary", {}, "numbers"), make("ul", {}, ...all)) : null,
  );
}

function move(data) {
  const why = data.why ? `: ${data.why}` : "";
  const by = data.by ? ` by ${data.by}` : "";
  return entry(data, data.action, `${MOVES[data.action] ?? data.action} ${short(data.version)}`, `${by}${why}`.trim(), null);
}

function entry(data, kind, what, why, more) {
  return make(
    "li",
    { "data-kind": kind },
    make("time", { class: "mono" }, clock(data.at)),
    make(
      "div",
      {},
      make("b", {}, data.adapter),
      " ",
      make("span", { class: "what" }, what),
      " ",
      make("span", { class: "why" }, why),
      more,
    ),
  );
}
