"""What `make check-supply` concludes from the reports of pip-audit."""

from __future__ import annotations

from tests.supply.__main__ import CONTROL, Audit, why_unaudited

VULNERABLE = {
    "name": "jinja2", "version": "2.11.2",
    "vulns": [{"id": "CVE-2020-28493", "fix_versions": ["2.11.3"], "aliases": [], "description": "slow"}],
}  # fmt: skip
SOUND = {"name": "orjson", "version": "3.11.4", "vulns": []}
UNKNOWN = {"name": "jinja2", "skip_reason": "Dependency not found: jinja2 (2.11.2)"}


def test_each_vulnerability_is_a_line_with_the_release_that_mends_it():
    unfixed = {
        "name": "a",
        "version": "1",
        "vulns": [{"id": "X-1", "fix_versions": []}, {"id": "X-2", "fix_versions": []}],
    }
    found = Audit.of_report({"dependencies": [SOUND, VULNERABLE, unfixed, UNKNOWN]})
    assert found.vulnerable == (
        "jinja2 2.11.2: CVE-2020-28493, mended in 2.11.3",
        "a 1: X-1, mended in no release",
        "a 1: X-2, mended in no release",
    )
    assert found.skipped == ("Dependency not found: jinja2 (2.11.2)",)


def test_an_index_that_does_not_know_the_control_proves_nothing():
    assert why_unaudited(Audit.of_report({"dependencies": [VULNERABLE]})) is None
    for report in ({"dependencies": [UNKNOWN]}, {"dependencies": [{**SOUND, "name": CONTROL[0]}]}):
        assert "reports no vulnerability of jinja2 2.11.2" in (why_unaudited(Audit.of_report(report)) or "")
    assert "no answer within" in (why_unaudited(Audit(failure="no answer within 300 s")) or "")
