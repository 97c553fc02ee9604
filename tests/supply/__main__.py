"""`BIN/python -m tests.supply`: known vulnerabilities of the locked requirements, and a bill of materials.

BIN is an environment of requirements-supply.lock. pip-audit also says "no known vulnerabilities" if the package index
knows none at all, as a mirror may. So a release with a known one is looked up first: if that is not reported, nothing
is audited and the output says why. Ends with 1 if a requirement has a known vulnerability; arguments go to pip-audit.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SBOM = ROOT / "build" / "sbom.cdx.json"
CONTROL = ("jinja2", "2.11.2")
"""A release with known vulnerabilities (CVE-2020-28493 and later ones)."""
AUDIT_S = 300.0


@dataclass(frozen=True)
class Audit:
    """What pip-audit reported of one file, as lines, and what it left out; or why it reported nothing."""

    vulnerable: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    failure: str | None = None

    @classmethod
    def of_report(cls, report: dict[str, Any]) -> Audit:
        vulnerable, skipped = [], []
        for dependency in report["dependencies"]:
            if "skip_reason" in dependency:
                skipped.append(dependency["skip_reason"])
            for known in dependency.get("vulns", ()):
                fixed = " or ".join(known["fix_versions"]) or "no release"
                vulnerable.append(f"{dependency['name']} {dependency['version']}: {known['id']}, mended in {fixed}")
        return cls(tuple(vulnerable), tuple(skipped))


def why_unaudited(control: Audit) -> str | None:
    """Why audits would prove nothing; None if the control's vulnerability was reported."""
    if control.vulnerable:
        return None
    if control.failure is not None:
        return f"the package index did not answer pip-audit: {control.failure}"
    return f"the package index reports no vulnerability of {' '.join(CONTROL)}, which has known ones: it is no source"


def audit(requirements: Path, arguments: list[str]) -> Audit:
    """Run pip-audit on a lock file."""
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "report.json"
        command = [
            sys.executable, "-m", "pip_audit", "--require-hashes", "--disable-pip", "--progress-spinner=off",
            "--format=json", f"--output={report}", f"--requirement={requirements}", *arguments,
        ]  # fmt: skip
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=AUDIT_S)
        except subprocess.TimeoutExpired:
            return Audit(failure=f"no answer within {AUDIT_S:g} s")
        if not report.exists() or not report.stat().st_size:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            return Audit(failure=re.sub(r"https?://\S+", "(address)", (lines or ["no reason was given"])[-1])[:300])
        return Audit.of_report(json.loads(report.read_text()))


def audit_control() -> Audit:
    name, version = CONTROL
    with tempfile.TemporaryDirectory() as directory:
        requirements = Path(directory) / "control.txt"
        requirements.write_text(f"{name}=={version} --hash=sha256:{'0' * 64}\n")  # nothing is downloaded
        return audit(requirements, [])


def write_sbom() -> int:
    """Write the bill of materials of what the product installs; returns the number of its components.

    Raises:
        RuntimeError: it does not have exactly the requirements of the lock file.
    """
    SBOM.parent.mkdir(exist_ok=True)
    lock = ROOT / "requirements.lock"
    subprocess.run(
        [sys.executable, "-m", "cyclonedx_py", "requirements", str(lock), f"--pyproject={ROOT / 'pyproject.toml'}",
         "--output-reproducible", f"--output-file={SBOM}"],
        check=True, capture_output=True,
    )  # fmt: skip
    components = {(each["name"], each["version"]) for each in json.loads(SBOM.read_text())["components"]}
    locked = set(re.findall(r"^([\w.-]+)==([^ ]+)", lock.read_text(), re.MULTILINE))
    if components != locked:
        raise RuntimeError(f"{SBOM}: expected the requirements of {lock}; different: {components ^ locked}")
    return len(components)


def main(arguments: list[str]) -> int:
    print(f"bill of materials: {write_sbom()} components in {SBOM.relative_to(ROOT)}")
    if why := why_unaudited(audit_control()):
        print(f"vulnerabilities: not checked; {why}")
        return 0
    found = False
    for lock in sorted(ROOT.glob("requirements*.lock")):
        result = audit(lock, arguments)
        for line in (*result.vulnerable, *result.skipped, *([result.failure] if result.failure else [])):
            print(f"{lock.name}: {line}")
        print(f"{lock.name}: {len(result.vulnerable)} known vulnerabilities, {len(result.skipped)} not checked")
        found |= bool(result.vulnerable or result.failure)
    return int(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
