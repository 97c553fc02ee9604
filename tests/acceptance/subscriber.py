"""What a third-party program receives: a plain nats-py client on the read side, and the stored stream."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import secrets
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self, TypeVar, cast

from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from bus.nats.credentials import answers_of, credentials_from
from bus.utils.aio import is_cancelled
from tests.support.plain_client import PlainClient, connect_plainly

GUARD_S = 60.0
RECONNECT_WAIT_S = 0.05
"""A client that misses little while the server is restarted."""
T = TypeVar("T")
ASK_S = 20.0
API_S = 5.0
"""A busy server takes its time; a cluster without a leader does not answer at all."""


@dataclass(frozen=True)
class SwarmMessage:
    """One message of the swarm."""

    subject: str
    data: bytes
    headers: dict[str, str]
    sequence: int

    @property
    def kind(self) -> str:
        return self.subject.split(".")[1]

    @property
    def writer(self) -> str:
        return self.subject.rpartition(".")[2]

    @property
    def json(self) -> dict[str, Any]:
        payload: dict[str, Any] = json.loads(self.data)
        return payload


class Subscriber:
    """Keeps what it receives: `heartbeats` has the newest of each process, `claims` the newest epoch of each agent."""

    def __init__(self, name: str) -> None:
        self.client = PlainClient()
        self.name = name
        self.messages: list[SwarmMessage] = []
        self.decisions: list[dict[str, Any]] = []
        self.lifecycle: list[dict[str, Any]] = []
        self.alerts: list[dict[str, Any]] = []
        self.configs: list[dict[str, Any]] = []
        self.heartbeats: dict[str, dict[str, Any]] = {}
        self.has_heartbeat: Counter[str] = Counter()
        self.claims: dict[str, int] = {}
        self._more = asyncio.Event()

    @classmethod
    async def open(cls, url: str, subject: str, name: str) -> Self:
        subscriber = cls(name)

        async def ignore(_: Exception) -> None:
            pass

        await subscriber.client.connect(
            url.split(","),
            reconnect_time_wait=cast(int, RECONNECT_WAIT_S),
            max_reconnect_attempts=-1,
            error_cb=ignore,
            **credentials_from().options(url),
        )
        await subscriber.client.subscribe(subject, cb=subscriber._on_msg, pending_msgs_limit=1_000_000)
        await subscriber.client.flush()
        return subscriber

    async def close(self) -> None:
        if not self.client.is_closed:
            try:
                await self.client.close()
            except asyncio.CancelledError:
                # It waits for the socket's end by a future that it shares with tasks which it has itself cancelled.
                if is_cancelled():
                    raise

    async def _on_msg(self, msg: Msg) -> None:
        kind = msg.subject.split(".")[1]
        if kind == "heartbeat":
            try:
                heartbeat = json.loads(msg.data)
            except ValueError:
                return  # a test's poison
            known = self.heartbeats.get(heartbeat["agent"])
            self.has_heartbeat[heartbeat["agent"]] += 1
            if known is None or heartbeat["role"] != "agent" or heartbeat["epoch"] >= known["epoch"]:
                self.heartbeats[heartbeat["agent"]] = heartbeat
            if heartbeat["role"] == "agent":  # its claim may have been published before this has connected
                self.claims.setdefault(heartbeat["agent"], heartbeat["epoch"])
        elif kind != "control":
            headers = msg.headers or {}
            message = SwarmMessage(msg.subject, msg.data, headers, int(headers.get("Nats-Sequence", 0)))
            self.messages.append(message)
            if kind == "epoch":
                self.claims[message.writer] = message.sequence
            elif message.sequence:
                self._keep(kind, message)
        self._more.set()

    def _keep(self, kind: str, message: SwarmMessage) -> None:
        retained = {
            "decision": self.decisions, "lifecycle": self.lifecycle, "alert": self.alerts, "config": self.configs,
        }.get(kind)  # fmt: skip
        with contextlib.suppress(ValueError):  # a test's poison
            if retained is not None and isinstance(payload := json.loads(message.data), dict):
                retained.append(payload)

    async def until(self, what: str, found: Callable[[], T | None]) -> T:
        """Wait until `found` returns something true, called after each message; `what` names it in the error."""
        try:
            async with asyncio.timeout(GUARD_S):
                while not (result := found()):
                    self._more.clear()
                    await self._more.wait()
                return result
        except TimeoutError:
            last = [(message.subject, message.data[:300]) for message in self.messages[-12:]]
            raise AssertionError(f"waited in vain: {what}; last heard: {last}; beats: {self.heartbeats}") from None

    # -- what tests wait for

    async def decided(self, number: int) -> None:
        """Wait for the decision on round `number` or a later one."""
        await self.until(f"decision {number}", lambda: self.decisions and self.decisions[-1]["round"] >= number)

    async def all_decided(self, rounds: int) -> None:
        """As `decided`, even if the last decision was stored before this subscriber was there."""
        request = {"last_by_subj": f"{self.name}.decision.BTC-USD.coordinator"}
        stored = (await self.api(f"STREAM.MSG.GET.{self.name}_events", request))["message"]["data"]
        if json.loads(base64.b64decode(stored))["round"] < rounds:
            await self.decided(rounds)

    async def more_decisions(self, count: int, last: int = 0) -> list[dict[str, Any]]:
        """The next `count` decisions, or those up to round `last`."""
        since = len(self.decisions)
        await self.until(
            f"{count} more decisions",
            lambda: (
                len(self.decisions) >= since + count
                or bool(last and self.decisions and self.decisions[-1]["round"] >= last)
            ),
        )
        return self.decisions[since:]

    async def live(self, *agents: str) -> dict[str, dict[str, Any]]:
        """Wait until each of them reports live (or finished) in its newest epoch; their heartbeats."""

        def alive(agent: str) -> bool:
            heartbeat = self.heartbeats.get(agent, {})
            return heartbeat.get("status") in ("live", "finished") and heartbeat["epoch"] >= self.claims.get(agent, 0)

        await self.until(f"{agents} live", lambda: all(map(alive, agents)))
        return {agent: self.heartbeats[agent] for agent in agents}

    async def back(self, epochs: dict[str, int]) -> dict[str, dict[str, Any]]:
        """Wait until each agent is live in a newer epoch than this."""
        await self.until(
            f"newer epochs than {epochs}",
            lambda: all(self.heartbeats[name]["epoch"] > epoch for name, epoch in epochs.items()),
        )
        return await self.live(*epochs)

    async def more_heartbeats(self, count: int, *names: str) -> None:
        """The next `count` heartbeats of each of them: time, by the clock of these processes."""
        wanted = {name: self.has_heartbeat[name] + count for name in names}
        await self.until(f"beats {wanted}", lambda: all(self.has_heartbeat[name] >= wanted[name] for name in names))

    async def happened(self, event: str, agent: str, epoch: int | None = None) -> dict[str, Any]:
        """The first lifecycle event of this name about `agent` (and its `epoch`), once there is one."""

        def found() -> dict[str, Any] | None:
            for item in self.lifecycle:
                if item["event"] == event and item["agent"] == agent and epoch in (None, item.get("epoch")):
                    return item
            return None

        return await self.until(f"{agent} {event} {epoch or ''}", found)

    async def alerted(self, code: str, count: int = 1) -> list[dict[str, Any]]:
        """All alerts of this code, once there are `count`."""

        def found() -> list[dict[str, Any]] | None:
            alerts = [alert for alert in self.alerts if alert["code"] == code]
            return alerts if len(alerts) >= count else None

        return await self.until(f"{count} alerts {code}", found)

    async def publish(self, subject: str, payload: bytes | dict[str, Any], **headers: str) -> int:
        """Publish on the write side; the stream sequence under which it is stored."""
        data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        ack = await self.client.jetstream().publish(f"in.{self.name}.{subject}", data, headers=named or None)
        return ack.seq

    async def ask(self, process: str, command: str, request: bytes = b"") -> Any:
        """A request to a process; its answer. A process may answer below the inboxes of who asks, in its own name."""
        inbox = answers_of(self.client.new_inbox().rpartition(".")[0], process)
        answers = await self.client.subscribe(f"{inbox}.{secrets.token_hex(8)}", max_msgs=1)
        await self.client.publish(f"{self.name}.control.{process}.{command}", request, reply=answers.subject)
        return json.loads((await answers.next_msg(timeout=ASK_S)).data)

    async def api(self, subject: str, request: dict[str, Any] | None = None) -> dict[str, Any]:
        """A JetStream API request; its answer."""
        data = json.dumps(request).encode() if request else b""
        reply = await self.client.request(f"$JS.API.{subject}", data, timeout=API_S)
        answer: dict[str, Any] = json.loads(reply.data)
        assert "error" not in answer, answer
        return answer


async def read_stream(url: str, name: str) -> list[SwarmMessage]:
    """Everything that the swarm's stream holds, in order."""
    client = await connect_plainly(url, **credentials_from().options(url))
    try:
        stream = client.jetstream()
        config = ConsumerConfig(deliver_policy=DeliverPolicy.ALL, ack_policy=AckPolicy.NONE)
        reading = await stream.pull_subscribe(f"{name}.>", stream=f"{name}_events", config=config)
        left = (await reading.consumer_info()).num_pending or 0
        found: list[SwarmMessage] = []
        while left:
            for msg in await reading.fetch(min(left, 500), timeout=GUARD_S):
                left = msg.metadata.num_pending
                found.append(SwarmMessage(msg.subject, msg.data, msg.headers or {}, msg.metadata.sequence.stream))
        await reading.unsubscribe()
        return found
    finally:
        await client.close()
