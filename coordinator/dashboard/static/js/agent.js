// One agent: its life, what it has published, its state in the newest snapshot, its log; restart, kill and revive.

import { agentPath, get, post, repeat } from "./api.js";
import { byId, el, keyed, marked, setText } from "./dom.js";
import { age, clock, count, fixed, known, level, NONE, when } from "./format.js";
import { showJson } from "./json_view.js";
import { figure, fig, reachable, setFigure, sourceOf } from "./provenance.js";
import { atRest, page, say, showSource, startShell } from "./shell.js";

const EVERY_MS = 2000;
const ACTIONS = {
  restart: ["Restart", "It drains: it finishes its input, stores a snapshot and ends. The watchdog starts it again."],
  kill: ["Kill", "The process gets SIGKILL: it loses what it has in memory. The watchdog starts it again from its snapshot."],
  revive: ["Revive", "Start the agent again if it is quarantined or drained."],
};
const live = startShell();
const path = `/api${agentPath(page.name)}`;

const tiles = {};
for (const [key, label] of [["status", "state"], ["sandbox", "sandbox"], ["epoch", "epoch"], ["restarts", "restarts"], ["beat", "heartbeat"], ["lag", "lag"], ["outputs", "outputs"], ["pid", "pid"], ["poison", "set aside"]]) {
  tiles[key] = figure(key === "status" ? "state" : "");
  byId("strip").append(el("div", { class: `tile${["status", "sandbox"].includes(key) ? " text" : ""}` }, el("span", { class: "k" }, label), el("span", { class: "v" }, tiles[key])));
}
let beat = { at: 0, age: null };

function showStatus(agent) {
  const heartbeat = agent.heartbeat ? { kind: "heartbeat", ...agent.heartbeat } : { kind: "computed", text: atRest ? "the mirror's file: heartbeats are not stored" : "the agent sends no heartbeats now; this is from the watchdog or from the stream" };
  setText(byId("agent-lead"), [agent.kind, agent.agent_id, ...(agent.capabilities ?? [])].filter(Boolean).join(" · "));
  const status = atRest ? "at rest" : agent.status;
  tiles.status.dataset.level = level(status);
  setFigure(tiles.status, status ?? NONE, heartbeat);
  setFigure(tiles.sandbox, agent.sandbox || NONE, heartbeat);
  setFigure(tiles.epoch, agent.epoch ? count(agent.epoch) : NONE, agent.epoch ? { kind: "message", sequence: agent.epoch, at: null, what: "The epoch is the sequence of the claim" } : heartbeat);
  setFigure(tiles.restarts, count(agent.restarts), { kind: "computed", text: "claims of this agent in the stream, less the first" });
  beat = { at: performance.now(), age: agent.heartbeat?.age_ms ?? agent.heartbeat_age_ms };
  setFigure(tiles.beat, age(beat.age), heartbeat);
  setFigure(tiles.lag, count(agent.lag), heartbeat);
  setFigure(tiles.outputs, count(agent.outputs_count ?? (typeof agent.outputs === "number" ? agent.outputs : null)), heartbeat);
  setFigure(tiles.pid, known(agent.pid) ? String(agent.pid) : NONE, heartbeat);
  setFigure(tiles.poison, known(agent.poison) ? `${count(agent.poison)} + ${count(agent.skipped)}` : NONE, { ...heartbeat, what: "Messages that could not be read, and events whose handler failed" });
}

function content(output) {
  const p = output.payload ?? {};
  if (p.final_decision) return `${p.final_decision} ${fixed(p.position_size, 4)} · consensus ${fixed(p.consensus_level, 3)} · ${p.symbol ?? ""} round ${p.round ?? NONE}`;
  if (p.signal) return `${p.signal} ${fixed(p.strength, 3)} · p_up ${fixed(p.p_up, 3)} · ${p.symbol ?? ""} round ${p.round ?? NONE}`;
  if (p.sentiment) return `${p.sentiment} ${fixed(p.confidence, 3)} · p_up ${fixed(p.p_up, 3)} · ${p.symbol ?? ""} round ${p.round ?? NONE}`;
  if (p.price) return `${p.symbol} ${p.price} · number ${p.sequence ?? NONE}`;
  return p.text ?? p.message ?? JSON.stringify(p).slice(0, 140);
}

function logLine({ timestamp, level: severity, event, file, ...rest }) {
  const more = Object.entries(rest).filter(([key]) => key !== "agent").map(([key, value]) => ` ${key}=${typeof value === "string" ? value : JSON.stringify(value)}`);
  const className = { error: "l-bad", critical: "l-bad", warning: "l-warn" }[severity] ?? "";
  return el("span", { title: file }, el("span", { class: "muted" }, `${clock(timestamp)} `), el("span", { class: className }, `${severity ?? ""} ${event ?? ""}`), `${more.join("")}\n`);
}

function show(agent) {
  showSource(agent.source);
  showStatus(agent);
  const life = agent.life ?? [];
  setText(byId("life-count"), `${count(life.length)} events`);
  keyed(byId("life"), [...life].sort((a, b) => b.sequence - a.sequence), (event) => event.sequence, (event) => el("tr", {},
    el("td", {}, fig(when(event.t), sourceOf(event, `reported by ${event.source ?? "the agent"}`))), el("td", {}, event.event),
    el("td", { class: "num" }, known(event.epoch) ? count(event.epoch) : NONE), el("td", { class: "c-wide" }, event.sandbox ?? ""), el("td", { class: "wrap" }, event.reason ?? "")), () => {});
  const outputs = agent.outputs ?? [];
  setText(byId("outputs-count"), `newest ${count(outputs.length)}`);
  keyed(byId("outputs"), [...outputs].sort((a, b) => b.sequence - a.sequence), (output) => output.sequence, (output) => el("tr", {},
    el("td", {}, el("a", { href: `/messages/${output.sequence}` }, count(output.sequence))), el("td", {}, fig(clock(output.stored_at), sourceOf(output, output.subject))),
    el("td", { class: "c-wide" }, output.kind ?? ""), el("td", { class: "wrap" }, content(output))), () => {});
  const snapshot = agent.snapshot;
  if (snapshot && !snapshot.problem) {
    byId("state-note").replaceChildren(fig(`revision ${count(snapshot.revision)}, through message ${count(snapshot.cursor)}`, { kind: "computed", text: `the newest snapshot in the bucket: revision ${snapshot.revision}, epoch ${snapshot.epoch}, inputs up to message ${snapshot.cursor}` }));
    const text = JSON.stringify(snapshot.state);
    if (byId("state").shown !== text) {
      byId("state").shown = text;
      showJson(byId("state"), snapshot.state);
    }
  } else setText(byId("state"), snapshot?.problem ?? "No snapshot is stored yet.");
  const log = byId("log");
  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 12;
  if (Array.isArray(agent.log) && agent.log.length) {
    const text = JSON.stringify(agent.log);
    if (log.shown !== text) {
      log.shown = text;
      log.replaceChildren(...agent.log.map(logLine));
      if (atEnd) log.scrollTop = log.scrollHeight;
    }
  } else setText(log, agent.log ? "No line names this agent." : (agent.log_reason ?? ""));
  setText(byId("log-note"), agent.log ? `newest ${count(agent.log.length)} lines` : "");
  reachable();
}

let loaded = false;
let said = "";
async function load() {
  let problem = null;
  try {
    show(await get(path));
  } catch (error) {
    problem = error;
  }
  byId("agent-error").hidden = problem === null;
  if (problem && said !== problem.message) byId("agent-error").replaceChildren(...marked((said = problem.message)), ". ", el("a", { href: "/" }, "Overview"));
  loaded ||= problem === null;
  for (const part of [byId("agent"), byId("actions")]) part.hidden = !loaded || problem?.status === 404;
}

// -- actions

const reason = atRest ? "a mirror's file is shown: there is no process to act on" : page.canAct ? "" : page.actReason || "this browser has no token: open the link that `signalmesh up` prints";
byId("act-note").hidden = !reason;
byId("act-note").replaceChildren("The buttons are off: ", ...marked(reason.replace(/\.$/, "")), ". ", atRest ? "" : el("a", { href: `/login?next=${encodeURIComponent(location.pathname)}` }, "Enter the token"));

let asked = null;
for (const [action, [label, text]] of Object.entries(ACTIONS)) {
  byId("actions").append(el("button", {
    type: "button", class: `button${action === "kill" ? " danger" : ""}`, id: `act-${action}`, disabled: Boolean(reason), title: reason || text, "aria-describedby": reason ? "act-note" : null,
    onclick: () => {
      asked = action;
      setText(byId("confirm-h"), `${label} ${page.name}?`);
      setText(byId("confirm-text"), text);
      setText(byId("confirm-yes"), label);
      byId("confirm").returnValue = "no";
      byId("confirm").showModal();
    },
  }, label));
}
byId("confirm").addEventListener("close", async () => {
  if (byId("confirm").returnValue !== "yes" || !asked) return;
  const note = byId("act-note");
  note.hidden = false;
  note.className = "note";
  const buttons = [...byId("actions").children];
  for (const button of buttons) button.disabled = true;
  setText(note, `${ACTIONS[asked][0]}: asked, waiting for the answer …`);
  try {
    const answer = await post(`${path}/${asked}`);
    setText(note, answer.text ?? "done");
    note.className = answer.ok === false ? "error" : "note";
  } catch (error) {
    setText(note, error.message);
    note.className = "error";
  }
  say(note.textContent);
  for (const button of buttons) button.disabled = false;
  load();
});

setInterval(() => { if (known(beat.age) && !document.hidden) setText(tiles.beat, age(beat.age + performance.now() - beat.at)); }, 250);
if (live) {
  let due = null;
  const soon = () => { due ??= setTimeout(() => { due = null; load(); }, 250); };
  live.addEventListener("lifecycle", (event) => { if (event.detail.agent === page.name) soon(); });
  live.addEventListener("agents", (event) => {
    const found = (event.detail.agents ?? []).find((agent) => agent.name === page.name);
    if (found) showStatus(found);
  });
  live.addEventListener("resync", load);
  repeat(load, EVERY_MS);
}
load();
