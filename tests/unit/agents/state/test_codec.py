"""A State comes back as it was, or is refused by name: any annotations, any values, at any moment."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import logging
import math
import re
from collections import Counter, OrderedDict, defaultdict, deque
from dataclasses import InitVar, dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, Literal, NamedTuple
from zoneinfo import ZoneInfo

import numpy as np
import orjson
import pytest
import structlog
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from agents.agent import Agent
from agents.state.codec import StateCodec
from agents.state.values import StateMismatch
from bus.errors import UsageError
from bus.messages import MarketData, Signal, encode
from bus.testing.memory_bus import MemoryBus, MemoryServer
from tests.support.runtime import claim_runtime


class Color(Enum):
    RED = 1
    BLUE = "blue"


class Pair(NamedTuple):
    one: int
    two: float = 1.0


@dataclass
class Inner:
    x: float = 0.0
    ys: list[int] = field(default_factory=list)
    _hidden: int = 0


@dataclass
class Open:
    gap: float = 0.0


@dataclass
class Closed:
    reason: str = ""


@dataclass
class NodeA:
    kind: Literal["a"] = "a"
    next: NodeA | NodeB | None = None


@dataclass
class NodeB:
    kind: Literal["b"] = "b"
    next: NodeA | NodeB | None = None


@dataclass(frozen=True)
class Point:
    x: float = 0.0


def chain(length: int) -> NodeA | NodeB | None:
    return None if length == 0 else NodeB(next=chain(length - 1))


class Outer:
    """As an agent's class, with a class in its body that its State names."""

    @dataclass
    class Position:
        size: float = 0.0

    @dataclass
    class State:
        position: Position | None = None  # type: ignore[name-defined] # noqa: F821 - it is in the body around


ORIGIN = Point()


@dataclass(slots=True)
class Slots:
    _n: int = 0


class MoreSlots(Slots):
    __slots__ = ("extra",)

    def __init__(self) -> None:
        super().__init__()
        self.extra = 1


def state_class(annotation: Any) -> type:
    """A State with one field of this type, which is not set at first."""
    namespace = {"__annotations__": {"v": annotation}, "v": field(init=False)}
    return dataclass(type("State", (), namespace))


def back(annotation: Any, value: Any) -> Any:
    """The value of such a State after its round trip; raises what refuses it."""
    codec = StateCodec.checked(state_class(annotation))
    state = codec._cls()
    state.v = value
    data = codec.encode(state)
    codec.verify(state, data)
    return codec.decode(orjson.loads(data)).v


TICK = MarketData(symbol="A", price=1.0, volume=1.0, timestamp=datetime(2020, 1, 1, tzinfo=UTC), source="feed")
EXACT: list[tuple[Any, Any]] = [
    (float, 0), (float, -0.0), (int, 2**63), (list[float], [1, 2.0]), (Any, [1, "a", {"b": None}]), (dict, {"a": [1]}),
    (tuple, (1, "a")), (tuple[int, ...], (1, 2)), (tuple[int, str], (1, "a")), (list[tuple[int, str]], [(1, "a")]),
    (deque, deque([1, 2])), (deque[float], deque([1.0], maxlen=3)), (dict[str, deque[int]], {"a": deque(maxlen=2)}),
    (dict[int, float], {1: 2.0}), (dict[bool, int], {True: 1}), (dict[date, int], {date(2024, 1, 2): 1}),
    (defaultdict[str, int], defaultdict(int, a=1)), (defaultdict[str, list[float]], defaultdict(list, a=[1.0])),
    (Counter, Counter("aab")), (Counter[str], Counter("aab")), (OrderedDict[str, int], OrderedDict(b=1, a=2)),
    (set[str], {"a", "b"}), (frozenset[int], frozenset({1})), (set[tuple[int, int]], {(1, 2)}),
    (Inner | None, Inner(1.0, [2], 3)), (dict[str, Inner], {"a": Inner()}), (Color, Color.BLUE), (Pair, Pair(1)),
    (dict[Color, int], {Color.RED: 1}), (Literal["a", 1], 1), (Literal["a", "b"], "b"), (int | str | None, "a"),
    (bytes, b"\xff"),
    (datetime, datetime(2024, 1, 2, tzinfo=UTC)), (timedelta, timedelta(microseconds=1)), (Decimal, Decimal("1.10")),
    (np.float64, np.float64(0.1)), (np.int64, np.int64(5)), (list[np.float32], [np.float32(0.1)]),
    (MarketData | None, TICK), (Open | Closed, Closed("x")), (Open | Closed, Open(1.0)), (NodeA | NodeB, chain(40)),
    (list[Any], [1, "a"]), (dict[str, Any], {"first": [1.5], "other": [1]}), (list[Point], [ORIGIN, ORIGIN]),
    (defaultdict[str, float | None], defaultdict(float, a=None)), (defaultdict[str, Any], defaultdict(None, a=1)),
]  # fmt: skip


@pytest.mark.parametrize(("annotation", "value"), EXACT, ids=range(len(EXACT)))
def test_these_come_back_with_value_and_type(annotation, value):
    found = back(annotation, value)
    assert type(found) is type(value)
    assert found == value
    assert repr(found) == repr(value) or isinstance(value, set)  # a set has no order


REFUSED: list[tuple[Any, Any, str]] = [
    (float, math.nan, r"State\.v: nan would come back as null.*None"),
    (float, np.float64(math.inf), r"State\.v: inf would come back as null"),
    (dict, {"sma": [math.inf]}, r"State\.v\['sma'\]\[0\]: inf"),
    (int, 1.5, r"\.v: expected int, not 1\.5"),
    (int, True, r"\.v: expected int, not True"),
    (Literal["a", 1], True, r"\.v: expected one of 'a', 1, not True"),
    (list, [(1, 2)], r"State\.v\[0\]: \(1, 2\) \(tuple\).*tuple\[float, \.\.\.\]"),
    (dict, {1: 2}, r"State\.v: the key 1 \(int\)"),
    (dict, defaultdict(int), r"State\.v: defaultdict.*annotate"),
    (defaultdict[str, int], defaultdict(lambda: 7), r"State\.v: its default factory"),
    (float, np.float64(1), r"State\.v: np\.float64\(1\.0\).*float\(\.\.\.\)"),
    (Any, {1, 2}, r"State\.v: \{1, 2\} \(set\).*set\[str\]"),
    (Any, deque(maxlen=2), r"State\.v: deque.*deque\[float\]"),
    (dict, {"a": 1, 1: 2}, r"State\.v: the key|two of its keys"),
    (str, "\ud800", r"\.v: .*surrogates"),
    (int, 2**70, r"\.v: Integer exceeds 64-bit"),
    (dict, {(1, 2): 3}, r"\.v: a key of a dict"),
    (Any, object(), r"\.v: a object has no JSON form"),
    (Any, np.zeros(2), r"\.v: a ndarray.*tolist"),
    (list, [shared := [1], shared], r"State\.v\[1\]: is the same object as State\.v\[0\]"),
    (Inner | None, type("Sub", (Inner,), {})(), r"State\.v: .*Sub"),
    (set[datetime], {datetime(2024, 1, 2, tzinfo=ZoneInfo("Europe/Berlin"))}, r"State\.v\[.*Berlin"),
    (Slots, MoreSlots(), r"State\.v"),
]  # fmt: skip


@pytest.mark.parametrize(("annotation", "value", "text"), REFUSED, ids=range(len(REFUSED)))
def test_these_are_refused_by_field_with_a_remedy(annotation, value, text):
    with pytest.raises((StateMismatch, UsageError)) as refused:
        back(annotation, value)
    assert re.search(text, f"State{refused.value}"), str(refused.value)


@dataclass
class Base:
    n: int = 0


class Undecorated(Base):
    m: int = 0


@dataclass
class Undeclared:
    n: int = 0

    def __post_init__(self) -> None:
        self.extra = 1


@dataclass
class Shared:
    a: list[int] = field(default_factory=list)
    b: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.b = self.a


@dataclass
class Unknown:
    x: Any = None
    x.__class__  # noqa: B018 - a class body may hold anything


Unknown.__annotations__["x"] = "Nowhere"


@dataclass
class Ambiguous:
    v: list[float] | tuple[float, ...] = ()


@dataclass
class AmbiguousLater:
    """As that, but empty at first."""

    v: tuple[float, ...] | list[float] | None = None


@dataclass
class Order:
    size: float

    def __post_init__(self) -> None:
        self.extra = 1


@dataclass
class OfOrders:
    v: Order | None = None


@pytest.mark.parametrize(
    ("cls", "text"),
    [
        (Undecorated, "@dataclass"),
        (Undeclared, r"State\.extra: is no field"),
        (Shared, r"State\.b: is the same object as State\.a"),
        (Unknown, "'Nowhere', which is not defined"),
        (Ambiguous, r"State\.v: .*tuple"),
        (AmbiguousLater, r"State\.v: .*list"),
        (OfOrders, r"State\.v\.extra: is no field"),
    ],
)
def test_a_class_that_cannot_work_is_refused_before_it_is_used(cls, text):
    with pytest.raises(UsageError, match=text):
        StateCodec.checked(cls)


@dataclass
class OfInitVar:
    n: int = 0
    start: InitVar[int] = 5

    def __post_init__(self, start: int) -> None:
        self.n = self.n or start


@dataclass(frozen=True)
class Frozen:
    n: int = 0


@dataclass(init=False)
class OwnInit:
    n: int = 0

    def __init__(self) -> None:
        self.n = 3


@pytest.mark.parametrize("cls", [OfInitVar, Slots, Frozen, OwnInit])
def test_unusual_classes_come_back(cls):
    codec = StateCodec.checked(cls)
    state = cls()
    for name in [item.name for item in dataclasses.fields(cls)]:
        object.__setattr__(state, name, 11)
    assert repr(codec.decode(orjson.loads(codec.encode(state)))) == repr(state)


def test_names_of_the_class_around_are_known():
    codec = StateCodec.checked(Outer.State)
    state = Outer.State(Outer.Position(2.0))
    assert codec.decode(orjson.loads(codec.encode(state))) == state


@pytest.mark.parametrize("annotation", [[int], {"a": int}, np.datetime64, np.integer | None, np.ndarray])
def test_an_annotation_that_is_no_type_is_refused_or_taken_without_a_crash(annotation):
    try:
        StateCodec.checked(state_class(annotation))
    except UsageError as error:
        assert str(error).startswith("State.v: ")  # noqa: PT017 - either is right


def test_an_older_state_gets_the_defaults_of_new_fields():
    assert StateCodec.checked(Inner).decode({"x": 2.5, "gone": 1}) == Inner(2.5)
    with pytest.raises(StateMismatch, match=r"\.ys\[0\]: expected int"):
        StateCodec.checked(Inner).decode({"ys": ["1"]})


# -- after a kill: any class, any values

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**65), 2**65), st.floats(), st.text(max_size=3), st.binary(max_size=3),
    st.sampled_from(list(Color)), st.builds(np.float64, st.floats()), st.dates(), st.decimals(allow_nan=False),
    st.datetimes(timezones=st.sampled_from([UTC, None])),
)  # fmt: skip
hashable = st.one_of(st.integers(-3, 3), st.text(max_size=2), st.floats(), st.tuples(st.integers(0, 2)))
values = st.one_of(
    st.sampled_from([value for _, value in EXACT]),
    st.recursive(
        scalars,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.lists(inner, max_size=3).map(tuple),
            st.lists(inner, max_size=3).map(deque),
            st.builds(lambda items: deque(items, maxlen=2), st.lists(inner, max_size=3)),
            st.dictionaries(hashable, inner, max_size=3),
            st.dictionaries(hashable, inner, max_size=3).map(OrderedDict),
            st.dictionaries(hashable, inner, max_size=3).map(lambda found: defaultdict(int, found)),
            st.sets(hashable, max_size=3),
            st.lists(hashable, max_size=3).map(Counter),
            st.builds(Inner, inner, inner),
        ),
        max_leaves=5,
    ),
)


def fitting(annotation: Any, value: Any) -> st.SearchStrategy[Any]:
    """Values that the annotation declares; `value` is one of them."""
    if annotation in (np.float64, np.int64, list[np.float32], MarketData | None) or "Any" in str(annotation):
        return st.just(value)
    return st.one_of(st.just(value), st.from_type(annotation))


cases = st.sampled_from(EXACT).flatmap(
    lambda case: st.tuples(st.just(case[0]), st.lists(st.one_of(*[fitting(*case)] * 4, values), min_size=1, max_size=3))
)


def agent_class(annotation: Any, series: list[Any]) -> type[Agent]:
    """An agent that publishes what its state was at each tick, and then replaces it by the next of `series`."""

    class Setting(Agent):
        kind = "setting"
        listens = ("market",)
        publishes = ("signal",)
        State = state_class(annotation)  # type: ignore[assignment]

        def on_market(self, tick: MarketData) -> Signal:
            before = repr(getattr(self.state, "v", "unset"))
            self.state.v = copy.deepcopy(series[(tick.sequence or 0) % len(series)])
            return self.signal(tick, "hold", 0.5, {"length": float(len(before)), "sum": float(sum(map(ord, before)))})

    return Setting


TICKS = 5


def feed(server: MemoryServer, numbers: range) -> None:
    for n in numbers:
        server.store("in.swarm.market.A.feed", encode(dataclasses.replace(TICK, sequence=n)), {})


async def run(cls: type[Agent], server: MemoryServer, inputs: int, *, kill: bool) -> int:
    """One incarnation, until `inputs` are handled; killed with a snapshot of the last, or drained. Returns the number
    of inputs that its predecessor's snapshot counted.
    """
    bus = MemoryBus(server)
    runtime = await claim_runtime(cls("agent"), bus)
    running = asyncio.create_task(runtime.run())
    restored = -1
    try:
        async with asyncio.timeout(20):
            while not running.done() and runtime.input_processor.inputs < inputs:
                await asyncio.sleep(0)
            restored = runtime.input_processor.inputs - runtime.input_processor.replayed
            runtime.want_snapshot()
            while kill and not running.done() and runtime._store.read(runtime._store.saved).inputs < inputs:
                await asyncio.sleep(0)
            if not kill or running.done():
                runtime.drain()
                await running
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await bus.close()
    return restored


async def outputs(cls: type[Agent], killed_after: int) -> list[bytes]:
    """What it publishes over all ticks, if it is killed after the first ones; 0: not at all."""
    server = MemoryServer()
    if killed_after:
        feed(server, range(1, killed_after + 1))
        await run(cls, server, killed_after, kill=True)
    feed(server, range(killed_after + 1, TICKS + 1))
    await run(cls, server, TICKS, kill=False)
    return [m.data for m in server.messages if m.subject.startswith("swarm.signal.")]


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(cases, st.integers(1, TICKS - 1))
def test_any_state_is_the_same_after_a_kill_or_is_refused_by_name(case, killed_after):
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    cls = agent_class(*case)
    refused = ""
    killed: list[bytes] = []
    undisturbed: list[bytes] = []
    try:
        killed = asyncio.run(outputs(cls, killed_after))
        undisturbed = asyncio.run(outputs(cls, 0))
    except UsageError as error:
        refused = str(error)
    if refused:
        event("refused")
        assert "its state cannot be saved: State.v" in refused
        assert len(refused) < 2000
    else:
        event("the same")
        assert len(undisturbed) == TICKS
        assert undisturbed == killed
