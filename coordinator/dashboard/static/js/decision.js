// A decision taken apart: what `signalmesh explain` says, with the numbers put into the formulas.

import { againIfAway, agentPath, decisionPath, get } from "./api.js";
import { byId, el, marked, setText } from "./dom.js";
import { count, fixed, known, moment, ms, NONE, percent, price } from "./format.js";
import { fig, reachable, setSide } from "./provenance.js";
import { jaeger, page, showSource, startShell } from "./shell.js";

startShell({ events: false });

const exact = (value, places = 6) => (known(value) ? String(Number(Number(value).toFixed(places))).replace("-", "−") : NONE);
const message = (sequence, at, what = "") => (known(sequence) ? { kind: "message", sequence, at, what } : { kind: "computed", text: what || "no message: nothing was stored" });
const computed = (text) => ({ kind: "computed", text });
const side = (word) => {
  const node = el("span");
  setSide(node, word);
  return node;
};
const panel = (id, title, note, ...children) => el("section", { class: "panel", "aria-labelledby": id },
  el("header", { class: "panel-head" }, el("h2", { id }, title), note ? el("span", { class: "count" }, note) : null), ...children);

function probabilityBar(p, action, { buy_at: buy, sell_at: sell }) {
  const place = (className, at) => {
    const mark = el("i", { class: className });
    mark.style.left = `${at * 100}%`;
    return mark;
  };
  const fill = el("i", { class: `fill ${action}` });
  fill.style.left = `${Math.min(p, 0.5) * 100}%`;
  fill.style.width = `${Math.abs(p - 0.5) * 100}%`;
  return el("span", { class: "pbar", "aria-hidden": "true" }, fill, place("mid", 0.5), place("th", sell), place("th", buy), place("now", p));
}

const ANSWERS = { buy: "buy", bullish: "buy", sell: "sell", bearish: "sell", hold: "hold", neutral: "hold" };

function answer(voter) {
  if (voter.status === "absent") return el("span", { class: "muted" }, "absent");
  const node = el("span");
  setSide(node, ANSWERS[voter.side] ?? "hold");
  node.lastChild.textContent = voter.side ?? "";
  return voter.status === "late" ? el("span", {}, node, el("span", { class: "state", data: { level: "warn" } }, "late")) : node;
}

function flipText(flip, action) {
  const without = flip.without === action ? "" : `; absent: ${flip.without}`;
  if (!known(flip.p_up)) return `cannot alone${without}`;
  return `${flip.action} at ${fixed(flip.p_up, 3)} (${flip.move > 0 ? "+" : "−"}${fixed(Math.abs(flip.move), 3)})${without}`;
}

function indicators(voter) {
  const pairs = Object.entries(voter.indicators ?? {}).map(([key, value]) => `${key} ${typeof value === "number" ? exact(value, 4) : typeof value === "object" ? JSON.stringify(value) : value}`);
  const sources = voter.sources?.length ? [`sources: ${voter.sources.join(", ")}`] : [];
  return [...pairs, ...sources].join(" · ");
}

function votersTable(e) {
  const rows = e.voters.map((voter) => {
    const from = message(voter.sequence, voter.stored_at, voter.status === "absent" ? "absent: nothing of it is stored for this round" : `Vote of ${voter.name}`);
    const name = el("td", {}, el("a", { href: agentPath(voter.name) }, voter.name), voter.epoch ? el("span", { class: "muted" }, ` epoch ${count(voter.epoch)}`) : "");
    return el("tr", { class: voter.status === "counted" ? "" : voter.status },
      name, el("td", {}, answer(voter)),
      el("td", { class: "c-wide" }, probabilityBar(voter.p_up, ANSWERS[voter.side] ?? "hold", e.config)),
      el("td", { class: "num" }, fig(exact(voter.p_up), voter.status === "counted" ? from : computed("an absent voter counts with 0.5: no opinion"))),
      el("td", { class: "num" }, fig(exact(voter.weight, 4), message(e.config.sequence, e.config.stored_at, `Configured weight ${voter.configured_weight}, as a share of the sum`))),
      el("td", { class: "num c-wide" }, fig(exact(voter.log_odds), computed("weight × ln(p / (1 − p)), its term of the log pool"))),
      el("td", { class: "num" }, fig(known(voter.after_tick_ms) ? ms(voter.after_tick_ms) : NONE, from)),
      el("td", {}, flipText(voter.flip, e.published.final_decision)),
      el("td", { class: "indicators" }, indicators(voter)));
  });
  const head = ["voter", "answer", "probability of a rise", "p_up", "weight", "log-odds", "after the tick", "alone it would flip to", "indicators"];
  const classes = ["", "", "c-wide", "num", "num", "num c-wide", "num", "", ""];
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Voters" }, el("table", { class: "table voters", "data-roving": true },
    el("thead", {}, el("tr", {}, head.map((text, index) => el("th", { scope: "col", class: classes[index] }, text)))), el("tbody", {}, rows)));
}

function formula(key, text, value, source, { binds = false, name = "binds" } = {}) {
  return el("div", { class: `formula${binds ? " bind" : ""}` },
    el("span", { class: "k" }, key, binds ? el("span", { class: "tag" }, name) : null), el("span", { class: "f" }, text), el("span", { class: "v" }, fig(value, source)));
}

function judgement(e) {
  const { pools, quorum, config } = e;
  const action = e.published.final_decision;
  const odds = e.voters.map((voter) => `${exact(voter.weight, 4)}·logit ${exact(voter.p_up, 4)}`).join(" + ");
  const linear = e.voters.map((voter) => `${exact(voter.weight, 4)}·${exact(voter.p_up, 4)}`).join(" + ");
  const spread = e.voters.map((voter) => `${exact(voter.weight, 4)}·(${exact(voter.p_up, 4)} − ${exact(pools.linear_pool, 4)})²`).join(" + ");
  const set = message(config.sequence, config.stored_at, "The settings of the round");
  return el("div", { class: "formulas", "data-roving": true },
    formula("log pool", `sigmoid(${odds || "0"}) = sigmoid(${exact(pools.log_odds)})`, exact(pools.log_pool), computed("the log pool of all voters: it decides the action")),
    formula("action", `${exact(pools.log_pool)} ${pools.log_pool >= config.buy_at ? "≥" : "<"} buy_at ${config.buy_at},  ${exact(pools.log_pool)} ${pools.log_pool <= config.sell_at ? "≤" : ">"} sell_at ${config.sell_at}`, quorum.reached ? action : `${action}: no quorum`, set),
    formula("quorum", `${exact(quorum.present, 4)} ${quorum.reached ? ">" : "≤"} ${exact(quorum.required, 4)}`, quorum.reached ? "reached" : "not reached", set),
    formula("linear pool", linear || "0.5", exact(pools.linear_pool), computed("the linear pool of all voters: it sizes the position")),
    formula("disagreement", `2 √(${spread || "0"})`, exact(pools.disagreement), computed("0 when all agree, 1 when half the weight is at 0 and half at 1")),
    formula("consensus", `max(${exact(pools.log_pool)}, 1 − ${exact(pools.log_pool)})`, exact(pools.consensus), message(e.sequence, e.stored_at, "Published as consensus_level")));
}

const POSITION = { hold: "a hold stakes nothing", "no edge": "the linear pool disagrees with the action: nothing is staked" };

function riskAndSize(e) {
  const { risk, size, config } = e;
  const first = message(risk.first_sequence, null, `From the last ${risk.closes.length} closes, the first of which is this tick`);
  const bound = size.bound_by;
  const m = exact(e.pools.linear_pool);
  const action = e.published.final_decision;
  const edge = action === "buy" ? `2 · ${m} − 1` : action === "sell" ? `1 − 2 · ${m}` : "a hold has no edge";
  return el("div", { class: "formulas", "data-roving": true },
    formula("volatility factor", known(risk.volatility) ? `min(1, ${config.vol_target} / ${exact(risk.volatility)})` : "not known: it takes nothing away", exact(risk.volatility_factor), first),
    formula("drawdown factor", `max(0, 1 − ${exact(risk.drawdown)} / ${config.drawdown_max})`, exact(risk.drawdown_factor), first),
    formula("risk", `1 − ${exact(risk.agreement)} · ${exact(risk.volatility_factor)} · ${exact(risk.drawdown_factor)}`, exact(risk.risk_score), message(e.sequence, e.stored_at, "Published as risk_score")),
    formula("edge", edge, exact(size.edge), computed("of the linear pool")),
    formula("edge × (1 − risk)", known(size.edge) ? `${exact(size.edge)} · (1 − ${exact(risk.risk_score)})` : edge, exact(size.uncapped), computed("the size before its caps"), { binds: bound === "edge" }),
    formula("CVaR cap", known(size.cvar_cap) ? `${config.cvar_max} / ${exact(risk.cvar)}` : "the CVaR is not known, or the worst candles gained", exact(size.cvar_cap), first, { binds: bound === "cvar" }),
    formula("position cap", "position_cap of the settings", exact(size.position_cap), message(config.sequence, config.stored_at, "The settings of the round"), { binds: bound === "position_cap" }),
    formula("position", POSITION[bound] ?? "the smallest of the three", exact(size.position_size), message(e.sequence, e.stored_at, "Published as position_size"), { binds: bound in POSITION, name: bound }));
}

/** Where the log pool lies between the thresholds. */
function scale(e) {
  const { buy_at: buy, sell_at: sell } = e.config;
  const pooled = e.pools.log_pool;
  const at = (className, from, to, text = "") => {
    const mark = el("span", { class: className }, text);
    mark.style.left = `${from * 100}%`;
    if (to !== null) mark.style.width = `${Math.max(0, to - from) * 100}%`;
    return mark;
  };
  return el("div", { class: "scale", role: "img", "aria-label": `The log pool is ${exact(pooled)}: sell up to ${sell}, buy from ${buy}` },
    el("span", { class: "end sell" }, "▼ sell"), el("span", { class: "end buy" }, "buy ▲"),
    at("zone sell", 0, sell), at("zone hold", sell, buy), at("zone buy", buy, 1),
    at("mark left", sell, null, String(sell)), at("mark", buy, null, String(buy)), at("needle", pooled, null));
}

function decisive(e) {
  const action = e.published.final_decision;
  const able = e.voters.filter((voter) => known(voter.flip.p_up));
  if (!able.length) return "No voter alone could have changed the action.";
  const nearest = able.reduce((a, b) => (Math.abs(a.flip.move) <= Math.abs(b.flip.move) ? a : b));
  const absent = e.voters.filter((voter) => voter.flip.without !== action).map((voter) => `${voter.name} absent it would have been ${voter.flip.without}`);
  const without = absent.length ? ` With ${absent.join("; with ")}.` : "";
  return `${able.length === 1 ? "Only " : "Nearest: "}${nearest.name} would have flipped it to ${nearest.flip.action}, by moving its p_up ${nearest.flip.move > 0 ? "up" : "down"} by ${fixed(Math.abs(nearest.flip.move), 4)} to ${fixed(nearest.flip.p_up, 4)}.${without}`;
}

const CLOSED = { votes: "the last expected vote", timer: "the timeout", config: "a change of the settings", order: "its turn: an earlier round closed after it", unknown: "a message that is not known" };

function verdict(e) {
  const big = el("span", { class: "big" }, side(e.published.final_decision));
  const differences = e.differences.map((d) => `${d.path ?? d.field ?? ""}: published ${JSON.stringify(d.recorded)}, computed ${JSON.stringify(d.replayed)}`).join("; ");
  return el("section", { class: "panel verdict", "aria-label": "Verdict", "data-roving": true }, big,
    el("p", { class: "what" }, el("strong", {}, fig(percent(e.published.position_size, 2), message(e.sequence, e.stored_at, "position_size")), " of the capital"), ` · consensus `, fig(exact(e.published.consensus_level, 4), message(e.sequence, e.stored_at, "consensus_level")),
      ` · risk `, fig(exact(e.published.risk_score, 4), message(e.sequence, e.stored_at, "risk_score")), el("br"), decisive(e)),
    el("p", { class: `check ${e.same ? "same" : "differs"}` }, e.same ? "Computed again from the stored messages: the same to the last digit." : `Computed again from the stored messages: it differs. ${differences}`));
}

function course(e) {
  const items = [
    { at: 0, what: el("span", {}, `tick ${count(e.tick.number)} of ${e.tick.source}: ${e.tick.symbol} at ${price(e.tick.price)}`), from: message(e.tick.sequence, e.tick.stored_at, "The tick") },
    ...e.voters.filter((voter) => known(voter.after_tick_ms)).map((voter) => ({ at: voter.after_tick_ms, what: el("span", {}, `vote of ${voter.name}${voter.status === "late" ? ", late" : ""}`), from: message(voter.sequence, voter.stored_at) })),
    ...e.ignored.map((vote) => ({ at: vote.after_tick_ms, what: el("span", {}, `vote of ${vote.voter}, ignored: ${vote.reason}`), from: message(vote.sequence, vote.stored_at) })),
    ...e.events.map((event) => ({ at: event.after_tick_ms, what: el("span", {}, `${event.agent}: ${event.event.replaceAll("_", " ")}${event.reason ? ` (${event.reason})` : ""}`), from: message(event.sequence, event.stored_at) })),
    { at: e.after_tick_ms, what: el("span", {}, `decision, closed by ${CLOSED[e.closing.reason] ?? e.closing.reason}`), from: message(e.sequence, e.stored_at, "The decision") },
  ].sort((a, b) => a.at - b.at);
  const longest = Math.max(1e-9, ...items.map((item) => item.at));
  return el("div", { class: "pad steps course", "data-roving": true }, items.flatMap((item) => {
    const bar = el("i");
    bar.style.transform = `scaleX(${item.at / longest})`;
    return [item.what, el("span", { class: "num" }, fig(item.at === 0 ? "0" : ms(item.at), item.from)), el("span", { class: "track", "aria-hidden": "true" }, bar)];
  }));
}

/** Links to the rounds before and after, where the id is the usual one. */
function neighbours(e) {
  const base = `${e.symbol}:${e.tick.source}:`;
  if (e.decision_id !== `${base}${e.round}`) return [];
  const link = (round, text) => el("a", { class: "button small", href: decisionPath(`${base}${round}`) }, text);
  return [e.round > 1 ? link(e.round - 1, "← round before") : null, link(e.round + 1, "round after →")];
}

function show(e) {
  document.title = `${e.published.final_decision} ${e.symbol} round ${e.round} · ${e.swarm}`;
  const trace = e.trace_id ? (jaeger ? el("a", { href: `${jaeger}/trace/${e.trace_id}`, rel: "noreferrer" }, "trace in Jaeger") : el("span", {}, "trace ", el("code", {}, e.trace_id))) : el("span", { class: "muted" }, "no trace");
  byId("decision").replaceChildren(
    el("header", { class: "page-head" }, el("h1", {}, `${e.symbol}, round ${count(e.round)}`), el("p", { class: "lead" }, el("span", { class: "mono" }, e.decision_id), ` · ${moment(e.tick.timestamp, false)} · decided by `, el("a", { href: agentPath(e.decider) }, e.decider)),
      el("div", { class: "tools-inline" }, neighbours(e), el("button", { type: "button", class: "button small", id: "copy", onclick: copy }, "Copy address"))),
    verdict(e),
    el("div", { class: "decision-grid" },
      el("div", { class: "wide" }, panel("voters-h", "Voters", `${e.voters.filter((v) => v.status === "counted").length} of ${e.voters.length} counted`, votersTable(e))),
      panel("judge-h", "From votes to the action", null, scale(e), judgement(e)),
      panel("size-h", "Risk and size", e.size.bound_by in POSITION ? null : `bound by ${e.size.bound_by.replaceAll("_", " ")}`, riskAndSize(e)),
      panel("course-h", "Course of the round", e.config.changed_in_round ? "the settings changed in this round" : null, course(e)),
      panel("links-h", "Where this comes from", null, el("p", { class: "links" },
        el("a", { href: `/messages/${e.sequence}` }, `decision, message ${count(e.sequence)}`), el("a", { href: `/messages/${e.tick.sequence}` }, `tick, message ${count(e.tick.sequence)}`),
        e.config.sequence ? el("a", { href: `/messages/${e.config.sequence}` }, `settings, message ${count(e.config.sequence)}`) : "", trace),
        e.notes.length ? el("ul", { class: "pad notes" }, e.notes.map((note) => el("li", {}, note))) : null,
        el("p", { class: "pad muted" }, `Read ${count(e.read)} messages in ${ms(e.duration_ms)}. The same in a terminal: `, el("code", {}, command(e))))));
  if (page.id === "latest") byId("copy").dataset.path = decisionPath(e.decision_id);
  reachable();
}

/** The command that prints this page; by its sequence where a shell would not take the id as it is. */
const command = (e) => `signalmesh explain ${/^[\w/:.=@%+-]+$/.test(e.decision_id) ? e.decision_id : e.sequence}`;

async function copy(event) {
  const address = new URL(event.target.dataset.path ?? location.pathname, location.href).href;
  try {
    await navigator.clipboard.writeText(address);
    setText(event.target, "Copied");
  } catch {
    history.replaceState(null, "", address);
    setText(event.target, "It is in the address line");
  }
}

async function load() {
  try {
    const answer = await get(`/api${location.pathname}`);
    showSource({ kind: page.kind, name: answer.source });
    show(answer);
  } catch (error) {
    againIfAway(error, load);
    if (byId("problem")?.dataset.text === error.message) return;
    byId("decision").replaceChildren(el("header", { class: "page-head" }, el("h1", {}, "Decision"), el("p", { class: "lead mono" }, page.id)), el("p", { class: "error", role: "alert", id: "problem", data: { text: error.message } }, marked(error.message)), el("p", { class: "pad" }, el("a", { href: "/decisions/latest" }, "The newest decision"), " · ", el("a", { href: "/" }, "Overview")));
  }
}
load();
