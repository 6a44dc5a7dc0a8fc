// The page: puts the parts together, and keeps them up to date.

import { AdapterList } from "./adapters.js";
import { Refused, get } from "./api.js";
import { Chat } from "./chat.js";
import { at } from "./dom.js";
import { Gauges } from "./gauges.js";
import { History } from "./history.js";
import { Learning } from "./learning.js";
import { follow } from "./live.js";
import { wipe, write } from "./log.js";
import { askForKey, prepareKeys } from "./session.js";

const STATS_MS = 2000;
const SOON_MS = 300;

const history = new History();
const chat = new Chat();
const gauges = new Gauges();
const learning = new Learning(history);
const adapters = new AdapterList({
  chosen: (name) => {
    learning.choose(name);
    show("learning");
  },
  changed: refresh,
});
let soon = null;
let mayLook = true; // the key may ask for /v1/stats

function show(view) {
  document.body.dataset.view = view;
  for (const one of document.querySelectorAll(".views button")) {
    one.setAttribute("aria-pressed", String(one.dataset.view === view));
  }
  learning.redraw();
}

/** Ask what models and adapters there are. */
async function refresh() {
  const { data } = await get("v1/models");
  const bases = data.filter((model) => model.parent === null).map((model) => model.id);
  const own = data.filter((model) => model.parent !== null);
  at("model").textContent = bases.join(", ");
  chat.setModels(bases, own.map((model) => model.id));
  learning.setAdapters(own.map((model) => model.id));
  adapters.setAdapters(own.map((model) => ({ name: model.id, version: model.version })));
  if (mayLook) await look();
  else adapters.setSizes((await get("v1/adapters")).data);
}

function refreshSoon() {
  soon ??= setTimeout(() => {
    soon = null;
    refresh().catch(() => {}); // the stream of events tells when the server is gone
  }, SOON_MS);
}

async function look() {
  try {
    const stats = await get("v1/stats");
    gauges.show(stats);
    adapters.setSizes(stats.adapters);
  } catch (error) {
    if (!(error instanceof Refused) || error.status !== 403) throw error;
    mayLook = false;
    adapters.setSizes((await get("v1/adapters")).data);
  }
}

async function keepLooking() {
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, STATS_MS));
    if (document.hidden || at("link").dataset.state !== "up") continue;
    if (mayLook) await look().catch(() => {});
    await learning.refresh();
  }
}

function told(kind, data) {
  if (kind === "reset") {
    history.forget();
    wipe();
  } else if (kind === "progress") {
    history.progress(data);
    if (data.adapter === learning.adapter) learning.redraw();
    return;
  } else {
    if (kind === "decision") history.decision(data);
    write(kind, data);
    refreshSoon();
  }
}

async function up() {
  await refresh();
  at("link").dataset.state = "up";
  at("link").textContent = "connected";
  at("gone").hidden = true;
}

async function down(error) {
  if (error instanceof Refused && error.status === 401) {
    await askForKey();
    mayLook = true;
    return;
  }
  at("link").dataset.state = "down";
  at("link").textContent = "not connected";
  at("gone").hidden = false;
  at("gone").textContent = error instanceof Refused
    ? `The server refuses: ${error.message}`
    : "The server does not answer. This page tries again by itself.";
}

for (const one of document.querySelectorAll(".views button")) {
  one.addEventListener("click", () => show(one.dataset.view));
}
prepareKeys();
keepLooking();
follow({ told, up, down });
