"""A stand-in of E2B for tests: the control API, envd, and a third port by which a test orders faults.

    E2B_API_KEY=... python -m tests.e2b.standin --directory sandboxes --log requests.jsonl

prints one line of JSON with its addresses and its pid, then serves until SIGTERM or SIGINT. The unmodified SDK talks to
it where E2B_API_URL and E2B_SANDBOX_URL say so; tests start it by `tests.e2b.standin.launch.standin`.

Real are the processes (`/bin/bash -l -c CMD`), signals, files, exit codes, figures and the HTTP. Not there are
isolation of any kind, rules of the network, other users, templates (a name is all there is to one), pauses that survive
the stand-in, and watching of directories. What it does where the SDK does not say was read in the source of envd and of
the API; none of it was compared with the service, which is why `tests/e2b/test_conformance_*.py` run against both.

The port for tests, all of JSON: `POST /_faults` adds one (see `faults.py`), `GET` lists, `DELETE` clears them;
`POST /_ports {"api": bool, "envd": bool}` closes or opens; `POST /_limits` sets `concurrent`, `creates_per_s` and
`templates`; `DELETE /_all` is a new beginning; `GET /_sandboxes`;
`POST /_sandboxes/{id}/vanish | /reset | /port {"open": bool}`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.e2b.standin.control import control_api
from tests.e2b.standin.envd import envd
from tests.e2b.standin.faults import Faults, Passage, text
from tests.e2b.standin.listening import Port
from tests.e2b.standin.log import Log
from tests.e2b.standin.processes import OnOutput, Process
from tests.e2b.standin.sandboxes import Limits, Refused, Sandboxes


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.e2b.standin", description="A stand-in of E2B for tests.")
    parser.add_argument("--directory", type=Path, required=True, help="below which each sandbox gets a directory")
    parser.add_argument("--log", type=Path, required=True, help="gets a JSON line for each request")
    parser.add_argument("--port", type=int, default=0, help="of the control API (0: a free one)")
    parser.add_argument("--envd-port", type=int, default=0)
    parser.add_argument("--faults-port", type=int, default=0)
    parser.add_argument("--template", action="append", default=[], help="one more than base")
    parser.add_argument("--concurrent", type=int, help="so many sandboxes may run at a time")
    parser.add_argument("--creates-per-s", type=float)
    return parser.parse_args()


class Standin:
    def __init__(self, requested: argparse.Namespace, api_key: str) -> None:
        self.log = Log(requested.log)
        self._requested = requested
        self.sandboxes = Sandboxes(requested.directory.resolve(), self._limits(), self._on_output)
        self.faults = Faults()
        self.ports = {"api": Port(requested.port), "envd": Port(requested.envd_port)}
        self.admin = Port(requested.faults_port)
        self.apps = {
            name: Passage(app, self.faults, self.log, self.ports[name].break_off)
            for name, app in {"api": control_api(self.sandboxes, api_key), "envd": envd(self.sandboxes)}.items()
        }

    def _limits(self) -> Limits:
        requested = self._requested
        return Limits(
            concurrent=requested.concurrent,
            creates_per_s=requested.creates_per_s,
            templates={"base", *requested.template},
        )

    def _on_output(self, sandbox: str) -> OnOutput:
        def on_output(process: Process, name: str, data: bytes) -> None:
            self.log.write("output", sandbox=sandbox, pid=process.pid, stream=name, body=text(data))

        return on_output

    async def open(self) -> None:
        for name, port in self.ports.items():
            await port.open(self.apps[name])
        await self.admin.open(self.for_tests())

    async def close(self) -> None:
        for port in (*self.ports.values(), self.admin):
            await port.close()
        await self.sandboxes.end_all()
        self.log.close()

    def for_tests(self) -> Starlette:
        async def add(request: Request) -> Response:
            try:
                self.faults.add(await request.json())
            except (TypeError, ValueError) as error:
                return JSONResponse({"message": str(error)}, 400)
            return Response(status_code=204)

        async def listed(request: Request) -> Response:
            return JSONResponse(self.faults.listed())

        async def clear(request: Request) -> Response:
            self.faults.clear()
            return Response(status_code=204)

        async def ports(request: Request) -> Response:
            for name, opened in (await request.json()).items():
                await (self.ports[name].open(self.apps[name]) if opened else self.ports[name].close())
            return Response(status_code=204)

        async def limits(request: Request) -> Response:
            requested = await request.json()
            if "templates" in requested:
                requested["templates"] = set(requested["templates"])
            self.sandboxes.limit(replace(self.sandboxes.limits, **requested))
            return Response(status_code=204)

        async def sandboxes(request: Request) -> Response:
            return JSONResponse([self._result(name) for name in self.sandboxes.all])

        async def all_of_it(request: Request) -> Response:
            self.faults.clear()
            self.sandboxes.limit(self._limits())
            await self.sandboxes.end_all()
            for name, port in self.ports.items():
                await port.open(self.apps[name])
            return Response(status_code=204)

        async def befall(request: Request) -> Response:
            try:
                sandbox = self.sandboxes.find(request.path_params["name"])
            except Refused as refused:
                return JSONResponse({"message": str(refused)}, refused.status)
            match request.path_params["what"]:
                case "vanish":
                    await self.sandboxes.end(sandbox)
                case "reset":
                    self.sandboxes.break_streams(sandbox)
                case "port":
                    sandbox.port_open = (await request.json())["open"]
                    if not sandbox.port_open:
                        self.sandboxes.break_streams(sandbox)
                case other:
                    return JSONResponse({"message": f"{other}: expected vanish, reset or port"}, 404)
            return Response(status_code=204)

        return Starlette(
            routes=[
                Route("/_faults", add, methods=["POST"]),
                Route("/_faults", listed, methods=["GET"]),
                Route("/_faults", clear, methods=["DELETE"]),
                Route("/_ports", ports, methods=["POST"]),
                Route("/_limits", limits, methods=["POST"]),
                Route("/_sandboxes", sandboxes, methods=["GET"]),
                Route("/_all", all_of_it, methods=["DELETE"]),
                Route("/_sandboxes/{name}/{what}", befall, methods=["POST"]),
            ]
        )

    def _result(self, name: str) -> dict[str, Any]:
        sandbox = self.sandboxes.all[name]
        return {
            "id": name,
            "state": sandbox.state,
            "metadata": sandbox.metadata,
            "home": str(sandbox.home),
            "init": sandbox.processes.init.pid,
            "pids": [process.pid for process in sandbox.processes.alive()],
        }


async def main(requested: argparse.Namespace, api_key: str) -> None:
    terminated = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, terminated.set)
    standin = Standin(requested, api_key)
    await standin.open()
    try:
        addresses = {name: port.url for name, port in standin.ports.items()} | {"faults": standin.admin.url}
        print(json.dumps(addresses | {"pid": os.getpid()}), flush=True)  # noqa: T201
        await terminated.wait()
    finally:
        await standin.close()


if __name__ == "__main__":
    key = os.environ.get("E2B_API_KEY")
    if not key:
        sys.exit("E2B_API_KEY: name the key that the stand-in is to accept")
    asyncio.run(main(arguments(), key))
