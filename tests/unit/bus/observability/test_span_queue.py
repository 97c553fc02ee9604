"""The queue in front of an exporter: its order, its limit, its end."""

from __future__ import annotations

import threading

from bus.observability.otel_env import Settings
from bus.observability.span_queue import SpanQueue
from bus.observability.spans import Context, Span, derived_id

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GUARD_S = 20.0


def span(name: str = "a") -> Span:
    return Span(name=name, context=Context(TRACE, derived_id(TRACE, name)))


class Sender:
    """Takes spans when it is let; `taken` is released for each batch."""

    def __init__(self, *, well: bool = True) -> None:
        self.well = well
        self.let = threading.Event()
        self.started = threading.Event()
        self.batches: list[list[str]] = []
        self.shut = False
        self.reason = ""

    def __call__(self, _: Settings, resource: dict[str, object]) -> Sender:
        self.resource = resource
        return self

    def send(self, spans: list[Span]) -> bool:
        self.started.set()
        assert self.let.wait(GUARD_S)
        self.batches.append([each.name for each in spans])
        return self.well

    def shutdown(self) -> None:
        self.shut = True


def test_what_is_put_is_exported_in_order():
    sender = Sender()
    sender.let.set()
    queue = SpanQueue(Settings(batch_spans=10), lambda: {"service.name": "a"}, sender)
    spans = [span(str(number)) for number in range(25)]
    for each in spans:
        queue.put(each)
    assert queue.flush(GUARD_S)
    assert [name for batch in sender.batches for name in batch] == [each.name for each in spans]
    assert max(map(len, sender.batches)) <= 10
    assert (queue.exported, queue.dropped) == (25, 0)
    assert all(each.resolved for each in spans)
    assert sender.resource == {"service.name": "a"}
    queue.close()


def test_a_full_queue_drops_and_reports_once(monkeypatch):
    reported: list[str] = []
    monkeypatch.setattr(
        "bus.observability.span_queue.log.warning", lambda event, **_: reported.append(event), raising=False
    )
    sender = Sender()
    queue = SpanQueue(Settings(queue_spans=8, batch_spans=4, delay_s=0.001), dict, sender)
    queue.put(span())
    assert sender.started.wait(GUARD_S)
    for _ in range(100):
        queue.put(span())
    assert queue.dropped == 92
    assert reported == ["spans_dropped"]
    sender.let.set()
    assert queue.flush(GUARD_S)
    assert queue.exported == 9
    queue.close()


def test_what_the_collector_refuses_is_counted():
    sender = Sender(well=False)
    sender.let.set()
    queue = SpanQueue(Settings(), dict, sender)
    refused = span()
    queue.put(refused)
    assert queue.flush(GUARD_S)
    assert (queue.exported, queue.dropped, refused.resolved) == (0, 1, True)
    queue.close()


def test_an_exporter_that_cannot_be_made_costs_the_spans_only():
    def broken(_: Settings, __: dict[str, object]) -> Sender:
        raise ValueError("no such protocol")

    queue = SpanQueue(Settings(), dict, broken)
    queue.put(span())
    assert queue.flush(GUARD_S)
    assert queue.dropped == 1
    queue.close()


def test_closing_waits_for_no_stuck_collector():
    sender = Sender()
    queue = SpanQueue(Settings(batch_spans=1), dict, sender)
    queue.put(span())
    queue.put(span())
    assert sender.started.wait(GUARD_S)
    queue.close(0.05)
    assert sender.shut
    assert queue.dropped >= 1
    queue.put(span())
    sender.let.set()


def test_closing_exports_the_rest():
    sender = Sender()
    sender.let.set()
    queue = SpanQueue(Settings(delay_s=1000), dict, sender)
    queue.put(span("last"))
    queue.close(GUARD_S)
    assert sender.batches == [["last"]]
