"""Finds signalmesh in a sandbox's template, or installs it there from a wheel and the lock files."""

from __future__ import annotations

import contextlib
import posixpath
import shlex
import time
from collections.abc import Iterator
from pathlib import Path

import orjson
import structlog
from e2b import AsyncSandbox, CommandExitException
from e2b.sandbox.filesystem.filesystem import WriteEntry

from agents.host.probe import INSTALLATION, Installation
from bus.errors import MeshError
from coordinator.config.e2b import E2bSettings
from coordinator.sandboxes.bootstrap import excerpt
from coordinator.sandboxes.e2b_client import Service
from coordinator.sandboxes.wheel import LOCK, TOOLS_LOCK, WSS_LOCK, digest, lock_file, wheel

__all__ = ["FILES", "LOG", "InstallFailed", "install", "upload"]

HOME = ".signalmesh"
"""Directory of signalmesh's files, below the home of the sandbox's user."""
LOG = f"{HOME}/host.log"
FILES = f"{HOME}/files"
VENV = f"{HOME}/venv"
SCRIPT = Path(__file__).with_name("bootstrap.py")
INSTALL_S = 900.0
FIND_S = 60.0

log = structlog.get_logger("signalmesh.provider")


COMMAND_NOT_FOUND = (126, 127)
"""Exit codes of a shell that cannot execute a command."""


class InstallFailed(MeshError):
    """A step failed; the message contains its output. `permanent`: the program itself is missing in the sandbox."""

    def __init__(self, text: str, *, permanent: bool = False) -> None:
        super().__init__(text)
        self.permanent = permanent


async def install(service: Service, sandbox: AsyncSandbox, settings: E2bSettings, *, websocket: bool) -> str:
    """Path of an interpreter in `sandbox` that has exactly this build; installs it if none is found.

    `websocket`: the bus is reached by WebSocket, which needs aiohttp as well.

    Raises:
        InstallFailed: a step failed.
        SandboxGone, PermanentError: as Service.request.
    """
    found = await find(service, sandbox, settings, websocket=websocket)
    if not found:
        await _install_build(service, sandbox, settings, websocket=websocket)
        found = await find(service, sandbox, settings, websocket=websocket)
        if not found:
            raise InstallFailed("installing signalmesh: the installed build is not the uploaded one")
    await _install_packages(service, sandbox, settings, found)
    return found


async def find(service: Service, sandbox: AsyncSandbox, settings: E2bSettings, *, websocket: bool) -> str:
    """Path of an interpreter that has exactly this build (and aiohttp for a WebSocket), or an empty string."""
    needed = "import aiohttp; " if websocket else ""
    question = shlex.quote(f"{needed}from coordinator.sandboxes.wheel import digest; print(digest())")
    script = (
        f'for py in "$HOME/{VENV}/bin/python" {shlex.quote(settings.python)}; do '
        f'if [ "$("$py" -c {question} 2>/dev/null)" = {digest()} ]; then command -v "$py"; exit 0; fi; done; exit 0'
    )
    return (await _run(service, sandbox, "finding signalmesh", script, FIND_S)).strip()


async def _install_build(service: Service, sandbox: AsyncSandbox, settings: E2bSettings, *, websocket: bool) -> None:
    started_at = time.monotonic()
    steps: dict[str, float] = {}
    name, content = wheel()
    locked = lock_file() + (lock_file(WSS_LOCK) if websocket else b"")
    needed = {LOCK: locked, TOOLS_LOCK: lock_file(TOOLS_LOCK), name: content}
    sent = {SCRIPT.name: SCRIPT.read_bytes(), **needed}
    files: list[WriteEntry] = [{"path": f"{HOME}/{file}", "data": data} for file, data in sent.items()]
    with _timed(steps, what := "uploading signalmesh"):
        await service.request(what, lambda: sandbox.files.write_files(files))
    with _timed(steps, what := "creating an environment"):
        await _run(service, sandbox, what, f"{shlex.quote(settings.python)} -m venv --without-pip {VENV}", INSTALL_S)
    script = [f"{VENV}/bin/python", f"{HOME}/{SCRIPT.name}", settings.python, *(f"{HOME}/{file}" for file in needed)]
    report = orjson.loads(await _run(service, sandbox, "installing signalmesh", shlex.join(script), INSTALL_S))
    found = Installation(
        sandbox_id=sandbox.sandbox_id,
        by=report["by"],
        why=report["why"],
        duration_s=round(time.monotonic() - started_at, 2),
        steps=steps | report["steps"],
    )
    await service.request(
        "recording the installation", lambda: sandbox.files.write(f"{VENV}/{INSTALLATION}", orjson.dumps(found))
    )
    log.info(
        "signalmesh_installed", sandbox_id=found.sandbox_id, by=found.by, why=found.why, duration_s=found.duration_s
    )


@contextlib.contextmanager
def _timed(steps: dict[str, float], step: str) -> Iterator[None]:
    started_at = time.monotonic()
    yield
    steps[step] = round(time.monotonic() - started_at, 2)


async def _install_packages(service: Service, sandbox: AsyncSandbox, settings: E2bSettings, python: str) -> None:
    for kind, command in (
        ("pip", f"{_with_pip(python)} install --quiet --disable-pip-version-check --no-input"),
        ("npm", "npm install --loglevel=error --no-audit --no-fund --prefix ."),
    ):
        packages = settings.packages.get(kind, ())
        if packages:
            script = (
                f"mkdir -p {FILES} && cd {FILES} && {command} {shlex.join(packages)}"  # may refer to uploaded files
            )
            await _run(service, sandbox, f"installing packages.{kind} ({', '.join(packages)})", script, INSTALL_S)


def _with_pip(python: str) -> str:
    """Shell command of its pip; installs pip first if missing, as it is in our own environment."""
    pip = f"{shlex.quote(python)} -m pip"
    return f"{{ {pip} --version >/dev/null 2>&1 || {shlex.quote(python)} -m ensurepip; }} && {pip}"


async def _run(service: Service, sandbox: AsyncSandbox, what: str, script: str, within_s: float) -> str:
    """Run a command in the sandbox and return its standard output."""

    async def run() -> str:
        try:
            return (await sandbox.commands.run(script, timeout=within_s)).stdout
        except CommandExitException as error:
            output = excerpt(error.stdout, error.stderr)
            text = f"{what}: exit code {error.exit_code}: {output}"
            raise InstallFailed(text, permanent=error.exit_code in COMMAND_NOT_FOUND) from None

    return await service.request(what, run, pass_through=(InstallFailed,))


async def upload(service: Service, sandbox: AsyncSandbox, files: tuple[tuple[str, Path], ...]) -> None:
    """Copy `files` (name below FILES, local path) into the sandbox."""
    if files:
        await service.request(
            "uploading files",
            lambda: sandbox.files.write_files(
                [{"path": posixpath.join(FILES, name), "data": path.read_bytes()} for name, path in files]
            ),
        )
