// Who answered whom in the last minute: agents in columns by what they answer, arrows as wide as there were answers.

import { agentPath, get, repeat } from "./api.js";
import { byId, el, keyed, setText, svg } from "./dom.js";
import { count, level } from "./format.js";
import { figure, reachable, setFigure } from "./provenance.js";
import { showSource, startShell } from "./shell.js";

const EVERY_MS = 2000;
const MOST_NODES = 60;
const WIDTH = 168;
const HEIGHT = 46;
const live = startShell();
let shape = "";

/** Column of each node: one more than the farthest that it answers; a circle counts once. */
function columns(nodes, edges) {
  const column = new Map(nodes.map((node) => [node.name, 0]));
  const into = Map.groupBy(edges, (edge) => edge.to);
  const depth = (name, path) => {
    let deepest = 0;
    for (const { from } of into.get(name) ?? []) if (!path.has(from) && column.has(from)) deepest = Math.max(deepest, 1 + depth(from, new Set(path).add(from)));
    return deepest;
  };
  if (nodes.length <= MOST_NODES) for (const node of nodes) column.set(node.name, Math.min(8, depth(node.name, new Set([node.name]))));
  return column;
}

function layout(nodes, edges) {
  const column = columns(nodes, edges);
  const ordered = Map.groupBy(nodes, (node) => column.get(node.name));
  const keys = [...ordered.keys()].sort((a, b) => a - b);
  const tallest = Math.max(...[...ordered.values()].map((list) => list.length));
  const across = Math.max(250, 900 / Math.max(1, keys.length));
  const size = { width: Math.max(640, across * (keys.length - 1) + WIDTH + 90), height: Math.max(280, tallest * (HEIGHT + 46) + 60) };
  const place = new Map();
  keys.forEach((key, x) => {
    const list = ordered.get(key).sort((a, b) => a.name.localeCompare(b.name));
    list.forEach((node, y) => place.set(node.name, {
      x: keys.length === 1 ? size.width / 2 : 45 + WIDTH / 2 + (x * (size.width - WIDTH - 90)) / (keys.length - 1),
      y: (size.height * (y + 0.5)) / list.length,
    }));
  });
  return { place, size, back: (edge) => place.get(edge.to).x <= place.get(edge.from).x };
}

const clip = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);

function path(a, b, back) {
  if (a === b) return `M${a.x - 30} ${a.y - HEIGHT / 2}c-10 -44 70 -44 60 -2`;
  if (back) {
    const low = Math.max(a.y, b.y) + HEIGHT / 2 + 34;
    return `M${a.x} ${a.y + HEIGHT / 2}C${a.x} ${low + 20} ${b.x} ${low + 20} ${b.x} ${b.y + HEIGHT / 2 + 7}`;
  }
  const from = a.x + WIDTH / 2;
  const to = b.x - WIDTH / 2 - 7;
  const bend = Math.max(40, (to - from) / 2);
  return `M${from} ${a.y}C${from + bend} ${a.y} ${to - bend} ${b.y} ${to} ${b.y}`;
}

function draw({ nodes, edges }) {
  const { place, size, back } = layout(nodes, edges);
  const known = edges.filter((edge) => place.has(edge.from) && place.has(edge.to));
  const most = Math.max(1, ...known.map((edge) => edge.count));
  const lines = known.map((edge) => {
    const line = svg("path", { class: "edge", d: path(place.get(edge.from), place.get(edge.to), back(edge)), "stroke-width": (1 + 4 * Math.sqrt(edge.count / most)).toFixed(2), "marker-end": "url(#arrow)" });
    line.edge = edge;
    return line;
  });
  const boxes = nodes.map((node) => {
    const { x, y } = place.get(node.name);
    const body = [
      svg("rect", { x: x - WIDTH / 2, y: y - HEIGHT / 2, width: WIDTH, height: HEIGHT, rx: 6 }),
      svg("text", { x: x - WIDTH / 2 + 12, y: y - 3 }, clip(node.name, 23)),
      svg("text", { class: "sub", x: x - WIDTH / 2 + 12, y: y + 14 }, clip([node.status, node.sandbox ?? node.kind].filter(Boolean).join(" · "), 26)),
    ];
    const inside = node.kind === "agent" || node.kind === undefined || node.sandbox ? [svg("a", { href: agentPath(node.name), "aria-label": `${node.name}, ${node.status ?? ""}` }, body)] : body;
    const group = svg("g", { class: "node", "data-level": level(node.status) }, inside);
    const light = (on) => { for (const line of lines) if (line.edge.from === node.name || line.edge.to === node.name) line.classList.toggle("lit", on); };
    for (const [kind, on] of [["pointerenter", true], ["pointerleave", false], ["focusin", true], ["focusout", false]]) group.addEventListener(kind, () => light(on));
    return group;
  });
  const picture = svg("svg", { viewBox: `0 0 ${size.width} ${size.height}`, role: "group", "aria-label": "Agents and who answered whom" },
    svg("defs", {}, svg("marker", { id: "arrow", viewBox: "0 0 8 8", refX: 2, refY: 4, markerWidth: 9, markerHeight: 9, markerUnits: "userSpaceOnUse", orient: "auto" }, svg("path", { class: "arrow", d: "M0 0 8 4 0 8z" }))),
    lines, boxes);
  byId("mesh").replaceChildren(picture);
  for (const line of lines) {
    const length = line.getTotalLength();
    const at = line.getPointAtLength(length * 0.5);
    const label = svg("text", { x: at.x, y: at.y + 4, "text-anchor": "middle" }, count(line.edge.count));
    const width = 10 + 7 * count(line.edge.count).length;
    picture.append(svg("g", { class: "edge-label", "aria-hidden": "true" }, svg("rect", { x: at.x - width / 2, y: at.y - 9, width, height: 18, rx: 4 }), label));
    line.label = label;
  }
  return lines;
}

let lines = [];
function show(mesh) {
  showSource(mesh.source);
  const limited = mesh.nodes.length > MOST_NODES;
  const busy = new Set(mesh.edges.flatMap((edge) => [edge.from, edge.to]));
  const nodes = limited ? mesh.nodes.filter((node) => busy.has(node.name)).slice(0, MOST_NODES) : mesh.nodes;
  setText(byId("mesh-text"), mesh.from ?? `answers of the last ${mesh.window_s} s, by the header Mesh-Cause`);
  byId("mesh-empty").hidden = nodes.length > 0;
  setText(byId("mesh-empty"), "No agent is known yet.");
  const now = JSON.stringify([nodes.map((node) => [node.name, node.status, node.sandbox]), mesh.edges.map((edge) => [edge.from, edge.to])]);
  if (now !== shape && nodes.length) {
    const focused = document.activeElement?.getAttribute?.("href");
    shape = now;
    lines = draw({ nodes, edges: mesh.edges });
    if (focused && byId("mesh").querySelector(`a[href="${CSS.escape(focused)}"]`)) byId("mesh").querySelector(`a[href="${CSS.escape(focused)}"]`).focus();
  }
  const most = Math.max(1, ...mesh.edges.map((edge) => edge.count));
  for (const line of lines) {
    const edge = mesh.edges.find((other) => other.from === line.edge.from && other.to === line.edge.to);
    if (!edge) continue;
    line.setAttribute("stroke-width", (1 + 4 * Math.sqrt(edge.count / most)).toFixed(2));
    setText(line.label, count(edge.count));
  }
  setText(byId("edges-count"), limited ? `${count(mesh.nodes.length)} agents; the picture shows ${count(nodes.length)}` : `${count(mesh.edges.length)} kinds`);
  keyed(byId("edges"), [...mesh.edges].sort((a, b) => b.count - a.count), (edge) => JSON.stringify([edge.from, edge.to]), (edge) => {
    const times = figure();
    const tr = el("tr", {}, el("td", { class: "num" }, times), el("td", {}, el("a", { href: agentPath(edge.from) }, edge.from)), el("td", {}, el("a", { href: agentPath(edge.to) }, edge.to)));
    tr.times = times;
    return tr;
  }, (tr, edge) => setFigure(tr.times, count(edge.count), { kind: "message", sequence: edge.last_sequence, at: null, what: "The newest of these answers" }));
  reachable();
}

async function load() {
  try {
    show(await get("/api/mesh"));
  } catch (error) {
    setText(byId("mesh-text"), error.message);
  }
}
if (live) {
  live.addEventListener("resync", load);
  repeat(load, EVERY_MS);
}
load();
