// Agents grouped by sandbox, the roles, and the alerts of the overview.

import { agentPath } from "./api.js";
import { el, keyed, setText } from "./dom.js";
import { age, count, fixed, known, level, NONE, when } from "./format.js";
import { atRest } from "./shell.js";
import { figure, fig, setFigure, sourceOf } from "./provenance.js";

const MOST_ROWS = 60;
const COLUMNS = [
  ["agent", "c-name"], ["state", "c-state"], ["epoch", "num"], ["restarts", "num c-wide"], ["heartbeat", "num"], ["lag", "num c-wide"],
];
const LEVEL_ORDER = ["bad", "warn", "busy", "off", "ok"];

function row(agent) {
  const cells = {
    name: el("a", { href: agentPath(agent.name) }, agent.name),
    state: figure("state"), epoch: figure(), restarts: figure(), beat: figure(), lag: figure(),
  };
  const tr = el("tr", {}, el("td", { title: agent.name }, cells.name), el("td", {}, cells.state), el("td", { class: "num" }, cells.epoch),
    el("td", { class: "num c-wide" }, cells.restarts), el("td", { class: "num" }, cells.beat), el("td", { class: "num c-wide" }, cells.lag));
  tr.cells_ = cells;
  return tr;
}

function fillRow(tr, agent) {
  const { state, epoch, restarts, beat, lag } = tr.cells_;
  const heartbeat = agent.heartbeat ? { kind: "heartbeat", ...agent.heartbeat } : null;
  const claim = known(agent.epoch) && agent.epoch > 0 ? { kind: "message", sequence: agent.epoch, at: null, what: "The epoch is the sequence of the claim" } : heartbeat;
  const status = atRest ? "at rest" : agent.status;
  state.dataset.level = level(status);
  setFigure(state, status, heartbeat ?? { kind: "computed", text: atRest ? "the mirror's file: heartbeats are not stored" : "the watchdog's heartbeat: the agent itself sends none" });
  setFigure(epoch, agent.epoch ? count(agent.epoch) : NONE, claim);
  setFigure(restarts, count(agent.restarts), { kind: "computed", text: "claims of this agent in the stream, less the first" });
  tr.beat_ = { at: performance.now(), age: agent.heartbeat?.age_ms ?? agent.heartbeat_age_ms };
  setFigure(beat, age(tr.beat_.age), heartbeat);
  setFigure(lag, count(agent.lag), heartbeat ? { ...heartbeat, what: "Inputs not yet read" } : null);
}

export class SwarmPanel {
  constructor({ agents, roles, alerts, agentsCount, alertsCount }) {
    Object.assign(this, { box: agents, roles, alertsBox: alerts, agentsCount, alertsCount });
    this.agents = new Map();
    this.sandboxes = new Map();
    this.opened = new Set();
    this.alerts = [];
    setInterval(() => this.tick(), 250);
  }

  set(agents, sandboxes) {
    this.agents = new Map(agents.map((agent) => [agent.name, agent]));
    this.sandboxes = new Map(sandboxes.map((sandbox) => [sandbox.name, sandbox]));
    this.draw();
  }

  change({ agents = [], sandboxes = [], agents_gone: gone = [], sandboxes_gone: lost = [] }) {
    for (const agent of agents) this.agents.set(agent.name, { ...this.agents.get(agent.name), ...agent });
    for (const sandbox of sandboxes) this.sandboxes.set(sandbox.name, { ...this.sandboxes.get(sandbox.name), ...sandbox });
    for (const name of gone) this.agents.delete(name);
    for (const name of lost) this.sandboxes.delete(name);
    this.draw();
  }

  groups() {
    const groups = new Map([...this.sandboxes.values()].map((sandbox) => [sandbox.name, { sandbox, agents: [] }]));
    for (const agent of this.agents.values()) {
      const name = agent.sandbox || "no sandbox";
      if (!groups.has(name)) groups.set(name, { sandbox: { name, status: "", health: null }, agents: [] });
      groups.get(name).agents.push(agent);
    }
    return [...groups.values()];
  }

  draw() {
    keyed(this.box, this.groups(), (group) => group.sandbox.name, (group) => this.makeSandbox(group), (node, group) => this.fillSandbox(node, group));
    const active = [...this.agents.values()].filter((agent) => level(agent.status) === "ok").length;
    setText(this.agentsCount, atRest ? `${count(this.agents.size)} in the file` : `${count(active)} of ${count(this.agents.size)} run`);
  }

  makeSandbox(group) {
    const state = figure("state");
    const health = figure();
    const cost = figure();
    const memory = figure();
    const body = el("tbody");
    const more = el("button", { type: "button", class: "button small more", hidden: true, onclick: () => { this.opened.add(group.sandbox.name); this.draw(); } });
    const head = el("tr", {}, COLUMNS.map(([text, className]) => el("th", { scope: "col", class: className }, text)));
    const table = el("table", { class: "table", "aria-label": `Agents of ${group.sandbox.name}` }, el("thead", {}, head), body);
    const node = el("section", { class: "sandbox" },
      el("div", { class: "sandbox-head" }, el("h3", {}, group.sandbox.name), state, el("span", { class: "facts" }, el("span", {}, memory), el("span", {}, health, " up"), el("span", {}, cost))), table, more);
    Object.assign(node, { parts: { state, health, cost, memory, body, more, table } });
    return node;
  }

  fillSandbox(node, { sandbox, agents }) {
    const { state, health, cost, memory, body, more, table } = node.parts;
    const beat = sandbox.heartbeat ? { kind: "heartbeat", ...sandbox.heartbeat } : { kind: "computed", text: sandbox.from ?? "heartbeats of the sandbox host, as the watchdog counts them" };
    state.hidden = !sandbox.status;
    state.dataset.level = level(sandbox.status);
    setFigure(state, sandbox.status || NONE, { ...beat, what: sandbox.reason ?? "" });
    const available = availability(sandbox.health);
    health.parentNode.hidden = !sandbox.health;
    setFigure(health, available === null ? NONE : `${(Math.floor(available * 10000) / 100).toFixed(2)} %`, { ...beat, what: "Heartbeats that arrived of those that could" });
    const use = sandbox.health;
    const mib = use?.pss_mb ?? use?.rss_mb;
    memory.parentNode.hidden = !known(mib);
    setFigure(memory, known(mib) ? `${fixed(use.cpu_percent, 1)} % · ${count(mib)} MiB` : NONE, { ...beat, what: `Share of one processor since the start, and memory${known(use?.pss_mb) ? "" : " (shared pages counted for each process)"} of ${count(use?.processes)} processes` });
    const usd = sandbox.cost;
    cost.parentNode.hidden = !sandbox.status;
    setFigure(cost, usd ? `$${usd.usd_per_h?.toFixed(3) ?? NONE}/h · $${usd.usd?.toFixed(4) ?? NONE}` : "no price set",
      { kind: "computed", text: usd?.from ?? "swarm.toml sets no price for this sandbox" });
    const sorted = agents.length <= MOST_ROWS || this.opened.has(sandbox.name) ? agents
      : [...agents].sort((a, b) => LEVEL_ORDER.indexOf(level(a.status)) - LEVEL_ORDER.indexOf(level(b.status))).slice(0, MOST_ROWS);
    table.hidden = agents.length === 0;
    keyed(body, sorted, (agent) => agent.name, row, fillRow);
    more.hidden = sorted.length === agents.length;
    setText(more, `${count(agents.length - sorted.length)} more`);
  }

  /** The ages grow between heartbeats. */
  tick() {
    if (document.hidden) return;
    for (const tr of this.box.parentNode.querySelectorAll("tbody tr")) {
      const { at, age: old } = tr.beat_;
      if (known(old)) setText(tr.cells_.beat, age(old + performance.now() - at));
    }
  }

  setRoles(roles) {
    this.roles.closest("section").hidden = roles.length === 0;
    keyed(this.roles, roles, (role) => `${role.kind}/${role.name}/${role.pid}`, (role) => {
      const cells = { state: figure("state"), epoch: figure(), pid: figure(), beat: figure(), lag: figure() };
      const name = role.kind === role.name ? role.name : `${role.name} (${role.kind})`;
      const tr = el("tr", {}, el("td", { title: role.machine ?? "" }, name), el("td", {}, cells.state), el("td", { class: "num" }, cells.pid),
        el("td", { class: "num c-wide" }, cells.epoch), el("td", { class: "num" }, cells.beat), el("td", { class: "num c-wide" }, cells.lag));
      tr.cells_ = cells;
      return tr;
    }, (tr, role) => {
      const heartbeat = role.heartbeat ? { kind: "heartbeat", ...role.heartbeat } : null;
      const { state, pid, epoch, beat, lag } = tr.cells_;
      state.dataset.level = level(role.status);
      setFigure(state, role.status ?? NONE, heartbeat);
      setFigure(pid, role.pid ? String(role.pid) : NONE, heartbeat);
      setFigure(epoch, role.epoch ? count(role.epoch) : NONE, heartbeat ? { ...heartbeat, what: "The term of a watchdog that leads" } : null);
      tr.beat_ = { at: performance.now(), age: role.heartbeat?.age_ms };
      setFigure(beat, age(tr.beat_.age), heartbeat);
      setFigure(lag, role.kind === "mirror" || role.lag ? count(role.lag) : NONE, heartbeat);
    });
  }

  setAlerts(alerts) {
    this.alerts = alerts;
    this.drawAlerts();
  }

  addAlert(alert) {
    if (this.alerts.some((other) => other.sequence === alert.sequence)) return;
    this.alerts = [alert, ...this.alerts].slice(0, 50);
    this.drawAlerts();
  }

  drawAlerts() {
    setText(this.alertsCount, this.alerts.length ? `${count(this.alerts.length)}, newest first` : "");
    if (!this.alerts.length) {
      this.alertsBox.keyed = undefined;
      this.alertsBox.replaceChildren(el("li", { class: "empty" }, "No alert is in the stream."));
      return;
    }
    if (!this.alertsBox.keyed) this.alertsBox.replaceChildren();
    keyed(this.alertsBox, this.alerts, (alert) => alert.sequence, (alert) => {
      const severe = { critical: "bad", warning: "warn", info: "busy" }[alert.severity] ?? "off";
      return el("li", { class: "alert" },
        el("span", { class: "state sev", data: { level: severe } }, alert.severity),
        el("span", { class: "code" }, alert.code, el("span", { class: "muted" }, ` by ${alert.source}${alert.agent && alert.agent !== alert.source ? `, about ${alert.agent}` : ""}`)),
        el("span", { class: "at" }, fig(when(alert.stored_at ?? alert.t), sourceOf(alert, `published by ${alert.source}`))),
        el("p", { class: "text" }, alert.message));
    }, () => {});
  }
}

/** The share of heartbeats that arrived; null where nothing reports it. */
export function availability(health) {
  if (!health) return null;
  if (known(health.availability)) return health.availability;
  if (known(health.seen_s) && health.seen_s > 0) return health.alive_s / health.seen_s;
  return null;
}

