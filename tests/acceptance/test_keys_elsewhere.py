"""A swarm with keys on a server of others: its users are exported, and a server without them is refused."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from bus.errors import NotAdmitted
from bus.nats.bus import NatsBus
from bus.nats.credentials import Credentials, public_key_of
from bus.nats.key_files import new_seed
from tests.acceptance.swarm import AGENTS, Swarm, agents_toml
from tests.support.jwts import SERVER, install, make_operator
from tests.support.secured import served

KEYS = '[nats]\nauthentication = "keys"\n'


def toml() -> str:
    return KEYS + agents_toml(speed=50)


async def export(swarm: Swarm) -> str:
    done = await swarm.command("keys", "export")
    assert done.code == 0, done
    return done.out


def without(users: str, identity: str) -> str:
    """These lines with the key of another user in place of that of `identity`."""
    return re.sub(rf"(# {identity}\n  {{ nkey: )\w+", rf"\g<1>{public_key_of(new_seed())}", users)


@pytest.mark.slow
async def test_the_exported_users_are_enough_and_recovery_works(tmp_path: Path):
    async with Swarm(tmp_path, toml()) as swarm:
        users = await export(swarm)
        with served(tmp_path / "server", users) as url:
            subscriber = await swarm.up("--nats", url, "--server-log", str(tmp_path / "server" / "nats.log"))
            await subscriber.live(*AGENTS)
            with pytest.raises(NotAdmitted):
                await NatsBus.connect(url, "swarm", "stranger", 1.0, Credentials(nkey_seed=new_seed()))
            await subscriber.until(
                "an alert about the stranger",
                lambda: [
                    alert["source"]
                    for alert in subscriber.alerts
                    if alert["code"] == "client_refused" and alert["detail"]["who"].startswith("unknown key")
                ],
            )
            killed = await swarm.command("kill", "coordinator", "--json")
            assert killed.code == 0, killed
            assert (killed.json["outputs_lost"], killed.json["outputs_duplicated"]) == (0, 0)
            await subscriber.more_decisions(20)
            refused = await swarm.command("keys", "rotate", "agent-coordinator")
            assert refused.code == 2, refused
            assert "the swarm runs on the server of --nats" in refused.err
            for command in ("status", "audit", "doctor"):
                done = await swarm.command(command)
                assert done.code == 0, done
            found = [
                finding["text"]
                for finding in (await swarm.command("doctor", "--json")).json["findings"]
                if finding["check"] == "authentication"
            ]
            assert f"the server refuses to the keys of {len(AGENTS)} agents what they may not do" in found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda _: "", "does not map in.swarm.> to _R_.in.swarm.>"),
        (lambda users: users[: users.index("authorization")], "it does not enforce the permissions of the keys"),
        (lambda users: users[users.index("authorization") :], "does not map in.swarm.> to _R_.in.swarm.>"),
        (lambda users: without(users, "up"), "has not up's key"),
        (lambda users: without(users, "agent-research-2"), "has not the key of agent-research-2"),
    ],
    ids=["open", "without-users", "without-mappings", "without-up", "without-an-agent"],
)
async def test_a_server_without_the_users_is_refused(tmp_path: Path, change: Callable[[str], str], problem: str):
    async with Swarm(tmp_path, toml()) as swarm:
        users = change(await export(swarm))
        with served(tmp_path / "server", users) as url:
            done = await swarm.command("up", "--nats", url, "--no-dashboard")
            assert done.code == 2, done
            assert problem in done.err
            assert "signalmesh keys export" in done.err
            assert len(done.err.strip().splitlines()) == 1


@pytest.mark.slow
async def test_on_a_server_with_operators_each_process_has_a_jwt(tmp_path: Path):
    """`nsc` is a stand-in with its options; the JWTs are real, and so is the server that judges them."""
    nsc, conf = tmp_path / "nsc", tmp_path / "nsc" / SERVER
    environment = install(nsc)
    make_operator(nsc, "ACME")
    async with Swarm(tmp_path, toml()) as swarm:
        done = await swarm.command("keys", "export", "--nsc", "ACME")
        assert done.code == 0, done
        subprocess.run(["sh", "-c", done.out], check=True, env={**os.environ, **environment})
        keys = swarm.directory / ".signalmesh" / "keys"
        assert {file.stem for file in keys.glob("*.jwt")} == {file.stem for file in keys.glob("*.nk")}
        with served(tmp_path / "server", conf.read_text()) as url:
            own = keys / "agent-research-2.jwt"
            token = own.read_text()
            own.unlink()
            done = await swarm.command("up", "--nats", url, "--no-dashboard")
            assert (done.code, "has not the key of agent-research-2" in done.err) == (2, True), done
            own.write_text((keys / "agent-coordinator.jwt").read_text())
            done = await swarm.command("up", "--nats", url, "--no-dashboard")
            assert (done.code, "agent-research-2.jwt: it is the JWT of the user U" in done.err) == (2, True), done
            own.write_text(token)

            subscriber = await swarm.up("--nats", url)
            await subscriber.live(*AGENTS)
            killed = await swarm.command("kill", "coordinator", "--json")
            assert (killed.json["outputs_lost"], killed.json["outputs_duplicated"]) == (0, 0), killed
            await subscriber.more_decisions(20)
            for command in ("status", "audit"):
                done = await swarm.command(command)
                assert done.code == 0, done
            findings = (await swarm.command("doctor", "--json")).json["findings"]
            found = [finding["text"] for finding in findings if finding["check"] == "authentication"]
            assert f"the server refuses to the keys of {len(AGENTS)} agents what they may not do" in found
            with pytest.raises(NotAdmitted):
                await NatsBus.connect(url, swarm.name, "nobody", credentials=Credentials())


@pytest.mark.slow
async def test_without_being_asked_the_configuration_of_that_server_counts(tmp_path: Path):
    async with Swarm(tmp_path, agents_toml(speed=5)) as swarm:
        with served(tmp_path / "server", "") as url:
            subscriber = await swarm.up("--nats", url)
            await subscriber.decided(1)
            assert swarm.record["authentication"] == "open"
            assert f"who may publish and read at {url} is up to that server's own configuration" in swarm.errors
            assert "warning" not in swarm.errors
            doctor = (await swarm.command("doctor", "--json")).json
            [found] = [finding for finding in doctor["findings"] if finding["check"] == "authentication"]
            assert (found["level"], "the configuration of that server" in found["text"]) == ("ok", True)


@pytest.mark.parametrize("arguments", [("agent-coordinator",), ("--json",), ("--all",)])
async def test_export_takes_no_names(tmp_path: Path, arguments: tuple[str, ...]):
    async with Swarm(tmp_path, toml()) as swarm:
        done = await swarm.command("keys", "export", *arguments)
        assert done.code == 2, done
