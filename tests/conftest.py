"""What all tests share: quiet logs."""

from __future__ import annotations

import logging

import structlog

structlog.configure(
    processors=[structlog.processors.KeyValueRenderer()],
    wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL),
)
