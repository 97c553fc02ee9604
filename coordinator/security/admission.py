"""Whether a swarm runs with keys or open: from the options, the configuration and the server, and what to say of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bus.errors import UsageError
from bus.nats.urls import redacted_url
from bus.server.supervisor import DIRECTORY
from coordinator.config.connection import Authentication, AuthenticationSetting
from coordinator.config.settings import SwarmConfig
from coordinator.security.keys import KeyStore

__all__ = ["Admission", "admission_of", "describe_new_keys", "foreign_remark", "is_from_before_keys"]

MAX_NAMED = 20
"""Key files that are named in one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """How the server of a swarm admits clients. `reason` is why it is open, empty with keys.

    `remedy` is how to start it with keys, if it is open.
    """

    authentication: Authentication
    reason: str = ""
    remedy: str = ""

    def warning(self, url: str) -> str:
        """What to say of an open embedded server at `url`."""
        return (
            f"open ({self.reason}): whoever reaches {url} may do everything: publish as any process, give orders, "
            f"delete the stream; {self.remedy}"
        )


def admission_of(config: SwarmConfig, asked: Authentication | None, *, foreign: bool) -> Admission:
    """How the server admits clients; `asked` is --authentication, `foreign`: the server is that of --nats.

    Raises:
        UsageError: keys are asked for on a server that could not learn those of sandboxes at E2B.
    """
    wanted: AuthenticationSetting = asked or config.nats.authentication
    remote = next((sandbox.name for sandbox in config.sandboxes if sandbox.e2b is not None), None)
    if wanted == "keys":
        if foreign and remote is not None:
            raise UsageError(
                f"{config.file}: sandboxes.{remote}: each sandbox at E2B gets a key when it is created, which only the "
                "server of `up` learns: leave out --nats and name an address of that server with --public-nats, or "
                "start it with --open"
            )
        return Admission(authentication="keys")
    if wanted == "open":
        if asked is not None:
            return Admission(
                authentication="open",
                reason="--open or SIGNALMESH_AUTHENTICATION",
                remedy="start it without them",
            )
        return Admission(
            authentication="open",
            reason=f"[nats] authentication in {config.file}",
            remedy="remove that key, and each process has a key of its own",
        )
    if foreign:
        return Admission(authentication="open", reason="the server of --nats", remedy="--authentication keys")
    return Admission(authentication="keys")


def foreign_remark(url: str) -> str:
    """What to say of a server of others without keys of ours."""
    return (
        f"who may publish and read at {redacted_url(url)} is up to that server's own configuration; with "
        "--authentication keys each process has a key of its own there (`signalmesh keys export`)"
    )


def is_from_before_keys(state_dir: Path) -> bool:
    """Whether an embedded server has run in this state directory, and never with keys."""
    return (state_dir / DIRECTORY).exists() and not KeyStore(state_dir).directory.exists()


def describe_new_keys(store: KeyStore, made: list[str], external: list[str], state_dir: Path) -> str:
    """What to say once when a swarm from before there were keys gets them; `external` are its agents of others."""
    named = [f"{name}.nk" for name in made[:MAX_NAMED]]
    if len(made) > MAX_NAMED:
        named.append(f"{len(made) - MAX_NAMED} more")
    voters = f" (for {', '.join(external)}: keys/voter-NAME.nk)" if external else ""
    return (
        f"the swarm in {state_dir} had no keys until now: made {len(made)} in {store.directory} ({', '.join(named)}); "
        f"its stream stays as it is. From now on programs of your own that publish need a key{voters}: "
        "`signalmesh keys add NAME --role voter`. `signalmesh up --open` goes back"
    )
