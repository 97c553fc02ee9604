// One stored message as it is: subject, headers, payload.

import { againIfAway, get } from "./api.js";
import { byId, el, marked, setText } from "./dom.js";
import { count, moment } from "./format.js";
import { showJson } from "./json_view.js";
import { jaeger, page, showSource, startShell } from "./shell.js";

const sequence = Number(page.sequence);
startShell({ events: false });

function header(name, value) {
  const text = String(value);
  const trace = /^00-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}$/.exec(text);
  if (trace && jaeger) return el("dd", {}, el("a", { href: `${jaeger}/trace/${trace[1]}`, rel: "noreferrer" }, text));
  if (/^Mesh-(Cause|Tick|Epoch)$/i.test(name) && /^[1-9]\d*$/.test(text)) return el("dd", {}, el("a", { href: `/messages/${text}` }, text));
  return el("dd", { class: "mono" }, text);
}

async function load() {
  try {
    const message = await get(`/api/messages/${page.sequence}`);
    showSource(message.source);
    byId("message-lead").replaceChildren(el("span", { class: "mono" }, message.subject), ` · stored ${moment(message.stored_at)} UTC`);
    const headers = Object.entries(message.headers ?? {});
    byId("headers").replaceChildren(...headers.flatMap(([name, value]) => [el("dt", {}, name), header(name, value)]));
    byId("headers").hidden = headers.length === 0;
    byId("no-headers").hidden = headers.length > 0;
    if (message.payload !== undefined && message.payload !== null) showJson(byId("payload"), message.payload);
    else setText(byId("payload"), message.malformed ?? "");
    setText(byId("payload-note"), [`${count(message.bytes)} bytes`, message.malformed ? "not JSON" : "", message.problem ?? ""].filter(Boolean).join(" · "));
  } catch (error) {
    againIfAway(error, load);
    byId("message-lead").replaceChildren(...marked(error.message));
  }
  for (const [id, other] of [["prev", sequence - 1], ["next", sequence + 1]]) {
    byId(id).href = `/messages/${other}`;
    byId(id).hidden = other < 1;
  }
}
load();
