// The overview: one request for the state, then the events of the stream.

import { decisionPath, get } from "./api.js";
import { PriceChart } from "./chart.js";
import { byId, el, keyed, marked, setText } from "./dom.js";
import { count, fixed, known, level, moment, ms, NONE, percent, price } from "./format.js";
import { LatencyChart, nameOf } from "./latency.js";
import { Pager } from "./pager.js";
import { figure, fig, reachable, setFigure, setSide, sourceOf } from "./provenance.js";
import { atRest, onColours, showSource, startShell } from "./shell.js";
import { SwarmPanel } from "./swarm_panel.js";

const ROWS = 14;
const RECENT = 500;
const live = startShell();
const panel = new SwarmPanel({
  agents: byId("agents"), roles: byId("roles"), alerts: byId("alerts"), agentsCount: byId("agents-count"), alertsCount: byId("alerts-count"),
});
let symbol = new URLSearchParams(location.search).get("symbol");
let newest = [];
let loading = null;
let early = [];
let held = false;
let totals = null;
let lastSequence = null;

// -- key figures

const tiles = {};
function tile(key, label) {
  tiles[key] = figure();
  byId("strip").append(el("div", { class: "tile" }, el("span", { class: "k" }, label), el("span", { class: "v" }, tiles[key])));
}
tile("rate", "decisions / s");
tile("p50", "latency p50");
tile("p99", "latency p99");
tile("total", "decisions");
tile("messages", "messages");
tile("agents", "agents");
tile("sandboxes", "sandboxes");
tile("restarts", "restarts");
tile("alerts", "alerts");

function showRates(rates) {
  const source = { kind: "computed", text: rates.from };
  setFigure(tiles.rate, fixed(rates.decisions_per_s, 2), source);
  setFigure(tiles.p50, ms(rates.p50_ms), { ...source, what: "Tick to decision, half of the last minute's are faster" });
  setFigure(tiles.p99, ms(rates.p99_ms), { ...source, what: "Tick to decision, 99 of 100 of the last minute's are faster" });
  setText(byId("latency-note"), known(rates.n) ? `${count(rates.n)} of the last ${Math.round(rates.window_s)} s` : "");
}

function showTotals() {
  const agents = [...panel.agents.values()];
  const running = agents.filter((agent) => level(agent.status) === "ok").length;
  setFigure(tiles.total, count(totals?.decisions), { kind: "computed", text: totals?.decisions_from ?? "" });
  setFigure(tiles.messages, count(lastSequence), { kind: "computed", text: "sequence of the newest message of the stream" });
  const sandboxes = [...panel.sandboxes.values()];
  setFigure(tiles.sandboxes, atRest ? NONE : `${count(sandboxes.filter((sandbox) => level(sandbox.status) === "ok").length)} / ${count(sandboxes.length)}`, { kind: "computed", text: "sandboxes whose hosts send heartbeats, of all that the swarm knows" });
  setFigure(tiles.agents, atRest ? count(agents.length) : `${count(running)} / ${count(agents.length)}`, { kind: "computed", text: atRest ? "agents that the file names" : "agents whose newest heartbeat says that they are active, of all that the swarm knows" });
  setFigure(tiles.restarts, count(agents.reduce((sum, agent) => sum + (agent.restarts ?? 0), 0)), { kind: "computed", text: "claims of all agents in the stream, less the first of each" });
  if (known(totals?.refused)) {
    if (!tiles.refused) tile("refused", "refused");
    setFigure(tiles.refused, count(totals.refused), { kind: "computed", text: totals.refused_from });
  }
  setFigure(tiles.alerts, count(panel.alerts.length), panel.alerts[0] ? sourceOf(panel.alerts[0], "The newest one") : { kind: "computed", text: "no alert is in the stream" });
}

// -- the chart

const readout = { when: figure("when"), side: el("span", { class: "side hold" }) };
for (const key of ["open", "high", "low", "close", "size", "consensus", "risk"]) readout[key] = figure();
const pair = (label, key) => el("span", {}, el("span", { class: "k" }, label), readout[key]);
byId("readout").append(readout.when, pair("O", "open"), pair("H", "high"), pair("L", "low"), pair("C", "close"), readout.side,
  pair("size", "size"), pair("consensus", "consensus"), pair("risk", "risk"));

function showPoint(candle, decision) {
  const tick = sourceOf(candle, "Candle");
  const from = sourceOf(decision, "Decision");
  setFigure(readout.when, candle ? moment(candle.t, false) : NONE, tick);
  for (const [key, field] of [["open", "o"], ["high", "h"], ["low", "l"], ["close", "c"]]) setFigure(readout[key], price(candle?.[field]), tick);
  setSide(readout.side, decision?.side ?? "hold");
  readout.side.classList.toggle("muted", !decision);
  setFigure(readout.size, percent(decision?.size), from);
  setFigure(readout.consensus, fixed(decision?.consensus, 3), from);
  setFigure(readout.risk, fixed(decision?.risk, 3), from);
}

const open = (decision) => location.assign(decisionPath(decision.id ?? decision.sequence));
const chart = new PriceChart(byId("chart"), { onPoint: showPoint, onOpen: open });
const pager = new Pager(chart, { symbol: () => symbol, newest: () => load() });
chart.onFollow = (following) => byId("chart-live").setAttribute("aria-pressed", String(following && !pager.past));
byId("chart-fit").addEventListener("click", () => chart.all());
byId("chart-live").addEventListener("click", () => { if (pager.past) pager.leave(); else chart.newest(); });
const latency = new LatencyChart(byId("latency"), {
  onPoint: (row) => { if (row) setText(byId("latency-note"), nameOf(row)); },
});
onColours(() => { chart.paint(); latency.make(); });
byId("symbol").addEventListener("change", (event) => {
  symbol = event.target.value;
  pager.forget();
  history.replaceState(null, "", `?symbol=${encodeURIComponent(symbol)}`);
  load();
});

// -- the newest decisions: the rows stay where they are while one of them is pointed at

function decisionRow(decision) {
  const cells = { side: el("span"), bar: el("i") };
  const from = sourceOf(decision);
  setSide(cells.side, decision.side);
  cells.bar.style.transform = `scaleX(${Math.min(1, decision.size * 2)})`;
  const name = known(decision.round) ? `${decision.symbol ?? ""} ${count(decision.round)}` : String(decision.id ?? decision.sequence);
  const voters = decision.voters?.length ?? null;
  const all = voters === null ? null : voters + (decision.absent?.length ?? 0);
  const absent = decision.absent?.length ? `. Absent: ${decision.absent.join(", ")}` : "";
  return el("tr", {},
    el("td", { class: "name" }, el("a", { href: decisionPath(decision.id ?? decision.sequence), title: decision.id }, name)),
    el("td", { class: "c-wide" }, fig(moment(decision.t, false), { ...from, what: "Time of the tick" })),
    el("td", {}, cells.side),
    el("td", { class: "num" }, el("span", { class: `bar ${decision.side}`, "aria-hidden": "true" }, cells.bar), fig(percent(decision.size), from, "w5")),
    el("td", { class: "num" }, fig(fixed(decision.consensus, 3), from)),
    el("td", { class: "num c-wide" }, fig(fixed(decision.risk, 3), from)),
    el("td", { class: "num c-wide" }, fig(voters === null ? NONE : `${voters} of ${all}`, { ...from, what: `Consulted: ${(decision.voters ?? []).join(", ") || "none"}${absent}` }, absent ? "state-warn" : "")),
    el("td", { class: "num" }, fig(ms(decision.latency_ms), { ...from, what: "From the storing of the tick to the storing of the decision" })));
}

let drawn = 0;
function drawDecisions() {
  const waiting = newest.filter((decision) => decision.sequence > drawn).length;
  if (held && drawn) {
    setText(byId("decisions-state"), waiting ? `held while you point at it: ${count(waiting)} newer` : "held while you point at it");
    return;
  }
  drawn = newest[0]?.sequence ?? 0;
  setText(byId("decisions-state"), newest.length ? "" : "none yet");
  keyed(byId("decisions"), newest.slice(0, ROWS), (decision) => decision.sequence, decisionRow, () => {});
  reachable();
}
const table = byId("decisions").closest(".panel");
const hold = () => { held = table.matches(":hover") || table.querySelector("tbody").contains(document.activeElement); drawDecisions(); };
for (const kind of ["pointerenter", "pointerleave", "focusin", "focusout"]) table.addEventListener(kind, () => requestAnimationFrame(hold));

function addDecision(decision) {
  if (newest.some((other) => other.sequence === decision.sequence)) return;
  newest = [decision, ...newest].sort((a, b) => b.sequence - a.sequence).slice(0, RECENT);
  if (totals) totals.decisions += 1;
}

// -- state and events

let redraw = null;
function soon() {
  redraw ??= setTimeout(() => {
    redraw = null;
    drawDecisions();
    showTotals();
  }, 120);
}

function take(kind, data) {
  if (kind === "market" && data.symbol === symbol && !pager.past) chart.add(data, null);
  else if (kind === "decision") {
    addDecision(data);
    latency.add([data]);
    if ((data.symbol === symbol || !data.symbol) && !pager.past) chart.add(null, data);
    soon();
  } else if (kind === "agents") {
    panel.change(data);
    if (data.roles) panel.setRoles(data.roles);
    if (data.totals) totals = data.totals;
    if (data.source) lastSequence = data.source.stream_last_sequence;
    soon();
  } else if (kind === "alert") {
    panel.addAlert(data);
    soon();
  } else if (kind === "rates") {
    showRates(data);
    latency.add([], data);
  }
}

async function load() {
  const mine = (loading = {});
  early = [];
  let state;
  let recent;
  try {
    [state, recent] = await Promise.all([
      get(`/api/overview${symbol ? `?symbol=${encodeURIComponent(symbol)}` : ""}`), get(`/api/decisions?limit=${RECENT}`),
    ]);
  } catch (error) {
    if (mine !== loading) return;
    loading = null;
    if (error.status === 404 && symbol !== null) {
      symbol = null; // that is not known; any other is better than none
      history.replaceState(null, "", "/");
      await load();
      pager.tell(error.message);
      return;
    }
    byId("chart-empty").hidden = false;
    byId("chart-empty").replaceChildren(...marked(error.message));
    setTimeout(load, 2000);
    return;
  }
  if (mine !== loading) return;
  showSource(state.source);
  symbol = state.symbol ?? symbol;
  const choice = byId("symbol");
  choice.replaceChildren(...(state.symbols ?? []).map((name) => el("option", { value: name }, name)));
  choice.value = symbol ?? "";
  if (!pager.past) chart.set(state.candles ?? [], state.decisions ?? []);
  pager.show();
  byId("chart-empty").hidden = (state.candles ?? []).length > 0;
  setText(byId("chart-empty"), "No candles are stored yet.");
  newest = recent.decisions;
  totals = state.totals;
  lastSequence = state.source?.stream_last_sequence ?? null;
  panel.set(state.agents ?? [], state.sandboxes ?? []);
  panel.setRoles(state.roles ?? []);
  panel.setAlerts(state.alerts ?? []);
  latency.clear();
  latency.add(recent.decisions, state.rates);
  if (state.rates) showRates(state.rates);
  loading = null;
  for (const [kind, data] of early) take(kind, data);
  early = [];
  drawDecisions();
  showTotals();
  reachable();
}

if (live) {
  for (const kind of ["market", "decision", "agents", "alert", "rates", "lifecycle"]) {
    live.addEventListener(kind, (event) => {
      if (kind === "market" && byId("chart-empty").hidden === false && !loading) load();
      if (loading) early.push([kind, event.detail]);
      else take(kind, event.detail);
    });
  }
  live.addEventListener("resync", () => load());
}
load();
