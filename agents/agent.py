"""The base class of agents. It is independent of the bus: a handler is a function of (state, event).

The runtime (agents/runtime/runtime.py) restores `state`, feeds events to the `on_<kind>` handlers in stream order,
publishes what they return, and keeps the timers that they set. No wall clock, no unseeded randomness and no I/O in a
handler: the same events must give the same outputs on a replay.
"""

from __future__ import annotations

import ast
import builtins
import collections.abc
import dataclasses
import inspect
import types
import typing
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar

import msgspec

from agents.state.codec import StateCodec
from bus import messages
from bus.errors import UsageError
from bus.messages import (
    KIND_OF,
    Alert,
    Decision,
    Event,
    Headline,
    MarketData,
    Sentiment,
    Severity,
    Side,
    Signal,
    Timer,
    VotingConfig,
)
from bus.messages.subjects import AGENT_KINDS

Outputs = Event | Alert | Iterable[Event | Alert] | None
"""What a handler returns: nothing, one message, or several in the order in which to publish them."""
LEAST_TIMER_MS = 10
LISTENABLE = (*AGENT_KINDS, "config", "timer")


@dataclass(frozen=True, slots=True)
class TimerSet:
    """A running timer: part of the agent's saved state. `after_ms` counts from when it was set, or from a restart."""

    number: int
    topic: str
    after_ms: int


class Agent:
    """One agent. Subclasses set the class variables, define State (and Options), and write handlers.

    Handlers are `on_market`, `on_headline`, `on_sentiment`, `on_signal`, `on_decision`, `on_config` and `on_timer`,
    one for each kind in `listens` (`on_timer` for agents that set timers). A handler that raises is skipped for that
    event: the state falls back to what it was before it.
    """

    kind: ClassVar[str] = ""
    listens: ClassVar[tuple[str, ...]] = ()
    publishes: ClassVar[tuple[str, ...]] = ()
    """Kinds that it publishes; taken from the handlers' return annotations if not given."""
    capabilities: ClassVar[tuple[str, ...]] = ()
    memory_key: ClassVar[str] = ""
    """Last part of its key in the memory bucket; the first published kind if not given."""
    receives_own_messages: ClassVar[bool] = False
    """Whether it receives its own messages of a kind in `listens`."""

    @dataclass
    class State:
        """All that a handler may remember: a dataclass, saved as JSON and restored as a whole (agents/state)."""

    @dataclass(frozen=True)
    class Options:
        """Settings from the agent's table in swarm.toml; a wrong key or type there is an error that names it."""

    handler_limit_s: float | None = None
    """Seconds that an asynchronous handler may take before the process ends; None: `[watchdog] starved_ms`."""

    state: Any
    options: Any

    def __init__(self, name: str, options: dict[str, Any] | None = None) -> None:
        """Create the agent with an empty State.

        Raises:
            UsageError: `options` has a key or a type that Options does not.
        """
        self.name = name
        self.options = read_options(type(self), name, options or {})
        self.state = self.State()
        self.timers: dict[str, TimerSet] = {}
        self.timers_set = 0
        self.setup()

    def setup(self) -> None:
        """Called once, after `options` is set and before any event, for example to load static data."""

    async def teardown(self) -> None:
        """Called once at the end of the process, after the last event: release what `setup` acquired."""

    def set_timer(self, name: str, topic: str, after_ms: int) -> None:
        """Have `on_timer` called with a Timer of this `name` in `after_ms`. Setting it again replaces it.

        Less than LEAST_TIMER_MS is waited as long as that: each timer that runs out is a message of the stream.

        Raises:
            ValueError: `after_ms` is negative.
        """
        if after_ms < 0:
            raise ValueError(f"set_timer({name!r}): after_ms: expected 0 or more, not {after_ms}")
        after_ms = max(after_ms, LEAST_TIMER_MS)
        self.timers_set += 1
        self.timers.pop(name, None)  # so that the newest is always last
        self.timers[name] = TimerSet(self.timers_set, topic, after_ms)

    def cancel_timer(self, name: str) -> None:
        """Cancel the timer `name`, if it is set."""
        self.timers.pop(name, None)

    def signal(
        self,
        tick: MarketData,
        side: Side,
        strength: float,
        indicators: dict[str, float] | None = None,
        p_up: float | None = None,
    ) -> Signal:
        """This agent's vote on the round of `tick`. `strength` and `p_up` in [0, 1]."""
        return Signal(
            signal=side,
            strength=strength,
            indicators=indicators or {},
            timestamp=tick.timestamp,
            source=self.name,
            symbol=tick.symbol,
            round=tick.sequence,
            p_up=p_up,
        )

    def alert(self, severity: Severity, code: str, message: str, timestamp: datetime, **detail: Any) -> Alert:
        """An alert for people, for a handler to return: an output like any other, so a replay repeats none.

        `timestamp` is that of the event; `detail` has values of JSON's types.
        """
        return Alert(
            severity=severity,
            code=code,
            message=message,
            timestamp=timestamp,
            source=self.name,
            agent=self.name,
            detail=detail,
        )

    # A source also defines
    #     async def produce(self, last: Event | None) -> AsyncIterator[Event]
    # which yields the events after `last`, its own last stored event (None: from the beginning).
    produce: ClassVar[Any] = None


Producer = typing.Callable[[Event | None], AsyncIterator[Event]]


def read_options(cls: type[Agent], name: str, options: dict[str, Any]) -> Any:
    """`options` as an instance of the class's Options.

    Raises:
        UsageError: a key that Options does not have, or a value of another type.
    """
    known = set(getattr(cls.Options, "__dataclass_fields__", {}))
    unknown = sorted(set(options) - known)
    if unknown:
        expected = ", ".join(sorted(known)) or "no settings at all"
        raise UsageError(f"agent {name!r}: unknown setting {unknown[0]!r}; its kind {cls.kind!r} has: {expected}")
    try:
        return msgspec.convert(options, cls.Options)
    except msgspec.ValidationError as error:
        raise UsageError(f"agent {name!r}: {error}") from None


def published_kinds(cls: type[Agent]) -> tuple[str, ...]:
    """Message kinds that `cls` publishes: its `publishes`, or else those in its handlers' return annotations."""
    if cls.publishes:
        return cls.publishes
    found: list[str] = []
    for name in _publishers(cls):
        found += _kinds_of(_return_annotation(getattr(cls, name))[0], name)
    return tuple(dict.fromkeys(found))


def _publishers(cls: type[Agent]) -> list[str]:
    names = (*(f"on_{kind}" for kind in cls.listens if kind != "timer"), "on_timer", "produce")
    return [name for name in names if getattr(cls, name, None) is not None]


def _kinds_of(hints: list[Any], method: str) -> list[str]:
    stack, kinds = [*hints], []
    while stack:
        item = stack.pop(0)
        if isinstance(item, type) and KIND_OF.get(item) in AGENT_KINDS:
            kinds.append(KIND_OF[item])
        stack.extend(typing.get_args(item))
    return [] if method == "produce" and len(kinds) >= len(AGENT_KINDS) else kinds  # `Event` names no kind


def _return_annotation(method: Any) -> tuple[list[Any], str]:
    """The types in the return annotation, and "" or a name in it that is not defined.

    What is imported for type checkers alone is not defined. Messages, and what holds them, are known by their names.
    """
    function = inspect.unwrap(method)
    namespace = getattr(function, "__globals__", {})
    annotation: Any = None
    try:
        annotation = getattr(function, "__annotations__", {}).get("return")
        alone = types.SimpleNamespace(__annotations__={"return": annotation})
        return [typing.get_type_hints(alone, namespace).get("return")], ""
    except Exception:  # noqa: BLE001 - annotations are evaluated
        names = _names_in(str(annotation))
    known: tuple[dict[str, Any], ...] = (vars(messages), namespace, vars(builtins), vars(typing), vars(collections.abc))
    found = [next((each[name] for each in known if name in each), None) for name in names]
    return found, next((name for name, value in zip(names, found, strict=True) if value is None), "")


def _names_in(annotation: str) -> list[str]:
    """The names in the text of an annotation, of `module.Name` the last one."""
    try:
        nodes = [*ast.walk(ast.parse(annotation, mode="eval"))]
    except SyntaxError:
        return [annotation]
    modules = {id(node.value) for node in nodes if isinstance(node, ast.Attribute)}
    names: list[str] = []
    for node in nodes:
        if isinstance(node, ast.Attribute):
            names.append(node.attr)
        elif isinstance(node, ast.Name) and id(node) not in modules:
            names.append(node.id)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names += _names_in(node.value)
    return names


def check_class(cls: type[Agent], where: str) -> None:
    """Check what can be checked of an agent class before any event arrives.

    Raises:
        UsageError: no kind, nothing to do, an unknown kind in `listens` or `publishes`, a handler missing or never
            called, a method that is `async def` where it must not be or the other way round, or a State that cannot
            be empty, or would not be restored as it was.
    """
    if not cls.kind:
        raise UsageError(f"{where}: expected a class variable `kind`, a short name of what it does")
    _check_kinds(cls, where)
    _check_methods(cls, where)
    if not cls.listens and cls.produce is None:
        raise UsageError(f"{where}: expected `listens` with at least one kind, or a method produce(self, last)")
    if cls.produce is not None and not published_kinds(cls):
        raise UsageError(f"{where}: produce: expected a class variable `publishes` with the kinds that it yields")
    for name in () if cls.publishes else _publishers(cls):
        if undefined := _return_annotation(getattr(cls, name))[1]:
            raise UsageError(
                f"{where}: {name}: its return annotation has {undefined!r}, which is not defined when the agent runs; "
                "import it for more than TYPE_CHECKING, or name the kinds in a class variable `publishes`"
            )
    if not dataclasses.is_dataclass(cls.State):
        raise UsageError(f"{where}: State: expected a dataclass")
    for field in dataclasses.fields(cls.State):
        if field.init and field.default is field.default_factory is dataclasses.MISSING:
            raise UsageError(f"{where}: State: {field.name}: expected a default, for an agent begins with an empty one")
    try:
        StateCodec.checked(cls.State)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None


def _check_kinds(cls: type[Agent], where: str) -> None:
    for name, known in (("listens", LISTENABLE), ("publishes", AGENT_KINDS)):
        kinds: object = getattr(cls, name)
        if not isinstance(kinds, (tuple, list)):
            raise UsageError(f"{where}: {name}: expected a tuple of kinds like ('market',), not {kinds!r}")
        for kind in kinds:
            if kind not in known:
                raise UsageError(f"{where}: {name}: unknown kind {kind!r}, expected one of {', '.join(known)}")
    for kind in cls.listens:
        if not callable(getattr(cls, f"on_{kind}", None)):
            raise UsageError(f"{where}: it listens to {kind!r}: expected a method on_{kind}(self, event)")
    for kind in LISTENABLE:
        if kind != "timer" and f"on_{kind}" in vars(cls) and kind not in cls.listens:
            raise UsageError(
                f"{where}: on_{kind} would never be called: expected {kind!r} in `listens`, which has: "
                f"{', '.join(cls.listens) or 'nothing'}"
            )


def _check_methods(cls: type[Agent], where: str) -> None:
    if inspect.iscoroutinefunction(cls.setup):
        raise UsageError(
            f"{where}: setup: expected a plain `def`, as it is called before there is anything to await; what takes "
            "I/O while it runs belongs into produce"
        )
    if not inspect.iscoroutinefunction(cls.teardown):
        raise UsageError(f"{where}: teardown: expected an `async def`")
    for kind in LISTENABLE:
        if inspect.isasyncgenfunction(getattr(cls, f"on_{kind}", None)):
            raise UsageError(f"{where}: on_{kind}: expected it to return its messages, not to `yield` them")
    if cls.produce is not None and (
        inspect.iscoroutinefunction(cls.produce) or inspect.isgeneratorfunction(cls.produce)
    ):
        raise UsageError(f"{where}: produce: expected an `async def` that yields events: async def produce(self, last)")


def topic_of(output: Event | Alert, default: str | None) -> str:
    """The topic under which to publish `output`: its symbol, or `default` (the topic of what it answers).

    Raises:
        ValueError: it names none, and there is no default.
    """
    topic: str | None = None
    if isinstance(output, (MarketData, Sentiment, Signal, Decision)):
        topic = output.symbol
    elif isinstance(output, Headline):
        topic = output.symbols[0] if output.symbols else None
    elif isinstance(output, Alert):
        topic = output.severity
    elif isinstance(output, (Timer, VotingConfig)):
        raise ValueError(f"a handler cannot publish a {type(output).__name__}")
    topic = topic or default
    if not topic:
        raise ValueError(f"{type(output).__name__}: expected a symbol")
    return topic
