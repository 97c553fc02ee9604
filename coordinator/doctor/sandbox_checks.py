"""The checks of `doctor` of remote sandboxes: those that an earlier run has left, and the files to be sent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bus.errors import ConfigError
from coordinator.config.e2b import files_of
from coordinator.config.settings import SwarmConfig
from coordinator.reporting.findings import Finding, error
from coordinator.sandboxes.environment import export_key
from coordinator.sandboxes.pool_record import read_pool
from coordinator.sandboxes.provider_client import check_pool

__all__ = ["check_e2b"]

CHECK = "remote sandboxes"


def check_e2b(config: SwarmConfig, state_dir: Path, *, running: bool) -> list[Finding]:
    """No finding if no such sandbox is configured or recorded."""
    pool = read_pool(state_dir)
    if pool is None and not any(spec.e2b for spec in config.sandboxes):
        return []
    try:
        export_key(config)
    except ConfigError as problem:
        return [*_check_files(config), error(CHECK, str(problem), "")]  # its text has the remedy
    remedy = "`signalmesh down` ends them; the next `signalmesh up` reuses them, and ends those that it cannot use"
    return [*_check_files(config), check_pool(CHECK, state_dir, pool, remedy, running=running)]


def _check_files(config: SwarmConfig) -> Iterator[Finding]:
    """The files to be sent to sandboxes that `up` would refuse."""
    for spec in config.sandboxes:
        if spec.e2b is not None:
            try:
                files_of(config.file, f"sandboxes.{spec.name}", spec.e2b.files)
            except ConfigError as problem:
                yield error("files of sandboxes", str(problem), "create the file, or name another one")
