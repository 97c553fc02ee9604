"""What nats-server refuses, read from the log of a real one, and how often it is reported."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import orjson
import pytest

from bus.errors import NotAdmitted
from bus.messages.guard import GUARD
from bus.nats.bus import NatsBus
from bus.nats.credentials import Credentials, public_key_of
from bus.nats.key_files import new_seed
from bus.utils import attempt_counts
from bus.utils.attempt_counts import REPORT_S
from coordinator.security.violations import CONNECT, Violation, ViolationLog, ViolationReports
from tests.support.secured import UNNAMED, Secured, secured_server

AGENT = "agent-strategy-momentum"
OWN = "in.swarm.signal.BTC-USD.strategy-momentum"
FORGED = "in.swarm.decision.BTC-USD.coordinator"
LINE = '[1] 2026/11/30 11:13:21.961662 [ERR] 127.0.0.1:3 - cid:1 - "v2:python3:{name}" - "$G/nkey:{key}" - {rest}\n'
KEY = "U" + 55 * "A"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    with secured_server(tmp_path_factory.mktemp("violations")) as running:
        yield running


@pytest.mark.parametrize(
    ("named", "with_what"),
    [
        ({"nkey": " - "}, "with what is no public key"),
        ({"nkey": 'x" - Publish Violation - Subject "y'}, "with what is no public key"),
        ({"user": "alice", "pass": "secret"}, "with a user name"),
        ({"auth_token": "secret"}, "with a token"),
    ],
)
async def test_a_text_in_place_of_a_key_is_not_repeated(server: Secured, named: dict[str, str], with_what: str):
    log = ViolationLog(server.log)
    reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(server.url).port)
    await reader.readline()
    writer.write(b"CONNECT " + orjson.dumps(named) + b"\r\nPING\r\n")
    assert b"Authorization Violation" in await reader.readline()
    writer.close()
    [found] = log.read({})
    assert (found.key, found.attempt, found.subject) == ("", CONNECT, with_what)


async def test_a_real_servers_refusals_are_read_with_their_key(server: Secured):
    operator = await server.connect("operator")
    log = ViolationLog(server.log)
    for identity in (AGENT, UNNAMED):
        bus = await server.connect(identity)
        bus.connection.write(FORGED, b"{}")
        await bus.connection.subscribe_directly("swarm.control.>", lambda *_: None)
        if identity == AGENT:
            bus.connection.write(OWN, b"{}", GUARD + FORGED)
        await bus.flush()
        await bus.close()
    seed = new_seed()
    with pytest.raises(NotAdmitted):
        await NatsBus.connect(server.url, "swarm", "foreign", 0.2, Credentials(nkey_seed=seed))
    await operator.close()
    found = {(each.key, each.attempt, each.subject) for each in log.read({}) if not each.subject.startswith("_INBOX.")}
    named = public_key_of(server.keys.seed(AGENT))
    [unnamed] = {key for key, _, _ in found} - {named, public_key_of(seed)}
    assert found == {
        *(
            (key, *what)
            for key in (named, unnamed)
            for what in (("publish to", FORGED), ("subscribe to", "swarm.control.>"))
        ),
        (named, "publish with the reply subject", FORGED),
        (public_key_of(seed), CONNECT, ""),
    }
    assert log.read({}) == []


def write(file: Path, subject: str, name: str = "x") -> None:
    with file.open("a") as log:
        log.write(LINE.format(name=name, key=KEY, rest=f'Publish Violation - Subject "{subject}"'))


@pytest.mark.parametrize("name", ['\\" - Publish Violation - Subject \\"forged', "\\n[ERR] forged", "ä\\x00"])
def test_a_clients_name_is_no_subject(tmp_path: Path, name: str):
    file = tmp_path / "nats.log"
    log = ViolationLog(file)
    write(file, "real", name)
    assert [each.subject for each in log.read({})] == ["real"]


@pytest.mark.parametrize(
    "forged",
    [
        "TLS handshake error: first record does not look like a TLS handshake",
        "authentication error",
        'Publish Violation - Subject "forged"',
    ],
)
def test_a_clients_name_is_no_line(tmp_path: Path, forged: str):
    file = tmp_path / "nats.log"
    log = ViolationLog(file)
    line = LINE.format(name=f"[ERR] 6.6.6.6:1 - cid:9 - {forged} -", key=KEY, rest="maximum payload exceeded")
    file.write_text(line.replace('Subject "forged"', 'Subject \\"forged\\"'))
    assert log.read({}) == []


def reports() -> tuple[ViolationReports, list[float]]:
    clock = [1000.0]
    owners = {"A": "agent-one", "": UNNAMED, "OLD": None}
    return ViolationReports(owners.get, lambda: clock[0]), clock


def test_an_attempt_is_reported_at_once_and_then_once_a_minute_with_its_number():
    found, clock = reports()
    for _ in range(3):
        found.add(Violation("10.0.0.1:5", "A", "publish to", "x"))
    found.add(Violation("10.0.0.1:6", "", CONNECT))
    assert list(found.due()) == [("agent-one at 10.0.0.1", "publish to x", 3), (f"{UNNAMED} at 10.0.0.1", CONNECT, 1)]
    found.add(Violation("10.0.0.1:7", "A", "publish to", "x"))
    assert list(found.due()) == []
    clock[0] += REPORT_S
    assert list(found.due()) == [("agent-one at 10.0.0.1", "publish to x", 1)]
    clock[0] += REPORT_S
    assert list(found.due()) == []


def test_inboxes_and_keys_that_are_being_replaced_are_not_reported():
    found, _ = reports()
    found.add(Violation("h:1", "", "subscribe to", "_INBOX.x.*"))
    found.add(Violation("h:1", "OLD", CONNECT))
    assert list(found.due()) == []


def test_a_client_that_invents_subjects_fills_no_memory(monkeypatch):
    monkeypatch.setattr(attempt_counts, "MAX_TOLD_APART", 3)
    found, _ = reports()
    for number in range(10):
        found.add(Violation("h:1", "A", "publish to", f"n{number}"))
    due = list(found.due())
    assert [attempt for _, attempt, _ in due] == ["publish to n0", "publish to n1", "publish to n2", "publish to"]
    assert sum(count for _, _, count in due) == 10
