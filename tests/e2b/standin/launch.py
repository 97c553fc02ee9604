"""Starts the stand-in from a test, and orders its faults."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from bus.utils.processes import die_with_parent
from tests.support.repository import ROOT

GUARD_S = 20.0


class StandIn:
    """A running stand-in. `environment` is what a process needs to talk to it by the SDK."""

    def __init__(self, process: subprocess.Popen[str], reply: dict[str, Any], api_key: str, log: Path) -> None:
        self.process = process
        self.pid: int = reply["pid"]
        self.api_key = api_key
        self.environment = {"E2B_API_KEY": api_key, "E2B_API_URL": reply["api"], "E2B_SANDBOX_URL": reply["envd"]}
        self._faults: str = reply["faults"]
        self._log = log

    async def fail(self, path: str, **fault: Any) -> None:
        """A fault for requests to `path`: see `faults.py` for what there is."""
        await self._request("POST", "/_faults", {"path": path, **fault})

    async def faults(self) -> list[dict[str, Any]]:
        """All faults since they were last cleared, and how often each was `used`."""
        answer: list[dict[str, Any]] = await self._request("GET", "/_faults")
        return answer

    async def clear(self) -> None:
        await self._request("DELETE", "/_faults")

    async def ports(self, **opened: bool) -> None:
        """`api=False`: the API's port is closed and its connections broken; `True` opens it again. So with `envd`."""
        await self._request("POST", "/_ports", opened)

    async def limits(self, **limits: Any) -> None:
        """`concurrent`, `creates_per_s` (None: no limit), `templates` (a list)."""
        await self._request("POST", "/_limits", limits)

    async def vanish(self, sandbox_id: str) -> None:
        """It is gone with all its processes, without a notice."""
        await self._request("POST", f"/_sandboxes/{sandbox_id}/vanish")

    async def reset(self, sandbox_id: str) -> None:
        """Every connection on which its envd is answering now is broken."""
        await self._request("POST", f"/_sandboxes/{sandbox_id}/reset")

    async def port_open(self, sandbox_id: str, opened: bool) -> None:
        """Whether its envd can be reached: "port is not open" otherwise."""
        await self._request("POST", f"/_sandboxes/{sandbox_id}/port", {"open": opened})

    async def sandboxes(self) -> dict[str, dict[str, Any]]:
        """All by id: `state`, `metadata`, `home`, `init` and `pids` of all processes in it."""
        return {sandbox["id"]: sandbox for sandbox in await self._request("GET", "/_sandboxes")}

    def tidy(self) -> None:
        """As it was at its start: no sandbox, no fault, no limit but those of its options, all ports open."""
        httpx.delete(f"{self._faults}/_all", timeout=GUARD_S).raise_for_status()

    def log(self) -> list[dict[str, Any]]:
        """Its log so far (`log.py`): a request is in it before it is answered."""
        return [json.loads(line) for line in self._log.read_text().splitlines() if line.endswith("}")]

    def requests(self, path: str = "") -> list[dict[str, Any]]:
        """The requests so far of this path prefix."""
        return [line for line in self.log() if line["kind"] == "request" and line["path"].startswith(path)]

    def kill(self, number: int = signal.SIGKILL) -> None:
        """SIGKILL, as a crash would; back when it has ended."""
        self.process.send_signal(number)
        self.process.wait(GUARD_S)

    async def _request(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        async with httpx.AsyncClient(base_url=self._faults, timeout=GUARD_S) as client:
            answer = await client.request(method, path, json=body)
        if answer.is_error:
            raise ValueError(f"{path}: {answer.text}")
        return answer.json() if answer.content else None


@contextmanager
def standin(directory: Path, *options: str) -> Iterator[StandIn]:
    """A stand-in of its own, which ends with this context, and with this process however that ends."""
    directory.mkdir(parents=True, exist_ok=True)
    log = directory / "requests.jsonl"
    key = "e2b_" + secrets.token_hex(20)
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tests.e2b.standin",
            "--directory",
            str(directory / "sandboxes"),
            "--log",
            str(log),
            *options,
        ],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "E2B_API_KEY": key},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=partial(die_with_parent, os.getpid()),  # noqa: PLW1509 - a system call, no more
    )
    assert process.stdout is not None
    with process.stdout:
        try:
            line = process.stdout.readline()
            assert line, f"the stand-in ended with {process.wait()} before it listened"
            yield StandIn(process, json.loads(line), key, log)
        finally:
            process.terminate()
            try:
                process.wait(GUARD_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
