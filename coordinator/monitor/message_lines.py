"""Messages of the bus as lines: what `watch`, a piped `up` and `--json` print."""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from bus.errors import MessageError
from bus.interface import ReceivedMessage
from bus.messages import Alert, Decision, Lifecycle, Message
from bus.messages import headers as h
from bus.nats.bus import NatsBus
from bus.utils.json_text import parse_json
from bus.utils.terminal import escape_control

if TYPE_CHECKING:
    from coordinator.runner.up import Up


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchLine:
    """One line of `watch --json` and `up --json`. `sequence` is None for what is not stored, such as heartbeats.

    Either `payload` or `malformed` (the text of what is not JSON) is set.
    """

    subject: str
    sequence: int | None
    payload: Any = None
    malformed: str | None = None


def reporter_of(event: Lifecycle) -> str | None:
    """Who reports the start or the end of a process, if it is not the host that the report itself names."""
    return event.source if event.event in ("spawned", "exited") and event.source != event.sandbox else None


def line_of(message: Message, subject: str, sequence: str) -> str:
    """One plain line for a message, as `watch` and a piped `up` print it."""
    if isinstance(message, Decision):
        absent = f" absent={','.join(message.absent)}" if message.absent else ""
        return (
            f"{message.timestamp:%Y-%m-%d %H:%M} decision {message.symbol} round={message.round} "
            f"{message.final_decision} size={message.position_size:.4f} risk={message.risk_score:.4f} "
            f"consensus={message.consensus_level:.4f} voters={len(message.agents_consulted)}{absent} "
            f"by={message.source}"
        )
    if isinstance(message, Lifecycle):
        parts = [f"{message.timestamp:%H:%M:%S.%f}"[:-3], "lifecycle", message.agent, message.event]
        known = {name: getattr(message, name) for name in ("epoch", "sandbox", "pid", "reason")}
        details = {**known, **message.detail, "by": reporter_of(message)}
        return " ".join([*parts, *(f"{key}={value}" for key, value in details.items() if value is not None)])
    if isinstance(message, Alert):
        what = f"{message.severity} {message.code} by {message.source}"
        return f"{message.timestamp:%H:%M:%S} ALERT {what}: {message.message}"
    return f"{subject} {sequence}".rstrip()


def parse(bus: NatsBus, received: ReceivedMessage) -> Message | None:
    try:
        return received.decode(bus.subjects)
    except MessageError:
        return None


class Lines:
    """Prints lines until nothing takes them (`| head`, a full disk): then `unread` is set, and nothing is printed."""

    def __init__(self) -> None:
        self.unread = asyncio.Event()
        self.problem: OSError | None = None
        """Why nothing takes them, unless the reader of a pipe has ended."""

    def put(self, line: str) -> None:
        if self.unread.is_set():
            return
        try:
            print(escape_control(line), flush=True)
        except OSError as error:
            if not isinstance(error, BrokenPipeError):
                self.problem = error
            self.unread.set()
            # The buffered rest must go somewhere, or the interpreter prints an error when it ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


async def watch_bus(bus: NatsBus, kind: str | None, as_json: bool) -> None:
    """Print stored messages (of the kind `heartbeat`: published ones) until an interrupt, or the end of the reader."""
    lines = Lines()

    async def on_message(received: ReceivedMessage) -> None:
        sequence = received.headers.get(h.SEQUENCE)
        if kind is None and sequence is None:
            return  # heartbeats and requests: on demand only
        if as_json:
            record: dict[str, Any] = {"subject": received.subject, "sequence": int(sequence) if sequence else None}
            try:
                record["payload"] = parse_json(received.data)
            except ValueError:
                record["malformed"] = received.data.decode(errors="replace")
            lines.put(orjson.dumps(record).decode())
            return
        message = parse(bus, received)
        text = received.data.decode(errors="replace")
        if isinstance(message, (Decision, Lifecycle, Alert)):
            lines.put(line_of(message, received.subject, sequence or ""))
        else:
            lines.put(f"{received.subject} {text}")

    subjects = bus.subjects
    await bus.listen(f"{subjects.ns}.>" if kind is None else subjects.all_of(kind), on_message)
    await lines.unread.wait()
    if lines.problem is not None:
        raise lines.problem


def how_to_follow(up: Up) -> str:
    from coordinator.security.tls_files import cli_options

    return f"follow it with: nats sub -s {up.bus.url}{cli_options(up.bus.url)} '{up.config.swarm}.decision.>'"
