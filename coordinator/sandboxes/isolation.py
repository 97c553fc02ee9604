"""Measures the isolation of a sandbox: compares its probe with a local one, namespace by namespace."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
import orjson

from agents.host.probe import Probe
from bus.errors import MeshError
from bus.nats.bus import NatsBus

__all__ = ["Isolation", "compare", "probe_sandbox"]

PROBE_S = 10.0
"""Generous: a probe runs programs to get their versions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Isolation:
    """How a sandbox differs from the machine of the comparison: what is its `own`, and what is `shared`.

    They list kernel, user, cgroup and the kinds of namespaces; `unknown` lists what one of the two does not report.
    """

    own: list[str] = field(default_factory=list)
    shared: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    text: str


def compare(there: Probe, here: Probe) -> Isolation:
    """Compare the probe of a sandbox with a local one."""
    theirs, ours = _identities(there), _identities(here)
    own: list[str] = []
    shared: list[str] = []
    unknown: list[str] = []
    for name in theirs | ours:
        found, known = theirs.get(name), ours.get(name)
        (unknown if found is None or known is None else shared if found == known else own).append(name)
    return Isolation(own=own, shared=shared, unknown=unknown, text=_text(own, shared))


def _identities(probe: Probe) -> dict[str, str | None]:
    """Unique identifiers per kind. An id inside a namespace is unique only together with the namespace's id, and that
    only together with the kernel's boot id.
    """
    boot = probe.boot_id

    def within(kind: str, value: str | None) -> str | None:
        space = probe.namespaces.get(kind)
        return f"{boot} {space} {value}" if boot and space and value is not None else None

    return {
        "kernel": boot,
        **{f"{kind} namespace": within(kind, "") for kind in probe.namespaces},
        "user": within("user", str(probe.uid)),
        "cgroup": within("cgroup", probe.cgroup),
    }


def _text(own: list[str], shared: list[str]) -> str:
    if "kernel" in own:
        return "another kernel: a machine, or a virtual machine, of its own"
    spaces = [name.removesuffix(" namespace") for name in own if name.endswith(" namespace")]
    same = [name.removesuffix(" namespace") for name in shared if name.endswith(" namespace")]
    if spaces:
        beside = f"; shared: {', '.join(same)}" if same else ""
        return f"the same kernel, with namespaces of its own: {', '.join(spaces)}{beside}"
    if "kernel" in shared and same:
        users = "the same user" if "user" in shared else "another user"
        return f"the same kernel and namespaces, {users}: only its processes are its own"
    return "not known: this system reports neither kernel nor namespaces"


async def probe_sandbox(bus: NatsBus, sandbox: str) -> Probe:
    """Request a probe from the host of `sandbox`.

    Raises:
        BusError: the host does not reply.
        MeshError: the reply is an error or not a probe.
    """
    reply = orjson.loads(await bus.request(bus.subjects.control(sandbox, "probe"), b"", PROBE_S))
    if "error" in reply:
        raise MeshError(reply["error"])
    try:
        return msgspec.convert(reply, Probe)
    except msgspec.ValidationError as error:
        raise MeshError(f"sandbox {sandbox}, probe: {error}") from None
