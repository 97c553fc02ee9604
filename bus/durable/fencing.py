"""Claims: a new incarnation of an agent claims an epoch; from then on the stream refuses the older incarnation.

A claim is a compare-and-set on `{ns}.epoch.{agent}`; its stream sequence is the incarnation's epoch and the fencing
token of all its messages. It never expires, despite the stream's age limit: without the claim the fence would refuse
every incarnation. A full stream removes it all the same; the leading watchdog renews claims before that
(coordinator/supervisor/renewal.py).
"""

from __future__ import annotations

import contextlib
import secrets
import time

from bus.errors import BusTimeout, Disconnected, MessageError, WrongSequence
from bus.interface import Bus, StoredMessage
from bus.messages import Epoch, decode, encode, now
from bus.messages import headers as h

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"


def new_agent_id() -> str:
    """`agent_<milliseconds since 1970>_<6 letters or digits>`, one for each incarnation."""
    return f"agent_{time.time_ns() // 1_000_000}_{''.join(secrets.choice(LETTERS) for _ in range(6))}"


async def last_claim(bus: Bus, agent: str) -> StoredMessage | None:
    """The newest claim of `agent`, or None if it was never claimed."""
    return await bus.last(bus.subjects.epoch(agent))


async def claim(
    bus: Bus, agent: str, *, agent_id: str, claimed_by: str, sandbox: str, expect: int | None = None
) -> int:
    """Claim the next epoch of `agent` and return it.

    `expect` is the newest epoch known to the caller (None: the present one). If the stream has removed it since, and
    holds no newer one, the claim is the first one again.

    Raises:
        WrongSequence: another process has claimed in the meantime.
        Disconnected: the bus is down; BusTimeout: it does not answer (the claim may have landed).
    """
    subject = bus.subjects.epoch(agent)
    if expect is None:
        last = await last_claim(bus, agent)
        expect = last.sequence if last else 0
    data, headers = claim_parts(bus, agent, agent_id=agent_id, claimed_by=claimed_by, sandbox=sandbox, expect=expect)
    try:
        return (await bus.publish("in." + subject, data, headers)).sequence
    except (BusTimeout, WrongSequence, Disconnected) as error:
        # An earlier write may have landed although its answer was lost: only the stored claim decides.
        last = await last_claim(bus, agent)
        if last is None and expect and isinstance(error, WrongSequence):
            return await claim(bus, agent, agent_id=agent_id, claimed_by=claimed_by, sandbox=sandbox, expect=0)
        if last is not None:
            stored: object = None
            with contextlib.suppress(MessageError):  # malformed: not this claim
                stored = decode(bus.subjects.parse(subject), subject, last.data)
            if isinstance(stored, Epoch) and stored.claim == agent_id:
                return last.sequence
        raise


def claim_parts(
    bus: Bus, agent: str, *, agent_id: str, claimed_by: str, sandbox: str, expect: int
) -> tuple[bytes, dict[str, str]]:
    """Payload and headers of a claim that is stored only if `expect` is the newest epoch."""
    message = Epoch(
        agent=agent, claim=agent_id, claimed_by=claimed_by, sandbox=sandbox, timestamp=now(), source=claimed_by
    )
    headers = {
        h.EXPECTED_LAST_SUBJECT_SEQUENCE: str(expect),
        h.EXPECTED_LAST_SUBJECT: bus.subjects.epoch(agent),
        h.TTL: "never",
    }
    return encode(message), headers


def fence(bus: Bus, agent: str, epoch: int) -> dict[str, str]:
    """Headers with which the stream refuses a publish once `agent` has a newer claim than `epoch`."""
    return {
        h.EPOCH: str(epoch),
        h.EXPECTED_LAST_SUBJECT_SEQUENCE: str(epoch),
        h.EXPECTED_LAST_SUBJECT: bus.subjects.epoch(agent),
    }
