"""Pushes the metrics of `/metrics` by OTLP at an interval, if the OTEL_* variables name a collector.

A thread of its own sends them, so that a collector that does not answer delays nothing. A failed export is not
repeated: the next one has the newer values, and counters lose nothing by that.
"""

from __future__ import annotations

import contextvars
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import structlog
from prometheus_client import CollectorRegistry

from bus.observability.otel_env import Exporting, forget_count_limits, read_number
from coordinator.telemetry.otel_env_check import INTERVAL_MS, TIMEOUT_MS

__all__ = ["CLOSE_S", "MetricsExport"]

CLOSE_S = 5.0
"""Longest time to wait for the last export at the end of the process: a connection may have to be opened, and the
exporter retries after one and two seconds."""
UNANSWERED_S = 0.5
"""The same for a collector that has accepted nothing for CLOSE_S."""

log = structlog.get_logger("signalmesh.metrics")


class MetricsExport:
    """Exports what `registry` collects: immediately, at every interval, and once more at the end."""

    def __init__(
        self,
        exporting: Exporting,
        environment: Mapping[str, str],
        registry: CollectorRegistry,
        attributes: Callable[[], dict[str, Any]],
    ) -> None:
        """`attributes` describe this process; called in the thread."""
        self._exporting, self._registry, self._attributes = exporting, registry, attributes
        self._interval_s = read_number(environment, "OTEL_METRIC_EXPORT_INTERVAL", INTERVAL_MS) / 1000
        self._timeout_s = read_number(environment, "OTEL_METRIC_EXPORT_TIMEOUT", TIMEOUT_MS) / 1000
        self._started_ns = time.time_ns()
        self._ending = threading.Event()
        self._failed = False
        self._unaccepted_since: float | None = None
        """Since when (monotonic) the collector has accepted no export."""
        self._sender: Any = None
        self._lost = 0
        """Exports in a row that failed."""
        context = contextvars.copy_context()  # for the context variables of the log lines
        self._thread = threading.Thread(target=context.run, args=(self._run,), name="metrics-export", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            forget_count_limits(os.environ)
            from coordinator.telemetry.otlp_convert import (
                OtlpMetrics,  # imports OpenTelemetry, which costs memory
            )

            self._sender = OtlpMetrics(self._exporting, self._exporting.describe("metrics", self._attributes()))
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not cost more than the export
            log.error("metrics_export_failed", problem=f"{type(error).__name__}: {error}")  # noqa: TRY400
            return
        self._export()
        while not self._ending.wait(self._interval_s):
            self._export()
        self._export()

    def _export(self) -> None:
        done, why = False, ""
        if self._unaccepted_since is None:
            self._unaccepted_since = time.monotonic()
        try:
            done = self._sender.send(self._registry.collect(), self._started_ns, time.time_ns(), self._timeout_s)
            why = self._sender.why or "the collector did not accept them"
        except Exception as error:  # noqa: BLE001 - as above
            why = f"{type(error).__name__}: {error}"
        if self._failed:
            return  # `close` has logged it
        if done:
            self._unaccepted_since = None
        if not done:
            self._log_failure(why)
        elif self._lost:
            log.info("metrics_exported_again", failed=self._lost)
            self._lost = 0

    def _log_failure(self, why: str) -> None:
        self._lost += 1
        if self._lost == 1:
            log.warning("metrics_not_exported", why=why)

    def close(self, within_s: float = CLOSE_S) -> None:
        """Export the last values and wait up to `within_s` for that; blocks, so call it in a thread.

        The wait is UNANSWERED_S if the collector has accepted nothing for CLOSE_S.
        """
        if self._unaccepted_since is not None:
            had_s = time.monotonic() - self._unaccepted_since
            within_s = min(within_s, max(UNANSWERED_S, CLOSE_S - had_s))
        self._ending.set()
        self._thread.join(within_s)
        if self._thread.is_alive():
            self._failed = True
            self._log_failure(f"the collector did not accept the last export within {within_s:.1f} s")
            if self._sender is not None:
                self._sender.shutdown()
