"""Requests of the watchdog to the sandbox hosts, each with the watchdog's term."""

from __future__ import annotations

from typing import Any

import orjson

from agents.host.protocol import KillOrder, SignalRequest, SpawnOrder
from agents.spec import AgentSpec
from bus.errors import BusError
from bus.interface import Bus
from coordinator.supervisor.model import CpuTimes


class HostClient:
    """Sends requests as the watchdog of `term`.

    All methods raise BusError if the host refuses or does not answer in time.
    """

    def __init__(self, bus: Bus, term: int, heartbeat_s: float, starved_s: float, max_outputs_per_s: int) -> None:
        self._bus, self._term, self._heartbeat_s, self._starved_s = bus, term, heartbeat_s, starved_s
        self._max_outputs_per_s = max_outputs_per_s

    async def _request(self, sandbox: str, command: str, body: object) -> dict[str, Any]:
        subject, data = self._bus.subjects.control(sandbox, command), orjson.dumps(body)
        reply: dict[str, Any] = orjson.loads(await self._bus.request(subject, data))
        if "error" in reply:
            raise BusError(reply["error"])
        return reply

    async def spawn(
        self,
        sandbox: str,
        spec: AgentSpec,
        epoch: int,
        agent_id: str,
        *,
        traceparent: str = "",
        seed: str = "",
        jwt: str = "",
    ) -> int:
        """Start an incarnation and return its pid; the host first ends an older one that still runs there.

        `seed` is its key, which only this host receives, `jwt` its user's JWT, where the server wants one.
        """
        order = SpawnOrder(
            term=self._term,
            spec=spec,
            epoch=epoch,
            agent_id=agent_id,
            heartbeat_s=self._heartbeat_s,
            starved_s=self._starved_s,
            max_outputs_per_s=self._max_outputs_per_s,
            traceparent=traceparent,
            seed=seed,
            jwt=jwt,
        )
        pid: int = (await self._request(sandbox, "spawn", order))["pid"]
        return pid

    async def kill(self, sandbox: str, agent: str, epoch: int) -> None:
        """SIGKILL the agent's process if its epoch is at most `epoch`."""
        await self._request(sandbox, "kill", KillOrder(term=self._term, agent=agent, epoch=epoch))

    async def probe(self, sandbox: str, agent: str, epoch: int) -> tuple[str, CpuTimes, str]:
        """The state of the agent's process (a letter, or "gone"), its CPU times, and where it is, if known."""
        answer = await self._request(sandbox, "check", KillOrder(term=self._term, agent=agent, epoch=epoch))
        throttled = answer.get("throttled_s", 0.0), answer.get("throttled_periods", 0)
        cpu = CpuTimes(answer["cpu_s"], answer["waited_s"], *throttled)
        return answer["state"], cpu, answer.get("place") or ""

    async def terminate(self, sandbox: str, agent: str, pid: int) -> None:
        """Request the agent's process to drain."""
        await self._request(sandbox, "signal", SignalRequest(agent=agent, signal=15, pid=pid))
