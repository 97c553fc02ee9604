"""A nats-server with the configuration of a swarm with keys, without the swarm's processes."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bus.messages.subjects import Subjects
from bus.nats.bus import NatsBus
from bus.nats.credentials import Credentials, public_key_of
from bus.nats.streams import StreamLimits, ensure_streams
from bus.server.binary import find_binary
from bus.server.config import configuration
from coordinator.config.loader import parse_swarm
from coordinator.config.settings import ResolvedSwarm
from coordinator.security.keys import KeyStore, authorization, identities
from coordinator.security.permissions import UNNAMED as NO_KEY

GUARD_S = 30.0
VOTER = "voter-outsider"
UNNAMED = "nobody"
"""In place of an identity: a client without a key."""


def default_swarm() -> ResolvedSwarm:
    return parse_swarm({}, "built-in defaults", "").resolve()


class Secured:
    """A running server at `url`; `keys` are those of the default swarm, which an open server ignores."""

    def __init__(self, url: str, keys: KeyStore, log: Path, *, is_open: bool) -> None:
        self.url, self.keys, self.is_open, self.log = url, keys, is_open, log

    @property
    def pid(self) -> int:
        """The server's process."""
        return pid_of(self.log.parent)

    def owner(self, public_key: str) -> str:
        """Whose key it is, as `up` names it."""
        owners = {public_key_of(self.keys.seed(name)): name for name in identities(default_swarm()) if name != NO_KEY}
        return owners.get(public_key, NO_KEY if not public_key else f"unknown key {public_key}")

    async def connect(self, identity: str) -> NatsBus:
        """Connect as this identity, with the swarm's streams in place."""
        credentials = Credentials() if identity == UNNAMED else Credentials(nkey_seed=self.keys.seed(identity))
        bus = await NatsBus.connect(self.url, "swarm", identity, credentials=credentials)
        if identity == "operator":
            await ensure_streams(bus, StreamLimits(max_bytes=16 << 20))
        return bus


def pid_of(directory: Path) -> int:
    """The process of the server that runs in this directory."""
    [ports] = directory.glob("*.ports")
    return int(ports.stem.rpartition("_")[2])


@contextmanager
def secured_server(directory: Path, *, is_open: bool = False) -> Iterator[Secured]:
    """The server with the configuration that `up` generates for the default swarm; `is_open`: without its users."""
    keys, granted = KeyStore(directory), identities(default_swarm(), (VOTER,))
    keys.ensure(*granted)
    users = "" if is_open else authorization(Subjects("swarm"), keys.public_keys(granted), granted)
    with served(directory, users) as url:
        yield Secured(url, keys, directory / "nats.log", is_open=is_open)


@contextmanager
def served(directory: Path, users: str) -> Iterator[str]:
    """The address of a server with the configuration of the embedded one and these lines about users and TLS."""
    directory.mkdir(exist_ok=True)
    text = configuration(
        name="secured",
        port=0,
        directory=directory,
        log=directory / "nats.log",
        durability="process",
        max_store=8 << 30,
    )
    (directory / "nats.conf").write_text(text + users)
    process = subprocess.Popen([find_binary(), "-c", directory / "nats.conf"], stderr=subprocess.DEVNULL)
    try:
        yield _url(directory, process)
    finally:
        process.kill()
        process.wait()


def _url(directory: Path, process: subprocess.Popen[bytes]) -> str:
    until = time.monotonic() + GUARD_S
    while time.monotonic() < until:
        assert process.poll() is None, (directory / "nats.log").read_text()
        for ports in directory.glob("*.ports"):
            try:
                return str(json.loads(ports.read_text())["nats"][0])
            except (ValueError, LookupError):
                continue  # it is being written
    raise AssertionError("the server did not start")
