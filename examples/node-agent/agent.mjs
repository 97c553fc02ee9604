// A moving-average crossover in Node.js, without packages. One JSON line in, an event and our state; one line out.
// The answer depends on these two only: no clock, no randomness, no variables that live from line to line.
// `state` is ours: the swarm keeps it, and gives it back after a crash as if nothing had happened.
import { createInterface } from "node:readline";

const FAST = 12; // closes
const SLOW = 48; // closes
const STEEPNESS = 60; // how much certainty one per cent between the averages is worth

const mean = (numbers) => numbers.reduce((sum, number) => sum + number, 0) / numbers.length;

function onMarket(tick, state) {
  const closes = [...(state[tick.symbol] ?? []), tick.price].slice(-SLOW);
  const next = { ...state, [tick.symbol]: closes };
  const spread = closes.length < SLOW ? 0 : mean(closes.slice(-FAST)) / mean(closes) - 1;
  const p_up = 1 / (1 + Math.exp(-STEEPNESS * spread));
  const side = p_up >= 0.55 ? "buy" : p_up <= 0.45 ? "sell" : "hold";
  const strength = side === "sell" ? 1 - p_up : p_up;
  // The symbol, the round, the time and our name follow from the tick where they are left out.
  return { outputs: [{ kind: "signal", signal: side, strength, p_up, indicators: { spread } }], state: next };
}

for await (const line of createInterface({ input: process.stdin })) {
  const { event, message, state } = JSON.parse(line);
  const answer = event === "market" ? onMarket(message, state) : {};
  process.stdout.write(JSON.stringify(answer) + "\n");
}
