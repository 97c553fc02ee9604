"""Runs whose every byte is known: a bounded recording, and rounds that wait for their voters without limit."""

from __future__ import annotations

from tests.acceptance.subscriber import SwarmMessage
from tests.acceptance.swarm import AGENTS, agents_toml

ROUNDS = 600
MANY_ROUNDS = 3000
"""For the slow tests."""
PACE = 160
"""Candles a second after the first 250: some seconds in which to disturb a run, and load enough."""
Content = dict[str, list[bytes]]


def exact_toml(speed: float = PACE, rounds: int = ROUNDS, *, top: str = "", watchdog: str = "") -> str:
    """A swarm that stores the same bytes in every run: no round is ever closed by the clock."""
    return (
        f"{top}\n[coordinator]\nround_timeout_ms = 60000\n[watchdog]\n{watchdog}\n"
        f"{agents_toml(speed=speed, limit=rounds)}"
    )


def content_of(messages: list[SwarmMessage]) -> Content:
    """Subject -> payloads of what agents have published."""
    content: Content = {}
    for message in messages:
        if message.kind in ("market", "headline", "sentiment", "signal", "decision"):
            content.setdefault(message.subject, []).append(message.data)
    return content


def assert_same(stored: Content, undisturbed: Content) -> None:
    """Byte for byte, subject by subject; the error names the first difference."""
    assert sorted(stored) == sorted(undisturbed)
    for subject, expected in undisturbed.items():
        assert_list(subject, stored[subject], expected)


def assert_beginning(stored: Content, undisturbed: Content, rounds: int) -> None:
    """As `assert_same`, for a run of the first `rounds` rounds."""
    assert set(stored) <= set(undisturbed)
    for subject, expected in undisturbed.items():
        ours = stored.get(subject, [])
        assert len(ours) == rounds or ".headline." in subject, subject
        assert_list(subject, ours, expected[: len(ours)])


def assert_list(subject: str, stored: list[bytes], expected: list[bytes]) -> None:
    for at, (ours, theirs) in enumerate(zip(stored, expected, strict=False)):
        assert ours == theirs, f"{subject}: message {at + 1} differs"
    assert len(stored) == len(expected), subject


def assert_numbered(messages: list[SwarmMessage]) -> None:
    """Every agent's outputs are numbered without gap or repetition, each under a claim that was in force."""
    claims: dict[str, int] = {}
    numbers = dict.fromkeys(AGENTS, 0)
    for message in messages:
        if message.kind == "epoch":
            claims[message.writer] = message.sequence
        elif (number := message.headers.get("Mesh-Output")) is not None:
            agent = message.writer
            assert int(number) == numbers[agent] + 1, f"output {number} of {agent} follows {numbers[agent]}"
            numbers[agent] += 1
            where = f"{message.subject} {message.sequence}"
            assert int(message.headers["Mesh-Epoch"]) == claims[agent], f"{where}: a superseded incarnation's"
            fence = "Nats-Expected-Last-Subject-Sequence"
            assert message.headers.get(fence) == str(claims[agent]), f"{where}: no fence"
            assert message.headers.get(f"{fence}-Subject", "").endswith(f".epoch.{agent}"), f"{where}: no fence"
    assert all(numbers.values()), numbers


def assert_each_round_once(decisions: list[dict[str, object]], rounds: int | None = None) -> None:
    """Every round in order, each once, from the first one on."""
    numbers = [decision["round"] for decision in decisions]
    assert numbers == list(range(1, (rounds or len(numbers)) + 1))
