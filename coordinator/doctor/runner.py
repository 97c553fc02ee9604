"""`signalmesh doctor`: checks everything that a swarm needs, and prints remedies.

It changes nothing and locks nothing. The checks are independent of each other, so that they work with a swarm that
runs, has ended, was never started, or has a damaged state directory.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

from rich.text import Text

from bus.errors import BusError, ConfigError, NotAdmitted, TlsFault
from bus.nats.bus import NatsBus
from bus.nats.urls import check_url, is_same_server, redacted_url, urls_of
from bus.utils.terminal import escape_control
from coordinator.certify.leftovers import check_earlier_runs
from coordinator.config.connection import CONNECT_S, DEFAULT_URL
from coordinator.config.loader import BUILT_IN, parse_swarm
from coordinator.config.secrets import offer_bus_credentials
from coordinator.config.settings import SwarmConfig
from coordinator.doctor.bus_checks import check_bus
from coordinator.doctor.dashboard_checks import check_dashboard
from coordinator.doctor.key_checks import check_keys, check_keys_enforced
from coordinator.doctor.machine_checks import (
    BUS_DOWN,
    check_changes_file,
    check_config,
    check_cpu,
    check_descriptors,
    check_disk,
    check_port,
    check_versions,
)
from coordinator.doctor.mirror_checks import check_mirror_file, check_mirror_log
from coordinator.doctor.sandbox_checks import check_e2b
from coordinator.doctor.state_dir_checks import check_leftovers, check_locks, check_permissions, check_record
from coordinator.doctor.tls_checks import check_tls
from coordinator.reporting.findings import Diagnosis, Finding, error, skipped
from coordinator.reporting.tables import console
from coordinator.runner.run_record import Run
from coordinator.telemetry.otel_env_check import check_exporting

__all__ = ["diagnose", "print_diagnosis"]

MARKS = {"ok": ("ok", "green"), "warning": ("warning", "yellow"), "error": ("ERROR", "bold red")}
SKIPPED = ("-", "dim")


async def diagnose(nats: str | None, state_dir: Path, config_file: Path | None, cwd: Path) -> Diagnosis:
    """All checks.

    Raises:
        UsageError: `nats` is no URL.
    """
    if nats is not None:
        check_url(nats)
    run, record = await asyncio.to_thread(check_record, state_dir)
    running = run is not None and run.alive()
    config, about_config = await asyncio.to_thread(check_config, config_file or _recorded_config(run), cwd)
    used, about_changes = await asyncio.to_thread(
        check_changes_file, config or parse_swarm({}, BUILT_IN, ""), state_dir
    )
    meant = run if run is not None and running and (nats is None or is_same_server(nats, run.url)) else None
    if meant is not None:
        used = replace(used, swarm=meant.swarm)
    url = nats or (run.url if running and run is not None else DEFAULT_URL)
    embedded = nats is None if meant is None else meant.child("nats-server") is not None
    findings = await asyncio.to_thread(check_versions, embedded=embedded)
    findings += [about_config, about_changes, record]
    findings.append(await asyncio.to_thread(check_permissions, state_dir))
    findings.append(await asyncio.to_thread(check_keys, state_dir, meant, used, foreign=not embedded))
    findings.append(await asyncio.to_thread(check_tls, state_dir, run if nats in (None, run and run.url) else None))
    findings += await asyncio.to_thread(check_locks, state_dir, run)
    findings.append(await asyncio.to_thread(check_leftovers, run))
    findings.append(await asyncio.to_thread(check_disk, state_dir, used))
    findings.append(await asyncio.to_thread(check_mirror_log, state_dir))  # first: the other one reads for long
    findings.append(await asyncio.to_thread(check_mirror_file, state_dir))
    findings += await asyncio.to_thread(check_e2b, used, state_dir, running=running)
    findings += await asyncio.to_thread(check_earlier_runs)
    findings += await asyncio.to_thread(check_exporting)
    findings += await asyncio.to_thread(check_descriptors, run)
    findings.append(await asyncio.to_thread(check_dashboard, state_dir, run, used))
    findings.append(await asyncio.to_thread(check_cpu, len(used.agents)))
    findings += [await check_port(one, run, named=nats is not None) for one in urls_of(url)]
    findings += await _over_the_bus(url, used, run, state_dir, wanted=running or nats is not None)
    return Diagnosis(
        ok=all(finding.level != "error" for finding in findings),
        swarm=used.swarm,
        nats=redacted_url(url),
        state_dir=str(state_dir),
        running=running,
        findings=findings,
    )


def _recorded_config(run: Run | None) -> Path | None:
    """The configuration file of the running swarm."""
    return Path(run.config) if run is not None and run.alive() and run.config != BUILT_IN else None


async def _over_the_bus(
    url: str, config: SwarmConfig, run: Run | None, state_dir: Path, *, wanted: bool
) -> list[Finding]:
    if not wanted:
        why = "no swarm runs here, so its stream, clocks and cursors are not checked"
        return [skipped("bus", f"{why}. Start it, or name a server with --nats")]
    try:
        await asyncio.to_thread(offer_bus_credentials, None if config.file == BUILT_IN else Path(config.file))
        bus = await NatsBus.connect(url, config.swarm, "doctor", wait_s=CONNECT_S)
    except (ConfigError, NotAdmitted, TlsFault) as problem:
        return [error("bus", str(problem), "")]  # its text has the remedy
    except BusError as problem:
        return [error("bus", str(problem), BUS_DOWN)]
    try:
        findings = await check_bus(bus, config, run, state_dir)
        # The embedded server has the users that `up` wrote, and `up` would report the attempts as those of an attacker.
        own = run is None or run.child("nats-server") is not None
        if run is not None and not own and run.authentication == "keys" and url == run.url:
            findings.append(await check_keys_enforced(url, config.swarm, state_dir))
        return findings
    finally:
        await bus.close()


def print_diagnosis(found: Diagnosis) -> None:
    """One line for each finding, with its remedy below it."""
    out = console()
    width = max(len(finding.check) for finding in found.findings)
    for finding in found.findings:
        mark, style = MARKS[finding.level] if not finding.skipped else SKIPPED
        line = Text.assemble((f"{mark:8}", style), (f"{finding.check:{width}}  ", "bold"), escape_control(finding.text))
        out.print(line, soft_wrap=True)
        if finding.remedy:
            out.print(escape_control(f"{'':8}{'':{width}}  → {finding.remedy}"), soft_wrap=True)
    counts = {level: sum(f.level == level and not f.skipped for f in found.findings) for level in MARKS}
    unchecked = sum(finding.skipped for finding in found.findings)
    summary = f"{counts['error']} errors, {counts['warning']} warnings, {counts['ok']} ok"
    out.print(f"\n{summary}, {unchecked} could not be checked", soft_wrap=True)
