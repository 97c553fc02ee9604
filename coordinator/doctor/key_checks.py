"""The check of `doctor` of the keys in the state directory, with which it connects itself."""

from __future__ import annotations

from pathlib import Path

from bus.errors import BusError, UsageError
from bus.nats.key_files import KEY_SUFFIX, read_seed
from coordinator.reporting.findings import Finding, error, ok
from coordinator.runner.run_record import Run
from coordinator.security.enforcement import check_enforced
from coordinator.security.keys import KeyStore, use_operator_key

__all__ = ["check_keys", "check_keys_enforced"]

CHECK = "authentication"
AGENT = "agent-"


def check_keys(state_dir: Path, run: Run | None) -> Finding:
    """Whether a run has authentication, and whether each key file of the state directory can be used."""
    files = sorted(KeyStore(state_dir).directory.glob(f"*{KEY_SUFFIX}"))
    for file in files:
        try:
            read_seed(file)
        except UsageError as problem:
            return error(CHECK, str(problem), "")  # its text has the remedy
    if run is None or run.authentication == "open":
        what = "the server of the last run had" if run is None or not run.alive() else "the server of this swarm has"
        if run is None and files:
            return ok(CHECK, f"{len(files)} key files, each of this user alone")
        if run is None:
            return ok(CHECK, 'no keys: a swarm has them with [nats] authentication = "keys"')
        return ok(CHECK, f'{what} none: whoever reaches its port may do everything; [nats] authentication = "keys"')
    try:
        use_operator_key(state_dir, run.authentication)
    except UsageError as problem:
        return error(CHECK, str(problem), "")
    return ok(CHECK, f"by keys: {len(files)} key files, each of this user alone")


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
