"""What must hold after any fault, and how a case checks it: on the bus, in the stream, by the swarm's commands."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from dataclasses import dataclass

from tests.acceptance.exact import MANY_ROUNDS as ROUNDS
from tests.acceptance.exact import Content, assert_each_round_once, assert_list, assert_numbered, content_of, exact_toml
from tests.acceptance.subscriber import Subscriber, SwarmMessage, read_stream
from tests.acceptance.swarm import AGENTS, Swarm

HISTORY = 250
"""Candles that the source gives without a pause."""
SPEEDS = {"idle": 2, "load": 50}
"""Candles a second after these, by the name of the load."""
COMPUTING_S = 180.0
"""Guard of a command that computes the whole run again."""
MORE = {"idle": 3, "load": 100}
"""Decisions that must follow a fault until it counts as overcome."""


def matrix_toml(load: str = "load", *, top: str = "", watchdog: str = "") -> str:
    """A swarm whose every byte is known, and whose source goes on for longer than a case takes."""
    return exact_toml(SPEEDS[load], ROUNDS, top=top, watchdog=watchdog)


@dataclass(frozen=True)
class Before:
    """The epochs in force before a fault."""

    epochs: dict[str, int]

    @classmethod
    async def of(cls, subscriber: Subscriber, load: str = "load") -> Before:
        """Once every agent is live, and the source has started to pace itself."""
        await subscriber.decided(HISTORY + MORE[load])
        await subscriber.live(*AGENTS)
        return cls(dict(subscriber.claims))

    def risen(self, messages: list[SwarmMessage]) -> set[str]:
        """The agents that were claimed again since."""
        newest = {message.writer: message.sequence for message in messages if message.kind == "epoch"}
        return {name for name, epoch in newest.items() if epoch > self.epochs.get(name, 0)}


async def verify(
    swarm: Swarm,
    subscriber: Subscriber,
    undisturbed: Content,
    before: Before,
    risen: Collection[str],
    *,
    load: str = "load",
    received: bool = True,
    replay: bool | None = None,
    more: int | None = None,
    foreign: Collection[int] = (),
) -> list[SwarmMessage]:
    """The swarm goes on and nothing of the fault can be seen in what it stores; returns that.

    `risen` are the agents whose epochs must have risen, and no others. Without `received` the core subscriber may have
    missed something, where the headers show it. `replay`: whether the stored run is also computed again (by default
    under load only, as it takes some seconds). `more` decisions are waited for before. Messages `foreign` are not the
    swarm's own.
    """
    if more is None or more > 0:
        await subscriber.more_decisions(more or MORE[load], last=ROUNDS)
    await subscriber.live(*AGENTS)
    audit = await swarm.command("audit", "--json")
    assert (audit.code, audit.json["problems"]) == (0, []), audit.out + audit.err
    assert audit.json["mirror"]["missing"] == audit.json["mirror"]["differing"] == audit.json["mirror"]["damaged"] == 0
    if replay or (replay is None and load == "load"):
        replayed = await swarm.command("replay", "--json", guard_s=COMPUTING_S)
        assert (replayed.code, replayed.json["differences"]) == (0, []), replayed.out + replayed.err
    stored = await read_stream(swarm.url, swarm.name)
    assert_numbered(stored)
    assert_prefix(content_of([message for message in stored if message.sequence not in foreign]), undisturbed)
    decisions = [message.json for message in stored if message.kind == "decision"]
    assert_each_round_once(decisions)
    assert_received(subscriber, stored, everything=received)
    found = before.risen(stored)
    assert found == set(risen), f"epochs rose of {found}, expected {set(risen)}"
    return stored


def assert_prefix(stored: Content, undisturbed: Content) -> None:
    """Byte for byte what an undisturbed run stores, as far as this one has come."""
    assert set(stored) <= set(undisturbed), "subjects that an undisturbed run does not have"
    for subject, ours in stored.items():
        assert_list(subject, ours, undisturbed[subject][: len(ours)])


def assert_received(subscriber: Subscriber, stored: list[SwarmMessage], *, everything: bool) -> None:
    """A core subscriber received what is stored, in order, each once; what it missed shows in Nats-Last-Sequence."""
    received = [message for message in subscriber.messages if message.sequence]
    sequences = [message.sequence for message in received]
    assert all(ours < later for ours, later in itertools.pairwise(sequences)), "heard out of order"
    known = {message.sequence: message for message in stored}
    previous: dict[int, int] = {}
    last: dict[str, int] = {}
    for message in stored:
        previous[message.sequence] = last.get(message.subject, 0)
        last[message.subject] = message.sequence
    for message in received:
        if message.sequence in known:  # else it was stored after the stream was read
            assert (message.subject, message.data) == (known[message.sequence].subject, known[message.sequence].data)
            assert int(message.headers["Nats-Last-Sequence"]) == previous[message.sequence], message
    if everything:
        assert_each_round_once(subscriber.decisions)
        first = sequences[0]
        missed = {message.sequence for message in stored if first <= message.sequence <= sequences[-1]} - set(sequences)
        assert not missed, [known[sequence] for sequence in sorted(missed)][:5]
