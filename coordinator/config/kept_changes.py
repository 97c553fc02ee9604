"""What `signalmesh config` does with the changes that are kept in the state directory."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from bus.errors import UsageError
from coordinator.config.changes import (
    CHANGES_FILE,
    SAVED_FILE,
    ChangedAgent,
    Changes,
    describe_changes,
    read_changes_file,
    read_saved_changes,
    without_configured,
    write_changes_file,
    write_saved_changes,
)
from coordinator.config.loader import BUILT_IN, DEFAULT_FILE, read_toml
from coordinator.config.settings import SwarmConfig
from coordinator.config.toml_text import changed_toml

__all__ = ["ConfigDiff", "compare", "differences", "reset", "save"]

OLD_SUFFIX = ".old"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigDiff:
    """`config diff --json`: how the swarm differs from `file`. `revision` counts the changes made at run time."""

    file: str
    revision: int
    changes: list[ChangedAgent] = field(default_factory=list)


def compare(config: SwarmConfig, state_dir: Path) -> ConfigDiff:
    """How the swarm that is kept in `state_dir` differs from `config`.

    Raises:
        UsageError: the changes cannot be read, or do not fit `config`.
    """
    changes = read_changes_file(state_dir)
    found = differences(config, changes, state_dir)
    return ConfigDiff(file=config.file, revision=changes.revision, changes=found)


def differences(config: SwarmConfig, changes: Changes, state_dir: Path) -> list[ChangedAgent]:
    """How a swarm with these changes differs from the file of `config`, as `status`, `doctor` and `config diff` say.

    Raises:
        UsageError: the changes do not fit `config`, or what was saved cannot be read.
    """
    return describe_changes(without_configured(config, changes, read_saved_changes(state_dir, config)))


def save(config: SwarmConfig, state_dir: Path, file: Path | None) -> str:
    """Write a swarm.toml that gives the swarm with its changes; what was done, in words. None: in place of `config`'s.

    Raises:
        UsageError: the changes cannot be read or do not fit, or the file cannot be written.
    """
    source = None if config.file == BUILT_IN else Path(config.file)
    target = file or source or Path(DEFAULT_FILE)
    target = target.resolve() if target.is_symlink() else target
    if target.exists() and not target.is_file():
        raise UsageError(f"--out {target}: expected a file, not a directory or a device")
    changes = read_changes_file(state_dir)
    left = without_configured(config, changes, read_saved_changes(state_dir, config))
    text = changed_toml({} if source is None else read_toml(source), config, left)
    old = target.with_name(target.name + OLD_SUFFIX)
    try:
        mode = target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~_umask()
        if target.exists():
            old.write_bytes(target.read_bytes())
            old.chmod(mode)
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        temporary.write_text(text, "utf-8")
        temporary.chmod(mode)
        kept = f"; the one before is {old}, with its comments" if target.exists() else ""
        temporary.replace(target)
    except OSError as error:
        raise UsageError(f"--out {target}: cannot be written: {error.strerror}") from None
    if target.resolve() == (source or Path(DEFAULT_FILE)).resolve():
        try:
            write_saved_changes(state_dir, target, changes)
        except OSError as error:
            raise UsageError(
                f"wrote {target}, but {state_dir / SAVED_FILE} cannot be written ({error.strerror}): what you edit in "
                "it for these agents has no effect until `signalmesh config reset`"
            ) from None
    return f"wrote {target}{kept}"


def reset(state_dir: Path) -> str:
    """Forget the changes: the next `up` starts the swarm of swarm.toml. What was done, in words.

    Raises:
        UsageError: they cannot be read, or the file cannot be written.
    """
    changes = read_changes_file(state_dir)
    if changes.is_empty:
        return "there is nothing to forget"
    # The next revision: the stream has the changes too, and the newer ones count.
    try:
        write_changes_file(state_dir, Changes(revision=changes.revision + 1, change="reset"))
    except OSError as error:
        raise UsageError(f"{state_dir / CHANGES_FILE}: cannot be written: {error.strerror}") from None
    return "forgot all changes; the saved states of agents that were added are kept"


def _umask() -> int:
    umask = os.umask(0o077)
    os.umask(umask)
    return umask
