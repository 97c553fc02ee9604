"""docs/schema is what the types say, and what is really published and printed fits it."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib
import importlib.util
import re
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest

from agents.host.probe import probe_sandbox
from bus.messages import (
    KIND_OF,
    KINDS,
    Alert,
    Child,
    Decision,
    Epoch,
    Headline,
    Heartbeat,
    Lifecycle,
    MarketData,
    Message,
    Sentiment,
    Signal,
    Timer,
    VotingConfig,
    encode,
)
from bus.messages.subjects import STORED_KINDS
from coordinator.audit.models import (
    AgentAudit,
    Audit,
    Hole,
    MirrorAudit,
    Poison,
    Problem,
    RoundsAudit,
    SnapshotAudit,
    StreamAudit,
)
from coordinator.certify.models import (
    AgentRow,
    Audited,
    Certificate,
    Cleanup,
    CleanupCheck,
    Flow,
    Hop,
    LastValues,
    MemoryKey,
    SandboxRow,
    SnapshotRow,
    Step,
    Throughput,
    judged,
)
from coordinator.chaos.report import Chaos, FaultKind, FaultSeen, ReceivedDecisions, Verification
from coordinator.cli import json_schema
from coordinator.config.changes import ChangedAgent
from coordinator.config.kept_changes import ConfigDiff
from coordinator.control.changes import AddedToSwarm, ChangedSandbox, MovedAgent, Rebalanced, RemovedFromSwarm, Scaled
from coordinator.control.kill import KillReport
from coordinator.control.watchdog_client import Restarted, Revived
from coordinator.decisions.rounds import round_id
from coordinator.explain.explainer import explain
from coordinator.explain.models import Explanation
from coordinator.explain.selection import Selector
from coordinator.monitor.health_check import Health
from coordinator.monitor.history import History, HistoryEntry
from coordinator.monitor.message_lines import WatchLine
from coordinator.monitor.models import AgentStatus, DecisionCount, MirrorStatus, Refusals, SandboxStatus, Status
from coordinator.replay.models import Difference, Replay, ReplayedAgent
from coordinator.reporting.differences import FieldDifference
from coordinator.reporting.findings import Diagnosis, Finding
from coordinator.reporting.percentiles import percentiles_of
from coordinator.runner.down import Ended
from coordinator.sandboxes.health import SandboxHealth
from coordinator.security.listing import KeyInfo, KeyList
from coordinator.security.refusals import RefusedAttempts
from tests.support.coordinator_rounds import CONFIG, NEWS, SYMBOL, tick, timer, vote
from tests.support.recorded_rounds import RecordedRounds

AT = datetime(2017, 7, 12, 17, tzinfo=UTC)
ZONED = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")
TYPES: dict[str, Any] = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "object": dict,
    "array": list,
    "boolean": bool,
}
SAID_ELSEWHERE = {"title", "description", "default"}


def errors(value: Any, wanted: dict[str, Any], root: dict[str, Any], at: str = "$") -> list[str]:
    """What is wrong with `value`: enough of JSON Schema for ours, and loud about keywords that it does not know."""
    wanted = {key: item for key, item in wanted.items() if key not in (*SAID_ELSEWHERE, "$schema", "$defs")}
    found: list[str] = []
    for keyword, printed in wanted.items():
        match keyword:
            case "$ref":
                found += errors(value, root["$defs"][printed.rpartition("/")[2]], root, at)
            case "anyOf":
                if all(errors(value, variant, root, at) for variant in printed):
                    found.append(f"{at}: {value!r} fits none of {printed}")
            case "enum":
                if value not in printed:
                    found.append(f"{at}: {value!r} is none of {printed}")
            case "type" if printed == "null":
                if value is not None:
                    found.append(f"{at}: {value!r} is not null")
            case "type":
                if not isinstance(value, TYPES[printed]) or isinstance(value, bool) != (printed == "boolean"):
                    found.append(f"{at}: {value!r} is no {printed}")
            case "format":
                assert printed == "date-time"
                if isinstance(value, str) and not ZONED.fullmatch(value):
                    found.append(f"{at}: {value!r} is no time with a zone")
            case "required" | "properties" | "additionalProperties" if not isinstance(value, dict):
                pass  # `type` complains of it
            case "required":
                found += [f"{at}: {name} is missing" for name in printed if name not in value]
            case "properties":
                for name in printed.keys() & value.keys():
                    found += errors(value[name], printed[name], root, f"{at}.{name}")
            case "additionalProperties":
                for name, item in value.items():
                    found += errors(item, printed, root, f"{at}.{name}")
            case "items":
                for number, item in enumerate(value):
                    found += errors(item, printed, root, f"{at}[{number}]")
            case _:
                raise AssertionError(f"{at}: unknown keyword {keyword}")
    return found


def check(name: str, data: bytes) -> None:
    document, value = orjson.loads((json_schema.SCHEMA_DIR / name).read_bytes()), orjson.loads(data)
    assert errors(value, document, document) == []
    if importlib.util.find_spec("jsonschema") is not None:
        importlib.import_module("jsonschema").validate(value, document)


MESSAGES: tuple[Message, ...] = (
    MarketData(symbol="BTC/USD", price=2340.5, volume=0.0, timestamp=AT, source="research-1"),
    MarketData(
        symbol="BTC/USD", price=2340.5, volume=1.5, timestamp=AT, source="research-1", sequence=7, open=2.0, high=3.0,
        low=1.0,
    ),
    Headline(text="CME to launch futures", timestamp=AT, source="desk"),
    Headline(text="t", timestamp=AT, source="desk", url="http://news.example/1", symbols=("BTC/USD",)),
    Sentiment(sentiment="bullish", confidence=0.78, sources=("desk",), timestamp=AT, source="research-2"),
    Signal(signal="buy", strength=0.85, indicators={"rsi": 65.0}, timestamp=AT, source="strategy-momentum"),
    Signal(
        signal="hold", strength=0.45, indicators={}, timestamp=AT, source="s", symbol="BTC/USD", round=3, p_up=0.45
    ),
    Decision(
        final_decision="buy", position_size=0.25, risk_score=0.35, consensus_level=0.72, agents_consulted=("a", "b"),
        timestamp=AT, source="coordinator",
    ),
    Decision(
        final_decision="hold", position_size=0.0, risk_score=0.0, consensus_level=0.5, agents_consulted=(),
        timestamp=AT, source="coordinator", decision_id="BTC/USD:research-1:3", symbol="BTC/USD", round=3,
        absent=("a",),
    ),
    Timer(name="BTC/USD:research-1:3", number=3, timestamp=AT, source="coordinator"),
    Epoch(agent="a", claim="agent_1_abcdef", claimed_by="watchdog", sandbox="base", timestamp=AT, source="watchdog"),
    VotingConfig(voters={"a": 1.0}, timestamp=AT, source="watchdog"),
    Lifecycle(event="ready", agent="a", timestamp=AT, source="a", epoch=4, pid=1, detail={"replayed": 0}),
    Alert(severity="warning", code="poison_message", message="m", timestamp=AT, source="a"),
    Heartbeat(
        agent="base", agent_id="host_1", epoch=1, sequence=1, progress=1, status="live", interval_ms=200,
        sandbox="base", pid=1, role="sandbox", uptime_s=1.5,
        inventory=(Child(agent="a", agent_id="i", epoch=4, pid=2, spawned_at=AT),),
    ),
)  # fmt: skip


def explained() -> Explanation:
    """An explanation with an absent voter, an ignored vote and an event, and with a difference."""
    recorded = RecordedRounds()
    recorded.play([CONFIG, tick(1), vote(NEWS, 1), vote(NEWS, 1), timer(round_id(SYMBOL, "research-1", 1))])
    found = asyncio.run(explain(recorded, Selector(decision="latest")))
    return dataclasses.replace(found, differences=[FieldDifference(field="round", recorded=1, replayed=None)])


PRINTED: dict[str, Any] = {
    "audit": Audit(
        ok=False, swarm="swarm", duration_s=0.1, rounds=RoundsAudit(decided=1), mirror=MirrorAudit(),
        stream=StreamAudit(source="nats://h:1", first=1, last=9, holes=[Hole(first=2, last=3, explained=False)]),
        agents={"a": AgentAudit(outputs=1, first=1, last=1)},
        snapshots={"a": SnapshotAudit(epoch=1, cursor=2, outputs=1)},
        poison=[Poison(sequence=4, subject="swarm.x", problem="no JSON")], poison_total=1, problems_total=1,
        problems=[
            Problem(
                check="holes", agent=None, subject=None, sequences=[2, 3], expected="2 messages", found="none", text="t"
            )
        ],
        notes=["n"],
    ),
    "chaos": Chaos(
        ok=False, swarm="swarm", seed=7, for_s=20.0, duration_s=21.5,
        faults=[
            FaultSeen(
                number=1, kind="reset", targets=["everybody"], at_s=0.3, fault_s=0.0, overlapping=False,
                outcome="recovered", recovered_ms=215.0,
            )
        ],
        kinds=[
            FaultKind(
                kind="reset", overlapping=False, count=1, recovered=1, not_applicable=0, detected_ms=percentiles_of([]),
                recovered_ms=percentiles_of([215.0]),
            )
        ],
        decisions=ReceivedDecisions(received=3, stored=3),
        verifications=[
            Verification(name="audit", ok=True, text="3 messages"),
            Verification(name="replay", ok=None, text="not run")],
        problems=["something"],
    ),
    "doctor": Diagnosis(
        ok=False, swarm="swarm", nats="nats://127.0.0.1:4222", state_dir=".signalmesh", running=False,
        findings=[Finding(check="port", level="error", text="is taken", remedy="--port 0")],
    ),
    "down": Ended(swarm="swarm", pid=1, duration_s=0.5),
    "explain": explained(),
    "keys": KeyList(
        keys=(
            KeyInfo(identity="up", file="keys/up.nk", public_key="UAB", inbox="_INBOX.UAB"),
            KeyInfo(identity="mirror", file="keys/mirror.nk", problem="key keys/mirror.nk: there is no such file"),
        )
    ),
    "config": ConfigDiff(
        file="swarm.toml", revision=1, changes=[ChangedAgent(agent="a", change="added", detail="kind momentum in b")]
    ),
    "add": AddedToSwarm(agent="a", sandbox="base", epoch=7, status="running", cursor=None),
    "remove": RemovedFromSwarm(agent="a", forgotten=True, warnings=["no agent votes"]),
    "sandbox": ChangedSandbox(
        sandbox="b", change="removed", moved=[MovedAgent(agent="a", sandbox="base", epoch=7, status="running")]
    ),
    "scale": Scaled(kind="momentum", agents=[MovedAgent(agent="momentum-1", sandbox="a", epoch=7, status="running")]),
    "move": MovedAgent(agent="a", sandbox="base", epoch=7, status="live"),
    "rebalance": Rebalanced(moved=[MovedAgent(agent="a", sandbox="base", epoch=7, status="live")]),
    "health": Health(ok=True, machine="m", role="sandbox", name="base", status="live", text="sandbox base …: live"),
    "history": History(
        kind="decision", swarm="swarm", file="mirror.sqlite",
        entries=[
            HistoryEntry(sequence=3, stored_at=AT, subject="swarm.decision.B.c", agent="c", headers={}, payload={}),
            HistoryEntry(sequence=4, stored_at=AT, subject="s", agent="c", headers={"a": "b"}, malformed="?"),
        ],
    ),
    "certify": Certificate(
        ok=False, alert_texts={"sandbox_gone": "it is gone"},
        version="0", provider="local", endpoint=None, started_at=AT, duration_s=1.5, machine=probe_sandbox(),
        nats_server="2",
        steps=[Step(name="auditing", duration_s=0.5)], targets=[judged("detection", None, "s", 1.0, "how", "why")],
        sandboxes=[SandboxRow(name="base")],
        agents=[AgentRow(
            name="a", kind="k", agent_id="i", sandbox="base", pid=None, epoch=4, capabilities=["c"], status="active",
        )],
        flow=Flow(hops=[Hop(source="a", to="b", kind="signal", ms=percentiles_of([1.5]))], votes={"a": 1}),
        throughput=Throughput(rounds=0, seconds=None, decisions_per_s=None, messages_per_s=None, why="none"),
        memory=[MemoryKey(agent="a", key="swarm/a/k")],
        snapshots=[SnapshotRow(agent="a", bytes=9, revision=3, sha256="00")],
        last_values=LastValues(subjects=0, bytes=0, read_ms=percentiles_of([])),
        fault=KillReport(agent="a", sandbox="base", pid=1, signal="SIGKILL", epoch_before=4),
        restored={"cursor": 7, "outputs": None},
        audit=Audited(
            ok=True, messages=6, gaps=0, duplicated=0, rounds_decided=2, rounds_missing=0, mirror_compared=6,
            mirror_missing=0, mirror_differing=0, problems=[], notes=["n"],
        ),
        alerts={"sandbox_lost": 1}, problems=["p"],
        cleanup=Cleanup(checks=[CleanupCheck(what="directory", how="/d", orphans=["a directory"])], earlier=["e"]),
    ),
    "kill": KillReport(agent="a", sandbox="base", pid=1, signal="SIGKILL", epoch_before=4, detected_ms=9.8),
    "replay": Replay(
        ok=False, swarm="swarm", source="nats://h:1", config="swarm.toml", first=1, last=9, messages=9, inputs=4,
        compared=2, differing=1, duration_s=0.1, inputs_per_s=40.0, notes=["n"],
        missing=[Hole(first=3, last=4, explained=False)],
        agents={"a": ReplayedAgent(kind="k", left_out="why")},
        differences=[
            Difference(
                agent="a", sequence=7, output=2, cause=None, subject="swarm.signal.A.a", text="t",
                fields=[FieldDifference(field="strength", recorded=0.5, replayed=None)],
            )
        ],
    ),
    "restart": Restarted(agent="a", epoch_before=4, epoch_after=9, ready_ms=41.5),
    "revive": Revived(agent="a", was="drained"),
    "status": Status(
        changes=[ChangedAgent(agent="a", change="removed", detail="its state is kept")],
        swarm="swarm", nats="nats://127.0.0.1:4222", active_agents=1, processes=1, watchdog_term=None,
        sandboxes=[
            SandboxStatus(
                name="b", provider="local", endpoint=None, status="active", agents=["a"], uptime_s=1.0, pid=1,
                health=SandboxHealth(),
            )
        ],
        agents=[
            AgentStatus(
                name="a", kind="k", agent_id="i", status="silent", epoch=4, pid=None, sandbox="b", capabilities=[],
                restarts=0, heartbeat_age_ms=None, cursor=None, lag=None, outputs=None, poison=None, skipped=None,
                last_output_at=AT,
            )
        ],
        decisions=DecisionCount(count=1, last_at=AT, from_other_writers=0),
        mirror=MirrorStatus(file="mirror.sqlite", cursor=7, lag=0, lag_ms=0, status="live", pid=3),
        refused=Refusals(
            count=3, since=7, by=[RefusedAttempts(who="agent-a", attempt="publish", reported_by="up", count=3)]
        ),
    ),
    "watch": WatchLine(subject="swarm.signal.BTC-USD.a", sequence=3, payload={"signal": "buy"}),
}  # fmt: skip


def test_the_committed_files_are_what_make_schema_writes(tmp_path):
    committed = {path.name: path.read_bytes() for path in json_schema.SCHEMA_DIR.glob("*.json")}
    assert committed == json_schema.documents(), "run `make schema`"
    (tmp_path / "message.gone.json").write_bytes(b"{}")
    json_schema.write(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == committed


def test_every_kind_and_every_json_has_a_schema():
    assert set(STORED_KINDS) | {"heartbeat"} == set(KINDS)
    assert {type(message) for message in MESSAGES} == set(KINDS.values())
    assert set(PRINTED) == set(json_schema.OUTPUTS)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: KIND_OF[type(message)])
def test_what_is_published_fits(message):
    check(f"message.{KIND_OF[type(message)]}.json", encode(message))


@pytest.mark.parametrize("command", PRINTED)
def test_what_is_printed_fits(command):
    assert type(PRINTED[command]) is json_schema.OUTPUTS[command]
    check(f"output.{command}.json", orjson.dumps(PRINTED[command], option=orjson.OPT_UTC_Z))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"strength": "0.85"}, "is no number"),
        ({"signal": "long"}, "is none of"),
        ({"source": None}, "is no string"),
        ({"timestamp": "2017-07-12"}, "no time with a zone"),
        ({"round": 1.5}, "fits none of"),
    ],
)
def test_what_is_wrong_does_not_fit(change, error):
    document = orjson.loads((json_schema.SCHEMA_DIR / "message.signal.json").read_bytes())
    value = {**orjson.loads(encode(MESSAGES[5])), **change}
    assert error in " ".join(errors(value, document, document))
    del value["indicators"]
    assert "$: indicators is missing" in errors(value, document, document)
