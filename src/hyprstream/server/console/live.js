// The stream of events, kept up: it goes on where it broke, and waits longer each time.

import { Gone, Refused, ask, frames } from "./api.js";

const FIRST_MS = 500;
const LONGEST_MS = 8000;

/**
 * Follow what happens for as long as the page is there.
 *
 * `told(kind, data)` gets each event, `up()` and `down(error)` how the connection is; what
 * `down` returns is waited for as well.
 */
export async function follow({ told, up, down }) {
  let last = "";
  let wait = FIRST_MS;
  for (;;) {
    let error = null;
    try {
      const headers = last ? { "Last-Event-ID": last } : {};
      const answer = await ask("v1/events", { headers });
      wait = FIRST_MS;
      await up();
      for await (const frame of frames(answer)) {
        if (frame.id) last = frame.id;
        told(frame.kind, frame.data);
      }
    } catch (caught) {
      if (!(caught instanceof Gone || caught instanceof Refused)) console.error(caught);
      error = caught;
    }
    // Streams end after a while by themselves; one that ends is asked for again at once.
    if (error !== null) await down(error);
    await new Promise((resolve) => setTimeout(resolve, wait));
    wait = Math.min(2 * wait, LONGEST_MS);
  }
}
