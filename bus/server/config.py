"""The configuration that the embedded nats-server is started with."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from bus.messages import MAX_PAYLOAD_BYTES

__all__ = ["HOST", "MAX_MESSAGE_BYTES", "Durability", "configuration"]

HOST = "127.0.0.1"
Durability = Literal["process", "power"]
"""What an acknowledged message survives: the death of any process, or the loss of power as well."""

MAX_MESSAGE_BYTES = MAX_PAYLOAD_BYTES + 8 * 1024
"""The server's max_payload. It counts headers as well, so that a largest payload leaves 8 KiB for ours."""
_SYNC_INTERVAL = {"process": "1s", "power": "always"}
# process: the kernel holds what a killed server wrote, so that fsync matters to a power cut only, which can then
# take the last second; power: fsync before each acknowledgement, about 0.4 ms.

_CONFIG = """\
# Written by signalmesh at each start of its server; changes are lost.
server_name: {name}
listen: "{host}:{port}"
# What the server knows of itself, to read only; its port is in the file beside this one that ends in .ports.
http: "{host}:-1"
ports_file_dir: {directory}
jetstream {{ store_dir: {store}, sync_interval: "{sync_interval}" }}
max_payload: {max_payload}
# What may wait for one slow client before it is cut off (the server's own default, said here on purpose).
max_pending: 64MB
# A client that does not answer (frozen, cut off) is dropped after 6 to 9 s, its subscriptions and buffers with it: a
# little later than the watchdog's patience with a starved agent (5 s), which must not lose its connection meanwhile.
ping_interval: "3s"
ping_max: 2
# A client that does not read for so long while there is something to write is dropped.
write_deadline: "2s"
log_file: {log}
logfile_size_limit: 10MB
logfile_max_num: 3
logtime_utc: true
"""


def configuration(*, name: str, port: int, directory: Path, log: Path, durability: Durability) -> str:
    """The text of nats.conf for a server in `directory` (absolute); port 0 is any free one."""
    return _CONFIG.format(
        name=name,
        host=HOST,
        port=port or -1,
        directory=_quoted(directory),
        store=_quoted(directory / "store"),
        log=_quoted(log),
        sync_interval=_SYNC_INTERVAL[durability],
        max_payload=MAX_MESSAGE_BYTES,
    )


def _quoted(path: Path) -> str:
    """`path` as a string of nats-server's configuration language."""
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'
