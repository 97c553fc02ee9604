"""A tracer that keeps the spans that it is given."""

from __future__ import annotations

import pytest

from bus.observability.otel_env import read_settings
from bus.observability.spans import Span
from bus.observability.tracer import Tracer


class RecordingTracer(Tracer):
    """Samples every trace. `emitted` are the spans in order, `spans` the last one of each name."""

    def __init__(self, sampler: str = "always_on") -> None:
        settings = read_settings(
            {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:9", "OTEL_TRACES_SAMPLER": sampler}
        )
        assert settings is not None
        super().__init__(settings, lambda: pytest.fail("nothing is exported here"))
        self.emitted: list[Span] = []

    @property
    def spans(self) -> dict[str, Span]:
        return {span.name: span for span in self.emitted}

    def emit(self, span: Span) -> None:
        self.emitted.append(span)
