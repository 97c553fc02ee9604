"""Certificates: what one says, and the one that a NATS server presents. Their library is imported where one is read."""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from bus.errors import TlsFault
from bus.nats.credentials import Credentials
from bus.nats.tls_faults import explain_tls
from bus.nats.urls import redacted_url, urls_of
from bus.utils.aio import start_tls

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

__all__ = ["CertificateInfo", "presented_certificate", "read_certificates", "tls_fault"]

LOOK_S = 2.0
"""How long a server has to present its certificate for an error's text."""
MOST_NAMES = 12
"""Names of a certificate in one text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateInfo:
    """What a certificate says. `names` are the host names and addresses that it is for."""

    subject: str
    issuer: str
    names: tuple[str, ...]
    not_before: datetime
    not_after: datetime

    def days_left(self, now: datetime) -> int:
        """Whole days until it expires, negative afterwards."""
        return (self.not_after - now).days

    def date_problem(self, now: datetime) -> str:
        """Why it is not valid at `now`, this machine's clock; empty if it is."""
        if self.not_before <= now <= self.not_after:
            return ""
        which = "is not valid yet" if now < self.not_before else "has expired"
        return (
            f"{which}: it is valid from {_moment(self.not_before)} to {_moment(self.not_after)}, and this machine's "
            f"clock says {_moment(now)}"
        )

    def listed_names(self) -> str:
        """Its names for a text."""
        more = [f"{len(self.names) - MOST_NAMES} more"] if len(self.names) > MOST_NAMES else []
        return ", ".join([*self.names[:MOST_NAMES], *more]) or "no name at all"


def _moment(when: datetime) -> str:
    return f"{when.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def read_certificates(pem: bytes) -> list[CertificateInfo]:
    """The certificates in a PEM file, in its order.

    Raises:
        ValueError: it has none, or a damaged one.
    """
    from cryptography import x509

    with _strange_is_damaged():
        return [_info(certificate) for certificate in x509.load_pem_x509_certificates(pem)]


@contextlib.contextmanager
def _strange_is_damaged() -> Iterator[None]:
    """What the library does not know is a ValueError too."""
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        yield
    except (
        x509.InvalidVersion,
        x509.DuplicateExtension,
        x509.UnsupportedGeneralNameType,
        UnsupportedAlgorithm,
    ) as error:
        raise ValueError(str(error)) from None


def _info(certificate: Certificate) -> CertificateInfo:
    from cryptography import x509

    names: list[str] = []
    with contextlib.suppress(x509.ExtensionNotFound):
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names = [*found.get_values_for_type(x509.DNSName), *map(str, found.get_values_for_type(x509.IPAddress))]
    return CertificateInfo(
        subject=certificate.subject.rfc4514_string(),
        issuer=certificate.issuer.rfc4514_string(),
        names=tuple(names),
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
    )


async def presented_certificate(url: str, *, tls_first: bool) -> CertificateInfo | None:
    """The certificate that the server at `url` presents, for the text of an error; None if it shows none.

    Nothing is verified here, and nothing but the handshake is sent: it is about why a connection was refused.
    """
    from cryptography import x509

    parts = urlsplit(url if "://" in url else f"nats://{url}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    first = tls_first or parts.scheme == "wss"
    port = parts.port or (443 if parts.scheme == "wss" else 4222)
    writers = []
    try:
        async with asyncio.timeout(LOOK_S):
            reader, writer = await asyncio.open_connection(parts.hostname, port, ssl=context if first else None)
            writers.append(writer)
            if not first:
                await reader.readline()
                writers.append(await start_tls(reader, writer, context, parts.hostname))
        presented = writers[-1].get_extra_info("ssl_object").getpeercert(binary_form=True)
        with _strange_is_damaged():
            return _info(x509.load_der_x509_certificate(presented)) if presented else None
    except (OSError, ValueError):  # ssl's errors and TimeoutError are OSErrors
        return None
    finally:
        for writer in writers:
            writer.transport.abort()


async def tls_fault(url: str, reason: str, credentials: Credentials) -> TlsFault | None:
    """The error about `reason`, the text of a refused connection; None if that is no fault of TLS.

    What is wrong with a certificate is named: its dates and this machine's clock, its names, or its issuer.
    """
    explained = explain_tls(reason)
    if explained is None:
        return None
    problem, remedy = explained
    if re.search("certificate verify failed", reason, re.IGNORECASE):
        one = urls_of(url)[0]
        found = await presented_certificate(one, tls_first=credentials.tls_first)
        if found is not None:
            problem = _named(problem, found, reason, credentials)
    return TlsFault(redacted_url(url), reason, problem, remedy)


def _named(problem: str, found: CertificateInfo, reason: str, credentials: Credentials) -> str:
    dates = found.date_problem(datetime.now(UTC))
    if re.search("expired|not yet valid", reason, re.IGNORECASE):
        return f"the server's certificate {dates}" if dates else f"{problem}, or that of its authority"
    if re.search("hostname mismatch|address mismatch", reason, re.IGNORECASE):
        return f"{problem}: it is for {found.listed_names()}"
    trusted = credentials.ca_file or ("the given authority" if credentials.ca else "the authorities of this system")
    return f"{problem}: its issuer is {found.issuer!r}, and that is not in {trusted}"
