"""What is wrong with an agent's class is said when it is loaded, before any event arrives."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from agents.agent import Agent, check_class, published_kinds
from bus.errors import UsageError
from bus.messages import Event, Headline, MarketData, Signal, Timer


class Proper(Agent):
    kind = "proper"
    listens = ("market",)

    def on_market(self, event: MarketData) -> Signal | None:
        return None

    def on_timer(self, event: Timer) -> Headline:
        raise NotImplementedError


class NoSource(Agent):
    kind = "no-source"

    async def produce(self, last: Any) -> AsyncIterator[Event]:
        yield last


async def nothing(*_: Any) -> None: ...


def plainly(*_: Any) -> None: ...


async def yielding(*_: Any) -> AsyncIterator[None]:
    yield None


def yielding_plainly(*_: Any) -> Iterator[None]:
    yield None


@dataclass
class Needy:
    closes: list[float]


class NoDataclass:
    closes = 1


@pytest.mark.parametrize(
    ("base", "changed", "reported"),
    [
        pytest.param(Proper, {"kind": ""}, ["`kind`"], id="no kind"),
        pytest.param(Proper, {"listens": ()}, ["on_market", "never be called", "'market'", "nothing"], id="deaf"),
        pytest.param(
            Proper, {"on_signal": plainly}, ["on_signal", "never be called", "'signal'"], id="not listened to"
        ),
        pytest.param(Proper, {"listens": ("market", "signal")}, ["'signal'", "on_signal"], id="no handler"),
        pytest.param(Proper, {"listens": "market"}, ["listens", "('market',)", "'market'"], id="no tuple"),
        pytest.param(Proper, {"listens": ("markets",)}, ["'markets'", "market, headline"], id="unknown kind"),
        pytest.param(Proper, {"publishes": ("votes",)}, ["publishes", "'votes'", "signal"], id="publishes unknown"),
        pytest.param(Proper, {"setup": nothing}, ["setup", "def", "produce"], id="async setup"),
        pytest.param(Proper, {"teardown": plainly}, ["teardown", "async def"], id="plain teardown"),
        pytest.param(Proper, {"on_market": yielding}, ["on_market", "return", "yield"], id="yielding handler"),
        pytest.param(Proper, {"State": Needy}, ["State", "closes", "default"], id="a state that cannot be empty"),
        pytest.param(Proper, {"State": NoDataclass}, ["State", "dataclass"], id="a state that is no dataclass"),
        pytest.param(NoSource, {}, ["produce", "publishes"], id="a source that does not say of what"),
        pytest.param(NoSource, {"publishes": ("market",), "produce": nothing}, ["produce", "yields"], id="no yield"),
        pytest.param(
            NoSource, {"publishes": ("market",), "produce": yielding_plainly}, ["async def"], id="plain yield"
        ),
        pytest.param(Agent, {"kind": "idle"}, ["listens", "produce"], id="nothing to do"),
    ],
)
def test_mistakes(base: type[Agent], changed: dict[str, Any], reported: list[str]):
    cls = type("Wrong", (base,), {**vars(base), **changed} if base is Proper else changed)
    with pytest.raises(UsageError) as caught:
        check_class(cls, "agent 'x': mine:Wrong")
    assert all(word in str(caught.value) for word in ["agent 'x': mine:Wrong", *reported]), str(caught.value)


def test_kinds_come_from_the_annotations_of_all_its_methods():
    class Source(Agent):
        kind = "source"

        async def produce(self, last: MarketData | None) -> AsyncIterator[MarketData]:
            yield last  # type: ignore[misc]

    for cls, kinds in ((Proper, ("signal", "headline")), (Source, ("market",)), (NoSource, ())):
        assert published_kinds(cls) == kinds
    check_class(Proper, "here")
    check_class(Source, "here")
    check_class(type("Heir", (Proper,), {"on_market": nothing}), "here")


CHECKED_ONLY = """
from __future__ import annotations
from typing import TYPE_CHECKING
from agents.agent import Agent
if TYPE_CHECKING:
    import bus.messages as m
    from collections.abc import Sequence
    from bus.messages import Alert, MarketData, Signal
    from bus.messages import Signal as Vote

class Mine(Agent):
    kind = "mine"
    listens = ("market",)
    {publishes}
    def on_market(self, tick: MarketData) -> {returned}:
        return None
"""


def checked_only(returned: str, publishes: str = "") -> type[Agent]:
    namespace: dict[str, Any] = {"__name__": "mine"}
    exec(CHECKED_ONLY.format(returned=returned, publishes=publishes), namespace)
    found: type[Agent] = namespace["Mine"]
    return found


@pytest.mark.parametrize(
    ("returned", "kinds"),
    [
        ("Signal", ("signal",)),
        ("m.Signal | None", ("signal",)),
        ("Sequence[Signal]", ("signal",)),
        ("'Sequence[Signal | Alert]'", ("signal",)),
        ("Alert | None", ()),
        ("None", ()),
    ],
)
def test_messages_that_are_imported_for_type_checkers_alone_are_known(returned: str, kinds: tuple[str, ...]):
    cls = checked_only(returned)
    check_class(cls, "here")
    assert published_kinds(cls) == kinds


@pytest.mark.parametrize("returned", ["Vote", "Vote | Alert", "list[Vote]", "m.Vote", "Signal | Vote", "list['Vote']"])
def test_an_annotation_that_names_what_is_not_defined_is_refused(returned: str):
    with pytest.raises(UsageError, match="here: on_market: its return annotation has 'Vote', which is not defined"):
        check_class(checked_only(returned), "here")
    check_class(checked_only(returned, 'publishes = ("signal",)'), "here")
