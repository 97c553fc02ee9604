"""The time axis of the swarm: a lane for each agent and role, with its states and its deaths.

Pure: derived from the lifecycle events and claims of the stream.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from bus.messages.reporters import ClaimedHosts

STATE_AFTER = {
    "claimed": "starting",
    "spawned": "starting",
    "restored": "restoring",
    "ready": "live",
    "declared_dead": "dead",
    "quarantined": "quarantined",
    "drained": "drained",
    "exited": "dead",
}
"""The state of an agent after an event; the others change none."""
LONGEST_DETECTION_MS = 30_000
"""A silence that began longer before a declared death was another one."""


@dataclass(slots=True)
class _Lane:
    name: str
    kind: str
    spans: list[dict[str, Any]] = field(default_factory=list)
    deaths: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    exits: dict[int, tuple[int, str]] = field(default_factory=dict)
    """Epoch -> when its process ended, milliseconds since 1970, and the report of it."""
    silences: dict[int, tuple[int, str]] = field(default_factory=dict)
    """Epoch -> the last heartbeat before its newest silence, and the report of it."""

    def take(self, row: dict[str, Any]) -> None:
        event, at = row["event"], row["t"]
        self.events.append(
            {
                "t": at,
                "event": event,
                **{key: row[key] for key in ("sequence", "stored_at", "reason", "epoch", "sandbox")},
            }
        )
        self._note_sign(row)
        if event == "declared_dead":
            self.deaths.append(self._death(row))
        elif self.deaths:
            self._follow(self.deaths[-1], row)
        state = STATE_AFTER.get(event)
        if state is not None:
            self._enter(state, at, row["epoch"])

    def _note_sign(self, row: dict[str, Any]) -> None:
        epoch, silent_ms = row["epoch"], row["detail"].get("silent_ms")
        if epoch is None:
            return
        if row["event"] == "exited":
            self.exits.setdefault(
                epoch, (row["t"], f"the exit that {row['source']} reported, message {row['sequence']}")
            )
        elif row["event"] == "suspected" and isinstance(silent_ms, (int, float)):
            # The newest one: an agent that was suspected before and went on was alive in between.
            heartbeat_at = row["t"] - round(silent_ms)
            self.silences[epoch] = heartbeat_at, f"the last heartbeat, by the report of message {row['sequence']}"

    def _sign_of(self, row: dict[str, Any]) -> tuple[int, str]:
        """The first sign of the death that `row` declares, milliseconds since 1970, and what that was."""
        epoch, at = row["epoch"], row["t"]
        sign = self.exits.get(epoch) or self.silences.get(epoch)
        if sign is None or not at - LONGEST_DETECTION_MS <= sign[0] <= at:
            return at, "the declaration: no earlier sign is in the stream"
        return sign

    def _death(self, row: dict[str, Any]) -> dict[str, Any]:
        at = row["t"]
        begin, source = self._sign_of(row)
        return {
            "id": row["sequence"], "sequence": row["sequence"], "stored_at": row["stored_at"], "from": begin,
            "from_source": source, "declared": at, "claimed": None, "ready": None, "sandbox": row["sandbox"],
            "reason": row["reason"], "trace_id": row["trace_id"],
            "account": {
                "agent": self.name, "sandbox": row["sandbox"], "pid": row["pid"], "signal": row["reason"],
                "detected_ms": at - begin, "claimed_ms": None, "spawned_ms": None, "restored_ms": None,
                "ready_ms": None, "first_output_ms": None, "epoch_before": row["epoch"], "epoch_after": None,
                "events_replayed": None, "outputs_lost": None, "outputs_duplicated": None,
                "outputs_checked": None, "outputs_from": None,
                "from": f"lifecycle events; milliseconds since {source}",
            },
        }  # fmt: skip

    @staticmethod
    def _follow(death: dict[str, Any], row: dict[str, Any]) -> None:
        """Complete the newest death by the first later events of a newer epoch."""
        account, event = death["account"], row["event"]
        if (row["epoch"] or 0) <= (account["epoch_before"] or 0) or death["ready"] is not None:
            return
        key = {"claimed": "claimed_ms", "spawned": "spawned_ms", "restored": "restored_ms", "ready": "ready_ms"}
        if event in key:
            account[key[event]] = row["t"] - death["from"]
            account["epoch_after"] = row["epoch"]
        if event in ("claimed", "ready"):
            death[event] = row["t"]
        if event == "ready":
            account["events_replayed"] = row["detail"].get("replayed")

    def _enter(self, state: str, at: int, epoch: int | None) -> None:
        last = self.spans[-1] if self.spans else None
        if last is not None and last["to"] is None:
            if last["state"] == state and last["epoch"] == epoch:
                return
            if state == "dead" and last["state"] in ("quarantined", "drained"):
                return  # the exit of a process that was to end
            last["to"] = at
        self.spans.append({"from": at, "to": None, "state": state, "epoch": epoch})


def lanes(
    rows: Iterable[dict[str, Any]], agents: Iterable[str], sandboxes: Iterable[str], roles: Iterable[str]
) -> list[dict[str, Any]]:
    """A lane for each of `agents`, `sandboxes` and `roles`, and for all others that `rows` name."""
    found: dict[str, _Lane] = {}
    for kind, names in (("agent", agents), ("sandbox", sandboxes), ("role", roles)):
        for name in names:
            found.setdefault(name, _Lane(name, kind))
    known_sandboxes = set(sandboxes)
    ordered, hosts = list(rows), ClaimedHosts()
    for row in ordered:
        if row["event"] == "claimed":
            hosts.claimed(row["agent"], row["epoch"], row["sandbox"] or "")
    for row in ordered:
        name = row["agent"]
        if not hosts.may_report(row["event"], name, row["epoch"], row["source"]):
            continue  # of a host that does not run it
        if name not in found:
            sandbox = name in known_sandboxes or row["sandbox"] == name
            found[name] = _Lane(name, "sandbox" if sandbox else "agent" if row["epoch"] is not None else "role")
        found[name].take(row)
    return [
        {"name": lane.name, "kind": lane.kind, "spans": lane.spans, "deaths": lane.deaths, "events": lane.events}
        for lane in found.values()
    ]


def next_claim(lane: dict[str, Any], after: int) -> int | None:
    """The agent's first claim after the sequence `after`."""
    claims = (event["sequence"] for event in lane["events"] if event["event"] == "claimed")
    return min((claim for claim in claims if claim > after), default=None)


def within(lane: dict[str, Any], since: int, until: int) -> dict[str, Any]:
    """`lane` with what overlaps `since` to `until`, milliseconds since 1970."""
    return {
        **lane,
        "spans": [s for s in lane["spans"] if s["from"] <= until and (s["to"] is None or s["to"] >= since)],
        "deaths": [d for d in lane["deaths"] if d["from"] <= until and (d["ready"] is None or d["ready"] >= since)],
        "events": [event for event in lane["events"] if since <= event["t"] <= until],
    }
