// A figure is a button: on hover and on focus it names the message or the heartbeat that it comes from, Enter goes there.

import { byId, el, setText } from "./dom.js";
import { age, clock, count, known, moment, NONE, SIDES } from "./format.js";

const sources = new WeakMap();
const received = new WeakMap();

/** Where an item of the API comes from. */
export function sourceOf(item, what = "") {
  if (!item) return null;
  if (known(item.sequence)) return { kind: "message", sequence: item.sequence, at: item.stored_at ?? null, what };
  if (item.heartbeat) return { kind: "heartbeat", ...item.heartbeat, what };
  if (item.from) return { kind: "computed", text: item.from, what };
  return null;
}

/** A figure that `setFigure` fills. */
export function figure(className = "") {
  return el("button", { type: "button", class: `fig ${className}`.trim(), tabindex: "-1" });
}

export function setFigure(node, text, source, label = "") {
  setText(node, text);
  node.classList.toggle("none", text === NONE);
  if (label) node.setAttribute("aria-label", `${label} ${text}`);
  if (source) {
    sources.set(node, source);
    received.set(node, performance.now());
  } else sources.delete(node);
  if (node === shown) draw(node);
}

export const fig = (text, source, className = "") => {
  const node = figure(className);
  setFigure(node, text, source);
  return node;
};

/** A side with its shape, so that it does not depend on colour. */
export function setSide(node, side) {
  const word = SIDES[side] ? side : "hold";
  if (node.dataset.side === String(side)) return;
  node.dataset.side = String(side);
  node.className = `side ${word}`;
  node.replaceChildren(el("i", { "aria-hidden": "true" }, SIDES[word]), String(side ?? NONE));
}

function lines(node) {
  const source = sources.get(node);
  if (!source) return [el("p", {}, "No message or heartbeat has reported this yet.")];
  const what = source.what ? [el("p", {}, el("b", {}, source.what))] : [];
  if (source.kind === "message") {
    const link = el("a", { href: `/messages/${source.sequence}` }, `message ${count(source.sequence)}`);
    const stored = source.at ? ` · stored ${moment(source.at)} UTC` : "";
    return [...what, el("p", {}, link, stored)];
  }
  if (source.kind === "heartbeat") {
    const since = known(source.age_ms) ? source.age_ms + performance.now() - received.get(node) : null;
    const old = known(since) ? ` · ${age(since)} ago` : "";
    const sent = source.at ? ` · arrived ${clock(source.at)} UTC` : "";
    return [...what, el("p", {}, `heartbeat of ${source.sender ?? "an unnamed process"}${sent}${old}`)];
  }
  return [...what, el("p", {}, source.text)];
}

let shown = null;
let pinned = false;
let hiding = 0;

function draw(node) {
  const pop = byId("pop");
  const focused = pop.contains(document.activeElement);
  if (focused) return;
  pop.replaceChildren(...lines(node));
}

function place(node) {
  const pop = byId("pop");
  const box = node.getBoundingClientRect();
  const width = pop.offsetWidth;
  const height = pop.offsetHeight;
  const above = box.bottom + 8 + height > innerHeight && box.top - 8 - height > 0;
  pop.style.left = `${Math.max(8, Math.min(box.left + box.width / 2 - width / 2, innerWidth - width - 8))}px`;
  pop.style.top = `${above ? box.top - height - 7 : box.bottom + 7}px`;
}

function show(node) {
  clearTimeout(hiding);
  if (shown && shown !== node) shown.removeAttribute("aria-describedby");
  if (shown !== node) pinned = false;
  shown = node;
  const host = node.closest("dialog[open]") ?? document.body;
  const pop = byId("pop");
  if (pop.parentNode !== host) host.append(pop);
  draw(node);
  pop.hidden = false;
  node.setAttribute("aria-describedby", "pop");
  place(node);
}

export function hidePop() {
  clearTimeout(hiding);
  if (!shown) return;
  shown.removeAttribute("aria-describedby");
  byId("pop").hidden = true;
  shown = null;
  pinned = false;
}

function hideSoon() {
  clearTimeout(hiding);
  if (!pinned) hiding = setTimeout(() => { if (shown !== document.activeElement) hidePop(); }, 160);
}

const figureOf = (target) => (target instanceof Element ? target.closest(".fig") : null);

/** The figures of a panel are one stop of the tab key; arrow keys go from figure to figure. */
function rove(event) {
  const panel = event.target.closest("[data-roving]");
  const node = figureOf(event.target);
  if (!panel || !node || event.ctrlKey || event.metaKey || event.altKey) return;
  const all = [...panel.querySelectorAll(".fig")].filter((other) => other.offsetParent !== null);
  const index = all.indexOf(node);
  let next = null;
  if (event.key === "ArrowRight") next = all[index + 1];
  else if (event.key === "ArrowLeft") next = all[index - 1];
  else if (event.key === "Home") next = all[0];
  else if (event.key === "End") next = all.at(-1);
  else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    const from = node.getBoundingClientRect();
    const sign = event.key === "ArrowDown" ? 1 : -1;
    let best = Infinity;
    for (const other of all) {
      const to = other.getBoundingClientRect();
      const dy = sign * (to.top - from.top);
      if (dy < 4) continue;
      const distance = dy * 4 + Math.abs(to.left - from.left);
      if (distance < best) [best, next] = [distance, other];
    }
  } else return;
  event.preventDefault();
  if (next) next.focus();
}

/** The first figure of each panel can be reached by tab. Called after a panel is drawn. */
export function reachable() {
  for (const panel of document.querySelectorAll("[data-roving]")) {
    const current = panel.querySelector('.fig[tabindex="0"]');
    if (current && current.offsetParent !== null) continue;
    current?.setAttribute("tabindex", "-1");
    panel.querySelector(".fig")?.setAttribute("tabindex", "0");
  }
}

export function startProvenance() {
  document.addEventListener("pointerover", (event) => {
    const node = figureOf(event.target);
    if (node) show(node);
    else if (event.target instanceof Element && event.target.closest("#pop")) clearTimeout(hiding);
    else if (shown) hideSoon();
  });
  document.addEventListener("focusin", (event) => {
    const node = figureOf(event.target);
    if (node) {
      for (const other of node.closest("[data-roving]")?.querySelectorAll('.fig[tabindex="0"]') ?? []) other.setAttribute("tabindex", "-1");
      node.setAttribute("tabindex", "0");
      show(node);
    } else if (!event.target.closest("#pop")) hidePop();
  });
  document.addEventListener("click", (event) => {
    const node = figureOf(event.target);
    if (!node) return;
    show(node);
    pinned = true;
    const source = sources.get(node);
    if (event.detail === 0 && source?.kind === "message") location.assign(`/messages/${source.sequence}`); // by keyboard
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") hidePop();
    else rove(event);
  });
  addEventListener("scroll", () => { if (shown) place(shown); }, { passive: true, capture: true });
}
