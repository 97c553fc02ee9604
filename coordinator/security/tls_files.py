"""TLS of a swarm: the directory `tls` of its state directory, with an authority and the certificates it has signed.

The directory decides: where it has an authority, the embedded server admits no connection without TLS.
"""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import os
import re
import secrets
import shlex
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from bus.errors import UsageError
from bus.nats.certificates import CertificateInfo, read_certificates
from bus.nats.credentials import (
    CA_VARIABLE,
    CERTIFICATE_KEY_VARIABLE,
    CERTIFICATE_VARIABLE,
    check_private,
)
from bus.nats.key_files import write_private
from bus.nats.urls import is_loopback, redacted_url, urls_of
from bus.server.config import tls_block
from coordinator.config.settings import SwarmConfig
from coordinator.security.issuing import LIFE, Issued, Purpose, belongs, issue, new_authority, signed_by

__all__ = [
    "CERTIFICATES",
    "ServedTls",
    "TlsFiles",
    "cli_options",
    "found_names",
    "plain_remarks",
    "serve_tls",
    "use_authority",
]

DIRECTORY = "tls"
AUTHORITY = "ca"
CERTIFICATES: dict[str, tuple[Purpose, ...]] = {
    "server": ("server",),
    "route": ("server", "client"),
    "client": ("client",),
}
"""Name -> what it is for: a listener for clients or WebSockets, the routes of a cluster, a client of mutual TLS."""
RENEWED_AT = LIFE / 3
"""A certificate is renewed when so much of its life is left."""
MAX_FILE_BYTES = 64 << 10
HOST_NAME = re.compile(
    r"(\*\.)?([A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.)*[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
)
LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""In every server's certificate: the embedded server listens there."""
LOOK_S = 600.0
"""Between two looks at the dates of certificates."""


def _now() -> datetime:
    return datetime.now(UTC)


class TlsFiles:
    """The directory `tls` of a state directory: NAME.pem, and NAME-key.pem for this user alone."""

    def __init__(self, state_dir: Path, clock: Callable[[], datetime] = _now) -> None:
        self.directory = state_dir.absolute() / DIRECTORY
        self._clock = clock

    def certificate(self, name: str) -> Path:
        """The file of a certificate, or of the authority's."""
        return self.directory / f"{name}.pem"

    def key(self, name: str) -> Path:
        """The file of its key."""
        return self.directory / f"{name}-key.pem"

    @property
    def authority(self) -> Path:
        """The file that clients trust."""
        return self.certificate(AUTHORITY)

    def exists(self) -> bool:
        """Whether there is an authority: then the embedded server has TLS."""
        return os.path.lexists(self.authority)

    def ensure(self, names: Iterable[str] = ()) -> tuple[str, ...]:
        """Make what is missing, renew what expires soon, and have the certificates name `names` as well.

        Returns what was made or renewed.

        Raises:
            UsageError: a file cannot be used or written, or is not valid at this machine's clock; a name is none.
        """
        wanted = tuple(dict.fromkeys(map(_checked_name, names)))
        made = []
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.directory.chmod(0o700)
            if not self.exists():
                self._write(
                    AUTHORITY, new_authority(f"signalmesh {socket.gethostname()} {secrets.token_hex(4)}", self._clock())
                )
                made.append(AUTHORITY)
            self._check_dates(AUTHORITY, self.info(AUTHORITY))
            new = bool(made)
            made += [name for name in CERTIFICATES if self._renew(name, wanted, new=new)]
        except OSError as error:
            raise UsageError(f"{self.directory}: certificates cannot be written there: {error.strerror}") from None
        return tuple(made)

    def _renew(self, name: str, wanted: Sequence[str], *, new: bool) -> bool:
        """Issue a certificate again if it is missing, expires soon or has not all these names; returns whether."""
        names = wanted
        if not new and os.path.lexists(self.certificate(name)):
            self.check(name)
            info = self.info(name)
            now = self._clock()
            if now < info.not_before:
                self._check_dates(name, info)
            names = tuple(dict.fromkeys((*info.names, *wanted)))
            named = name == "client" or set(names) == set(info.names)
            if named and info.not_after - now > RENEWED_AT:
                return False
        if not os.path.lexists(self.key(AUTHORITY)):
            raise UsageError(
                f"{self.key(AUTHORITY)}: there is no such file, and {self.certificate(name)} has to be issued "
                f"again: put the authority's key there, or remove {self.directory}, and `signalmesh keys init --tls` "
                "makes another authority"
            )
        self.check(AUTHORITY)
        alternatives = () if name == "client" else (*LOOPBACK, *(names or found_names()))
        self._write(
            name, issue(self._read(AUTHORITY), f"signalmesh {name}", alternatives, CERTIFICATES[name], self._clock())
        )
        return True

    def _write(self, name: str, issued: Issued) -> None:
        # The key first: a server that reloads between the two reports a pair that does not belong together, and keeps
        # the old one. The next look reloads it.
        write_private(self.key(name), issued.key.decode())
        write_private(self.certificate(name), issued.certificate.decode(), mode=0o644)

    def _read(self, name: str) -> Issued:
        return Issued(_content(self.certificate(name)), _content(self.key(name)))

    def info(self, name: str) -> CertificateInfo:
        """What a certificate says.

        Raises:
            UsageError: the file is missing, empty or of other content.
        """
        file = self.certificate(name)
        try:
            return read_certificates(_content(file))[0]
        except (ValueError, IndexError):
            raise UsageError(f"certificate {file}: expected a certificate in PEM{self._remedy(name)}") from None

    def check(self, name: str) -> None:
        """Check a certificate and its key: content, who may read the key, that they belong together, and the authority.

        Raises:
            UsageError: with what is wrong, and the remedy.
        """
        self.info(name)
        certificate, key = self.certificate(name), self.key(name)
        try:
            about = key.stat()
        except OSError as error:
            raise UsageError(f"key {key}: cannot be read: {error.strerror}{self._remedy(name)}") from None
        check_private(about, f"key {key}", self._remedy(name).removeprefix("; "))
        issued = self._read(name)
        try:
            together = belongs(issued)
        except ValueError:
            raise UsageError(
                f"key {key}: expected a private key in PEM, without a password{self._remedy(name)}"
            ) from None
        if not together:
            raise UsageError(f"{certificate} and {key}: the key is not that of the certificate{self._remedy(name)}")
        if not signed_by(issued.certificate, _content(self.authority)):
            raise UsageError(
                f"certificate {certificate}: its issuer is {self.info(name).issuer!r}, which is not the authority in "
                f"{self.authority} ({self.info(AUTHORITY).subject!r}){self._remedy(name)}"
            )

    def _check_dates(self, name: str, info: CertificateInfo) -> None:
        if problem := info.date_problem(self._clock()):
            raise UsageError(
                f"certificate {self.certificate(name)} {problem}; set the clock of this machine if it is off"
                f"{self._remedy(name)}"
            )

    def _remedy(self, name: str) -> str:
        if name == AUTHORITY:
            return (
                f"; for another authority end the swarm, remove {self.directory}, and run `signalmesh keys init --tls`"
            )
        return f"; remove {self.certificate(name)}, and `signalmesh keys init --tls` issues it again"

    def stamp(self) -> tuple[int, ...]:
        """Changes whenever the server's certificate, its key or the authority's certificate is replaced."""
        found = []
        for file in (self.certificate("server"), self.key("server"), self.authority):
            with contextlib.suppress(OSError):
                found.append(file.stat().st_mtime_ns)
        return tuple(found)

    def environment(self, *, mutual: bool) -> dict[str, str]:
        """The variables by which processes of this machine connect."""
        own = {CERTIFICATE_VARIABLE: str(self.certificate("client")), CERTIFICATE_KEY_VARIABLE: str(self.key("client"))}
        return {CA_VARIABLE: str(self.authority), **(own if mutual else {})}

    def server_block(self, *, mutual: bool) -> str:
        """The lines of nats-server's configuration."""
        return tls_block(self.certificate("server"), self.key("server"), self.authority if mutual else None)


class ServedTls:
    """The certificates that the server of a running swarm has, and those that its directory has now."""

    def __init__(
        self, files: TlsFiles, *, mutual: bool, names: Iterable[str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Make what is missing and renew what expires soon; the certificates have `names` as well.

        Raises:
            UsageError: a certificate or a key cannot be used or made.
        """
        self._files, self._monotonic = files, clock
        self.made = files.ensure(names)
        self.environment = files.environment(mutual=mutual)
        self.block = files.server_block(mutual=mutual)
        self._stamp, self._looked_at = files.stamp(), clock()

    def update(self) -> tuple[str, ...] | None:
        """Look whether files were replaced, and renew what expires soon: what was renewed. None: nothing has changed.

        The server has to read its files again otherwise.

        Raises:
            UsageError: a certificate or a key cannot be used; the server goes on with those that it has.
        """
        replaced = self._files.stamp() != self._stamp
        if not replaced and self._monotonic() - self._looked_at < LOOK_S:
            return None
        self._stamp, self._looked_at = self._files.stamp(), self._monotonic()
        self._files.check("server")
        renewed = self._files.ensure()
        self._stamp = self._files.stamp()
        return renewed if renewed or replaced else None


def found_names(*urls: str | None) -> tuple[str, ...]:
    """The names and addresses of this machine, and the hosts of these URLs."""
    import psutil

    found = [*LOOPBACK, socket.gethostname()]
    for interface in psutil.net_if_addrs().values():
        found += [one.address for one in interface if one.family in (socket.AF_INET, socket.AF_INET6)]
    for url in urls:
        for one in urls_of(url) if url else ():
            with contextlib.suppress(ValueError):
                found.append(urlsplit(one if "://" in one else f"nats://{one}").hostname or "")
    usable = []
    for name in found:
        with contextlib.suppress(UsageError):  # an address of one link, such as fe80::1%eth0, and odd host names
            usable.append(_checked_name(name))
    return tuple(dict.fromkeys(usable))


def _checked_name(name: str) -> str:
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(name)
        if "%" not in name:
            return str(address)
    if len(name) > 253 or not HOST_NAME.fullmatch(name):
        raise UsageError(f"--name {name!r}: expected a host name or an IP address, without scheme and port")
    return name.lower()


def _content(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            return opened.read(MAX_FILE_BYTES)
    except FileNotFoundError:
        raise UsageError(f"{file}: there is no such file; `signalmesh keys init --tls` makes it") from None
    except OSError as error:
        raise UsageError(
            f"{file}: cannot be read: {error.strerror}; expected a file of the user who runs this"
        ) from None


def serve_tls(
    config: SwarmConfig, state_dir: Path, *, asked: bool, url: str | None, public: str | None
) -> ServedTls | None:
    """The certificates of the embedded server; None: it has no TLS, or the server is that of `url` (--nats).

    At a `url` with TLS this process, and what it starts, trust the authority of the state directory, if there is one.

    Raises:
        UsageError: TLS is asked for, and cannot be had.
    """
    settings, files = config.nats, TlsFiles(state_dir)
    wanted = [
        name
        for name, value in (
            ("--tls", asked),
            (f"{config.file}: nats.tls", settings.tls),
            (f"{config.file}: nats.tls_verify_clients", settings.tls_verify_clients),
        )
        if value
    ]
    if url is not None:
        if wanted:
            raise UsageError(
                f"{wanted[0]}: is about the embedded server; the server of --nats has TLS by its own configuration: "
                "write tls:// in its address"
            )
        use_authority(state_dir, url)
        return None
    if not (asked or settings.tls or files.exists()):
        if wanted:
            raise UsageError(
                f"{wanted[0]}: expected with TLS: set tls = true in [nats], or `signalmesh keys init --tls`"
            )
        return None
    if settings.tls_verify_clients and (remote := [one.name for one in config.sandboxes if one.e2b is not None]):
        raise UsageError(
            f"{config.file}: sandboxes.{remote[0]}: a client's certificate is not handed to sandboxes at E2B; remove "
            "nats.tls_verify_clients"
        )
    return ServedTls(files, mutual=settings.tls_verify_clients, names=found_names(public) if public else ())


def cli_options(url: str) -> str:
    """The options by which NATS's own command line trusts the server at `url` as this process does; else empty."""
    if not url.startswith(("tls://", "wss://")):
        return ""
    options = {"--tlsca": CA_VARIABLE, "--tlscert": CERTIFICATE_VARIABLE, "--tlskey": CERTIFICATE_KEY_VARIABLE}
    return "".join(
        f" {option} {shlex.quote(file)}" for option, name in options.items() if (file := os.environ.get(name))
    )


def plain_remarks(*urls: str | None) -> Iterator[str]:
    """What to say of addresses of other machines where messages and keys pass without TLS."""
    for one in itertools.chain.from_iterable(urls_of(url) for url in urls if url):
        parts = urlsplit(one if "://" in one else f"nats://{one}")
        if parts.scheme in ("nats", "ws") and not is_loopback(parts.hostname or ""):
            yield (
                f"{redacted_url(one)}: messages pass there without TLS, and whoever is on the way can read and change "
                "them; enable TLS on that server, and write tls:// (wss://) instead"
            )


def use_authority(state_dir: Path, url: str) -> None:
    """At a URL with TLS have this process trust the authority of a state directory, and present its certificate of a
    client, unless it was given others.
    """
    if not url.startswith(("tls://", "wss://")) or os.environ.get(CA_VARIABLE):
        return
    files = TlsFiles(state_dir)
    if files.exists():
        mutual = not os.environ.get(CERTIFICATE_VARIABLE)
        found = files.environment(mutual=mutual and files.certificate("client").exists())
        os.environ.update({name: value for name, value in found.items() if value})
