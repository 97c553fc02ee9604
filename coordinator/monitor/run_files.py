"""What the files of a run say about its swarm: its configuration, and what of it was changed at run time."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from bus.errors import UsageError
from coordinator.config.changes import ChangedAgent, Changes, describe_changes
from coordinator.config.kept_changes import differences
from coordinator.config.loader import BUILT_IN, load_swarm
from coordinator.config.overrides import Overrides
from coordinator.config.settings import SwarmConfig
from coordinator.runner.run_record import Run, read_run


def config_of(config: Path | None, state_dir: Path) -> SwarmConfig:
    """The active configuration: `config`, else that of the run recorded in `state_dir`, else as in `up`.

    Raises:
        ConfigError: the file is missing or wrong.
    """
    return _config_of(config, read_run(state_dir))


def _config_of(config: Path | None, run: Run | None) -> SwarmConfig:
    if config is None and run is not None and run.config != BUILT_IN:
        config = Path(run.config)
    return load_swarm(config, Overrides(agents=None if run is None else run.agents))


@dataclass(frozen=True, slots=True)
class RunFiles:
    """The files of `run` and `state_dir`; without a run nothing is known but what the bus shows."""

    run: Run | None = None
    state_dir: Path = Path()

    def remote_sandboxes(self) -> tuple[str, ...]:
        """The sandboxes with provider e2b in the configuration; none if that cannot be read any more."""
        if self.run is None or self.run.config == BUILT_IN:
            return ()
        with contextlib.suppress(UsageError):  # what the bus shows is shown all the same
            return tuple(spec.name for spec in _config_of(None, self.run).sandboxes if spec.e2b)
        return ()

    def differences(self, changes: Changes) -> list[ChangedAgent]:
        """How a swarm with these changes differs from its file, as `config diff` says; all of them without a file."""
        if self.run is not None and not changes.is_empty:
            with contextlib.suppress(UsageError):
                return differences(_config_of(None, self.run), changes, self.state_dir)
        return describe_changes(changes)
