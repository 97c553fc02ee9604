"""The check of `doctor` of the keys in the state directory, with which it connects itself."""

from __future__ import annotations

import os
from pathlib import Path

from bus.errors import BusError, UsageError
from bus.nats.key_files import KEY_SUFFIX, agent_files, read_public
from coordinator.config.settings import SwarmConfig
from coordinator.reporting.findings import Finding, error, ok, warning
from coordinator.runner.run_record import Run
from coordinator.security.admission import admission_of
from coordinator.security.enforcement import check_enforced
from coordinator.security.keys import KeyStore, use_operator_key

__all__ = ["check_keys", "check_keys_enforced"]

CHECK = "authentication"
FOREIGN = "who may publish and read is up to the configuration of that server; keys are used with --authentication keys"
AGENT = "agent-"


def check_keys(state_dir: Path, run: Run | None, config: SwarmConfig, *, foreign: bool) -> Finding:
    """Whether the swarm has authentication, and whether each key file of the state directory can be used.

    `run` is the running swarm, None if none runs; `foreign`: its server is not the embedded one.
    """
    store = KeyStore(state_dir)
    files = [*sorted(store.directory.glob(f"*{KEY_SUFFIX}")), *agent_files(store.incarnations).values()]
    for file in files:
        try:
            read_public(file)
        except UsageError as problem:
            if os.path.lexists(file):  # an agent has just got another key
                return error(CHECK, str(problem), "")  # its text has the remedy
    if suspended := sorted(store.suspended()):
        names = " ".join(suspended)
        return warning(
            CHECK,
            f"suspended for a flood, so that they may publish nothing: {', '.join(suspended)}",
            f"`signalmesh keys list` says why; `signalmesh keys resume {names}`, or rotate or revoke them",
        )
    if run is None:
        return _configured(config, len(files), foreign=foreign)
    if run.authentication == "open":
        if foreign:
            return ok(CHECK, FOREIGN)
        remedy = "start the swarm again without --open and without [nats] authentication: each process then has a key"
        return warning(CHECK, f"open: whoever reaches {run.url} may do everything", remedy)
    try:
        use_operator_key(state_dir, run.authentication)
    except UsageError as problem:
        return error(CHECK, str(problem), "")
    return ok(CHECK, f"by keys: {len(files)} key files, each of this user alone")


def _configured(config: SwarmConfig, files: int, *, foreign: bool) -> Finding:
    """How the next `up` would admit clients."""
    try:
        admission = admission_of(config, None, foreign=foreign)
    except UsageError as problem:
        return error(CHECK, str(problem), "")
    if foreign and admission.authentication == "open":
        return ok(CHECK, FOREIGN)
    if admission.authentication == "open":
        return warning(
            CHECK, f"open ({admission.reason}): whoever reaches the port may do everything", admission.remedy
        )
    there = f"{files} key files, each of this user alone" if files else "`up` makes them"
    return ok(CHECK, f"by keys: {there}")


async def check_keys_enforced(url: str, swarm: str, state_dir: Path) -> Finding:
    """Whether the server refuses to each agent's key what it may not do."""
    store = KeyStore(state_dir)
    agents = [file.stem.removeprefix(AGENT) for file in sorted(store.directory.glob(f"{AGENT}*{KEY_SUFFIX}"))]
    try:
        await check_enforced(url, swarm, agents, store)
    except UsageError as problem:
        return error(CHECK, str(problem), "")  # its text has the remedy
    except BusError as problem:
        return error(CHECK, str(problem), "see the server's log")
    return ok(CHECK, f"the server refuses to the keys of {len(agents)} agents what they may not do")
