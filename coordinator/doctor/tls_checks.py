"""The check of `doctor` of the certificates in the state directory, by which it connects itself."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from bus.errors import UsageError
from coordinator.reporting.findings import Finding, error, ok, warning
from coordinator.runner.run_record import Run
from coordinator.security.tls_files import AUTHORITY, CERTIFICATES, TlsFiles, use_authority

__all__ = ["check_tls"]

CHECK = "TLS"
SOON_DAYS = 14
"""`up` renews earlier: what is so close to its end is not renewed."""
AUTHORITY_SOON_DAYS = 180


def check_tls(state_dir: Path, run: Run | None) -> Finding:
    """Whether the certificates can be used, until when, and for which names."""
    files = TlsFiles(state_dir)
    if not files.exists():
        if run is not None and run.url.startswith(("tls://", "wss://")):
            return ok(CHECK, "the server of this swarm has TLS, by certificates of its own")
        return ok(CHECK, "none: `signalmesh keys init --tls` makes certificates, for a bus that others can reach")
    now = datetime.now(UTC)
    try:
        for name in (AUTHORITY, *CERTIFICATES):
            files.check(name)
        authority, server = files.info(AUTHORITY), files.info("server")
        for name, info in ((AUTHORITY, authority), ("server", server)):
            if problem := info.date_problem(now):
                remedy = "set the clock of this machine if it is off; else `signalmesh keys init --tls` renews it"
                return error(CHECK, f"certificate {files.certificate(name)} {problem}", remedy)
    except UsageError as problem:
        return error(CHECK, str(problem), "")  # its text has the remedy
    if run is not None:
        use_authority(state_dir, run.url)
    left = {AUTHORITY: authority.days_left(now), "server": server.days_left(now)}
    text = (
        f"certificate for {server.listed_names()}: {left['server']} days left; issuer {authority.subject}: "
        f"{left[AUTHORITY]} days left"
    )
    if left[AUTHORITY] < AUTHORITY_SOON_DAYS:
        remedy = (
            f"end the swarm, remove {files.directory}, run `signalmesh keys init --tls`, and hand out the new ca.pem"
        )
        return warning(CHECK, text, remedy)
    if left["server"] < SOON_DAYS:
        return warning(
            CHECK, text, "`signalmesh keys init --tls` renews it, as `up` does at its start and while it runs"
        )
    return ok(CHECK, text)
