"""Standard input and output as the transport: an assistant starts the server, and ends it by closing its input."""

from __future__ import annotations

from mcp.server.stdio import stdio_server

from bus.errors import EXIT_DONE
from bus.utils.aio import run_to_end
from coordinator.mcp.server import SwarmServer
from coordinator.mcp.swarm import ServedSwarm


def serve_stdio(swarm: ServedSwarm) -> int:
    """Serve one client until it closes its end."""
    return run_to_end(_serve(SwarmServer(swarm)))


async def _serve(server: SwarmServer) -> int:
    try:
        async with stdio_server() as (reading, writing):
            await server.sdk.run(reading, writing, server.sdk.create_initialization_options())
    finally:
        await server.close()
    return EXIT_DONE
