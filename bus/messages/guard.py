"""The mapping that keeps acknowledgements out of the streams.

A stream acknowledges a message to the reply subject that its publisher has named, with the server's own rights. Below a
subject of the stream, the acknowledgement would be stored as a message of whoever that subject names. So the server
maps what clients publish to the streams below a prefix that it reserves: it refuses a reply subject there, and it maps
nothing that it publishes itself. The streams take only what is below the prefix, and store it without it.

A server of others that has no such mapping serves streams that take the plain subjects.
"""

from __future__ import annotations

from bus.messages.subjects import Subjects

__all__ = ["GUARD", "guarded", "mapped", "mappings", "without_guard"]

GUARD = "_R_."
"""nats-server's prefix of the replies of imported services, which it refuses in the reply subject of a client."""
_TAKEN = ("in.", "$KV.")


def guarded(subject: str) -> str:
    """The subject, or a filter, to which the server maps this one: itself if no stream takes it."""
    return GUARD + subject if subject.startswith(_TAKEN) else subject


def without_guard(subject: str) -> str:
    """The subject that a client has published to, of one in an error of the server."""
    return subject.removeprefix(GUARD)


def mapped(subjects: Subjects) -> tuple[str, ...]:
    """What the server maps to `guarded` of it, for this swarm."""
    buckets = subjects.state_bucket, subjects.memory_bucket, subjects.registry_bucket
    return (f"{subjects.write_prefix}>", *(f"$KV.{bucket}.>" for bucket in buckets))


def mappings(subjects: Subjects) -> str:
    """The lines of nats-server's configuration with the mapping of this swarm."""
    return "mappings {\n" + "".join(f'  "{each}": "{guarded(each)}"\n' for each in mapped(subjects)) + "}\n"
