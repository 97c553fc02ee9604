"""What `doctor` finds about certificates."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from bus.nats.key_files import write_private
from coordinator.doctor.tls_checks import check_tls
from coordinator.security.issuing import Issued, issue
from coordinator.security.tls_files import TlsFiles


def reissue(files: TlsFiles, begins: timedelta, life: timedelta) -> None:
    authority = Issued(files.authority.read_bytes(), files.key("ca").read_bytes())
    issued = issue(authority, "x", ["localhost"], ["server"], datetime.now(UTC) + begins, life)
    write_private(files.key("server"), issued.key.decode())
    write_private(files.certificate("server"), issued.certificate.decode())


def test_without_certificates_it_says_how_to_make_them(tmp_path: Path):
    found = check_tls(tmp_path, None)
    assert (found.level, "keys init --tls" in found.text) == ("ok", True)


def test_names_issuer_and_days_are_shown(tmp_path: Path):
    TlsFiles(tmp_path).ensure(["broker.example.org"])
    found = check_tls(tmp_path, None)
    assert found.level == "ok"
    for part in ("broker.example.org", ": 89 days left", "issuer CN=signalmesh", "3649 days left"):
        assert part in found.text


@pytest.mark.parametrize(
    ("begins", "life", "level", "text"),
    [
        (0, 5, "warning", "4 days left"),
        (-20, 10, "error", "has expired: it is valid from"),
        (5, 20, "error", "is not valid yet: it is valid from"),
    ],
)
def test_a_certificate_that_ends_soon_or_is_not_valid_is_reported(
    tmp_path: Path, begins: int, life: int, level: str, text: str
):
    files = TlsFiles(tmp_path)
    files.ensure()
    reissue(files, timedelta(days=begins), timedelta(days=life))
    found = check_tls(tmp_path, None)
    assert (found.level, text in found.text, bool(found.remedy)) == (level, True, True), found


def test_a_file_that_cannot_be_used_is_an_error(tmp_path: Path):
    files = TlsFiles(tmp_path)
    files.ensure()
    files.key("route").chmod(0o644)
    found = check_tls(tmp_path, None)
    assert (found.level, "route-key.pem: others may read" in found.text) == ("error", True)
