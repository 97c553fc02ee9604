"""The pause before a process that has died is restarted."""

from __future__ import annotations

__all__ = ["FIRST_BACKOFF_S", "LAST_BACKOFF_S", "RESET_AFTER_S", "RestartBackoff"]

FIRST_BACKOFF_S, LAST_BACKOFF_S = 0.05, 5.0
"""The pause doubles with each consecutive death, from the first value up to the second."""
RESET_AFTER_S = 10.0
"""A process that ran for this long restarts the sequence of pauses when it dies."""


class RestartBackoff:
    """The pauses before the restarts of one process; `first_s` is the pause after it has run for RESET_AFTER_S."""

    def __init__(self, first_s: float = FIRST_BACKOFF_S) -> None:
        self._first_s = first_s
        self._pause_s = 0.0

    def after_s(self, up_s: float) -> float:
        """Seconds to wait before the restart of a process that has run for `up_s` seconds."""
        if up_s >= RESET_AFTER_S:
            self._pause_s = self._first_s
        else:
            self._pause_s = min(max(self._pause_s * 2, FIRST_BACKOFF_S), LAST_BACKOFF_S)
        return self._pause_s
