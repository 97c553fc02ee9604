"""`keys init --tls`: makes the certificates of a state directory, and shows them."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from bus.utils.terminal import escape_control
from coordinator.reporting.tables import Cell, Column, console, print_table
from coordinator.security.tls_files import AUTHORITY, CERTIFICATES, TlsFiles, found_names

__all__ = ["make_certificates"]


def make_certificates(state_dir: Path, names: tuple[str, ...]) -> None:
    """Make the authority and the certificates that are missing, renew those that expire soon or lack `names`, and print
    all of them.

    Raises:
        UsageError: a file cannot be used or written, or a name is none.
    """
    files = TlsFiles(state_dir)
    made = files.ensure(names if names or files.exists() else found_names())
    now = datetime.now(UTC)
    found = {name: files.info(name) for name in (AUTHORITY, *CERTIFICATES)}
    rows: list[list[Cell]] = [
        [name, "made" if name in made else "as before", str(info.days_left(now)), ", ".join(info.names)]
        for name, info in found.items()
    ]
    print_table(console(), (Column("certificate"), Column("", 1), Column("days left"), Column("names", 1)), rows)
    text = (
        f"issuer: {found[AUTHORITY].subject}. The embedded server of `signalmesh up` demands TLS from its next start "
        "on. Give "
        f"{files.authority} to programs of your own, which trust it: nats --tlsca FILE"
    )
    console().print(escape_control(text), soft_wrap=True)
