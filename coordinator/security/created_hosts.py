"""Keys of hosts in sandboxes that a provider creates: one for each sandbox, from its creation to its deletion.

`up` finds new and removed files in the directory of keys within half a second (coordinator.security.keys.ServedKeys).
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import replace

from bus.errors import UsageError
from bus.nats.credentials import Credentials, public_key_of
from bus.server.supervisor import config_file
from coordinator.security.keys import KeyStore

__all__ = ["HostKeys"]

ADMITTED_S = 10.0
"""`up` looks every half second; it is slower while its server restarts."""
POLL_INTERVAL_S = 0.05


class HostKeys:
    """The keys of the hosts of sandbox `sandbox`, in `store`."""

    def __init__(self, store: KeyStore, sandbox: str) -> None:
        self._store, self._sandbox = store, sandbox

    async def admit(self, host: str, base: Credentials) -> Credentials:
        """The credentials of this host, which the server knows from now on: `base` with its key.

        Raises:
            UsageError: the key cannot be made or used, or the server does not get it.
        """
        seed = await asyncio.to_thread(self._make, host)
        server = config_file(self._store.directory.parent)
        try:
            async with asyncio.timeout(ADMITTED_S):
                while public_key_of(seed) not in await asyncio.to_thread(server.read_text):  # noqa: ASYNC110 - a file
                    await asyncio.sleep(POLL_INTERVAL_S)
        except TimeoutError:
            raise UsageError(
                f"key {self._store.file(_identity(host))}: `up` has not given it to its server within "
                f"{ADMITTED_S:g} s: see its log"
            ) from None
        except OSError as error:
            raise UsageError(f"{server}: cannot be read: {error.strerror}") from None
        return replace(base, creds="", nkey_seed=seed)

    def _make(self, host: str) -> str:
        self._store.ensure(_identity(host))
        return self._store.seed(_identity(host))

    def public_key(self, host: str) -> str:
        """That of this host; empty if it has none that can be used."""
        try:
            return public_key_of(self._store.seed(_identity(host)))
        except UsageError:
            return ""

    def retain(self, hosts: Collection[str]) -> None:
        """Remove the keys of all other hosts of this sandbox: the server cuts off what is connected with them."""
        for identity in self._store.created([self._sandbox]):
            if identity not in map(_identity, hosts):
                self.revoke(identity.removeprefix("sandbox-"))

    def revoke(self, host: str) -> None:
        """Remove the key of this host."""
        self._store.file(_identity(host)).unlink(missing_ok=True)


def _identity(host: str) -> str:
    return f"sandbox-{host}"
