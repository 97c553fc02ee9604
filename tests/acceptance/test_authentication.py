"""A swarm with keys, as `up` runs it: it works and recovers as without, and who has no key only listens."""

from __future__ import annotations

import asyncio
import signal
import stat
from pathlib import Path
from urllib.parse import urlsplit

import orjson
import psutil
import pytest

from bus.errors import BusError, NotAdmitted
from bus.messages.headers import MSG_ID, OUTPUT
from bus.nats.bus import NatsBus
from bus.nats.credentials import SEED_VARIABLE, Credentials
from bus.nats.key_files import KEY_SUFFIX, new_seed, read_seed, write_seed
from coordinator.security.keys import KeyStore
from tests.acceptance.faults import kill_agents, kill_host, kill_server
from tests.acceptance.subscriber import Subscriber
from tests.acceptance.swarm import AGENTS, SANDBOXES, Ends, Swarm, agents_toml, run_command
from tests.support.secured import pid_of


def server_log(swarm: Swarm) -> str:
    return (swarm.directory / ".signalmesh" / "nats" / "nats.log").read_text(errors="replace")


def keys_of(swarm: Swarm) -> KeyStore:
    return KeyStore(swarm.directory / ".signalmesh")


@pytest.mark.slow
async def test_it_decides_recovers_and_is_listened_to_without_a_key(tmp_path: Path):
    async with Swarm(tmp_path, agents_toml(speed=50)) as swarm:
        subscriber = await swarm.up("--standby")
        await subscriber.live(*AGENTS)
        await subscriber.decided(5)
        await kill_agents(swarm, subscriber, *AGENTS)
        await kill_host(swarm, subscriber, SANDBOXES[0])
        await kill_server(swarm, subscriber)
        await subscriber.more_decisions(20)
        for command in ("status", "audit", "replay", "doctor"):
            done = await swarm.command(command)
            assert done.code == 0, done
        [found] = [
            finding
            for finding in (await swarm.command("doctor", "--json")).json["findings"]
            if finding["check"] == "authentication"
        ]
        assert (found["level"], "by keys" in found["text"]) == ("ok", True)
        killed = await swarm.command("kill", "coordinator", "--json")
        assert (killed.json["outputs_lost"], killed.json["outputs_duplicated"]) == (0, 0)
        restarted = await swarm.command("restart", "research-2")
        assert restarted.code == 0, restarted
        await _no_key_publishes(swarm)
        logs = [path.read_text() for path in (tmp_path / ".signalmesh" / "logs").iterdir()]
        assert [line for log in logs for line in log.splitlines() if "permission_denied" in line] == []
        _no_seed_is_shown(swarm)


async def _listen_unnamed(swarm: Swarm) -> Subscriber:
    with pytest.MonkeyPatch.context() as without:
        without.delenv(SEED_VARIABLE)
        return await swarm.listen()


def refused(listener: Subscriber) -> dict[str, str]:
    """Attempt -> who made it, of the alerts about refused clients."""
    details = (alert["detail"] for alert in listener.alerts if alert["code"] == "client_refused")
    return {detail["attempt"]: detail["who"] for detail in details}


async def _no_key_publishes(swarm: Swarm) -> None:
    unnamed = await NatsBus.connect(swarm.url, swarm.name, "unnamed", credentials=Credentials())
    try:
        listener = await _listen_unnamed(swarm)
        before = len(listener.decisions)
        unnamed.connection.write("in.swarm.decision.BTC-USD.coordinator", b'{"forged": true}')
        unnamed.connection.write("swarm.decision.BTC-USD.coordinator", b'{"forged": true}')
        await unnamed.flush()
        await listener.until("more decisions", lambda: len(listener.decisions) > before + 5)
        assert not [decision for decision in listener.decisions if "forged" in decision]
        forged = "publish to in.swarm.decision.BTC-USD.coordinator"
        await listener.until("an alert about it", lambda: forged in refused(listener))
        assert refused(listener)[forged] == "clients without a key at 127.0.0.1"
        with pytest.raises(NotAdmitted):
            await NatsBus.connect(swarm.url, swarm.name, "foreign", 1.0, Credentials(nkey_seed=new_seed()))
        await listener.until("an alert about the key", lambda: "connect" in refused(listener))
        assert refused(listener)["connect"].startswith("unknown key U")
        ours = [who for who in refused(listener).values() if not who.startswith(("unknown key U", "clients without"))]
        assert ours == []
    finally:
        await unnamed.close()


def _no_seed_is_shown(swarm: Swarm) -> None:
    """Key files are of this user alone, and no seed is anywhere else."""
    store = keys_of(swarm)
    directories = (store.directory, store.incarnations)
    files = sorted(file for directory in directories for file in directory.iterdir() if not file.is_dir())
    assert {stat.S_IMODE(directory.stat().st_mode) for directory in directories} == {0o700}
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    files = [file for file in files if file.suffix == KEY_SUFFIX]
    seeds = [read_seed(file).encode() for file in files]
    assert len({*seeds}) == len(AGENTS) + len(SANDBOXES) + 7
    shown = b""
    for process in swarm.all_agents():
        try:
            shown += repr((process.cmdline(), process.environ())).encode()
        except psutil.NoSuchProcess:  # it was replaced just now
            continue
    for file in (tmp for tmp in store.directory.parent.rglob("*") if tmp.is_file() and tmp.parent not in directories):
        shown += file.read_bytes()
    assert not [file.name for file, seed in zip(files, seeds, strict=True) if seed in shown]


@pytest.mark.slow
async def test_a_state_directory_from_before_there_were_keys_goes_on(tmp_path: Path):
    async with Swarm(tmp_path, agents_toml(speed=50)) as swarm:
        for arguments, authentication in (
            (("--open",), "open"),
            ((), "keys"),
            ((), "keys"),
            (("--authentication", "open"), "open"),
        ):
            subscriber = await swarm.up("--for", "3", *arguments)
            assert swarm.record["authentication"] == authentication
            await swarm.wait()
            assert len(subscriber.decisions) > 20
        assert swarm.errors.count("had no keys until now: made ") == 1
        assert swarm.errors.count("may do everything: ") == 2
        audit = await swarm.command("audit", "--file", ".signalmesh/mirror.sqlite")
        assert audit.code == 0, audit


@pytest.mark.slow
async def test_up_and_doctor_warn_of_an_open_swarm(tmp_path: Path):
    async with Swarm(tmp_path, agents_toml(speed=5)) as swarm:
        subscriber = await swarm.up("--open")
        await subscriber.decided(1)
        assert f"warning: open (--open or SIGNALMESH_AUTHENTICATION): whoever reaches {swarm.url} may" in swarm.errors
        for arguments, why in (((), f"whoever reaches {swarm.url}"), (("--nats", swarm.url), swarm.url)):
            doctor = (await swarm.command("doctor", "--json", *arguments)).json
            [found] = [finding for finding in doctor["findings"] if finding["check"] == "authentication"]
            assert (found["level"], why in found["text"], "without --open" in found["remedy"]) == (
                "warning",
                True,
                True,
            )
        assert not keys_of(swarm).directory.exists()
    (tmp_path / "swarm.toml").write_text('[nats]\nauthentication = "open"\n' + agents_toml())
    doctor = (await swarm.command("doctor", "--json")).json
    [found] = [finding for finding in doctor["findings"] if finding["check"] == "authentication"]
    assert (found["level"], "[nats] authentication in " in found["text"]) == ("warning", True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "content", "mode", "problem"),
    [
        ("mirror", "", 0o600, "not nothing"),
        ("sandbox-base", "SUPPOSEDLY A SEED", 0o600, "not other text"),
        ("operator", "SA" + 56 * "A", 0o600, "58 characters"),
        ("watchdog", None, 0o644, "mode 0644"),
        ("up", None, 0o620, "mode 0620"),
    ],
)
async def test_a_wrong_key_file_is_named(tmp_path: Path, name: str, content: str | None, mode: int, problem: str):
    async with Swarm(tmp_path, agents_toml()) as swarm:
        file = keys_of(swarm).file(name)
        write_seed(file, new_seed() if content is None else content)
        file.chmod(mode)
        done = await swarm.command("up", "--port", "0", "--no-dashboard")
        assert done.code == 2, done
        assert f"key {file}: " in done.err
        assert problem in done.err
        assert len(done.err.strip().splitlines()) == 1
        found = (await swarm.command("doctor", "--json")).json["findings"]
        [finding] = [each for each in found if each["check"] == "authentication"]
        assert (finding["level"], f"key {file}: " in finding["text"]) == ("error", True)


@pytest.mark.slow
async def test_a_key_of_another_swarm_is_not_admitted(tmp_path: Path):
    async with Swarm(tmp_path, agents_toml(speed=50)) as swarm:
        subscriber = await swarm.up()
        await subscriber.live(*AGENTS)
        write_seed(tmp_path / "foreign.nk", new_seed())
        status = await swarm.command("--nats-nkey", "foreign.nk", "status")
        assert status.code == 3, status
        assert "does not take these credentials" in status.err
        assert "is of another swarm, or was replaced or revoked" in status.err
        (tmp_path / "foreign.nk").chmod(0o644)
        status = await swarm.command("--nats-nkey", "foreign.nk", "status")
        assert (status.code, "foreign.nk (SIGNALMESH_NATS_NKEY): others may read" in status.err) == (2, True), status

        prepared = keys_of(swarm).incarnations / "strategy-momentum.next.nk"
        await subscriber.until("a prepared key", prepared.exists)
        write_seed(tmp_path / "agent.nk", read_seed(prepared))
        status = await swarm.command("--nats-nkey", "agent.nk", "status")
        assert status.code == 2, status
        assert f"does not let the key in {tmp_path}/agent.nk, which is that of agent-strategy-momentum, " in status.err
        assert "a command expects an operator's key, such as DIR/keys/operator.nk" in status.err
        write_seed(operator := keys_of(swarm).file("operator"), read_seed(prepared))
        status = await swarm.command("status")
        assert status.code == 2, status
        assert f"does not let the key in {operator}, which is that of agent-strategy-momentum, " in status.err
        assert "expected there the key of operator: `signalmesh keys rotate operator` makes one" in status.err
        await subscriber.until(
            "an alert", lambda: [alert for alert in subscriber.alerts if alert["code"] == "key_unusable"]
        )
        rotated = await swarm.command("keys", "rotate", "operator")
        assert rotated.code == 0, rotated
        async with asyncio.timeout(60):
            while (status := await swarm.command("status")).code != 0:
                assert status.code == 3, status  # until the server has read it


@pytest.mark.slow
async def test_commands_in_another_directory_find_the_key_or_name_the_flag(tmp_path: Path):
    elsewhere, state_dir = tmp_path / "elsewhere", str(tmp_path / "swarm" / ".signalmesh")
    elsewhere.mkdir()
    async with Swarm(tmp_path / "swarm", agents_toml(speed=5)) as swarm:
        subscriber = await swarm.up()
        await subscriber.live(*AGENTS)
        await subscriber.decided(2)
        by_name = swarm.url.replace("127.0.0.1", "localhost")
        operator = str(keys_of(swarm).file("operator"))
        for arguments in (
            ("status", "--state-dir", state_dir, "--nats", by_name),
            ("--nats-nkey", operator, "status", "--nats", by_name),
        ):
            done = await run_command(elsewhere, *arguments)
            assert done.code == 0, (arguments, done)
        healthy = await run_command(elsewhere, "health", "watchdog", "--state-dir", state_dir)
        assert healthy.code == 0, healthy  # without a key it may be in time: heartbeats are on the read side
        commands = (("audit",), ("replay",), ("explain", "latest"), ("doctor",))
        for command in (*commands, ("metrics", "--once"), ("restart", "research-2")):
            done = await run_command(elsewhere, *command, "--state-dir", state_dir)
            assert done.code == 0, (command, done)
            without = await run_command(elsewhere, *command, "--nats", by_name)
            assert without.code == (1 if command == ("doctor",) else 2), (command, without)
            assert all(flag in without.err + without.out for flag in ("--state-dir DIR", "--nats-nkey")), without
        wrong = await run_command(elsewhere, "status", "--state-dir", state_dir, "--swarm", "other")
        assert (wrong.code, "no swarm named 'other'" in wrong.err) == (3, True), wrong


async def test_open_and_keys_at_once_are_refused(tmp_path: Path):
    async with Swarm(tmp_path, agents_toml()) as swarm:
        done = await swarm.command("up", "--port", "0", "--open", "--authentication", "keys")
        assert (done.code, "--open: expected without --authentication keys" in done.err) == (2, True), done


@pytest.mark.slow
async def test_keys_are_rotated_under_load_and_nothing_is_lost(tmp_path: Path):
    async with Swarm(tmp_path, agents_toml(speed=100)) as swarm:
        subscriber = await swarm.up()
        heartbeats = await subscriber.live(*AGENTS)
        await subscriber.decided(20)
        [old] = (await swarm.command("keys", "list", "agent-coordinator", "--json")).json["keys"]
        one = await swarm.command("keys", "rotate", "agent-coordinator", "--json")
        assert one.code == 0, one
        await subscriber.back({"coordinator": heartbeats["coordinator"]["epoch"]})
        [new] = (await swarm.command("keys", "list", "agent-coordinator", "--json")).json["keys"]
        assert new["public_key"] != old["public_key"]
        assert f'authentication error - Nkey "{old["public_key"]}"' in server_log(swarm)
        heartbeats = await subscriber.live(*AGENTS)
        await subscriber.close()  # it has the operator's key, which is about to be replaced
        unnamed = await _listen_unnamed(swarm)
        every = await swarm.command("keys", "rotate", "--all")
        assert every.code == 0, every
        await unnamed.until(
            "all keys in use",
            lambda: any(len(alert["detail"].get("identities", ())) > len(AGENTS) for alert in unnamed.alerts),
        )
        subscriber = await swarm.listen()
        await subscriber.until(
            "new processes of all agents",
            lambda: all(
                subscriber.heartbeats.get(name, heartbeat)["epoch"] > heartbeat["epoch"]
                for name, heartbeat in heartbeats.items()
            ),
        )
        await subscriber.more_decisions(20)
        for command in ("status", "audit", "doctor", "replay"):
            done = await swarm.command(command)
            assert done.code == 0, done


async def connect(swarm: Swarm, identity: str) -> NatsBus:
    credentials = Credentials(nkey_seed=keys_of(swarm).seed(identity))
    return await NatsBus.connect(swarm.url, swarm.name, identity, 1.0, credentials)


@pytest.mark.slow
async def test_a_subscriber_and_a_voter_are_admitted_until_they_are_revoked(tmp_path: Path):
    async with Swarm(tmp_path, agents_toml(speed=50)) as swarm:
        made = await swarm.command("keys", "init", "--json")
        assert (made.code, len(made.json["keys"])) == (0, len(AGENTS) + len(SANDBOXES) + 7)
        before = await swarm.command("keys", "add", "early", "--role", "subscriber")
        assert before.code == 0, before
        subscriber = await swarm.up()
        await subscriber.decided(2)
        early = await connect(swarm, "subscriber-early")
        [key] = (await swarm.command("keys", "add", "acme", "--role", "voter", "--json")).json["keys"]
        assert (key["identity"], key["role"]) == ("voter-acme", "voter")
        await subscriber.until("its key in use", lambda: _identities(subscriber, "keys_replaced") == {"voter-acme"})
        voter = await connect(swarm, "voter-acme")
        try:
            received: list[str] = []
            for subject in ("swarm.decision.>", "swarm.market.>", "swarm.heartbeat.*"):
                await early.connection.subscribe_directly(subject, lambda actual, *_: received.append(actual))
            await early.flush()
            await subscriber.more_decisions(5)
            await early.flush()
            assert {subject.split(".")[1] for subject in received} == {"decision"}
            stored = await voter.publish("in.swarm.signal.BTC-USD.acme", b"{}")
            assert stored.sequence > 0
            listed = (await swarm.command("keys", "list", "early", "acme", "--json")).json["keys"]
            assert [(each["identity"], each["used_by"]) for each in listed] == [
                ("subscriber-early", "a program outside the swarm that receives decisions"),
                ("voter-acme", "a program outside the swarm that votes as acme"),
            ]
            assert listed[1]["public_key"] in (await swarm.command("keys", "export")).out
            revoked = await swarm.command("keys", "revoke", "early", "acme")
            assert revoked.code == 0, revoked
            gone = {"subscriber-early", "voter-acme"}
            await subscriber.until("an alert about it", lambda: _identities(subscriber, "keys_revoked") == gone)
            for bus in (early, voter):
                with pytest.raises(BusError):
                    await bus.flush()
            assert not keys_of(swarm).file("voter-acme").exists()
        finally:
            await early.close()
            await voter.close()
        refused_own = await swarm.command("keys", "revoke", "mirror")
        assert (refused_own.code, "keys rotate mirror" in refused_own.err) == (2, True), refused_own


def _identities(listener: Subscriber, code: str) -> set[str]:
    return {name for alert in listener.alerts if alert["code"] == code for name in alert["detail"]["identities"]}


def _is_served(swarm: Swarm, pid: int) -> bool:
    """Whether the server has a connection with this process, which may be stopped and not learn of its end."""
    server = psutil.Process(pid_of(swarm.directory / ".signalmesh" / "nats"))
    port = urlsplit(swarm.url).port
    own = {each.laddr.port for each in psutil.Process(pid).net_connections(kind="tcp") if each.raddr[1:] == (port,)}
    return any(each in own for one in server.net_connections(kind="tcp") for each in one.raddr[1:])


@pytest.mark.slow
async def test_a_replaced_process_that_is_stopped_is_cut_off_and_ends_when_it_goes_on(tmp_path: Path):
    async with Swarm(tmp_path, agents_toml(speed=20)) as swarm:
        subscriber = await swarm.up()
        before = (await subscriber.live(*AGENTS))["coordinator"]
        zombie, host = before["pid"], subscriber.heartbeats[before["sandbox"]]["pid"]
        there = {
            name: heartbeat["epoch"]
            for name, heartbeat in subscriber.heartbeats.items()
            if name in AGENTS and heartbeat["sandbox"] == before["sandbox"]
        }
        ends = await Ends.of(zombie)
        swarm.send(host, signal.SIGSTOP)
        swarm.send(zombie, signal.SIGSTOP)
        assert _is_served(swarm, zombie)
        await subscriber.until("a new claim", lambda: subscriber.claims["coordinator"] > before["epoch"])
        await subscriber.until("a cut off process", lambda: not _is_served(swarm, zombie))
        await subscriber.back(there)
        swarm.send(zombie, signal.SIGCONT)
        await ends.all()  # fenced by the claim, if that came before the end of its connection; else not admitted
        swarm.send(host, signal.SIGCONT)
        await subscriber.more_heartbeats(5, before["sandbox"])
        await subscriber.more_decisions(20)
        assert "api_request_refused" not in {alert["code"] for alert in subscriber.alerts}
        done = await swarm.command("audit")
        assert done.code == 0, done


@pytest.mark.slow
async def test_agents_recover_while_up_is_stopped(tmp_path: Path):
    """Nobody prepares keys: the watchdog takes the prepared one, then gives out the last one again."""
    async with Swarm(tmp_path, agents_toml(speed=20)) as swarm:
        subscriber = await swarm.up()
        await subscriber.live(*AGENTS)
        swarm.send(swarm.process.pid, signal.SIGSTOP)
        try:
            for _ in range(3):
                await kill_agents(swarm, subscriber, "coordinator")
        finally:
            swarm.send(swarm.process.pid, signal.SIGCONT)
        await kill_agents(swarm, subscriber, "coordinator")
        await subscriber.more_decisions(20)
        [used] = (await swarm.command("keys", "list", "agent-coordinator", "--json")).json["keys"]
        await subscriber.until(
            "only the key in use and the prepared one",
            lambda: len([*keys_of(swarm).incarnations.glob("coordinator.*")]) == 2,
        )
        conf = swarm.directory / ".signalmesh" / "nats" / "nats.conf"
        assert used["public_key"] in conf.read_text()
        done = await swarm.command("audit")
        assert done.code == 0, done


@pytest.mark.slow
async def test_keys_names_what_is_wrong(tmp_path: Path):
    async with Swarm(tmp_path) as swarm:
        for arguments, problem in (
            (("list",), "there are no keys"),
            (("rotate",), "expected names, or --all"),
            (("revoke",), "expected names"),
            (("revoke", "acme"), "there are no keys; `signalmesh keys init` makes them"),
            (("add",), "expected one name and --role"),
            (("add", "acme"), "expected one name and --role"),
            (("add", "acme", "--role", "subscriber"), "there are no keys; `signalmesh keys init` makes them"),
            (("add", "acme", "--role", "agent"), "--role"),
            (("init", "acme"), "expected no names"),
            (("list", "--role", "voter"), "--role: expected with add alone"),
            (("rotate", "up", "--all"), "--all: expected with rotate, and without names"),
        ):
            done = await swarm.command("keys", *arguments)
            assert (done.code, problem in done.err) == (2, True), done


ALERT = {
    "severity": "info", "code": "x", "message": "x", "timestamp": "2020-01-01T00:00:00Z",
    "source": "strategy-momentum",
}  # fmt: skip


async def _squat(thief: NatsBus, operator: NatsBus, victim: str, ahead: int, count: int) -> None:
    """Publish, as the thief may, under the ids of outputs that the victim is about to publish."""
    numbers = [0]
    for kind in ("signal", "market", "decision"):
        newest = await operator.last(f"swarm.{kind}.BTC-USD.{victim}")
        numbers.append(int(newest.headers[OUTPUT]) if newest is not None else 0)
    for number in range(max(numbers) + ahead, max(numbers) + ahead + count):
        headers = {MSG_ID: f"{victim}:{number}"}
        thief.connection.write("in.swarm.alert.info.strategy-momentum", orjson.dumps(ALERT), headers=headers)
    await thief.flush()


@pytest.mark.slow
async def test_ids_that_an_agent_has_taken_lose_nothing_of_another_and_name_it(tmp_path: Path):
    victims = ("strategy-mean-reversion", "research-1", "coordinator")
    async with Swarm(tmp_path, agents_toml(speed=50)) as swarm:
        subscriber = await swarm.up()
        await subscriber.live(*AGENTS)
        await subscriber.decided(5)
        # The server admits it already. `up` makes it once the one before is in use.
        prepared = keys_of(swarm).incarnations / "strategy-momentum.next.nk"
        await subscriber.until("a prepared key", prepared.exists)
        thief = await NatsBus.connect(
            swarm.url, swarm.name, "thief", 1.0, Credentials(nkey_seed=prepared.read_text().strip())
        )
        operator = await connect(swarm, "operator")
        try:
            async with asyncio.timeout(60):
                while missed := {*victims} - _squatted(subscriber):  # its outputs may have been faster
                    for victim in missed:
                        await _squat(thief, operator, victim, 5, 50)
                    await subscriber.more_decisions(20)
            for victim in victims:
                for ahead in (3, 8):
                    await _squat(thief, operator, victim, ahead, 30)
                    await subscriber.more_decisions(1)
                    await kill_agents(swarm, subscriber, victim)
            await subscriber.more_decisions(50)
        finally:
            await thief.close()
            await operator.close()
        squatters = {alert["detail"]["squatter"] for alert in subscriber.alerts if alert["code"] == SQUATTED}
        assert squatters == {"strategy-momentum"}
        codes = {alert["code"] for alert in subscriber.alerts}
        assert not codes & {"output_gap", "replay_diverged", "output_from_unknown_writer", "api_request_refused"}
        rounds = [decision["round"] for decision in subscriber.decisions]
        assert len(set(rounds)) == len(rounds)
        late = [alert for alert in subscriber.alerts if alert["code"] == "tick_repeated"]
        if not late:  # a tick that was stored after later ones opens no round
            assert sorted(rounds) == list(range(1, len(rounds) + 1)), "one whose id was taken comes after later ones"
        for command in ("audit", "replay", "status"):
            done = await swarm.command(command)
            assert done.code == 0, done


SQUATTED = "message_id_squatted"


def _squatted(listener: Subscriber) -> set[str]:
    return {alert["source"] for alert in listener.alerts if alert["code"] == SQUATTED}
