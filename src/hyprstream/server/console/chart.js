// Losses as a drawing: lessons one after the other, verdicts where they were given.

import { draw, make } from "./dom.js";
import { digits } from "./format.js";

const HEIGHT = 190;
const EDGE = { top: 10, right: 14, bottom: 22, left: 38 };
const MADE = new Set(["published", "canary"]);

/** Draw lessons into a box, as wide as that is. */
export function drawLosses(box, lessons) {
  const places = place(lessons);
  if (!places.some((lesson) => lesson.end > lesson.start)) {
    box.replaceChildren(make("p", { class: "empty" }, "No version has been made yet."));
    return;
  }
  const width = Math.max(280, box.clientWidth);
  const scale = scales(places, width);
  box.replaceChildren(
    draw(
      "svg",
      { viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT, role: "img",
        "aria-label": summary(lessons) },
      ...grid(scale, width),
      ...places.flatMap((lesson) => marks(lesson, scale)),
    ),
  );
}

/** Give each lesson its steps on one axis; those that were not taken have no place. */
function place(lessons) {
  let start = 0;
  const places = [];
  for (const lesson of lessons) {
    const hasLosses = lesson.losses.length > 0 || lesson.after !== null;
    if (!hasLosses && lesson.verdict === null) continue;
    const steps = hasLosses ? Math.max(lesson.losses.length, lesson.numSteps) : 0;
    places.push({ ...lesson, start, end: start + steps });
    start += steps;
  }
  return places;
}

function scales(places, width) {
  const values = places.flatMap((lesson) => [...lesson.losses, lesson.before, lesson.after]);
  const known = values.filter((value) => value !== null && Number.isFinite(value));
  let low = Math.min(...known);
  let high = Math.max(...known);
  const air = Math.max((high - low) * 0.08, high * 0.01, 1e-6);
  [low, high] = [Math.max(0, low - air), high + air];
  const last = Math.max(1, places.at(-1).end);
  const inner = { x: width - EDGE.left - EDGE.right, y: HEIGHT - EDGE.top - EDGE.bottom };
  return {
    low, high, last,
    x: (step) => EDGE.left + (step / last) * inner.x,
    y: (loss) => EDGE.top + ((high - loss) / (high - low)) * inner.y,
  };
}

function* ticks(low, high, most) {
  const rough = (high - low) / most;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((n) => n * power).find((size) => size >= rough);
  for (let at = Math.ceil(low / step) * step; at <= high + step / 1000; at += step) yield at;
}

function grid({ low, high, last, x, y }, width) {
  const parts = [];
  const losses = [...ticks(low, high, 4)];
  const decimals = Math.max(0, -Math.floor(Math.log10((losses[1] ?? high) - (losses[0] ?? low))));
  for (const loss of losses) {
    parts.push(draw("line", { class: "grid", x1: EDGE.left, x2: width - EDGE.right, y1: y(loss),
                              y2: y(loss) }));
    parts.push(draw("text", { class: "tick", x: EDGE.left - 6, y: y(loss) + 3.5,
                              "text-anchor": "end" }, loss.toFixed(decimals)));
  }
  for (const step of ticks(0, last, Math.max(2, width / 110))) {
    if (step % 1) continue;
    parts.push(draw("text", { class: "tick", x: x(step), y: HEIGHT - 6,
                              "text-anchor": "middle" }, String(Math.round(step))));
  }
  return parts;
}

function marks(lesson, { x, y }) {
  const parts = [];
  const { start, end, losses, before, after, verdict } = lesson;
  if (after === null && verdict !== null && !MADE.has(verdict)) {
    parts.push(mark("no", x(end), HEIGHT - EDGE.bottom, lesson)); // before it was measured
  }
  if (start && end > start) {
    parts.push(draw("line", { class: "turn-line", x1: x(start), x2: x(start), y1: EDGE.top,
                              y2: HEIGHT - EDGE.bottom }));
  }
  if (losses.length === 1) {
    parts.push(draw("circle", { class: "train-dot", cx: x(start + 1), cy: y(losses[0]), r: 1.8 }));
  } else if (losses.length) {
    const points = losses.map((loss, step) => `${x(start + step + 1)},${y(loss)}`).join(" ");
    parts.push(draw("polyline", { class: "train-line", points }));
  }
  if (after !== null) {
    const kind = MADE.has(verdict) ? "yes" : "no";
    if (before !== null) {
      parts.push(draw("line", { class: "held-line", x1: x(start), y1: y(before), x2: x(end),
                                y2: y(after) }));
      parts.push(draw("circle", { class: "held-dot", cx: x(start), cy: y(before), r: 2 }));
    }
    parts.push(mark(kind, x(end), y(after), lesson));
  }
  return parts;
}

function mark(kind, cx, cy, lesson) {
  const shape = kind === "yes"
    ? draw("circle", { class: "verdict yes", cx, cy, r: 4.5 })
    : draw("path", { class: "verdict no", d: `M${cx - 4},${cy - 4}l8,8m0,-8l-8,8` });
  const why = lesson.reasons.length ? `: ${lesson.reasons.join("; ")}` : "";
  shape.append(draw("title", {}, `${lesson.verdict}${why}`));
  return shape;
}

function summary(lessons) {
  const told = lessons.filter((lesson) => lesson.verdict !== null);
  const now = lessons.at(-1);
  const parts = told.slice(-5).map((lesson) => lesson.after === null
    ? lesson.verdict
    : `${lesson.verdict}, held-out loss ${digits(lesson.before)} to ${digits(lesson.after)}`);
  if (now && now.verdict === null && now.losses.length) {
    parts.push(`learning, train loss ${digits(now.losses.at(-1))} at step ${now.losses.length}`);
  }
  return `Losses by step. ${parts.join(". ")}`;
}
