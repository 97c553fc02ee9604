// Candles older than those that the overview has: a page of them takes the place of the newest, which go on unseen meanwhile.

import { get } from "./api.js";
import { byId, setText } from "./dom.js";
import { moment } from "./format.js";
import { say } from "./shell.js";

export class Pager {
  /** `symbol()` is the one that is shown; `newest()` shows its newest candles again. */
  constructor(chart, { symbol, newest }) {
    this.chart = chart;
    this.symbol = symbol;
    this.newest = newest;
    this.older = byId("chart-older");
    this.newer = byId("chart-newer");
    this.older.addEventListener("click", () => this.back());
    this.newer.addEventListener("click", () => this.forth());
    this.forget();
  }

  /** Whether older candles are shown. */
  get past() {
    return this.pages.length > 0;
  }

  /** Another symbol is shown, or the newest candles are. */
  forget() {
    this.pages = [];
    this.before = null;
    this.asked = null;
  }

  leave() {
    this.forget();
    this.newest();
  }

  back() {
    const before = this.past ? this.before : this.chart.candles.get(this.chart.times[0])?.sequence;
    if (before) this.open(before, this.pages);
  }

  forth() {
    if (this.pages.length > 1) this.open(this.pages.at(-2), this.pages.slice(0, -2));
    else this.leave();
  }

  /** Show the page that ends before this message; `newer` are those of the pages after it. */
  async open(before, newer) {
    const mine = (this.asked = {});
    let page = { candles: [], before };
    try {
      while (page.candles.length === 0 && page.before) {
        page = await get(`/api/candles?symbol=${encodeURIComponent(this.symbol())}&before=${page.before}`);
        if (mine !== this.asked) return;
      }
    } catch (error) {
      if (mine === this.asked) this.tell(error.message);
      return;
    }
    if (page.candles.length === 0) {
      this.tell("no older ones are stored");
      return;
    }
    this.pages = [...newer, before];
    this.before = page.before;
    this.chart.set(page.candles, page.decisions);
    this.show();
    this.tell(`older: ${moment(page.candles[0].t, false)} to ${moment(page.candles.at(-1).t, false)}`);
  }

  tell(text) {
    setText(byId("chart-note"), text);
    say(text);
  }

  /** After the chart has got other candles. */
  show() {
    this.older.disabled = this.past ? !this.before : this.chart.times.length === 0;
    this.newer.disabled = !this.past;
    if (!this.past) {
      setText(byId("chart-note"), "");
      this.chart.onFollow?.(this.chart.following);
    }
  }
}
