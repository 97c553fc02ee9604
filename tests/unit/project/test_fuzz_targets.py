"""The targets of `make fuzz`, for a moment each: with what they understand, and with changed and arbitrary bytes."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS, run_for

VALUES = (
    b"",
    b"\0",
    b"\xff",
    b"[",
    b"{",
    b'"',
    b"null",
    b"-1",
    b"1e999",
    b"9" * 30,
    b"[" * 2000,
    b'{"a":' * 300,
    b"\n",
)
"""What parsers have failed on before, and their like."""


FOUND = (
    ("wire", b"\x05MSG s 1 2\r\na[\r\nHMSG s 1 r 12 2\r\na[\r\nHMSG s 1 r\nPING\r\n"),  # more headers than message
    ("wire", b"\x05MSG s 1 -30\r\n" + b"x" * 40),  # took the same bytes for ever
    ("mirror", b"\xed\xed\xed\xed\xe9\xed\xec\xec"),  # a name in the schema that is no UTF-8
    ("mirror_row", b'["x"]\n1'),  # headers that are no object
    ("mirror_row", b'{"x":1}\n1'),
    ("snapshot", b'{"timers":{"t":{"number":1}}}'),  # ended the agent at each start
    ("snapshot", b'{"last_produced":{"subject":5}}'),
    ("snapshot", b'{"state":' + b'{"a":' * 600 + b"1" + b"}" * 601),
    ("api_request", b'STREAM.MSG.GET.swarm_events\n\n{"last_b\x88":1}'),  # no UTF-8, which ended a host's connection
    ("request", b'{"x":' + b"[" * 9000 + b"]" * 9000 + b"}"),  # unknown fields are skipped by recursion
    ("payload", b"\x09" + b'{"severity":"info","code":"c","message":"m","source":"me",'
     b'"timestamp":"2026-01-01T00:00:00Z","detail":' + b'{"a":' * 500 + b"1" + b"}" * 501),
)  # fmt: skip
"""Inputs on which a target has failed."""


@pytest.mark.parametrize(("name", "data"), FOUND)
def test_what_once_failed(name, data):
    run_for(name, data)


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_understands_its_seeds(name):
    for seed in TARGETS[name].seeds:
        run_for(name, seed)


def changed(seed: bytes, numbers: int) -> bytes:
    """`seed` with some of its bytes replaced, removed or repeated, as `numbers` decide."""
    choose = random.Random(numbers)
    data = bytearray(seed)
    for _ in range(choose.randint(1, 8)):
        at = choose.randint(0, len(data))
        piece = choose.choice((choose.choice(VALUES), seed[at : at + choose.randint(1, 40)], choose.randbytes(2)))
        data[at : at + choose.randint(0, 4)] = piece
    return bytes(data)


def inputs(seeds: tuple[bytes, ...]) -> st.SearchStrategy[bytes]:
    mutants = st.builds(changed, st.sampled_from(seeds), st.integers(0, 2**32))
    return st.one_of(st.sampled_from(seeds), mutants, mutants, mutants, st.binary(max_size=200))


@pytest.mark.parametrize("name", TARGETS)
def test_any_bytes_are_read_or_refused(name):
    target = TARGETS[name]

    @settings(max_examples=target.examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(inputs(target.seeds))
    def check(data: bytes) -> None:
        run_for(name, data)

    check()
