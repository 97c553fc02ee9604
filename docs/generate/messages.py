"""messages.md: every payload and every `--json` output, field by field."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import orjson

from bus.messages import KINDS
from coordinator.cli.json_schema import OUTPUTS, SCHEMA_DIR
from docs.generate.markdown import code, page, table
from docs.generate.source import ROOT, docs_of
from docs.generate.types import classes_of, default_of, hints_of, type_text


def text() -> str:
    """The page."""
    payloads = [(code(kind), _link(cls), _schema(f"message.{kind}"), *_fields(cls)) for kind, cls in KINDS.items()]
    outputs = [
        (code(f"signalmesh {command} --json"), _link(cls), _schema(f"output.{command}"))
        for command, cls in OUTPUTS.items()
    ]
    roots = {*KINDS.values(), *OUTPUTS.values()}
    nested: list[type] = []
    for cls in (*KINDS.values(), *OUTPUTS.values()):
        nested += [part for part in classes_of(cls) if part not in roots and part not in nested]
    return page(
        "Message schemas",
        "All payloads and outputs are JSON. Times are RFC 3339 with a time zone. Unknown fields are allowed. "
        "[Architecture](../concepts/architecture.md#payload-checks) has the checks of values, and "
        "[Subjects, headers, buckets](protocol.md) the subjects. Each schema is a file of `docs/schema`.",
        "## Payloads",
        table(("kind", "payload", "schema", "required fields", "optional fields"), payloads),
        *(part for cls in KINDS.values() for part in _type(cls)),
        "## Outputs of commands",
        "`up --json` prints lines like those of `watch`.",
        table(("command", "output", "schema"), outputs),
        *(part for cls in OUTPUTS.values() for part in _type(cls)),
        "## Parts",
        "These types are parts of the payloads and outputs above.",
        *(part for cls in sorted(nested, key=lambda part: part.__name__) for part in _type(cls)),
    )


def _link(cls: type) -> str:
    return f"[{cls.__name__}](#{cls.__name__.lower()})"


def _schema(name: str) -> str:
    file = SCHEMA_DIR / f"{name}.json"
    return f"[{file.name}](../{file.relative_to(ROOT / 'docs')})"


def _fields(cls: Any) -> tuple[str, str]:
    """Names of the required and of the optional fields."""
    required: list[str] = []
    optional: list[str] = []
    for field in dataclasses.fields(cls):
        (required if default_of(field) is dataclasses.MISSING else optional).append(field.name)
    return ", ".join(required), ", ".join(optional)


def _type(cls: Any) -> list[str]:
    hints, docs = hints_of(cls), docs_of(cls)
    rows = [
        (code(field.name), type_text(hints[field.name]), _default(default_of(field)), docs.get(field.name, ""))
        for field in dataclasses.fields(cls)
    ]
    return [
        f"### {cls.__name__}",
        *(" ".join(paragraph.split()) for paragraph in inspect.cleandoc(cls.__doc__ or "").split("\n\n")),
        table(("field", "type", "default", "meaning"), rows),
    ]


def _default(value: Any) -> str:
    if value is dataclasses.MISSING:
        return "required"
    return code(orjson.dumps(value).decode())
