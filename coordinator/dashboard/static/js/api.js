// Requests to the dashboard's own address. An error is one line of text that names what was expected.

const AWAY_MS = 2000;

export class ApiError extends Error {
  constructor(status, text, body) {
    super(text);
    this.status = status;
    this.body = body;
  }
}

async function answer(response) {
  let body = null;
  try { body = await response.json(); } catch { /* no JSON: the status says enough */ }
  if (response.status === 401 && body?.error) location.assign(`/login?next=${encodeURIComponent(location.pathname + location.search)}`);
  if (!response.ok) throw new ApiError(response.status, body?.error ?? `the dashboard answered ${response.status}`, body);
  return body;
}

export async function get(path) {
  return answer(await fetch(path, { headers: { accept: "application/json" }, cache: "no-store" }));
}

export async function post(path) {
  const response = await fetch(path, { method: "POST", headers: { accept: "application/json" }, credentials: "same-origin" });
  let body = null;
  try { body = await response.json(); } catch { /* as above */ }
  if (!response.ok) throw new ApiError(response.status, body?.error ?? `the dashboard answered ${response.status}`, body);
  return body;
}

export const agentPath = (name) => `/agents/${encodeURIComponent(name)}`;
export const decisionPath = (id) => `/decisions/${encodeURIComponent(id)}`;

/** Call `load` again soon if the bus or the dashboard is away: the page then says that it comes back by itself. */
export function againIfAway(error, load) {
  const away = !(error instanceof ApiError) || error.status === 503;
  if (away && document.body.dataset.kind !== "file") setTimeout(load, AWAY_MS);
}

/** Call `load` again and again, at most a tenth of the time: what a large swarm is asked for takes long. */
export function repeat(load, everyMs, pauseMs = everyMs) {
  setTimeout(async () => {
    const begun = performance.now();
    if (!document.hidden) await load();
    repeat(load, everyMs, Math.max(everyMs, 9 * (performance.now() - begun)));
  }, pauseMs);
}
