"""A swarm whose secrets come from a command, a file and standard input: it works, and shows none of them."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import nkeys
import psutil
import pytest

from tests.acceptance.subscriber import Subscriber
from tests.acceptance.swarm import Swarm, agents_toml
from tests.support.collector import collecting
from tests.support.nats import plain_server
from tests.support.receiver import receiver

HOOK = "s3cret"


def locked_configuration(directory: Path) -> tuple[Path, str]:
    """Of a server where only the user of the returned seed may publish; every client may read."""
    seed = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)
    public = nkeys.from_seed(bytearray(seed)).public_key.decode()
    reader = '{ user: reader, password: p, permissions { publish: ["$JS.API.>", "_INBOX.>"], subscribe: ">" } }'
    file = directory / "nats.conf"
    file.write_text(
        f'jetstream {{ store_dir: "{directory}/store" }}\n'
        f"no_auth_user: reader\nauthorization {{ users: [ {{ nkey: {public} }}, {reader} ] }}\n"
    )
    return file, seed.decode()


def places(swarm: Swarm, webhook: str, seed: str) -> list[str]:
    """The places of the running swarm that show a secret."""
    found = []
    for process in swarm.all_agents():
        try:
            words, environment = " ".join(process.cmdline()), process.environ()
        except psutil.NoSuchProcess:  # one that was killed, and a zombie too
            continue
        values = " ".join(environment.values())
        shown = {"webhook": webhook in words, "seed": seed in words + values}
        shown["webhook for another than metrics"] = webhook in values and "metrics" not in words
        found += [f"{words}: {what}" for what, there in shown.items() if there]
    files = [*(swarm.directory / ".signalmesh").rglob("*"), swarm.directory / "up.err"]
    assert {"up.log", "metrics.log", "run.json", "mirror.sqlite"} <= {path.name for path in files}
    for path in files:
        data = path.read_bytes() if path.is_file() else b""
        found += [str(path) for secret in (webhook, seed) if secret.encode() in data]
    return found


async def kill(swarm: Swarm, subscriber: Subscriber, name: str) -> None:
    """Kill a process, and wait for its successor."""
    await subscriber.until("its heartbeat", lambda: name in subscriber.heartbeats)
    pid = subscriber.heartbeats[name]["pid"]
    swarm.send(pid, signal.SIGKILL)
    await subscriber.until("another one", lambda: subscriber.heartbeats[name]["pid"] != pid)


@pytest.mark.slow
@pytest.mark.parametrize("nkey", ["stdin = true", 'command = ["cat", "../seed"]'])
async def test_secrets_from_their_sources_are_used_and_stand_nowhere(tmp_path, nkey):
    file, seed = locked_configuration(tmp_path)
    (tmp_path / "seed").write_text(f"{seed}\n")
    async with receiver() as there, collecting() as collector, plain_server(tmp_path, "-c", str(file)) as url:
        webhook = f"http://127.0.0.1:{there.port}/hook/{HOOK}"
        (tmp_path / "hook").write_text(webhook)
        (tmp_path / "hook").chmod(0o600)
        toml = f'[secrets.webhook]\nfile = "../hook"\n[secrets.nats_nkey]\n{nkey}\n{agents_toml()}'
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_TRACES_SAMPLER": "always_on"}
        async with Swarm(tmp_path / "swarm", toml, environment=environment) as swarm:
            with (tmp_path / "seed").open("rb") as stdin:
                subscriber = await swarm.up("--nats", url, "--speed", "20", stdin=stdin)
            await subscriber.more_decisions(3)
            for name in ("metrics", "strategy-momentum", "base"):  # an agent of a host that was there, and a new host
                await kill(swarm, subscriber, name)
            await subscriber.more_decisions(3)
            while "sandbox_died" not in [body["code"] for body in there.taken.items]:
                await there.taken.reach(len(there.taken.items) + 1)
            await collector.until("spans", lambda: len(collector.spans) > 10)
            assert places(swarm, webhook, seed) == []
            if "command" in nkey:
                status = await swarm.command("status", "--json", "--nats", url)
                assert status.code == 0, status.err
                doctor = await swarm.command("doctor", "--json", "--nats", url)
                for text in (status.out, status.err, doctor.out, doctor.err):
                    assert HOOK not in text
                    assert seed not in text
            assert await swarm.end(signal.SIGINT) == 0
            received = b"".join(message.data for message in subscriber.messages).decode()
            for text in (received, repr(collector.spans), json.dumps(subscriber.heartbeats)):
                assert webhook not in text
                assert seed not in text


@pytest.mark.slow
async def test_up_ends_with_the_key_of_a_source_that_fails(tmp_path):
    for table, expected in (
        ('webhook]\ncommand = ["false"]', "secrets.webhook.command: 'false' ended with exit code 1"),
        ("webhook]\nstdin = true", "secrets.webhook: is empty"),
        ('nats_creds]\nfile = "none"', "secrets.nats_creds.file: "),
    ):
        swarm = Swarm(tmp_path, f"[secrets.{table}\n{agents_toml()}")
        ended = await swarm.command("up", "--port", "0", "--no-dashboard")
        assert ended.code == 2
        assert expected in ended.err
        assert len(ended.err.splitlines()) == 1
    assert not [process for process in psutil.Process().children() if "signalmesh" in " ".join(process.cmdline())]
