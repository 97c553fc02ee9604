"""Who is sampled, what the environment asks for, and a queue that never holds anybody up."""

from __future__ import annotations

import random
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.observability.otel_env import Exporting, Settings, read_exporting, read_settings
from bus.observability.span_queue import SpanQueue
from bus.observability.spans import Context, Span, derived_id, read_context
from bus.observability.tracer import RateLimiter, Tracer, make_sampler, modules_to_preload, open_tracer

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GUARD_S = 20.0


def span(name: str = "a") -> Span:
    return Span(name=name, context=Context(TRACE, derived_id(TRACE, name)))


# -- context


@given(st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1), st.booleans())
def test_a_context_is_read_as_it_was_written(trace: int, of_span: int, sampled: bool):
    context = Context(f"{trace:032x}", f"{of_span:016x}", sampled)
    assert read_context(context.header) == context


@pytest.mark.parametrize(
    ("header", "sampled"),
    [
        (f"00-{TRACE}-{SPAN}-01", True),
        (f"00-{TRACE}-{SPAN}-00", False),
        (f"00-{TRACE}-{SPAN}-03", True),
        (f"00-{TRACE}-{SPAN}-02", False),
        (f"cc-{TRACE}-{SPAN}-01-of a later version", True),
    ],
)
def test_what_the_standard_allows_is_read(header, sampled):
    assert read_context(header) == Context(TRACE, SPAN, sampled)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "nonsense",
        f"00-{TRACE}-{SPAN}",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01\n",
    ],
)
def test_what_the_standard_forbids_is_no_context(header):
    assert read_context(header) is None


# -- sampling


def test_at_full_speed_fifty_traces_a_second_are_sampled():
    clock = [0.0]
    limiter = RateLimiter(50, lambda: clock[0])
    taken = [0] * 20
    for tick in range(20 * 4000):
        clock[0] = tick / 4000
        taken[int(clock[0])] += limiter(0)
    assert all(49 <= count <= 51 for count in taken), taken


def test_at_trading_rates_every_trace_is_sampled():
    clock = [0.0]
    limiter = RateLimiter(50, lambda: clock[0])
    assert limiter(0)
    for second in range(1, 100):
        clock[0] = float(second)
        assert all(limiter(0) for _ in range(50)), "fifty symbols that tick at once"
        assert not limiter(0)


@given(st.lists(st.floats(0, 3, allow_nan=False), max_size=200), st.floats(0.5, 100))
def test_a_bucket_never_gives_more_than_its_rate_and_what_it_held(pauses, rate):
    clock = [0.0]
    limiter = RateLimiter(rate, lambda: clock[0])
    taken = 0
    for pause in pauses:
        clock[0] += pause
        taken += limiter(0)
    assert taken <= clock[0] * rate + 1 + 1e-6


@pytest.mark.parametrize(
    ("name", "argument", "share"),
    [
        ("always_on", "", 1),
        ("always_off", "", 0),
        ("traceidratio", "0.25", 0.25),
        ("traceidratio", "", 1),
        ("parentbased_always_on", "", 1),
        ("parentbased_always_off", "", 0),
        ("parentbased_traceidratio", "0.5", 0.5),
    ],
)
def test_samplers_of_the_standard(name, argument, share):
    chance = random.Random(7)
    sample = make_sampler(name, argument)
    taken = sum(sample(chance.getrandbits(128)) for _ in range(4000))
    assert taken == pytest.approx(4000 * share, abs=120 if 0 < share < 1 else 0)


def test_a_rate_of_ones_own():
    sample = make_sampler("rate_limiting", "0")
    assert not any(sample(0) for _ in range(100))


@pytest.mark.parametrize(
    ("name", "argument"),
    [("jaeger_remote", ""), ("traceidratio", "2"), ("traceidratio", "x"), ("rate_limiting", "-1")],
)
def test_a_wrong_sampler_is_told_and_harms_nobody(name, argument):
    with pytest.raises(ValueError, match=r"."):
        make_sampler(name, argument)
    tracer = Tracer(Settings(sampler=name, sampler_argument=argument), dict)
    context, header = tracer.new_trace("a", 1)
    assert context is not None
    assert read_context(header) == context == Context(context.trace_id, derived_id(context.trace_id, "a:1"))


def test_an_unsampled_trace_has_a_context_but_no_span():
    tracer = Tracer(Settings(sampler="always_off"), dict)
    assert tracer.new_trace("a", 1)[0] is None
    seen = {tracer.new_trace("a", number)[1] for number in range(100)}
    assert len(seen) == 100
    assert all((context := read_context(header)) and not context.sampled for header in seen)
    assert tracer.new_event("recovery") is None


# -- settings


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {**ENDPOINT, "OTEL_SDK_DISABLED": "true"},
        {**ENDPOINT, "OTEL_TRACES_EXPORTER": "none"},
        {**ENDPOINT, "OTEL_TRACES_EXPORTER": "zipkin"},
        {"OTEL_TRACES_EXPORTER": "otlp"},
    ],
)
def test_no_traces_are_asked_for(environment):
    assert read_settings(environment) is None
    assert open_tracer(environment, "a", dict) is None
    assert modules_to_preload(environment) == ()


def test_traces_are_asked_for():
    assert read_settings(ENDPOINT) == Settings()
    assert read_settings({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c/v1/traces"}) == Settings()
    assert read_settings(
        {
            **ENDPOINT,
            "OTEL_TRACES_EXPORTER": "console,otlp",
            "OTEL_SDK_DISABLED": "false",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc",
            "OTEL_TRACES_SAMPLER": "traceidratio",
            "OTEL_TRACES_SAMPLER_ARG": "0.1",
            "OTEL_SERVICE_NAME": "desk",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
            "OTEL_BSP_MAX_QUEUE_SIZE": "16",
            "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "64",
        }
    ) == Settings(
        protocol="grpc",
        sampler="traceidratio",
        sampler_argument="0.1",
        named_service=True,
        queue_spans=16,
        batch_spans=16,
        delay_s=0.1,
    )
    assert read_settings({**ENDPOINT, "OTEL_BSP_MAX_QUEUE_SIZE": "many", "OTEL_BSP_SCHEDULE_DELAY": "-1"}) == Settings()


@pytest.mark.parametrize(
    ("more", "asked"),
    [
        ({}, Exporting()),
        ({"OTEL_METRICS_EXPORTER": "none"}, None),
        ({"OTEL_METRICS_EXPORTER": "prometheus"}, None),
        ({"OTEL_METRICS_EXPORTER": "statsd"}, None),
        ({"OTEL_METRICS_EXPORTER": "prometheus,otlp"}, Exporting()),
        ({"OTEL_TRACES_EXPORTER": "none"}, Exporting()),
        ({"OTEL_SDK_DISABLED": "True"}, None),
        (
            {"OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": "grpc", "OTEL_SERVICE_NAME": "x"},
            Exporting(protocol="grpc", named_service=True),
        ),
        ({"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc"}, Exporting()),
    ],
)
def test_metrics_are_asked_for_by_variables_of_their_own(more, asked):
    assert read_exporting({**ENDPOINT, **more}, "metrics") == asked
    assert read_exporting({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://c/v1/metrics", **more}, "metrics") == asked
    assert read_exporting({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://c/v1/metrics", **more}, "traces") is None
    assert read_exporting({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c/v1/traces", **more}, "metrics") is None


# -- the queue


class Sender:
    """Takes spans when it is let; `taken` is released for each batch."""

    def __init__(self, *, well: bool = True) -> None:
        self.well = well
        self.let = threading.Event()
        self.begun = threading.Event()
        self.batches: list[list[str]] = []
        self.shut = False
        self.why = ""

    def __call__(self, _: Settings, resource: dict[str, object]) -> Sender:
        self.resource = resource
        return self

    def send(self, spans: list[Span]) -> bool:
        self.begun.set()
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
    assert all(each.settled for each in spans)
    assert sender.resource == {"service.name": "a"}
    queue.close()


def test_a_full_queue_drops_and_tells_once(monkeypatch):
    told: list[str] = []
    monkeypatch.setattr(
        "bus.observability.span_queue.log.warning", lambda event, **_: told.append(event), raising=False
    )
    sender = Sender()
    queue = SpanQueue(Settings(queue_spans=8, batch_spans=4, delay_s=0.001), dict, sender)
    queue.put(span())
    assert sender.begun.wait(GUARD_S)
    for _ in range(100):
        queue.put(span())
    assert queue.dropped == 92
    assert told == ["spans_dropped"]
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
    assert (queue.exported, queue.dropped, refused.settled) == (0, 1, True)
    queue.close()


def test_an_exporter_that_cannot_be_made_costs_the_spans_only():
    def broken(_: Settings, __: dict[str, object]) -> Sender:
        raise ValueError("no such protocol")

    queue = SpanQueue(Settings(), dict, broken)
    queue.put(span())
    assert queue.flush(GUARD_S)
    assert queue.dropped == 1
    queue.close()


def test_closing_waits_for_no_collector_that_hangs():
    sender = Sender()
    queue = SpanQueue(Settings(batch_spans=1), dict, sender)
    queue.put(span())
    queue.put(span())
    assert sender.begun.wait(GUARD_S)
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
