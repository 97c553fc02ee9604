"""Our own program in a sandbox: found where its template has it, else installed from our wheel and lock file."""

from __future__ import annotations

import posixpath
import shlex
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog
from e2b import AsyncSandbox, CommandExitException

from bus.errors import MeshError
from coordinator.e2b_service import Service
from coordinator.e2b_settings import E2bSettings
from coordinator.own_code import digest, lock_file, wheel

__all__ = ["FILES", "LOG", "InstallFailed", "install", "upload"]

HOME = ".signalmesh"
"""Of all that is ours, below the home of the sandbox's user."""
LOG = f"{HOME}/host.log"
FILES = f"{HOME}/files"
VENV = f"{HOME}/venv"
INSTALL_S = 900.0
FIND_S = 60.0
TAIL = 400
"""Characters of a failed command's output that an error shows."""

log = structlog.get_logger("signalmesh.provider")


class InstallFailed(MeshError):
    """A step failed by its own exit code; its message has the end of what it said."""


async def install(service: Service, sandbox: AsyncSandbox, settings: E2bSettings) -> str:
    """The interpreter in `sandbox` that has exactly our code, after installing it where there was none.

    Raises:
        InstallFailed: a step ended with an error.
        Gone, GivenUp: as Service.ask.
    """
    found = await find(service, sandbox, settings)
    if not found:
        await _install_own(service, sandbox, settings)
        found = await find(service, sandbox, settings)
        if not found:
            raise InstallFailed("installing signalmesh: it is installed, but not the code that was sent")
    await _install_packages(service, sandbox, settings, found)
    return found


async def find(service: Service, sandbox: AsyncSandbox, settings: E2bSettings) -> str:
    """The interpreter that has our very code, or nothing."""
    question = shlex.quote("from coordinator.own_code import digest; print(digest())")
    script = (
        f'for py in "$HOME/{VENV}/bin/python" {shlex.quote(settings.python)}; do '
        f'if [ "$("$py" -c {question} 2>/dev/null)" = {digest()} ]; then command -v "$py"; exit 0; fi; done; exit 0'
    )
    return (await _run(service, sandbox, "looking for signalmesh", script, FIND_S)).strip()


async def _install_own(service: Service, sandbox: AsyncSandbox, settings: E2bSettings) -> None:
    name, content = wheel()
    await service.ask(
        "uploading signalmesh",
        lambda: sandbox.files.write_files(
            [
                {"path": f"{HOME}/{name}", "data": content},
                {"path": f"{HOME}/requirements.lock", "data": lock_file()},
            ]
        ),
    )
    pip = f"{VENV}/bin/python -m pip install --quiet --disable-pip-version-check --no-input"
    python = shlex.quote(settings.python)
    for what, script in (
        ("making an environment", f"{python} -m venv {VENV}"),
        ("installing requirements.lock", f"{pip} --require-hashes -r {HOME}/requirements.lock"),
        ("installing signalmesh", f"{pip} --no-deps --force-reinstall {HOME}/{name}"),
    ):
        await _run(service, sandbox, what, script, INSTALL_S)
    log.info("signalmesh_installed", sandbox_id=sandbox.sandbox_id)


async def _install_packages(service: Service, sandbox: AsyncSandbox, settings: E2bSettings, python: str) -> None:
    for kind, command in (
        ("pip", f"{shlex.quote(python)} -m pip install --quiet --disable-pip-version-check --no-input"),
        ("npm", f"npm install --silent --no-audit --no-fund --prefix {FILES}"),
    ):
        packages = settings.packages.get(kind, ())
        if packages:
            script = f"mkdir -p {FILES} && {command} {shlex.join(packages)}"
            await _run(service, sandbox, f"installing packages.{kind} ({', '.join(packages)})", script, INSTALL_S)


async def _run(service: Service, sandbox: AsyncSandbox, what: str, script: str, within_s: float) -> str:
    """What a command prints."""

    async def run() -> str:
        try:
            return (await sandbox.commands.run(script, timeout=within_s)).stdout
        except CommandExitException as error:
            said = " ".join(f"{error.stdout} {error.stderr}".split())[-TAIL:]
            raise InstallFailed(f"{what}: exit code {error.exit_code}: {said}") from None

    return await _asked(service, what, run)


async def _asked(service: Service, what: str, run: Callable[[], Awaitable[str]]) -> str:
    failed: InstallFailed | None = None

    async def guarded() -> str:
        nonlocal failed
        try:
            return await run()
        except InstallFailed as error:  # the service is well: it has answered
            failed = error
            return ""

    printed = await service.ask(what, guarded)
    if failed is not None:
        raise failed
    return printed


async def upload(service: Service, sandbox: AsyncSandbox, files: tuple[tuple[str, Path], ...]) -> None:
    """Copy `files` (name below FILES, local path) into the sandbox."""
    if files:
        await service.ask(
            "uploading files",
            lambda: sandbox.files.write_files(
                [{"path": posixpath.join(FILES, name), "data": path.read_bytes()} for name, path in files]
            ),
        )
