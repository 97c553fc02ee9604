"""JSON Schemas of all payloads and of every `--json`, generated from the types: `make schema` writes docs/schema/.

`message.<kind>.json` is a payload as published (bus/messages/payloads.py); ranges that the types do not express are in
docs/concepts/architecture.md. `output.<command>.json` is the output of a command with --json. Unknown fields are
allowed everywhere.
"""

from __future__ import annotations

import dataclasses
import typing
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import orjson

from bus.messages import KINDS
from coordinator.audit.models import Audit
from coordinator.certify.models import Certificate
from coordinator.chaos.report import Chaos
from coordinator.config.kept_changes import ConfigDiff
from coordinator.control.changes import AddedToSwarm, ChangedSandbox, MovedAgent, Rebalanced, RemovedFromSwarm, Scaled
from coordinator.control.kill import KillReport
from coordinator.control.watchdog_client import Restarted, Revived
from coordinator.explain.models import Explanation
from coordinator.monitor.health_check import Health
from coordinator.monitor.history import History
from coordinator.monitor.message_lines import WatchLine
from coordinator.monitor.models import Status
from coordinator.replay.models import Replay
from coordinator.reporting.findings import Diagnosis
from coordinator.runner.down import Ended
from coordinator.security.listing import KeyList

__all__ = ["OUTPUTS", "SCHEMA_DIR", "documents", "write"]

SCHEMA_DIR = Path(__file__).resolve().parents[2] / "docs" / "schema"
DIALECT = "https://json-schema.org/draft/2020-12/schema"
OUTPUTS: dict[str, type] = {
    "add": AddedToSwarm,
    "audit": Audit,
    "certify": Certificate,
    "chaos": Chaos,
    "config": ConfigDiff,
    "doctor": Diagnosis,
    "down": Ended,
    "explain": Explanation,
    "health": Health,
    "history": History,
    "keys": KeyList,
    "kill": KillReport,
    "replay": Replay,
    "move": MovedAgent,
    "rebalance": Rebalanced,
    "remove": RemovedFromSwarm,
    "restart": Restarted,
    "revive": Revived,
    "sandbox": ChangedSandbox,
    "scale": Scaled,
    "status": Status,
    "watch": WatchLine,
}
"""Command -> the type of its --json; `up --json` prints lines like those of watch."""


def documents() -> dict[str, bytes]:
    """File name -> bytes of every schema."""
    types_of = {f"message.{kind}.json": cls for kind, cls in KINDS.items()}
    types_of |= {f"output.{command}.json": cls for command, cls in OUTPUTS.items()}
    return {name: _document(cls) for name, cls in sorted(types_of.items())}


def write(directory: Path = SCHEMA_DIR) -> None:
    """Write all schemas into `directory`, and delete those of types that no longer exist."""
    directory.mkdir(parents=True, exist_ok=True)
    schemas = documents()
    for stale in {path.name for path in directory.glob("*.json")} - set(schemas):
        (directory / stale).unlink()
    for name, data in schemas.items():
        (directory / name).write_bytes(data)


def _document(cls: type) -> bytes:
    schema = msgspec.json.schema(cls)
    for part in _dataclasses(cls):
        definition = schema["$defs"][part.__name__]
        definition["description"] = " ".join(definition.get("description", "").split())
        for name, hint in typing.get_type_hints(part).items():
            if datetime in (hint, *typing.get_args(hint)):
                _mark_time(definition["properties"][name])
    return orjson.dumps({"$schema": DIALECT, **schema}, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def _mark_time(schema: dict[str, Any]) -> None:
    """Add the format: msgspec gives `string` for a datetime that may lack a zone; ours are published with one."""
    for variant in schema.get("anyOf", [schema]):
        if variant.get("type") == "string":
            variant["format"] = "date-time"


def _dataclasses(cls: Any) -> list[type]:
    """`cls` and all dataclasses among the types of its fields, however deep."""
    found: list[type] = []
    stack = [cls]
    while stack:
        item = stack.pop()
        if isinstance(item, type) and dataclasses.is_dataclass(item) and item not in found:
            found.append(item)
            stack += typing.get_type_hints(item).values()
        stack += typing.get_args(item)
    return found


if __name__ == "__main__":
    write()
