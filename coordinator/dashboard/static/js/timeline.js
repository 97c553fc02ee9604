// The time axis of the swarm: a lane for each agent and role. Pan and zoom by mouse, touch and keys; a death opens its account.

import { agentPath, get, repeat } from "./api.js";
import { byId, el, keyed, setText, svg } from "./dom.js";
import { age, clock, count, known, ms, NONE, when } from "./format.js";
import { fig, figure, reachable, setFigure, sourceOf } from "./provenance.js";
import { jaeger, onColours, say, showSource, startShell } from "./shell.js";

const LANE = 30;
const AXIS = 26;
const EVERY_MS = 3000;
const SHORTEST_MS = 200;
const MOST_LANES = 80;
const MINE = ["spawned", "ready", "restored", "exited", "suspected", "declared_dead"]; // drawn as spans and deaths
const STEPS = [["detected", "detected_ms"], ["claimed", "claimed_ms"], ["spawned", "spawned_ms"], ["restored", "restored_ms"], ["ready", "ready_ms"], ["first output", "first_output_ms"]];
const TICKS = [100, 200, 500, 1e3, 2e3, 5e3, 1e4, 3e4, 6e4, 12e4, 3e5, 6e5, 18e5, 36e5, 108e5, 216e5, 432e5, 864e5, 1728e5, 6048e5];

const live = startShell();
const box = byId("lanes");
let data = { lanes: [], from: 0, to: 0 };
let view = null;
let following = true;
let opened = null;
const accounts = new Map(); // death -> its account with what is counted in the stream
let skew = 0;
let names = 190;

const now = () => (live ? Date.now() + skew : data.to);
const width = () => Math.max(200, box.clientWidth);
const x = (t) => names + ((t - view.from) / (view.to - view.from)) * (width() - names - 12);
const timeAt = (px) => view.from + ((px - names) / (width() - names - 12)) * (view.to - view.from);

function clampView(from, to) {
  const span = Math.max(SHORTEST_MS, Math.min(to - from, Math.max(10_000, (now() - data.from) * 1.6)));
  const middle = (from + to) / 2;
  const shift = Math.min(0, now() + span * 0.5 - (middle + span / 2)) + Math.max(0, data.from - span * 0.5 - (middle - span / 2));
  view = { from: middle - span / 2 + shift, to: middle + span / 2 + shift };
}

function everything() {
  const room = Math.max(500, (now() - data.from) * 0.03);
  view = { from: data.from - room, to: now() + room };
}

function follow(on) {
  following = on;
  byId("zoom-live").setAttribute("aria-pressed", String(on));
}

function deathOf(death, y) {
  const end = death.ready ?? now();
  const from = x(death.from);
  const to = Math.max(from + 4, x(end));
  const claimed = known(death.claimed) ? Math.min(to, Math.max(from, x(death.claimed))) : to;
  const wide = to - from > 64 && known(death.ready);
  const group = svg("g", {
    class: "death", tabindex: "0", role: "button", "aria-pressed": String(opened === death.id), "data-id": String(death.id),
    "aria-label": `Death of ${death.lane} at ${clock(death.from)}: ${known(death.ready) ? `ready after ${ms(death.ready - death.from)}` : "not ready yet"}`,
  },
  svg("rect", { class: "k-ready", x: claimed, y: y + 7, width: Math.max(0, to - claimed), height: LANE - 14 }),
  svg("rect", { class: "k-death", x: from, y: y + 7, width: Math.max(2, claimed - from), height: LANE - 14, rx: 1 }),
  svg("rect", { class: "ring", x: from - 3, y: y + 4, width: to - from + 6, height: LANE - 8, rx: 3 }),
  svg("rect", { x: from - 6, y, width: Math.max(18, to - from + 12), height: LANE, fill: "transparent" }),
  wide || to + 70 < width() ? svg("text", { class: "lane-text", x: to + 6, y: y + LANE / 2 + 4 }, known(death.ready) ? ms(death.ready - death.from) : "not back") : null);
  return group;
}

function eventOf(event, y) {
  const at = x(event.t);
  const title = svg("title", {}, `${event.event.replaceAll("_", " ")} · ${clock(event.t)}${event.reason ? ` · ${event.reason}` : ""} · message ${event.sequence}`);
  const middle = y + LANE / 2;
  const wrap = (shape) => svg("a", { href: `/messages/${event.sequence}`, tabindex: "-1" }, shape, title);
  if (event.event === "claimed") return wrap(svg("path", { class: "k-claim", d: `M${at} ${y + 4}v${LANE - 8}` }));
  if (event.event === "moved") return wrap(svg("path", { class: "k-move", d: `M${at - 6} ${middle}h11M${at + 1} ${middle - 4}l4 4-4 4` }));
  if (event.event === "quarantined") return wrap(svg("rect", { class: "k-quarantine", x: at - 5, y: middle - 5, width: 10, height: 10 }));
  return wrap(svg("circle", { class: "k-event", cx: at, cy: middle, r: 3 }));
}

function axis(height) {
  const wanted = (view.to - view.from) / ((width() - names) / 120);
  const step = TICKS.find((tick) => tick >= wanted) ?? TICKS.at(-1);
  const marks = [];
  for (let t = Math.ceil(view.from / step) * step; t < view.to; t += step) {
    const at = x(t);
    if (at < names) continue;
    marks.push(svg("path", { class: "lane-rule", d: `M${at} ${AXIS}V${height}` }));
    const iso = new Date(t).toISOString();
    const text = step < 1000 ? iso.slice(11, 21) : step < 864e5 ? iso.slice(11, 19) : iso.slice(0, 10);
    marks.push(svg("text", { class: "axis-text", x: at, y: 17, "text-anchor": "middle" }, text));
  }
  return marks;
}

const clip = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);
const inView = (from, to) => to >= view.from && from <= view.to;

function draw() {
  if (!view) return;
  names = width() < 620 ? 112 : 196;
  const lanes = data.lanes.slice(0, MOST_LANES);
  const height = AXIS + lanes.length * LANE + 6;
  const focused = document.activeElement?.closest?.(".death")?.dataset.id;
  const parts = axis(height);
  lanes.forEach((lane, index) => {
    const y = AXIS + index * LANE;
    parts.push(svg("path", { class: "lane-line", d: `M0 ${y}H${width()}` }));
    if (!lane.events.length && !lane.spans.length) parts.push(svg("text", { class: "lane-none", x: names + 10, y: y + LANE / 2 + 4 }, width() < 620 ? "no event stored" : "no event of it is stored: it sends heartbeats only"));
    for (const span of lane.spans) {
      if (["dead", "quarantined", "drained", "stopped"].includes(span.state) || !inView(span.from, span.to ?? now())) continue;
      const from = x(span.from);
      parts.push(svg("rect", { class: "k-run", "data-kind": lane.kind, "data-state": span.state, x: from, y: y + LANE / 2 - 3, width: Math.max(1, x(span.to ?? now()) - from), height: 6 }));
    }
    for (const event of lane.events) if (!MINE.includes(event.event) && inView(event.t, event.t)) parts.push(eventOf(event, y));
    for (const death of lane.deaths) if (inView(death.from, death.ready ?? now())) parts.push(deathOf({ ...death, lane: lane.name }, y));
  });
  if (live && inView(now(), now())) parts.push(svg("path", { class: "now-line", d: `M${x(now())} ${AXIS}V${height}` }));
  const mask = svg("rect", { class: "lane-mask", x: 0, y: 0, width: names - 4, height });
  const labels = lanes.flatMap((lane, index) => {
    const y = AXIS + index * LANE + LANE / 2 + 4;
    const text = svg("text", { class: lane.kind === "agent" ? "lane-name" : "lane-kind", x: 12, y }, clip(lane.name, Math.floor((names - 20) / 7)), svg("title", {}, `${lane.kind} ${lane.name}`));
    return [lane.kind === "agent" ? svg("a", { href: agentPath(lane.name), tabindex: "-1" }, text) : text];
  });
  const picture = svg("svg", { height, width: width(), viewBox: `0 0 ${width()} ${height}`, role: "group", "aria-label": "Lanes" }, parts, mask, labels,
    lanes.map((_, index) => svg("path", { class: "lane-line", d: `M0 ${AXIS + index * LANE}h${names - 4}` })));
  box.replaceChildren(picture);
  if (focused) box.querySelector(`.death[data-id="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
  setText(byId("span-text"), `${when(view.from)} – ${when(view.to)} UTC · ${age(view.to - view.from)}`);
}

let frame = null;
const redraw = () => { frame ??= requestAnimationFrame(() => { frame = null; draw(); }); };

function zoom(factor, at = (view.from + view.to) / 2) {
  clampView(at - (at - view.from) * factor, at + (view.to - at) * factor);
  redraw();
}

function pan(share) {
  follow(false);
  const by = (view.to - view.from) * share;
  clampView(view.from + by, view.to + by);
  redraw();
}

// -- deaths

const deaths = () => data.lanes.flatMap((lane) => lane.deaths.map((death) => ({ ...death, lane: lane.name }))).sort((a, b) => b.from - a.from);

function open(id, { focus = true } = {}) {
  const death = deaths().find((other) => other.id === id);
  if (!death) return;
  opened = id;
  history.replaceState(null, "", `#death-${id}`);
  show(death);
  if (!known(accounts.get(id)?.first_output_ms)) complete(death);
  if (focus) {
    byId("account").focus({ preventScroll: innerWidth > 1000 });
    say(`Account of the death of ${death.lane}`);
  }
}

async function complete(death) {
  try {
    accounts.set(death.id, (await get(`/api/deaths/${death.id}`)).account);
  } catch (error) {
    accounts.set(death.id, { ...death.account, outputs_from: error.message });
  }
  if (opened === death.id && !byId("account-body").contains(document.activeElement)) show(death);
}

function show(death) {
  const { id } = death;
  const account = accounts.get(id) ?? death.account ?? {};
  const counted = { kind: "computed", text: account.outputs_from ?? "being counted" };
  const from = { kind: "computed", text: account.from ?? "" };
  const steps = STEPS.filter(([, key]) => known(account[key]));
  const longest = Math.max(1, ...steps.map(([, key]) => account[key]));
  const facts = [
    ["agent", el("a", { href: agentPath(death.lane) }, death.lane)], ["sandbox", account.sandbox ?? death.sandbox ?? NONE], ["pid", known(account.pid) ? String(account.pid) : NONE],
    ["reason", death.reason ?? account.signal ?? NONE],
    ["last sign of life", fig(clock(death.from), { kind: "computed", text: death.from_source ?? "" })],
    ["declared dead", fig(clock(death.declared), sourceOf(death))],
    ["epoch", fig(`${count(account.epoch_before)} → ${known(account.epoch_after) ? count(account.epoch_after) : NONE}`, known(account.epoch_after) ? { kind: "message", sequence: account.epoch_after, at: null, what: "The new claim" } : from)],
    ["events replayed", fig(count(account.events_replayed), from)],
    ["outputs lost", fig(count(account.outputs_lost), counted)],
    ["outputs duplicated", fig(count(account.outputs_duplicated), counted)],
    ["outputs checked", fig(count(account.outputs_checked), counted)],
  ];
  const trace = death.trace_id ? (jaeger ? el("a", { href: `${jaeger}/trace/${death.trace_id}`, rel: "noreferrer" }, "Trace of this recovery in Jaeger") : el("span", {}, "trace ", el("code", {}, death.trace_id))) : el("span", { class: "muted" }, "No trace was recorded.");
  byId("account-body").replaceChildren(
    el("dl", { class: "facts" }, facts.flatMap(([key, value]) => [el("dt", {}, key), el("dd", {}, value)])),
    el("h3", {}, known(death.ready) ? `Ready again after ${ms(death.ready - death.from)}` : "Not ready again yet"),
    el("div", { class: "steps" }, steps.flatMap(([label, key]) => {
      const bar = el("i");
      bar.style.transform = `scaleX(${account[key] / longest})`;
      return [el("span", { class: "muted" }, label), el("span", { class: "num" }, fig(ms(account[key]), from)), el("span", { class: "track", "aria-hidden": "true" }, bar)];
    })),
    el("p", { class: "links-line" }, trace, " · ", el("a", { href: `/messages/${death.sequence}` }, `declaration, message ${count(death.sequence)}`)));
  for (const node of box.querySelectorAll(".death")) node.setAttribute("aria-pressed", String(node.dataset.id === String(id)));
  reachable();
}

function list() {
  const all = deaths();
  setText(byId("deaths-count"), all.length ? count(all.length) : "none in the stream");
  keyed(byId("deaths"), all, (death) => death.id, (death) => {
    const cells = { detected: figure(), claimed: figure(), ready: figure() };
    const tr = el("tr", {}, el("td", {}, el("button", { type: "button", class: "button small", onclick: () => open(death.id) }, death.lane)),
      el("td", {}, fig(when(death.from), { kind: "computed", text: death.from_source ?? "" })), el("td", { class: "num c-wide" }, cells.detected), el("td", { class: "num c-wide" }, cells.claimed), el("td", { class: "num" }, cells.ready), el("td", { class: "wrap" }, death.reason ?? ""));
    tr.parts = cells;
    return tr;
  }, (tr, death) => {
    const from = { kind: "computed", text: death.account?.from ?? "" };
    setFigure(tr.parts.detected, ms(death.account?.detected_ms), from);
    setFigure(tr.parts.claimed, ms(death.account?.claimed_ms), from);
    setFigure(tr.parts.ready, ms(death.account?.ready_ms), from);
  });
  reachable();
}

// -- mouse, touch, keys

const pointers = new Map();
let moved = 0;
box.addEventListener("pointerdown", (event) => {
  pointers.set(event.pointerId, event.clientX);
  moved = 0;
});
box.addEventListener("pointermove", (event) => {
  const before = pointers.get(event.pointerId);
  if (before === undefined || !view) return;
  const left = box.getBoundingClientRect().left;
  if (pointers.size === 2) {
    const other = [...pointers].find(([id]) => id !== event.pointerId)[1];
    const old = Math.abs(before - other);
    const fresh = Math.abs(event.clientX - other);
    if (old > 8 && fresh > 8) zoom(old / fresh, timeAt((event.clientX + other) / 2 - left));
  } else {
    moved += Math.abs(event.clientX - before);
    if (moved > 4) {
      if (!box.hasPointerCapture(event.pointerId)) box.setPointerCapture(event.pointerId);
      pan((before - event.clientX) / (width() - names));
    }
  }
  pointers.set(event.pointerId, event.clientX);
});
for (const kind of ["pointerup", "pointercancel", "pointerleave"]) box.addEventListener(kind, (event) => pointers.delete(event.pointerId));
box.addEventListener("click", (event) => {
  if (moved > 4) return void event.preventDefault();
  const death = event.target.closest?.(".death");
  if (death) open(Number(death.dataset.id));
});
box.addEventListener("wheel", (event) => {
  if (!view) return;
  if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
    event.preventDefault();
    pan((event.deltaX || event.deltaY) / 900);
  } else if (event.ctrlKey || document.activeElement === box || box.contains(document.activeElement)) {
    event.preventDefault();
    zoom(Math.exp(event.deltaY / 500), timeAt(event.clientX - box.getBoundingClientRect().left));
  }
}, { passive: false });
box.addEventListener("keydown", (event) => {
  if (!view || event.ctrlKey || event.metaKey || event.altKey) return;
  const death = event.target.closest?.(".death");
  if (event.key === "ArrowLeft") pan(-0.15);
  else if (event.key === "ArrowRight") pan(0.15);
  else if (event.key === "PageUp") pan(-0.8);
  else if (event.key === "PageDown") pan(0.8);
  else if (event.key === "+" || event.key === "=") zoom(0.7);
  else if (event.key === "-") zoom(1.4);
  else if (event.key === "0" || event.key === "Home") { everything(); redraw(); }
  else if (event.key === "End") { goLive(); }
  else if (death && (event.key === "Enter" || event.key === " ")) open(Number(death.dataset.id));
  else return;
  event.preventDefault();
});

function goLive() {
  follow(true);
  const span = view.to - view.from;
  view = { from: now() - span * 0.95, to: now() + span * 0.05 };
  redraw();
}
byId("zoom-in").addEventListener("click", () => zoom(0.6));
byId("zoom-out").addEventListener("click", () => zoom(1.6));
byId("zoom-all").addEventListener("click", () => { everything(); redraw(); });
byId("zoom-live").hidden = !live;
byId("zoom-live").addEventListener("click", () => (following ? follow(false) : goLive()));
new ResizeObserver(redraw).observe(box);
onColours(redraw);

async function load() {
  try {
    const answer = await get("/api/timeline");
    showSource(answer.source);
    const order = { agent: 0, role: 1, sandbox: 2 };
    answer.lanes.sort((a, b) => order[a.kind] - order[b.kind]);
    data = answer;
    skew = answer.to && live ? Math.min(0, answer.to - Date.now()) : 0;
    const empty = !answer.lanes.length;
    byId("lanes-empty").hidden = !empty && answer.lanes.length <= MOST_LANES;
    setText(byId("lanes-empty"), empty ? "No agent has reported anything yet." : `${count(answer.lanes.length - MOST_LANES)} more lanes are not drawn.`);
    if (!view) {
      const wide = now() - answer.from > 180_000;
      if (wide) view = { from: now() - 180_000, to: now() + 6_000 };
      else everything();
      const hash = /^#death-(\d+)$/.exec(location.hash);
      if (hash) {
        const death = deaths().find((other) => other.id === Number(hash[1]));
        if (death) {
          follow(false);
          clampView(death.from - 4000, (death.ready ?? now()) + 6000);
          open(death.id, { focus: false });
        }
      }
    }
    redraw();
    list();
    if (opened !== null && !byId("account").contains(document.activeElement)) open(opened, { focus: false });
  } catch (error) {
    byId("lanes-empty").hidden = false;
    setText(byId("lanes-empty"), error.message);
  }
}

if (live) {
  let due = null;
  live.addEventListener("lifecycle", () => { due ??= setTimeout(() => { due = null; load(); }, 200); });
  live.addEventListener("resync", load);
  repeat(load, EVERY_MS);
  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  setInterval(() => {
    if (!view || !following || document.hidden) return;
    const by = now() + (view.to - view.from) * 0.05 - view.to;
    if (by > 0) { view.from += by; view.to += by; }
    redraw();
  }, calm.matches ? 1000 : 200);
}
load();
