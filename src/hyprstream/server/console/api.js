// The server's API: the key, errors, and answers in frames.

const KEY = "hyprstream.key";
const SILENCE_MS = 90_000; // a stream that sends not even a ping is dead

/** What the server said no to. */
export class Refused extends Error {
  constructor(status, message, code) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** The server does not answer. */
export class Gone extends Error {}

/** The key of this tab. */
export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => sessionStorage.setItem(KEY, value),
  forget: () => sessionStorage.removeItem(KEY),
};

/** A name in a path: its slashes stay. */
export function path(name) {
  return name.split("/").map(encodeURIComponent).join("/");
}

/** Ask for JSON. */
export async function get(route) {
  return (await ask(route)).json();
}

/** Send JSON and take JSON. */
export async function post(route, body = {}) {
  return (await ask(route, { method: "POST", body })).json();
}

/** Ask, and return the answer as it begins. */
export async function ask(route, { method = "GET", body, headers = {}, signal } = {}) {
  const sent = { ...headers };
  if (key.get()) sent.Authorization = `Bearer ${key.get()}`;
  if (body !== undefined) sent["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(route, {
      method,
      headers: sent,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
      cache: "no-store",
      redirect: "error",
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Gone("the server does not answer");
  }
  if (answer.ok) return answer;
  throw await refused(answer);
}

/** Read an answer in frames: id, kind and data of each. */
export async function* frames(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await unlessSilent(reader);
      if (done) return;
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        const frame = read(part);
        if (frame) yield frame;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function unlessSilent(reader) {
  let timer;
  const silence = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Gone("the server has fallen silent")), SILENCE_MS);
  });
  try {
    return await Promise.race([reader.read(), silence]);
  } catch (error) {
    throw error instanceof TypeError ? new Gone("the connection broke") : error;
  } finally {
    clearTimeout(timer);
  }
}

function read(part) {
  const frame = { id: "", kind: "message", data: null };
  for (const line of part.split("\n")) {
    if (line.startsWith("data: ")) frame.data = line.slice(6);
    else if (line.startsWith("id: ")) frame.id = line.slice(4);
    else if (line.startsWith("event: ")) frame.kind = line.slice(7);
  }
  if (frame.data === null) return null;
  frame.data = frame.data === "[DONE]" ? null : JSON.parse(frame.data);
  return frame;
}

async function refused(answer) {
  let said = null;
  try {
    said = (await answer.json()).error;
  } catch {
    // Not of the server's making: a proxy, perhaps.
  }
  return new Refused(answer.status, said?.message ?? `status ${answer.status}`, said?.code ?? "");
}
