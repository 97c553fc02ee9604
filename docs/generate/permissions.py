"""permissions.md: what each process of the default swarm may publish and subscribe to, if it has keys."""

from __future__ import annotations

from bus.messages.subjects import PROVIDER, Subjects
from coordinator.config.loader import BUILT_IN, parse_swarm
from coordinator.security.keys import identities
from coordinator.security.permissions import UNNAMED, Permissions, role_permissions
from docs.generate.markdown import code, page, table


def text() -> str:
    """The page."""
    default = parse_swarm({}, BUILT_IN, "").resolve()
    granted = identities(default) | {PROVIDER: role_permissions(PROVIDER, Subjects(default.swarm))}
    parts = []
    for name, allowed in granted.items():
        parts += [f"## {code(name)}" if name != UNNAMED else f"## {name[0].upper()}{name[1:]}", _table(allowed)]
    return page(
        "Permissions",
        "With keys, the default, the server enforces these. They are those of the default swarm; "
        "[Security](../security.md) explains them. Each process also subscribes to its own inboxes, below "
        "`_INBOX.` and its public key, unless it publishes nothing.",
        *parts,
    )


def _table(allowed: Permissions) -> str:
    rows = [("publish", ", ".join(map(code, allowed.publish)) or "nothing")]
    rows.append(("subscribe", ", ".join(map(code, allowed.subscribe))))
    if allowed.never_subscribe:
        rows.append(("of these not", ", ".join(map(code, allowed.never_subscribe))))
    if allowed.answers:
        rows.append(("answer", "two messages to the reply subject of any request, within 5 s"))
    return table(("may", "subjects"), rows)
