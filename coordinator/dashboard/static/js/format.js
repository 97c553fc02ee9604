// Numbers and times as text. Times are UTC, as everywhere in signalmesh.

const grouped = new Intl.NumberFormat("en-GB", { maximumFractionDigits: 0 });

export const NONE = "–";
export const known = (value) => value !== null && value !== undefined && !(typeof value === "number" && Number.isNaN(value));
export const count = (value) => (known(value) ? grouped.format(value) : NONE);
export const fixed = (value, places) => (known(value) ? Number(value).toFixed(places) : NONE);
export const percent = (value, places = 1) => (known(value) ? `${(value * 100).toFixed(places)} %` : NONE);

export function price(value) {
  if (!known(value)) return NONE;
  const size = Math.abs(value);
  const places = size >= 1000 ? 2 : size >= 1 ? 4 : 6;
  return Number(value).toLocaleString("en-GB", { minimumFractionDigits: Math.min(2, places), maximumFractionDigits: places });
}

/** Milliseconds, three digits that matter. */
export function ms(value) {
  if (!known(value)) return NONE;
  if (value < 1000 && Number.isInteger(value)) return `${value} ms`; // it was measured in whole ones
  if (value < 10) return `${value.toFixed(2)} ms`;
  if (value < 100) return `${value.toFixed(1)} ms`;
  if (value < 1000) return `${value.toFixed(0)} ms`;
  return age(value);
}

/** A span of milliseconds, as a person says it. */
export function age(value) {
  if (!known(value)) return NONE;
  const s = Math.max(0, value) / 1000;
  if (s < 10) return `${s.toFixed(1)} s`;
  if (s < 100) return `${s.toFixed(0)} s`;
  if (s < 5400) return `${Math.floor(s / 60)} min ${String(Math.floor(s % 60)).padStart(2, "0")} s`;
  if (s < 172800) return `${Math.floor(s / 3600)} h ${String(Math.floor((s % 3600) / 60)).padStart(2, "0")} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

const at = (value) => (typeof value === "number" ? new Date(value) : new Date(String(value)));
const valid = (date) => !Number.isNaN(date.getTime());
export const epochMs = (value) => (known(value) ? at(value).getTime() : NaN);

/** 12:00:01.123 */
export function clock(value, withMs = true) {
  if (!known(value) || !valid(at(value))) return NONE;
  return at(value).toISOString().slice(11, withMs ? 23 : 19);
}

/** 2019-04-02 12:00:01.123 */
export function moment(value, withMs = true) {
  if (!known(value) || !valid(at(value))) return NONE;
  return at(value).toISOString().replace("T", " ").slice(0, withMs ? 23 : 19);
}

/** The time, with the date only if it is not today's. */
export function when(value) {
  if (!known(value) || !valid(at(value))) return NONE;
  const iso = at(value).toISOString();
  return iso.slice(0, 10) === new Date().toISOString().slice(0, 10) ? iso.slice(11, 19) : iso.slice(0, 19).replace("T", " ");
}

const LEVELS = {
  ok: ["active", "running", "live", "leader", "ready", "connected", "external"],
  busy: ["starting", "restoring", "restarting", "creating", "catching-up", "standby", "claimed", "waiting", "running install"],
  warn: ["silent", "suspected", "backoff", "draining", "retrying", "failing", "degraded", "late"],
  bad: ["quarantined", "dead", "failed", "lost", "diverged", "refused", "exited", "declared_dead"],
  off: ["stopped", "drained", "not running", "unknown"],
};

/** How good a state is; the word itself is always shown too. */
export function level(status) {
  const word = String(status ?? "unknown");
  return Object.keys(LEVELS).find((name) => LEVELS[name].includes(word)) ?? "off";
}

export const SIDES = { buy: "▲", sell: "▼", hold: "–" };
