// Numbers, times and versions as people read them.

const UNITS = ["B", "kB", "MB", "GB", "TB"];

/** What was done to a name. */
export const MOVES = { create: "made", promote: "promoted", rollback: "rolled back" };

/** 19600000 as "19.6 MB". */
export function bytes(number) {
  let unit = 0;
  while (number >= 1000 && unit < UNITS.length - 1) {
    number /= 1000;
    unit += 1;
  }
  return `${unit && number < 100 ? number.toFixed(1) : Math.round(number)} ${UNITS[unit]}`;
}

/** A loss, or another number of which three digits matter. */
export function digits(number) {
  if (number === null || number === undefined) return "\u2013";
  const size = Math.abs(number);
  return number.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : 3);
}

/** The time of day of seconds since 1970. */
export function clock(seconds) {
  return new Date(seconds * 1000).toLocaleTimeString([], { hour12: false });
}

/** A moment as day and time, short. */
export function moment(text) {
  const options = { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit" };
  return new Date(text).toLocaleString([], { ...options, hour12: false });
}

/** The beginning of a version's id. */
export function short(version) {
  return version ? version.slice(0, 8) : "\u2013";
}

/** A number of things: "1 sample", "3 samples". */
export function count(number, thing) {
  return `${number} ${thing}${number === 1 ? "" : "s"}`;
}
