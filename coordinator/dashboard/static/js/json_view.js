// A JSON value as indented text with its parts marked; text nodes only.

import { el } from "./dom.js";

const DEEPEST = 40;
const MOST_PARTS = 6000;

function parts(value, indent, out) {
  if (out.length > MOST_PARTS) return;
  const pad = "  ".repeat(indent);
  if (value === null || typeof value === "boolean") out.push(el("span", { class: "j-lit" }, String(value)));
  else if (typeof value === "number") out.push(el("span", { class: "j-num" }, String(value)));
  else if (typeof value === "string") out.push(el("span", { class: "j-str" }, JSON.stringify(value)));
  else {
    const list = Array.isArray(value);
    const entries = list ? value.map((item) => [null, item]) : Object.entries(value);
    const [open, close] = list ? ["[", "]"] : ["{", "}"];
    const short = list && entries.length <= 12 && entries.every(([, item]) => item === null || typeof item !== "object");
    if (!entries.length || indent > DEEPEST) return void out.push(open + (entries.length ? "…" : "") + close);
    out.push(open);
    entries.forEach(([key, item], index) => {
      out.push(short ? (index ? " " : "") : `\n${pad}  `);
      if (key !== null) out.push(el("span", { class: "j-key" }, JSON.stringify(key)), ": ");
      parts(item, indent + 1, out);
      if (index < entries.length - 1) out.push(",");
    });
    out.push(short ? close : `\n${pad}${close}`);
  }
}

export function showJson(node, value) {
  const out = [];
  parts(value, 0, out);
  if (out.length > MOST_PARTS) out.push(`\n… longer than ${MOST_PARTS} parts: read it by the API or by nats`);
  node.replaceChildren(...out);
}
