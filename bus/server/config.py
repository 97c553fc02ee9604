"""The configuration of the embedded nats-server."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from bus.messages import MAX_PAYLOAD_BYTES

__all__ = ["HANDSHAKE_S", "HOST", "MAX_MESSAGE_BYTES", "Durability", "configuration", "tls_block"]

HOST = "127.0.0.1"
Durability = Literal["process", "power"]
"""What an acknowledged message survives: the end of any process, or also a loss of power."""

MAX_MESSAGE_BYTES = MAX_PAYLOAD_BYTES + 8 * 1024
"""The server's max_payload. It includes headers: 8 KiB are left for them beside the largest payload."""
HANDSHAKE_S = 5
"""For a TLS handshake. The server's default of 2 s is short for hundreds of agents that start at once on few cores."""
LEAST_STORE_BYTES = 64 << 20
"""A full disk refuses writes by itself: the server is restarted when there is room, and this limit must not stay."""
_SYNC_INTERVAL = {"process": "1s", "power": "always"}
# process: the kernel keeps the writes of a killed server, so fsync matters only for a power cut, which can lose the
# last second. power: fsync before each acknowledgement, about 0.4 ms.

_CONFIG = """\
# Written by signalmesh at each start of its server; changes are lost.
server_name: {name}
listen: "{host}:{port}"
# Monitoring, read only; the port is in the file in this directory that ends in .ports.
http: "{host}:-1"
ports_file_dir: {directory}
# What the store has and most of what was free at this start: by default the server would leave out the former.
jetstream {{ store_dir: {store}, max_file_store: {max_store}, sync_interval: "{sync_interval}" }}
max_payload: {max_payload}
# Most bytes that may wait for a slow client before it is disconnected (the server's default, set explicitly).
max_pending: 64MB
# A client that does not answer (frozen, disconnected) is dropped after 6 to 9 s with its subscriptions and buffers.
# This is longer than the watchdog's timeout for a starved agent (5 s), which must not lose its connection in that time.
ping_interval: "3s"
ping_max: 2
# A client that does not read for this long while there is something to write is dropped.
write_deadline: "2s"
# Subscriptions of one connection: each takes memory of the server. A host with hundreds of agents has one for each.
max_subscriptions: 4096
# Connections in all: each takes memory and an open file of the server.
max_connections: 3072
# A line of the protocol: a subject with its reply subject. More ends the connection (the server's default, explicitly).
max_control_line: 4KB
log_file: {log}
logfile_size_limit: 10MB
logfile_max_num: 3
logtime_utc: true
"""


def configuration(*, name: str, port: int, directory: Path, log: Path, durability: Durability, max_store: int) -> str:
    """The text of nats.conf for a server in `directory` (absolute); port 0 takes any free one.

    Lines about users may follow it; without any, everybody may do everything.
    """
    return _CONFIG.format(
        name=name,
        host=HOST,
        port=port or -1,
        directory=_quoted(directory),
        store=_quoted(directory / "store"),
        max_store=max(max_store, LEAST_STORE_BYTES),
        log=_quoted(log),
        sync_interval=_SYNC_INTERVAL[durability],
        max_payload=MAX_MESSAGE_BYTES,
    )


def tls_block(certificate: Path, key: Path, clients_ca: Path | None) -> str:
    """The lines about TLS: required of every client, 1.2 or newer.

    With `clients_ca` a client has to present a certificate of one of the authorities in that file.
    """
    verify = "" if clients_ca is None else f"  ca_file: {_quoted(clients_ca)}\n  verify: true\n"
    return (
        f"tls {{\n  cert_file: {_quoted(certificate)}\n  key_file: {_quoted(key)}\n{verify}"
        f'  min_version: "1.2"\n  timeout: {HANDSHAKE_S}\n}}\nallow_non_tls: false\n'
    )


def _quoted(path: Path) -> str:
    """`path` as a string of nats-server's configuration language."""
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'
