"""What all tests share: quiet logs, and signals that arrive."""

from __future__ import annotations

import logging
import signal

import hypothesis
import structlog

# No test asserts on time: a busy machine is no defect.
hypothesis.settings.register_profile("signalmesh", deadline=None)
hypothesis.settings.load_profile("signalmesh")

structlog.configure(
    processors=[structlog.processors.KeyValueRenderer()],
    wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL),
)

# A shell that starts the tests in the background has them, and all that they start, ignore SIGINT; nohup does SIGHUP.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
