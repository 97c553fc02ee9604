"""Makes a local certificate authority, and certificates that it signs. Each function imports the library it needs."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.x509 import Certificate, CertificateBuilder, GeneralName, KeyUsage

__all__ = ["AUTHORITY_LIFE", "LIFE", "Issued", "Purpose", "belongs", "issue", "new_authority", "signed_by"]

AUTHORITY_LIFE = timedelta(days=3650)
LIFE = timedelta(days=90)
BACKDATED = timedelta(hours=1)
"""Clocks of other machines may be a little behind."""
Purpose = Literal["server", "client"]


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate and its key, both in PEM."""

    certificate: bytes
    key: bytes


def new_authority(name: str, now: datetime) -> Issued:
    """A new authority of this name, with a key of its own."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    builder = _dated(x509.CertificateBuilder(subject, subject, key.public_key()), now, AUTHORITY_LIFE)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(signs=True), critical=True)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    return _pem(builder.add_extension(identifier, critical=False).sign(key, hashes.SHA256()), key)


def issue(
    authority: Issued,
    name: str,
    names: Iterable[str],
    purposes: Sequence[Purpose],
    now: datetime,
    life: timedelta = LIFE,
) -> Issued:
    """A certificate for these host names and addresses, signed by `authority`.

    Raises:
        ValueError: a name is neither, or the authority's files are no certificate and its key.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    ca = x509.load_pem_x509_certificate(authority.certificate)
    signer = serialization.load_pem_private_key(authority.key, None)
    if not isinstance(signer, ec.EllipticCurvePrivateKey):
        raise ValueError("expected the key of an elliptic curve")
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    builder = _dated(x509.CertificateBuilder(ca.subject, subject, key.public_key()), now, life)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(signs=False), critical=True)
    oid = x509.oid.ExtendedKeyUsageOID
    uses = [{"server": oid.SERVER_AUTH, "client": oid.CLIENT_AUTH}[purpose] for purpose in purposes]
    builder = builder.add_extension(x509.ExtendedKeyUsage(uses), critical=False)
    if alternatives := [_general_name(one) for one in dict.fromkeys(names)]:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    return _pem(builder.add_extension(identifier, critical=False).sign(signer, hashes.SHA256()), key)


def _dated(builder: CertificateBuilder, now: datetime, life: timedelta) -> CertificateBuilder:
    from cryptography import x509

    dated = builder.serial_number(x509.random_serial_number()).not_valid_before(now - BACKDATED)
    return dated.not_valid_after(now + life)


def _usage(*, signs: bool) -> KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=True, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=signs, crl_sign=signs, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _general_name(name: str) -> GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _pem(certificate: Certificate, key: EllipticCurvePrivateKey) -> Issued:
    from cryptography.hazmat.primitives import serialization

    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return Issued(certificate.public_bytes(serialization.Encoding.PEM), private)


def belongs(issued: Issued) -> bool:
    """Whether the key is that of the certificate.

    Raises:
        ValueError: one of them is neither.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    try:
        key = serialization.load_pem_private_key(issued.key, None)
    except TypeError:
        raise ValueError("the key has a password") from None
    public = x509.load_pem_x509_certificate(issued.certificate).public_key()
    encoding = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(*encoding) == public.public_bytes(*encoding)


def signed_by(certificate: bytes, authority: bytes) -> bool:
    """Whether the authority has signed this certificate.

    Raises:
        ValueError: one of them is no certificate.
    """
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature

    try:
        x509.load_pem_x509_certificate(certificate).verify_directly_issued_by(x509.load_pem_x509_certificate(authority))
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True
