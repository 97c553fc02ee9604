"""Credentials and trusted certificates for a NATS server.

By default each process reads the files named in its environment. File names are no secrets: they may appear in the
environment and in arguments. Only this module reads these variables.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import ssl
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson

from bus.errors import UsageError

__all__ = [
    "CA_VARIABLE",
    "CERTIFICATE_KEY_VARIABLE",
    "CERTIFICATE_VARIABLE",
    "CREDS_VARIABLE",
    "FIRST_VARIABLE",
    "INBOXES",
    "OTHERS",
    "PUBLIC_KEY",
    "SEED_VARIABLE",
    "SERVICES",
    "Credentials",
    "answers_of",
    "check_private",
    "credentials_from",
    "credentials_of",
    "inbox_of",
    "jwt_beside",
    "public_key_of",
    "read_private",
]

CREDS_VARIABLE = "SIGNALMESH_NATS_CREDS"
SEED_VARIABLE = "SIGNALMESH_NATS_NKEY"
CA_VARIABLE = "SIGNALMESH_NATS_CA"
CERTIFICATE_VARIABLE = "SIGNALMESH_NATS_CERT"
CERTIFICATE_KEY_VARIABLE = "SIGNALMESH_NATS_CERT_KEY"
FIRST_VARIABLE = "SIGNALMESH_NATS_TLS_FIRST"
JETSTREAM_API = "$JS.API"
INBOXES = "_INBOX."
SERVICES = "services"
"""Below a user's inboxes: where every agent may answer, as the discovery of services asks all of them at once."""
OTHERS = stat.S_IRWXG | stat.S_IRWXO
"""Bits of a mode by which others than its owner may use a file."""
MAX_FILE_BYTES = 64 << 10
SECRET = (CREDS_VARIABLE, SEED_VARIABLE)
NEW_KEY = "have it replaced (`signalmesh keys rotate`)"
JWT_SUFFIX = ".jwt"
_CREDS = """-----BEGIN NATS USER JWT-----
{jwt}
------END NATS USER JWT------

-----BEGIN USER NKEY SEED-----
{seed}
------END USER NKEY SEED------
"""
"""As `nsc` writes both into one file."""
PUBLIC_KEY = re.compile(r"U[A-Z2-7]{55}")
OPTIONS = {
    CREDS_VARIABLE: "--nats-creds",
    SEED_VARIABLE: "--nats-nkey",
    CA_VARIABLE: "--nats-ca",
    CERTIFICATE_VARIABLE: "--nats-cert",
    CERTIFICATE_KEY_VARIABLE: "--nats-cert-key",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """The contents of files, not their names; the secret ones are not in its `repr`.

    `creds` is a user's JWT and seed as `nsc` writes them, `nkey_seed` a seed alone, `nkey_file` the file that it was
    read from, if any, for errors. `jwt` is the JWT of the user with that seed, where the server wants one. `ca` are
    certificates (PEM) that are trusted instead of the system's, read from `ca_file`: with them no connection to another
    machine is made without TLS. `certificate` names the files of a client's certificate and its key, for OpenSSL reads
    only files. `tls_first`: the client starts TLS first, as a server with `handshake_first` and proxies in front of
    port 443 expect. `api` is the prefix of subjects at which JetStream's API is requested: an agent of a swarm with
    keys requests it of its host (agents/host/api_gateway.py), which is named `api_host`.
    """

    creds: str = field(default="", repr=False)
    nkey_seed: str = field(default="", repr=False)
    nkey_file: str = ""
    jwt: str = ""
    ca: str = ""
    ca_file: str = ""
    certificate: tuple[str, str] | None = None
    tls_first: bool = False
    api: str = JETSTREAM_API
    api_host: str = ""

    def options(self, url: str) -> dict[str, Any]:
        """Options for nats-py's `connect` to `url`.

        Raises:
            UsageError: `ca` contains no certificate, or the files of `certificate` cannot be used.
        """
        options: dict[str, Any] = {}
        creds = self.creds
        if not creds and self.nkey_seed:
            if self.jwt:
                creds = _CREDS.format(jwt=self.jwt, seed=self.nkey_seed)
            else:
                options["nkeys_seed_str"] = self.nkey_seed
            options["inbox_prefix"] = inbox_of(public_key_of(self.nkey_seed))
        if creds:
            from nats.aio.client import RawCredentials

            options["user_credentials"] = RawCredentials(creds)
        if self.ca or self.tls_first or url.startswith(("tls://", "wss://")):
            options["tls"] = self.context()
        if self.tls_first:
            options["tls_handshake_first"] = True
        return options

    def context(self) -> ssl.SSLContext:
        """How a connection is made with TLS: the server's certificate and name are verified, always.

        Raises:
            UsageError: as `options`.
        """
        try:
            context = ssl.create_default_context(cadata=self.ca or None)
        except (ssl.SSLError, ValueError) as error:
            raise UsageError(f"--nats-ca ({CA_VARIABLE}): expected certificates in PEM: {error}") from None
        context.minimum_version = ssl.TLSVersion.TLSv1_2  # also where this system's OpenSSL would allow less
        self.load_certificate(context)
        return context

    def load_certificate(self, context: ssl.SSLContext) -> None:
        """Have connections of this context present the client's certificate as its files are now, if there is one.

        Raises:
            UsageError: the files cannot be read, or do not belong together.
        """
        if self.certificate is None:
            return
        file, key = self.certificate
        try:
            context.load_cert_chain(file, key)
        except ssl.SSLError as error:
            mismatch = "KEY_VALUES_MISMATCH" in str(error)
            problem = "do not belong together" if mismatch else f"expected a certificate and its key in PEM: {error}"
            raise UsageError(f"--nats-cert {file} and --nats-cert-key {key}: {problem}") from None
        except OSError as error:
            raise UsageError(
                f"--nats-cert {file} and --nats-cert-key {key}: cannot be read: {error.strerror}"
            ) from None


def jwt_beside(file: Path) -> str:
    """The JWT of the user whose seed is in `file`: `NAME.jwt` beside `NAME.nk`; empty: there is none.

    A server with operators admits no nkey without one. It is no secret.

    Raises:
        UsageError: it cannot be read, is none, or is that of another user.
    """
    beside = file.with_suffix(JWT_SUFFIX)
    if not os.path.lexists(beside):
        return ""
    text = _read(beside, str(beside))[0].strip()
    user: object = None
    with contextlib.suppress(ValueError, LookupError, TypeError):
        user = orjson.loads(base64.urlsafe_b64decode(text.split(".")[1] + "=="))["sub"]
    if not (isinstance(user, str) and PUBLIC_KEY.fullmatch(user)):
        raise UsageError(
            f"{beside}: expected the JWT of the user in {file.name}: `nsc describe user --raw` prints it, and "
            "`signalmesh keys export --nsc ACCOUNT` the commands that write all"
        )
    own = ""
    with contextlib.suppress(UsageError, ValueError):  # who reads the key says what is wrong with it
        own = public_key_of(read_private(file, str(file), NEW_KEY).strip())
    if own not in ("", user):
        raise UsageError(
            f"{beside}: it is the JWT of the user {user}, expected that of {own}, whose key is in {file.name}: export "
            "the users again (`signalmesh keys export --nsc ACCOUNT`) and run what is printed"
        )
    return text


def read_private(file: Path, name: str, replacement: str) -> str:
    """The text of a file that its owner alone may read. Errors begin with `name`; `replacement` is what to do if
    somebody else may have read it.

    Raises:
        UsageError: it is missing, no file, no text, of another user, or readable by others.
    """
    text, about = _read(file, name)
    check_private(about, name, replacement)
    return text


def _read(file: Path, name: str) -> tuple[str, os.stat_result]:
    try:
        # Not blocking, because a pipe without a writer would hang.
        with open(file, opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)) as opened:
            about = os.fstat(opened.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise UsageError(f"{name}: expected a file, not a pipe or a device")
            text = opened.read(MAX_FILE_BYTES)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise UsageError(f"{name}: cannot be read: {reason}; expected a file of the user who runs this") from None
    return text, about


def check_private(about: os.stat_result, name: str, replacement: str) -> None:
    """Refuse a file of another user, or one that others may read or write; the arguments are those of `read_private`.

    Raises:
        UsageError: it is one.
    """
    if about.st_uid not in (os.geteuid(), 0):
        raise UsageError(f"{name}: belongs to another user (uid {about.st_uid}); expected this one: chown it")
    if about.st_mode & OTHERS:
        raise UsageError(
            f"{name}: others may read or write it (mode {stat.S_IMODE(about.st_mode):04o}): chmod 600 it; if somebody "
            f"may have read it, {replacement}"
        )


def public_key_of(seed: str) -> str:
    """The public key (U…) of a user's nkey seed.

    Raises:
        ValueError: `seed` is not one; the text is what it is instead.
    """
    import nkeys

    try:
        public: str = nkeys.from_seed(seed.encode()).public_key.decode()
    except (nkeys.NkeysError, ValueError, TypeError):  # it decodes base32 without a check of its own
        raise ValueError("other text") from None
    if not public.startswith("U"):
        raise ValueError("the seed of an account or an operator")
    return public


def inbox_of(public_key: str) -> str:
    """The prefix of all inboxes of the user with this nkey: where a server lets nobody else subscribe, only this user
    receives the answers to its requests.
    """
    return f"{INBOXES}{public_key}"


def answers_of(inbox: str, name: str) -> str:
    """Below the prefix `inbox` of a user's inboxes: where `name` answers the user's requests. With a key, a process may
    publish its answers there and nowhere else, so that they are in its own name and need no `allow_responses`.
    """
    return f"{inbox}.answer.{name}"


def credentials_from(environ: Mapping[str, str] | None = None) -> Credentials:
    """The contents of the files named in the environment.

    Raises:
        UsageError: a file cannot be read, has other content, or has a secret and may be read by others.
    """
    environ = os.environ if environ is None else environ

    creds, seed = (
        _content(environ, CREDS_VARIABLE, "BEGIN NATS USER JWT"),
        _content(environ, SEED_VARIABLE, "SU").strip(),
    )
    if seed:
        try:
            public_key_of(seed)
        except ValueError as error:
            raise UsageError(
                f"{_named(environ, SEED_VARIABLE)}: expected a user's nkey seed, 58 characters that begin with SU, "
                f"not {error}"
            ) from None
    if creds and seed:
        raise UsageError(f"--nats-creds ({CREDS_VARIABLE}) and --nats-nkey ({SEED_VARIABLE}): expected one of them")
    certificate, key = environ.get(CERTIFICATE_VARIABLE, ""), environ.get(CERTIFICATE_KEY_VARIABLE, "")
    if bool(certificate) != bool(key):
        raise UsageError(
            f"--nats-cert ({CERTIFICATE_VARIABLE}) and --nats-cert-key ({CERTIFICATE_KEY_VARIABLE}): expected both"
        )
    if key:
        read_private(Path(key), _named(environ, CERTIFICATE_KEY_VARIABLE), "use another key and certificate")
    return Credentials(
        creds=creds,
        nkey_seed=seed,
        nkey_file=environ[SEED_VARIABLE] if seed else "",
        jwt=jwt_beside(Path(environ[SEED_VARIABLE])) if seed else "",
        ca=_content(environ, CA_VARIABLE, "BEGIN CERTIFICATE"),
        ca_file=environ.get(CA_VARIABLE, ""),
        certificate=(certificate, key) if certificate else None,
        tls_first=environ.get(FIRST_VARIABLE, "").lower() in ("1", "true", "yes"),
    )


def _named(environ: Mapping[str, str], variable: str) -> str:
    return f"{OPTIONS[variable]} {environ[variable]} ({variable})"


def _content(environ: Mapping[str, str], variable: str, marker: str) -> str:
    """The text of the file that `variable` names, which has `marker` in it; empty if there is none."""
    if not (file := environ.get(variable)):
        return ""
    name = _named(environ, variable)
    try:
        text = read_private(Path(file), name, NEW_KEY) if variable in SECRET else Path(file).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{name}: cannot be read: {error}") from None
    if marker not in text:
        raise UsageError(f"{name}: expected a file with {marker!r} in it")
    return text


def credentials_of(seed: str, jwt: str = "") -> Credentials:
    """Those of the user with this nkey seed and JWT, with the trusted certificates of the environment.

    Raises:
        UsageError: a file of the environment cannot be used.
    """
    without = {name: value for name, value in os.environ.items() if name not in (CREDS_VARIABLE, SEED_VARIABLE)}
    return replace(credentials_from(without), nkey_seed=seed, jwt=jwt)
