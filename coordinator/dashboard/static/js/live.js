// The stream of events, and whether the page can be trusted: live, stale (nothing arrives), cut off (from the bus or from the
// dashboard). It comes back by itself: EventSource repeats with its last event id, and after a refusal a new one asks for what
// came after it. Where the server no longer has that, it sends `resync`, and the page reads the state anew.

const SILENT_MS = 5000;
const FIRST_PAUSE_MS = 400;
const LONGEST_PAUSE_MS = 8000;
const KINDS = ["market", "decision", "agents", "lifecycle", "alert", "rates", "connection", "resync"];

export class Live extends EventTarget {
  constructor(path = "/events") {
    super();
    this.path = path;
    this.pause = FIRST_PAUSE_MS;
    this.bus = { connected: true, since: null };
    this.last = performance.now();
    this.lastAt = new Date();
    this.open = false;
    this.lastId = "";
    this.cutSince = null;
    this.state = "wait";
  }

  start() {
    this.connect();
    setInterval(() => this.judge(), 500);
    addEventListener("online", () => { if (!this.open) this.again(0); });
    document.addEventListener("visibilitychange", () => { if (!document.hidden && !this.open) this.again(0); });
  }

  connect() {
    clearTimeout(this.timer);
    this.source?.close();
    const source = new EventSource(this.lastId ? `${this.path}?after=${encodeURIComponent(this.lastId)}` : this.path);
    this.source = source;
    source.addEventListener("open", () => {
      this.open = true;
      this.pause = FIRST_PAUSE_MS;
      this.heard();
      this.judge();
    });
    source.addEventListener("error", () => {
      this.cutSince ??= this.lastAt;
      this.open = false;
      if (source.readyState === EventSource.CLOSED) {
        this.again(this.pause * (0.7 + Math.random() * 0.6));
        this.pause = Math.min(this.pause * 2, LONGEST_PAUSE_MS);
      }
      this.judge();
    });
    source.addEventListener("message", () => this.heard());
    for (const kind of KINDS) source.addEventListener(kind, (event) => this.take(kind, event));
  }

  again(pause) {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.connect(), pause);
  }

  heard() {
    this.last = performance.now();
    this.lastAt = new Date();
  }

  take(kind, event) {
    this.heard();
    if (event.lastEventId) this.lastId = event.lastEventId;
    let detail = {};
    try { detail = event.data ? JSON.parse(event.data) : {}; } catch { return; }
    if (kind === "connection") {
      const back = detail.connected && !this.bus.connected;
      this.bus = detail;
      if (back) this.dispatchEvent(new CustomEvent("resync", { detail: {} }));
    }
    this.dispatchEvent(new CustomEvent(kind, { detail }));
    this.judge();
  }

  judge() {
    const silent = performance.now() - this.last;
    let state = "live";
    if (!this.open) state = this.cutSince ? "cut" : "wait";
    else if (this.bus.connected === false) state = "cut";
    else if (silent > SILENT_MS) state = "stale";
    if (state === "live") this.cutSince = null;
    else if (state === "stale") this.cutSince ??= this.lastAt;
    const where = this.open ? "bus" : "dashboard";
    if (state !== this.state || where !== this.where) {
      this.state = state;
      this.where = where;
      const since = !this.open || state === "stale" ? this.cutSince : (this.bus.since ?? this.cutSince);
      this.dispatchEvent(new CustomEvent("state", { detail: { state, where, since } }));
    }
  }
}
