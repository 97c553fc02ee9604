"""What all tests share: quiet logs, and a Ctrl-C that arrives."""

from __future__ import annotations

import logging
import signal

import structlog

structlog.configure(
    processors=[structlog.processors.KeyValueRenderer()],
    wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL),
)

# A shell that starts the tests in the background has them ignore SIGINT, and with them every process that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
