// What is known of the learning of each adapter, put together from events.
//
// A lesson is the making of one version: the losses of its steps, and what was decided.

const MOST_LESSONS = 60;
const NO_LESSONS = new Set(["rolled_back", "promoted", "withdrawn"]);

/** The lessons of all adapters, by name. */
export class History {
  constructor() {
    this.lessons = new Map();
  }

  forget() {
    this.lessons.clear();
  }

  of(adapter) {
    return this.lessons.get(adapter) ?? [];
  }

  /** The lesson that goes on now, if one does. */
  current(adapter) {
    const last = this.of(adapter).at(-1);
    return last && last.verdict === null ? last : null;
  }

  progress(data) {
    const lesson = this.open(data.adapter, data.phase === "screening");
    lesson.phase = data.phase;
    lesson.numSteps = data.num_steps;
    if (data.phase === "learning" && data.loss !== null && data.step > lesson.losses.length) {
      lesson.losses.push(data.loss);
    }
  }

  decision(data) {
    if (NO_LESSONS.has(data.action)) return;
    const lesson = this.open(data.adapter, false);
    const { numbers } = data;
    lesson.verdict = data.action;
    lesson.reasons = data.reasons;
    lesson.version = data.version;
    lesson.at = data.at;
    lesson.numbers = numbers;
    lesson.numSteps = numbers.steps ?? lesson.losses.length;
    lesson.before = numbers.parent_held_out_loss ?? null;
    lesson.after = numbers.held_out_loss ?? null;
  }

  open(adapter, isNew) {
    const lessons = this.of(adapter);
    this.lessons.set(adapter, lessons);
    const last = lessons.at(-1);
    if (last && last.verdict === null && !isNew) return last;
    if (last && last.verdict === null) lessons.pop(); // given up without a decision
    const lesson = {
      losses: [], phase: "", numSteps: 0, verdict: null, reasons: [], version: null,
      before: null, after: null, at: 0, numbers: {},
    };
    lessons.push(lesson);
    if (lessons.length > MOST_LESSONS) lessons.shift();
    return lesson;
  }
}
