// Elements are made here, and all text is set as text: a name or a headline can hold markup, and is never parsed.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key === "data") Object.assign(node.dataset, value);
    else node.setAttribute(key, value === true ? "" : String(value));
  }
  for (const child of children.flat()) if (child !== null && child !== undefined) node.append(child);
  return node;
}

export const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
export const svg = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);
export const byId = (id) => document.getElementById(id);

/** Set text only where it differs, so that a selection and the layout stay. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** A text of signalmesh as nodes: what is between backticks is code. */
export const marked = (text) => text.split("`").map((part, index) => (index % 2 ? el("code", {}, part) : part));

/** Make the children of `parent` those of `items`, in order; a child is kept by its key, so that focus stays. */
export function keyed(parent, items, keyOf, make, update) {
  const kept = parent.keyed ?? (parent.keyed = new Map());
  const wanted = new Map();
  let place = parent.firstChild;
  for (const item of items) {
    const key = keyOf(item);
    let node = kept.get(key);
    if (!node) node = make(item);
    wanted.set(key, node);
    update(node, item);
    if (node === place) place = place.nextSibling;
    else parent.insertBefore(node, place);
  }
  for (const [key, node] of kept) if (!wanted.has(key)) node.remove();
  parent.keyed = wanted;
}

/** The value of a custom property as a colour that a canvas understands. */
export function colour(name) {
  const probe = colour.probe ?? (colour.probe = document.body.appendChild(el("i", { hidden: true })));
  probe.style.color = `var(--${name})`;
  const canvas = colour.canvas ?? (colour.canvas = document.createElement("canvas").getContext("2d"));
  canvas.fillStyle = getComputedStyle(probe).color;
  return canvas.fillStyle;
}

/** `#rrggbb` with an opacity. */
export const faded = (hex, opacity) => hex + Math.round(opacity * 255).toString(16).padStart(2, "0");
