"""Has the figures of `/metrics` go out by OTLP as well, now and then, where the OTEL_* variables ask for it.

A thread of its own sends them, so a collector that hangs, refuses or is gone holds nobody up; it is told of once, until
it takes figures again. Nothing is kept for it: the next figures are of then, and counters lose nothing by that.
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
"""So long a collector has to take figures before nobody waits for it at the end of the process: a connection may have
to be made, and one that is being restarted is asked again after one and two seconds."""
UNANSWERED_S = 0.5
"""How long the end waits for one that has had that time: whoever ends the swarm need not wait for what nobody takes."""

log = structlog.get_logger("signalmesh.metrics")


class MetricsExport:
    """Exports what `registry` collects: at once when it is made, every interval, and once more at the end."""

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
        self._untaken_since: float | None = None
        """Since when (monotonic) the collector has been sent figures without taking any."""
        self._sender: Any = None
        self._lost = 0
        """Exports in a row that failed."""
        context = contextvars.copy_context()  # whose log lines they are
        self._thread = threading.Thread(target=context.run, args=(self._run,), name="metrics-export", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            forget_count_limits(os.environ)
            from coordinator.telemetry.otlp_convert import (
                OtlpMetrics,  # imports OpenTelemetry: only here, where it is asked for
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
        if self._untaken_since is None:
            self._untaken_since = time.monotonic()
        try:
            done = self._sender.send(self._registry.collect(), self._started_ns, time.time_ns(), self._timeout_s)
            why = self._sender.why or "the collector did not take them"
        except Exception as error:  # noqa: BLE001 - as above
            why = f"{type(error).__name__}: {error}"
        if self._failed:
            return  # `close` has told of it
        if done:
            self._untaken_since = None
        if not done:
            self._tell(why)
        elif self._lost:
            log.info("metrics_exported_again", failed=self._lost)
            self._lost = 0

    def _tell(self, why: str) -> None:
        self._lost += 1
        if self._lost == 1:
            log.warning("metrics_not_exported", why=why)

    def close(self, within_s: float = CLOSE_S) -> None:
        """Export the last figures, waiting no longer than `within_s`; to be called where waiting is allowed.

        A collector that has taken none for CLOSE_S is waited for UNANSWERED_S.
        """
        if self._untaken_since is not None:
            had_s = time.monotonic() - self._untaken_since
            within_s = min(within_s, max(UNANSWERED_S, CLOSE_S - had_s))
        self._ending.set()
        self._thread.join(within_s)
        if self._thread.is_alive():
            self._failed = True
            self._tell(f"the collector did not take the last ones within {within_s:.1f} s")
            if self._sender is not None:
                self._sender.shutdown()
