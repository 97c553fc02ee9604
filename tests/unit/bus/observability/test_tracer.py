"""Which traces are sampled, and what a tracer makes of them."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.observability.otel_env import Settings
from bus.observability.spans import Context, derived_id, read_context
from bus.observability.tracer import RateLimiter, Tracer, make_sampler


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


def test_a_configured_rate():
    sample = make_sampler("rate_limiting", "0")
    assert not any(sample(0) for _ in range(100))


@pytest.mark.parametrize(
    ("name", "argument"),
    [("jaeger_remote", ""), ("traceidratio", "2"), ("traceidratio", "x"), ("rate_limiting", "-1")],
)
def test_a_wrong_sampler_is_reported_and_does_no_harm(name, argument):
    with pytest.raises(ValueError, match=r"."):
        make_sampler(name, argument)
    tracer = Tracer(Settings(sampler=name, sampler_argument=argument), dict)
    context = tracer.new_trace("a", 1)
    assert context is not None
    assert read_context(context.header) == context == Context(context.trace_id, derived_id(context.trace_id, "a:1"))


def test_an_unsampled_trace_has_no_context():
    tracer = Tracer(Settings(sampler="always_off"), dict)
    assert tracer.new_trace("a", 1) is None
    assert tracer.new_event("recovery") is None
