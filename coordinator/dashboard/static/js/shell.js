// What every page has: navigation, colours, shortcuts, the state of the connection, figures that name their source.

import { byId, setText } from "./dom.js";
import { clock, when } from "./format.js";
import { Live } from "./live.js";
import { hidePop, reachable, startProvenance } from "./provenance.js";

export const page = document.body.dataset;
/** Whether a mirror's file is shown, in which there are no heartbeats. */
export const atRest = page.kind === "file";
export const jaeger = page.jaeger.replace(/\/+$/, "");
const GO = { o: "/", t: "/timeline", m: "/mesh", d: "/decisions/latest" };
const THEMES = ["system", "dark", "light"];

let theme = document.documentElement.dataset.theme ?? "system";
const repaint = new Set();
/** Called after the colours have changed. */
export const onColours = (callback) => repaint.add(callback);

function setTheme(next) {
  theme = next;
  if (next === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = next;
  try { next === "system" ? localStorage.removeItem("signalmesh.theme") : localStorage.setItem("signalmesh.theme", next); } catch { /* not kept */ }
  nameTheme();
  for (const callback of repaint) callback();
}

function nameTheme() {
  byId("theme").setAttribute("aria-label", `Colours: ${theme === "system" ? "as the system" : theme}. Change them.`);
  byId("theme").title = `Colours: ${theme === "system" ? "as the system" : theme}`;
}

const nextTheme = () => {
  setTheme(THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length]);
  say(`Colours: ${theme === "system" ? "as the system" : theme}`);
};

/** Tell a screen reader. */
export function say(text) {
  setText(byId("say"), text);
}

function shortcuts() {
  let going = 0;
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select, textarea")) return;
    if (document.querySelector("dialog[open]")) return;
    if (going && performance.now() - going < 1500 && GO[event.key]) return void location.assign(GO[event.key]);
    going = event.key === "g" ? performance.now() : 0;
    if (event.key === "?") byId("keys").showModal();
    else if (event.key === "c") nextTheme();
  });
}

function showState({ state, where, since }) {
  document.body.dataset.conn = state;
  byId("conn").dataset.state = state;
  const banner = byId("banner");
  const from = since ? ` since ${clock(since, false)} UTC` : "";
  if (state === "live") {
    if (!banner.hidden) say("The page is live again.");
    setText(byId("conn-text"), "live");
    banner.hidden = true;
  } else if (state === "wait") setText(byId("conn-text"), "connecting");
  else {
    const [short, long] = state === "stale"
      ? [`stale${from}`, `Stale${from}: nothing arrives. The figures are from before; the page goes on by itself.`]
      : where === "bus"
        ? [`bus cut off${from}`, `The bus is cut off${from}. The figures are from before; the page comes back by itself.`]
        : [`cut off${from}`, `This page is cut off from the dashboard${from}. The figures are from before; it tries again by itself.`];
    setText(byId("conn-text"), short);
    setText(byId("banner-text"), long);
    banner.hidden = false;
    say(long);
  }
}

/** What the figures of this page were read from. */
export function showSource(source) {
  if (!source) return;
  if (source.kind === "file") {
    document.body.dataset.conn = "file";
    byId("conn").dataset.state = "file";
    setText(byId("conn-text"), `at rest${source.as_of ? `, as of ${when(source.as_of)}` : ""}`);
  }
  setText(byId("source-line"), `${source.kind === "file" ? "mirror" : "bus"} ${source.name ?? ""}`);
}

/** The page's events; null where it shows a mirror's file, in which nothing changes. */
export function startShell({ events = true } = {}) {
  startProvenance();
  shortcuts();
  nameTheme();
  byId("theme").addEventListener("click", nextTheme);
  byId("help").addEventListener("click", () => { hidePop(); byId("keys").showModal(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { for (const callback of repaint) callback(); });
  document.querySelector(`[data-nav="${page.page}"]`)?.setAttribute("aria-current", "page");
  reachable();
  if (atRest) {
    showSource({ kind: "file" });
    return null;
  }
  if (!events) {
    byId("conn").hidden = true;
    return null;
  }
  const live = new Live();
  live.addEventListener("state", (event) => showState(event.detail));
  live.start();
  return live;
}
