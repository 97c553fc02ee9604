"""The console script `signalmesh`: turns every expected error into one line and its exit code."""

from __future__ import annotations

import errno
import signal
import sys

from bus.errors import EXIT_FAILED, MeshError
from bus.utils.terminal import escape_control

EXIT_INTERRUPTED = 128 + signal.SIGINT
"""Interrupted by Ctrl-C, as a shell reports it."""


def main() -> None:
    """Run the command line and exit: 0 done, 1 a check failed, 2 usage, 3 bus unreachable, 130 interrupted."""
    try:
        from coordinator.cli.app import app

        app(standalone_mode=True)
    except MeshError as error:
        print(f"signalmesh: {escape_control(str(error), keep=chr(10))}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:  # Ctrl-C during the imports; a running command handles it itself
        raise SystemExit(EXIT_INTERRUPTED) from None
    except BrokenPipeError:  # the reader of the output has ended, as `| head` does
        sys.stderr.close()
        raise SystemExit(EXIT_FAILED) from None
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print(f"signalmesh: cannot write: {error.strerror}; free space on the disk", file=sys.stderr)
        raise SystemExit(EXIT_FAILED) from None
