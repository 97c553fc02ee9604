"""A recorded run of two rounds with a kill, and what is expected of it."""

from __future__ import annotations

from coordinator.certify.expected import expected_swarm
from coordinator.certify.measurements import RecordedMessage, RunRecording, digest

MS = 1_000_000
EXPECTED, _ = expected_swarm(None, None)


def message(
    kind: str, writer: str, at_ms: int, cause: int | None = None, epoch: int = 1, data: bytes = b"x"
) -> RecordedMessage:
    return RecordedMessage(f"swarm.{kind}.BTC-USD.{writer}", kind, writer, at_ms * MS, cause, epoch, digest(data))


def recording() -> RunRecording:
    """Two rounds: a tick before the kill, a tick after it, each with a vote and a decision."""
    found = RunRecording()
    found.messages = {
        1: message("epoch", "research-1", 0),
        2: message("market", "research-1", 100, data=b"tick 1"),
        3: message("signal", "momentum", 103, cause=2),
        4: message("epoch", "research-1", 150),
        5: message("market", "research-1", 300, epoch=4, data=b"tick 2"),
        6: message("signal", "momentum", 305, cause=5),
        7: message("decision", "coordinator", 306, cause=6),
    }
    found.ticks = {("BTC/USD research-1", 1): 2, ("BTC/USD research-1", 2): 5}
    found.decisions = {7: ("BTC/USD research-1", 2, ("momentum",))}
    found.claims = {"research-1": [1, 4]}
    found.events = {("ready", "research-1", 4): (190 * MS, {"replayed": 0})}
    return found
