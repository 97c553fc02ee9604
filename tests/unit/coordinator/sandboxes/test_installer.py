"""The installer: it finds our own code by running it, and sends what a WebSocket needs only where one is used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from coordinator.config.e2b import E2bSettings
from coordinator.sandboxes.installer import find, install
from coordinator.sandboxes.wheel import LOCK, WSS_LOCK, lock_file


class Sandbox:
    """Runs the shell commands of an installation here, or answers them from `answers`, by a part of the command."""

    sandbox_id = "sandbox-1"

    def __init__(self, home: Path, answers: dict[str, list[str]] | None = None) -> None:
        self.home = home
        self.answers = answers or {}
        self.sent: dict[str, Any] = {}
        self.commands = self.files = self

    async def run(self, script: str, timeout: float) -> SimpleNamespace:
        for part, printed in self.answers.items():
            if part in script:
                return SimpleNamespace(stdout=printed.pop(0))
        environment = {"HOME": str(self.home), "PATH": "/usr/bin:/bin"}
        done = subprocess.run(["sh", "-c", script], env=environment, capture_output=True, text=True, check=True)
        return SimpleNamespace(stdout=done.stdout)

    async def write_files(self, files: list[dict[str, Any]]) -> None:
        self.sent |= {entry["path"].rpartition("/")[2]: entry["data"] for entry in files}

    async def write(self, path: str, data: bytes) -> None:
        self.sent[path] = data


class Service:
    async def request(self, what: str, run: Any, *, pass_through: object = ()) -> Any:
        return await run()


@pytest.mark.parametrize("websocket", [False, True])
async def test_an_interpreter_with_this_code_is_found(tmp_path, websocket):
    settings = E2bSettings(python=sys.executable)
    found = await find(Service(), Sandbox(tmp_path), settings, websocket=websocket)  # type: ignore[arg-type]
    assert found == sys.executable


async def test_an_interpreter_without_this_code_is_not_found(tmp_path):
    plain = tmp_path / "python"
    plain.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    plain.chmod(0o755)
    settings = E2bSettings(python=str(plain))
    assert await find(Service(), Sandbox(tmp_path), settings, websocket=False) == ""  # type: ignore[arg-type]


@pytest.mark.parametrize("websocket", [False, True])
async def test_what_a_websocket_needs_is_installed_only_for_one(tmp_path, websocket):
    output = orjson.dumps({"by": "uv 1.0", "why": "", "steps": {}}).decode()
    answers = {"import digest": ["", "found/python"], "-m venv": [""], "bootstrap.py": [output]}
    sandbox = Sandbox(tmp_path, answers)
    python = await install(Service(), sandbox, E2bSettings(), websocket=websocket)  # type: ignore[arg-type]
    assert python == "found/python"
    assert sandbox.sent[LOCK] == lock_file() + (lock_file(WSS_LOCK) if websocket else b"")
