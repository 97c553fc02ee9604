"""The console script `signalmesh`: turns every expected error into one line and its exit code."""

from __future__ import annotations

import contextlib
import errno
import gc
import itertools
import os
import signal
import sys
from pathlib import Path

from bus.errors import EXIT_FAILED, MeshError, UsageError
from bus.utils.terminal import escape_control

REMEDIES = {
    errno.ENOSPC: "cannot write; free space on the disk",
    errno.EDQUOT: "cannot write; free space within the quota",
    errno.EIO: "cannot read or write; check the disk or the terminal",
    errno.EBADF: "cannot write; the output is closed",
    errno.EMFILE: "too many open files; raise the limit (ulimit -n 4096)",
    errno.ENFILE: "too many open files on this machine; end other processes",
    errno.EAGAIN: "too many processes or threads; raise the limit (ulimit -u, or pids.max of the container)",
    errno.ENOMEM: "no memory is left; give it more, or end other processes",
    errno.EROFS: "the place is read-only; name another one with --state-dir",
    errno.EACCES: "no permission; run it as the owner, or name another place with --state-dir",
    errno.ENOENT: "it does not exist; run the command in a directory that exists",
}
"""What to do where the system refuses something."""
EXIT_INTERRUPTED = 128 + signal.SIGINT
"""Interrupted by Ctrl-C, as a shell reports it."""


def main() -> None:
    """Run the command line and exit: 0 done, 1 a check failed, 2 usage, 3 bus unreachable, 130 interrupted."""
    try:
        _refuse_empty_values(sys.argv[1:])
        gc.disable()  # an import leaves no garbage, and all that it makes would be gone through several times
        from coordinator.cli.app import app

        gc.enable()
        app(prog_name="signalmesh", standalone_mode=True)
    except MeshError as error:
        print(f"signalmesh: {escape_control(str(error), keep=chr(10))}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:  # Ctrl-C during the imports; a running command handles it itself
        raise SystemExit(EXIT_INTERRUPTED) from None
    except BrokenPipeError:  # the reader of the output has ended, as `| head` does
        sys.stderr.close()
        raise SystemExit(EXIT_FAILED) from None
    except (OSError, MemoryError, RuntimeError) as error:
        if (text := _explain(error)) is None:
            raise
        print(f"signalmesh: {escape_control(text)}", file=sys.stderr)
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - the interpreter flushes it once more at its end
        raise SystemExit(EXIT_FAILED) from None


def _refuse_empty_values(arguments: list[str]) -> None:
    """An empty path would mean the working directory, and an empty name whatever comes: it is an unset variable."""
    for before, argument in itertools.pairwise(["", *arguments]):
        option = before if argument == "" and before.startswith("--") else ""
        if argument.startswith("--") and argument.endswith("="):
            option = argument[:-1]
        if option:
            raise UsageError(f"{option}: expected a value, not an empty text; is a variable of the shell not set?")


def _explain(error: BaseException) -> str | None:
    """What the system lacks, and the remedy; None for an error of another kind."""
    if isinstance(error, MemoryError):
        return "no memory is left; give it more, or end other processes"
    if isinstance(error, RuntimeError):
        starting = "can't start new thread" in str(error)
        return f"cannot start a thread: {REMEDIES[errno.EAGAIN]}" if starting else None
    if not isinstance(error, OSError) or error.errno is None:
        return None
    place = f" {error.filename}" if error.filename else ""
    remedy = REMEDIES.get(error.errno)
    return None if remedy is None else f"{error.strerror}{place}: {remedy}"
