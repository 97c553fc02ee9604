// Candles with the decisions drawn in; consensus and risk below, on the same time axis (panes of one chart).

import {
  CandlestickSeries, ColorType, createChart, createSeriesMarkers, CrosshairMode, LineSeries, LineStyle,
} from "../vendor/lightweight-charts.mjs";
import { byId, colour, faded } from "./dom.js";

const MOST = 600;
const SHOWN_BARS = 90;
const LARGEST_SIZE = 0.5;
const PANES = [6, 1.5, 1.5];

export class PriceChart {
  /** `onPoint(candle, decision)` is called for what the cross-hair is at, or for the newest; `onOpen(decision)` on Enter or a click. */
  constructor(box, { onPoint, onOpen }) {
    this.box = box;
    this.onPoint = onPoint;
    this.onOpen = onOpen;
    this.candles = new Map();
    this.decisions = new Map();
    this.times = [];
    this.at = null;
    this.following = true;
    this.chart = createChart(box, { autoSize: true, layout: { attributionLogo: false } });
    this.bars = this.chart.addSeries(CandlestickSeries, { priceLineVisible: true, lastValueVisible: true }, 0);
    this.consensus = this.line(1);
    this.risk = this.line(2);
    this.markers = createSeriesMarkers(this.bars, [], { autoScale: true });
    this.half = this.consensus.createPriceLine({ price: 0.5, lineStyle: LineStyle.Dotted, lineWidth: 1, axisLabelVisible: false, title: "" });
    this.chart.panes().forEach((pane, index) => pane.setStretchFactor(PANES[index]));
    this.paint();
    this.chart.subscribeCrosshairMove((point) => this.point(point));
    this.chart.subscribeClick((point) => {
      const decision = this.nearest(point.time);
      if (decision && point.point) this.onOpen(decision);
    });
    this.chart.timeScale().subscribeVisibleLogicalRangeChange((range) => {
      if (range) this.onFollow?.((this.following = range.to >= this.times.length - 1));
    });
    box.addEventListener("keydown", (event) => this.key(event));
    box.addEventListener("blur", () => this.leave());
    new ResizeObserver(() => requestAnimationFrame(() => this.label())).observe(box);
    // The canvases are drawn for the eye; the box has the name, and the readout the figures.
    for (const table of box.querySelectorAll("table")) table.setAttribute("role", "presentation");
  }

  line(pane) {
    return this.chart.addSeries(LineSeries, {
      lineWidth: 1.5, priceLineVisible: false, lastValueVisible: true, crosshairMarkerRadius: 3,
      priceFormat: { type: "price", precision: 2, minMove: 0.01 },
      autoscaleInfoProvider: (original) => {
        const info = original();
        if (!info) return info;
        const { minValue, maxValue } = info.priceRange;
        const room = Math.max(0.02, (maxValue - minValue) * 0.12);
        return { priceRange: { minValue: Math.max(0, minValue - room), maxValue: Math.min(1, maxValue + room) } };
      },
    }, pane);
  }

  paint() {
    const [text, grid, line, buy, sell, accent, hold, panel, soft] =
      ["soft", "grid", "line", "buy", "sell", "accent", "hold", "panel", "text"].map(colour);
    this.colours = { buy, sell };
    this.chart.applyOptions({
      layout: {
        background: { type: ColorType.Solid, color: panel }, textColor: text, fontSize: 11, attributionLogo: false,
        fontFamily: getComputedStyle(document.body).fontFamily,
        panes: { separatorColor: line, separatorHoverColor: faded(accent, 0.2), enableResize: true },
      },
      grid: { vertLines: { color: grid }, horzLines: { color: grid } },
      rightPriceScale: { borderVisible: false, minimumWidth: 64 },
      timeScale: { borderColor: line, timeVisible: true, secondsVisible: this.fine ?? false, rightOffset: 3, minBarSpacing: 1.2 },
      crosshair: {
        mode: CrosshairMode.Normal,
        vertLine: { color: faded(accent, 0.7), labelBackgroundColor: accent, style: LineStyle.Solid },
        horzLine: { color: faded(text, 0.5), labelBackgroundColor: accent },
      },
      localization: { locale: "en-GB" },
    });
    // Rising candles are hollow and falling ones filled; buy and sell alone have a colour.
    this.bars.applyOptions({
      upColor: panel, downColor: hold, borderUpColor: hold, borderDownColor: hold, wickUpColor: hold, wickDownColor: hold,
      priceLineColor: faded(text, 0.6), borderVisible: true,
    });
    this.consensus.applyOptions({ color: accent });
    this.risk.applyOptions({ color: soft });
    this.half.applyOptions({ color: faded(text, 0.6) });
    this.mark();
  }

  set(candles, decisions) {
    this.candles = new Map(candles.map((candle) => [candle.t, candle]));
    this.decisions = new Map(decisions.map((decision) => [decision.t, decision]));
    this.times = [...this.candles.keys()].sort((a, b) => a - b);
    this.draw();
    this.newest();
  }

  draw() {
    const second = this.times.length > 1 && (this.times.at(-1) - this.times[0]) / (this.times.length - 1) < 60_000;
    if (second !== this.fine) this.chart.applyOptions({ timeScale: { secondsVisible: (this.fine = second) } });
    this.bars.setData(this.times.map((t) => bar(this.candles.get(t))));
    const known = this.times.filter((t) => this.decisions.has(t)).map((t) => this.decisions.get(t));
    this.consensus.setData(known.map((d) => ({ time: d.t / 1000, value: d.consensus })));
    this.risk.setData(known.map((d) => ({ time: d.t / 1000, value: d.risk })));
    this.mark();
    this.label();
    this.show();
  }

  /** Candles and decisions that have arrived; drawn with the next frame. */
  add(candle, decision) {
    if (candle) {
      const last = this.times.at(-1);
      if (candle.reset || (last !== undefined && candle.t < last)) {
        if (candle.reset) {
          this.candles.clear();
          this.decisions.clear();
          this.times = [];
        } else this.times.splice(this.times.findIndex((t) => t >= candle.t), this.candles.has(candle.t) ? 1 : 0, candle.t);
        this.whole = true;
      }
      if (this.times.at(-1) !== candle.t && !this.candles.has(candle.t)) this.times.push(candle.t);
      this.candles.set(candle.t, candle);
      while (this.times.length > MOST) {
        const gone = this.times.shift();
        this.candles.delete(gone);
        this.decisions.delete(gone);
        this.whole ||= this.times.length % 100 === 0;
      }
    }
    if (decision) this.decisions.set(decision.t, decision);
    (this.waiting ??= new Set()).add(candle?.t ?? decision?.t);
    this.frame ??= requestAnimationFrame(() => this.flush());
  }

  flush() {
    this.frame = null;
    const waiting = [...this.waiting].sort((a, b) => a - b);
    this.waiting = null;
    if (this.whole) {
      this.whole = false;
      this.draw();
      return;
    }
    try {
      for (const t of waiting) {
        const candle = this.candles.get(t);
        if (!candle) continue;
        this.bars.update(bar(candle));
        const decision = this.decisions.get(t);
        if (!decision) continue;
        this.consensus.update({ time: t / 1000, value: decision.consensus });
        this.risk.update({ time: t / 1000, value: decision.risk });
      }
      this.mark();
    } catch {
      this.draw(); // one of them was older than the last: the library takes those only as a whole
    }
    if (this.keyed) this.aim();
    if (this.at === null) this.show();
  }

  mark() {
    const marks = [];
    for (const t of this.times) {
      const decision = this.decisions.get(t);
      if (!decision || decision.side === "hold") continue;
      const buy = decision.side === "buy";
      marks.push({
        time: t / 1000, position: buy ? "belowBar" : "aboveBar", shape: buy ? "arrowUp" : "arrowDown",
        color: buy ? this.colours.buy : this.colours.sell,
        size: 0.5 + 1.3 * Math.sqrt(Math.min(decision.size, LARGEST_SIZE) / LARGEST_SIZE),
      });
    }
    this.markers.setMarkers(marks);
  }

  label() {
    let top = this.box.offsetTop;
    this.chart.panes().forEach((pane, index) => {
      const label = byId(`pane-${index}`);
      if (label) {
        label.hidden = this.times.length === 0;
        label.style.top = `${top + 5}px`;
      }
      top += pane.getHeight() + 1;
    });
  }

  newest() {
    this.following = true;
    this.chart.timeScale().setVisibleLogicalRange({ from: this.times.length - this.room(), to: this.times.length + 2 });
  }

  all() {
    this.chart.timeScale().fitContent();
  }

  room() {
    return Math.min(SHOWN_BARS, Math.max(24, Math.floor(this.box.clientWidth / 8)));
  }

  nearest(time) {
    return time === undefined ? null : (this.decisions.get(Math.round(time * 1000)) ?? null);
  }

  point(point) {
    if (!point.sourceEvent && this.keyed) return; // the chart has moved on below the keyboard's position
    this.keyed = false;
    this.at = point.time === undefined ? null : Math.round(point.time * 1000);
    this.show();
  }

  /** Put the cross-hair to the keyboard's position. */
  aim() {
    const candle = this.candles.get(this.at);
    if (candle) this.chart.setCrosshairPosition(candle.c, this.at / 1000, this.bars);
  }

  show() {
    const t = this.at ?? this.times.findLast((time) => this.decisions.has(time)) ?? this.times.at(-1);
    if (t === undefined) return this.onPoint(null, null);
    this.onPoint(this.candles.get(t) ?? null, this.decisions.get(t) ?? null, this.at !== null);
  }

  leave() {
    this.keyed = false;
    this.at = null;
    this.chart.clearCrosshairPosition();
    this.show();
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || this.times.length === 0) return;
    const step = { ArrowLeft: -1, ArrowRight: 1, PageUp: -20, PageDown: 20, Home: -MOST, End: MOST }[event.key];
    const scale = this.chart.timeScale();
    const range = scale.getVisibleLogicalRange();
    if (step !== undefined) {
      const from = this.at === null ? this.times.length : this.times.indexOf(this.at);
      const index = Math.max(0, Math.min(this.times.length - 1, from + step));
      this.keyed = true;
      this.at = this.times[index];
      this.aim();
      if (range && (index < range.from + 1 || index > range.to - 1)) {
        const width = range.to - range.from;
        scale.setVisibleLogicalRange({ from: index - width / 2, to: index + width / 2 });
      }
      this.show();
    } else if (event.key === "Enter") {
      const decision = this.decisions.get(this.at);
      if (decision) this.onOpen(decision);
    } else if ((event.key === "+" || event.key === "=" || event.key === "-") && range) {
      const change = (range.to - range.from) * (event.key === "-" ? 0.25 : -0.2);
      scale.setVisibleLogicalRange({ from: range.from - change, to: range.to + change * 0.1 });
    } else if (event.key === "0") this.all();
    else if (event.key === "Escape") this.leave();
    else return;
    event.preventDefault();
  }
}

const bar = (candle) => ({ time: candle.t / 1000, open: candle.o, high: candle.h, low: candle.l, close: candle.c });
