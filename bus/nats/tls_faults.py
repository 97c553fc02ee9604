"""What is wrong with a TLS connection, and the option or the place that corrects it, from the texts of OpenSSL."""

from __future__ import annotations

import re

__all__ = ["CLIENT_CERTIFICATE", "NO_TLS", "explain_tls"]

CLIENT_CERTIFICATE = "the server demands a client certificate"
"""Mutual TLS: a NATS server says it before the handshake, unless TLS comes first."""
NO_TLS = "the server offers no TLS"
"""Said by a client that demands it: the server's first line, which anybody on the way could have changed, has none."""
_CA = "name a file with the certificate of its authority: --nats-ca (SIGNALMESH_NATS_CA)"
_FAULTS: tuple[tuple[str, str, str], ...] = (
    (
        f"{CLIENT_CERTIFICATE}|alert certificate required|alert bad certificate",
        CLIENT_CERTIFICATE,
        (
            "name one of an authority that the server knows, and its key: --nats-cert (SIGNALMESH_NATS_CERT), "
            "--nats-cert-key (SIGNALMESH_NATS_CERT_KEY)"
        ),
    ),
    (
        "tls: unknown certificate authority|alert unknown ca",
        "the server does not know the authority of the client's certificate",
        "name a certificate of its authority: --nats-cert (SIGNALMESH_NATS_CERT)",
    ),
    (
        "unable to get local issuer|self[- ]signed certificate|unable to verify the first",
        "the server's certificate is not signed by an authority that is known here",
        _CA,
    ),
    (
        "certificate has expired",
        "the server's certificate has expired",
        "renew it on the server; if it is valid, set the clock of this machine",
    ),
    (
        "certificate is not yet valid",
        "the server's certificate is not valid yet",
        "set the clock of this machine, or issue the certificate again",
    ),
    (
        "Hostname mismatch|IP address mismatch",
        "the server's certificate is for another host",
        "connect by a name or address that it contains: --nats, or issue it for this one",
    ),
    (
        NO_TLS,
        "it offers no TLS, and none but a connection with TLS is made with tls:// or a CA file",
        "enable TLS on the server, or write nats:// and name no --nats-ca (SIGNALMESH_NATS_CA) to connect without",
    ),
    (
        "wrong version number|record layer failure|packet length too long|http request",
        "the server does not speak TLS there",
        "write nats:// instead of tls://, name its TLS port, or leave out --nats-tls-first (SIGNALMESH_NATS_TLS_FIRST)",
    ),
    (
        "alert protocol version|unsupported protocol|no shared cipher|handshake failure",
        "the server and this client have no TLS version or cipher in common",
        "allow TLS 1.2 or newer on the server",
    ),
    ("certificate verify failed", "the server's certificate cannot be verified", _CA),
)
"""Of each fault: what OpenSSL says, what it means, what to do."""


def explain_tls(reason: str) -> tuple[str, str] | None:
    """What is wrong, and what to do; None if `reason` is no fault of TLS."""
    for pattern, problem, remedy in _FAULTS:
        if re.search(pattern, reason, re.IGNORECASE):
            return problem, remedy
    return None
