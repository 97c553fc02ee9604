"""What the stored outputs of an agent say about one of its deaths: `kill` and the dashboard count them alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from bus.interface import StoredMessage
from bus.messages import headers as h


@dataclass(frozen=True, slots=True)
class OutputCount:
    """How many numbered outputs were `checked`, and of their numbers how many are `lost` and `duplicated`."""

    checked: int
    lost: int
    duplicated: int


def count_outputs(stored: Iterable[StoredMessage]) -> OutputCount:
    """Find gaps and repetitions in the numbers of one agent's outputs."""
    numbers = [number for one in stored if (number := h.number(one.headers, h.OUTPUT))]
    distinct = len(set(numbers))
    lost = max(numbers) - min(numbers) + 1 - distinct if numbers else 0
    return OutputCount(len(numbers), lost, len(numbers) - distinct)


def epoch_of(headers: Mapping[str, str]) -> int:
    """The epoch under which a message was published; 0 if it names none."""
    return h.number(headers, h.EPOCH) or 0


def is_successor(epoch: int, before: int, after: int | None) -> bool:
    """Whether `epoch` is that of the process that followed the epoch `before`; `after` is its claim, if it is known."""
    return epoch >= (after or before + 1)
