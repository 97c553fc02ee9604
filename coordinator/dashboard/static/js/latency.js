// Tick to decision: one dot for each of the newest decisions, at the time when it was stored, and the two percentiles.

import { colour, faded } from "./dom.js";
import { clock, epochMs, known, ms } from "./format.js";

const SPAN_MS = 60_000;

export class LatencyChart {
  constructor(box, { onPoint }) {
    this.box = box;
    this.onPoint = onPoint;
    this.rows = [];
    this.rates = null;
    this.make();
    new ResizeObserver(() => this.plot?.setSize(this.size())).observe(box);
  }

  size() {
    return { width: Math.max(120, this.box.clientWidth - 16), height: Math.max(80, this.box.clientHeight - 10) };
  }

  make() {
    this.plot?.destroy();
    const [soft, grid, accent, text] = ["soft", "grid", "accent", "text"].map(colour);
    const font = `11px ${getComputedStyle(document.body).fontFamily}`;
    const level = (shade, dash) => ({ stroke: shade, width: 1, dash, points: { show: false } });
    this.plot = new uPlot({
      ...this.size(), ms: 1, legend: { show: false }, padding: [8, 8, 0, 0],
      cursor: { y: false, drag: { x: false, y: false }, points: { size: 7, fill: accent } },
      scales: { x: { time: true }, y: { distr: 3, range: (_, low, high) => [Math.max(0.1, (low ?? 1) * 0.8), Math.max((high ?? 10) * 1.25, (low ?? 1) * 4)] } },
      axes: [
        { stroke: soft, font, grid: { stroke: grid, width: 1 }, ticks: { show: false }, size: 24, space: 70,
          values: (_, ticks) => ticks.map((tick) => clock(tick, false)) },
        { stroke: soft, font, grid: { stroke: grid, width: 1 }, ticks: { show: false }, size: 56, gap: 4, space: 26,
          values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : `${tick < 1 ? tick.toFixed(1) : Math.round(tick)} ms`)) },
      ],
      series: [
        {},
        { stroke: accent, paths: () => null, points: { show: true, size: 4, fill: faded(accent, 0.75), width: 0 } },
        level(text, [1, 0]),
        level(text, [5, 4]),
      ],
      hooks: { setCursor: [(plot) => this.onPoint(plot.cursor.idx === null || plot.cursor.idx === undefined ? null : this.rows[plot.cursor.idx])] },
    }, [[], [], [], []], this.box);
    this.draw();
  }

  add(rows, rates) {
    for (const row of rows) if (known(row.latency_ms) && row.latency_ms > 0 && row.stored_at) this.rows.push(row);
    this.rates = rates ?? this.rates;
    this.rows.sort((a, b) => a.sequence - b.sequence);
    this.rows = this.rows.filter((row, index) => index === 0 || row.sequence !== this.rows[index - 1].sequence).slice(-1500);
    const newest = epochMs(this.rows.at(-1)?.stored_at);
    while (this.rows.length > 40 && epochMs(this.rows[0].stored_at) < newest - SPAN_MS) this.rows.shift();
    this.frame ??= requestAnimationFrame(() => { this.frame = null; this.draw(); });
  }

  clear() {
    this.rows = [];
  }

  draw() {
    const x = this.rows.map((row) => epochMs(row.stored_at));
    const level = (value) => x.map(() => (known(value) ? value : null));
    this.plot.setData([x, this.rows.map((row) => row.latency_ms), level(this.rates?.p50_ms), level(this.rates?.p99_ms)]);
  }
}

export const nameOf = (row) => `${clock(row.stored_at)} · ${ms(row.latency_ms)}`;
