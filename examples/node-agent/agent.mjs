// A moving-average crossover in Node.js, without packages. Each input line holds an event and the state of this agent.
// The answer, one line, depends on these two only: no clock, no randomness, no variables that outlive a line.
// The swarm stores `state` and passes it again after a crash.
import { createInterface } from "node:readline";

const FAST = 12; // closes
const SLOW = 48; // closes
const STEEPNESS = 60; // certainty for one per cent between the averages

const mean = (numbers) => numbers.reduce((sum, number) => sum + number, 0) / numbers.length;

function onMarket(tick, state) {
  const closes = [...(state[tick.symbol] ?? []), tick.price].slice(-SLOW);
  const next = { ...state, [tick.symbol]: closes };
  const spread = closes.length < SLOW ? 0 : mean(closes.slice(-FAST)) / mean(closes) - 1;
  const p_up = 1 / (1 + Math.exp(-STEEPNESS * spread));
  const side = p_up >= 0.55 ? "buy" : p_up <= 0.45 ? "sell" : "hold";
  const strength = side === "sell" ? 1 - p_up : p_up;
  // Omitted fields (symbol, round, time, source) are taken from the tick.
  return { outputs: [{ kind: "signal", signal: side, strength, p_up, indicators: { spread } }], state: next };
}

for await (const line of createInterface({ input: process.stdin })) {
  const { event, message, state } = JSON.parse(line);
  const answer = event === "market" ? onMarket(message, state) : {};
  process.stdout.write(JSON.stringify(answer) + "\n");
}
