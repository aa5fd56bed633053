// What the page asks its own server for; nothing is asked of any other host.

const KEY = "localoss.key";

// The key may come behind the address's #, which no browser sends: it is kept for this tab, and taken away there.
const given = /[#&]key=([^&]*)/.exec(location.hash);
if (given) {
  sessionStorage.setItem(KEY, decodeURIComponent(given[1]));
  history.replaceState(null, "", location.pathname + location.search);
}

export function useKey(key) {
  sessionStorage.setItem(KEY, key);
}

/** What the server refused, or that it can't be reached: `code` says which. */
export class Refused extends Error {
  constructor(message, code, status) {
    super(message);
    this.code = code;
    this.status = status;
  }
}

async function request(path, options = {}) {
  const headers = { ...options.headers };
  const key = sessionStorage.getItem(KEY);
  if (key) headers["Authorization"] = `Bearer ${key}`;
  if (options.body !== undefined) headers["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(new URL(`localoss/${path}`, document.baseURI), { ...options, headers, cache: "no-store" });
  } catch {
    throw new Refused("The server can't be reached. Is localoss still running?", "unreachable", 0);
  }
  if (answer.ok) return answer;
  let error = {};
  try {
    error = (await answer.json()).error ?? {};
  } catch {
    // No body of ours: the status has to do.
  }
  throw new Refused(error.message ?? `The server answered ${answer.status}.`, error.code, answer.status);
}

export async function get(path) {
  return (await request(path)).json();
}

export async function post(path, body) {
  return (await request(path, { method: "POST", body: JSON.stringify(body) })).json();
}

export async function remove(path) {
  return (await request(path, { method: "DELETE" })).json();
}

export async function download(path) {
  return (await request(path)).blob();
}

export const picture = (name) => download(`pictures/${encodeURIComponent(name)}`);

/** The server-sent events of a POST with `body`, or of a GET without one. */
export async function* events(path, body) {
  const options = body === undefined ? {} : { method: "POST", body: JSON.stringify(body) };
  const answer = await request(path, options);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) if (line.startsWith("data: ")) yield JSON.parse(line.slice(6));
    }
  } catch (error) {
    if (error instanceof TypeError) throw new Refused("The connection to the server broke.", "unreachable", 0);
    throw error;
  } finally {
    reader.cancel().catch(() => {});
  }
}
