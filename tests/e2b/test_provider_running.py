"""Faults of a sandbox at E2B, or of the service, while agents run in it: they go on, there or in another sandbox.

The SDK is the real one, as are `up`, the hosts, the agents and the bus.
"""

from __future__ import annotations

import os
import signal

import psutil
import pytest
from e2b import AsyncSandbox

from tests.acceptance.swarm import AGENTS, Ends
from tests.e2b.remote import REMOTE_AGENTS, RemoteSwarm, remote_toml, until

CREATE = "/v2/sandboxes"
HANDING_OVER = {"timeout_s": 6, "max_age_s": 40, "replace_at": 0.3}
"""A successor is due after 12 s."""


# The sandbox


@pytest.mark.slow
async def test_agents_of_a_killed_sandbox_move_and_nothing_is_lost(tmp_path, e2b_standin):
    async with RemoteSwarm(tmp_path, e2b_standin) as swarm:
        there = await swarm.started()
        subscriber, host = there.subscriber, there.host
        result = (await e2b_standin.sandboxes())[there.sandbox_id]
        pids = {heartbeat["pid"] for heartbeat in there.heartbeats.values()}
        assert pids <= set(result["pids"]), "the agents do not run in the sandbox"
        assert subscriber.heartbeats[host]["group"] == "python"
        status = (await swarm.command("status", "--json")).json
        [row] = [row for row in status["sandboxes"] if row["name"] == host]
        assert (row["provider"], row["status"], sorted(row["agents"])) == ("e2b", "active", sorted(REMOTE_AGENTS))
        await subscriber.decided(280)
        others = {
            name: heartbeat["epoch"]
            for name, heartbeat in (await subscriber.live(*AGENTS)).items()
            if name not in REMOTE_AGENTS
        }
        ends = await Ends.of(there.pid, *pids)

        assert await AsyncSandbox.kill(there.sandbox_id)
        await ends.all()
        await there.moved_to_local()
        another = await swarm.remote_host(subscriber, other_than=host)
        [gone] = await subscriber.alerted("sandbox_gone")
        assert f"sandbox {host} is lost and will be replaced" in gone["message"]
        [lost] = await subscriber.alerted("sandbox_lost")
        assert all(name in lost["message"] for name in REMOTE_AGENTS)
        await subscriber.more_decisions(5)
        moved = [event["agent"] for event in subscriber.lifecycle if event["event"] == "moved"]
        dead = [event["agent"] for event in subscriber.lifecycle if event["event"] == "declared_dead"]
        assert sorted(moved) == sorted(dead) == sorted(REMOTE_AGENTS), "each of them once, and nobody else"
        assert {name: subscriber.heartbeats[name]["epoch"] for name in others} == others
        audit = await swarm.command("audit", "--json")
        assert (audit.code, audit.json["problems"]) == (0, []), audit.out + audit.err
        counts = audit.json["agents"]
        assert {name: counts[name]["claims"] for name in AGENTS} == {
            name: 2 if name in REMOTE_AGENTS else 1 for name in AGENTS
        }
        assert sum(agent["gaps"] + agent["duplicated"] for agent in counts.values()) == 0
        assert swarm.created() - there.new_ones == 1
        assert [f"python-{name}" for name in await e2b_standin.sandboxes()] == [another]
        assert swarm.logged("sandbox_created")[-1]["at"].startswith("custom endpoint http://127.0.0.1:")
        await swarm.down()


@pytest.mark.slow
async def test_a_host_that_is_killed_in_its_sandbox_is_started_there_again(tmp_path, e2b_standin):
    async with RemoteSwarm(tmp_path, e2b_standin) as swarm:
        there = await swarm.started()
        ends = await Ends.of(there.pid, *(heartbeat["pid"] for heartbeat in there.heartbeats.values()))
        os.kill(there.pid, signal.SIGKILL)
        await ends.all()
        before = there.subscriber.heartbeats[there.host]
        await there.subscriber.until(
            "another host", lambda: there.subscriber.heartbeats[there.host]["pid"] != there.pid
        )
        after = there.subscriber.heartbeats[there.host]
        assert after["age_s"] > before["age_s"] > before["uptime_s"], "the sandbox is the same, and older"
        assert after["age_s"] > after["uptime_s"] + before["uptime_s"]
        await there.subscriber.back(there.epochs)
        assert swarm.created() == there.new_ones
        await swarm.assert_exact()


@pytest.mark.slow
async def test_a_sandbox_that_is_paused_from_outside_is_resumed(tmp_path, e2b_standin):
    async with RemoteSwarm(tmp_path, e2b_standin) as swarm:
        there = await swarm.started()
        assert await AsyncSandbox.pause(there.sandbox_id)
        [alert] = await there.subscriber.alerted("sandbox_paused")
        assert f"sandbox {there.host} was paused and is being resumed" in alert["message"]
        await there.subscriber.more_heartbeats(3, there.host)
        assert there.subscriber.heartbeats[there.host]["pid"] == there.pid, "the same host goes on"
        await there.subscriber.live(*AGENTS)
        await there.subscriber.more_decisions(5)
        assert (swarm.created(), list(await e2b_standin.sandboxes())) == (there.new_ones, [there.sandbox_id])
        assert not there.alerts("sandbox_gone")
        await swarm.assert_exact()


@pytest.mark.slow
async def test_what_ran_in_a_sandbox_that_was_paused_for_long_is_fenced(tmp_path, e2b_standin):
    async with RemoteSwarm(tmp_path, e2b_standin, remote_toml(timeout_s=6)) as swarm:
        there = await swarm.started()
        ends = await Ends.of(*(heartbeat["pid"] for heartbeat in there.heartbeats.values()))
        swarm.send(there.launcher, signal.SIGSTOP)  # else it is resumed before any agent is missed
        assert await AsyncSandbox.pause(there.sandbox_id)
        await there.moved_to_local()
        swarm.send(there.launcher, signal.SIGCONT)
        await swarm.until_logged("sandbox_resumed")
        await ends.all()
        await there.subscriber.more_heartbeats(3, there.host)
        assert list(await e2b_standin.sandboxes()) == [there.sandbox_id]
        await there.subscriber.more_decisions(3)
        await swarm.assert_exact()


@pytest.mark.slow
async def test_a_lifetime_is_renewed_and_where_it_was_not_another_sandbox_comes(tmp_path, e2b_standin):
    async with RemoteSwarm(tmp_path, e2b_standin, remote_toml(timeout_s=6)) as swarm:
        there = await swarm.started()

        async def renewed():
            return len(e2b_standin.requests(f"/sandboxes/{there.sandbox_id}/timeout")) >= 4

        await until(renewed)  # for longer than its first lifetime
        await there.untouched()
        swarm.send(there.launcher, signal.SIGSTOP)
        await there.moved_to_local()
        assert await e2b_standin.sandboxes() == {}
        swarm.send(there.launcher, signal.SIGCONT)
        assert await swarm.remote_host(there.subscriber, other_than=there.host)
        await swarm.assert_exact()


# Handing over before the greatest age


@pytest.mark.slow
async def test_before_its_greatest_age_a_sandbox_hands_over_to_another(tmp_path, e2b_standin):
    async with RemoteSwarm(tmp_path, e2b_standin, remote_toml(**HANDING_OVER)) as swarm:
        there = await swarm.started()
        subscriber, host = there.subscriber, there.host
        another = await swarm.remote_host(subscriber, other_than=host)
        await swarm.agents_in(subscriber, another)
        assert not [event for event in subscriber.lifecycle if event["event"] == "exited" and event["agent"] == host]
        reasons = [event["reason"] for event in subscriber.lifecycle if event["event"] == "declared_dead"]
        assert set(reasons) == {"its sandbox host is ending"}, "they were not drained"
        await subscriber.more_decisions(3)
        await swarm.assert_exact()


@pytest.mark.slow
async def test_a_sandbox_whose_successor_cannot_be_made_goes_on(tmp_path, e2b_standin):
    async with RemoteSwarm(tmp_path, e2b_standin, remote_toml(**HANDING_OVER)) as swarm:
        there = await swarm.started()
        await e2b_standin.limits(templates=["another"])
        [alert] = await there.subscriber.alerted("sandbox_not_replaced")
        assert (
            "is due for replacement, but its successor failed: creating a sandbox: 404: template 'base' not found"
            in alert["message"]
        )
        await there.untouched()
        assert not there.alerts("sandbox_failed")


@pytest.mark.slow
@pytest.mark.parametrize("lost", [False, True], ids=["until there is room", "until the old one is lost"])
async def test_a_successor_for_which_the_quota_has_no_room_is_waited_for(tmp_path, e2b_standin, lost):
    await e2b_standin.limits(concurrent=1)
    async with RemoteSwarm(tmp_path, e2b_standin, remote_toml(**HANDING_OVER)) as swarm:
        there = await swarm.started()
        [alert] = await there.subscriber.alerted("provider_unavailable")
        assert "creating a sandbox failed" in alert["message"]
        assert "maximum number of concurrent" in alert["message"]
        await there.untouched()
        if lost:
            await e2b_standin.vanish(there.sandbox_id)
            # By the watchdog: the provider may have its successor before it has noticed the loss, which made room.
            [lost_alert] = await there.subscriber.alerted("sandbox_lost")
            assert there.host in lost_alert["message"]
        else:
            await e2b_standin.limits(concurrent=2)
        another = await swarm.remote_host(there.subscriber, other_than=there.host)
        await there.subscriber.back(there.epochs)
        await there.subscriber.more_decisions(3)
        assert len(there.alerts("provider_unavailable")) == 1, "told again and again"

        async def alone():
            return [f"python-{name}" for name in await e2b_standin.sandboxes()] == [another]

        await until(alone)
        await swarm.assert_exact()


@pytest.mark.slow
async def test_a_vanished_sandbox_that_may_not_be_created_again_is_displayed_as_failed(tmp_path, e2b_standin):
    async with RemoteSwarm(tmp_path, e2b_standin) as swarm:
        there = await swarm.started()
        assert (await swarm.command("health", "provider")).code == 0
        await e2b_standin.fail(CREATE, method="POST", status=403, times=None, message="this team is blocked")
        await e2b_standin.vanish(there.sandbox_id)
        await there.moved_to_local()
        await there.subscriber.alerted("sandbox_failed")
        await there.subscriber.until(
            "its word", lambda: there.subscriber.heartbeats["provider"]["phases"] == {"python": "failed"}
        )
        status = (await swarm.command("status", "--json")).json
        [row] = [row for row in status["sandboxes"] if row["name"] == "python"]
        assert (row["provider"], row["status"], row["agents"]) == ("e2b", "failed", [])
        assert "403: this team is blocked" in row["reason"]
        assert all(row["reason"] is None for row in status["sandboxes"] if row["name"] != "python")
        assert (await swarm.command("health", "provider", "--timeout", "1")).code == 1


# Connections and the service


@pytest.mark.slow
async def test_a_broken_stream_is_no_death(tmp_path, e2b_standin):
    async with RemoteSwarm(tmp_path, e2b_standin) as swarm:
        there = await swarm.started()
        for count in (1, 2):
            await e2b_standin.reset(there.sandbox_id)
            await swarm.until_logged("host_attached", count)
        await there.untouched()
        assert there.subscriber.alerts == []


@pytest.mark.slow
async def test_an_envd_that_cannot_be_reached_is_no_death(tmp_path, e2b_standin):
    async with RemoteSwarm(tmp_path, e2b_standin) as swarm:
        there = await swarm.started()
        await e2b_standin.port_open(there.sandbox_id, opened=False)
        [alert] = await there.subscriber.alerted("provider_unavailable")
        assert "listing processes failed" in alert["message"]
        await there.untouched()
        await e2b_standin.port_open(there.sandbox_id, opened=True)
        [attached] = await swarm.until_logged("host_attached")
        assert attached["pid"] == there.pid
        await there.untouched()
        assert len(there.subscriber.alerts) == 1


@pytest.mark.slow
async def test_an_api_that_is_down_is_waited_for(tmp_path, e2b_standin):
    await e2b_standin.ports(api=False)
    async with RemoteSwarm(tmp_path, e2b_standin, remote_toml(timeout_s=30)) as swarm:
        subscriber = await swarm.up_with_remote()
        assert "did not answer" in swarm.errors
        assert await subscriber.alerted("provider_unavailable")
        await subscriber.until("its state", lambda: subscriber.heartbeats["provider"]["status"] == "retrying")
        await e2b_standin.ports(api=True)
        host = await swarm.remote_host(subscriber)
        before = await swarm.agents_in(subscriber, host)
        # and while it is down again, the sandbox and its host live on
        await e2b_standin.ports(api=False)
        assert len(await subscriber.alerted("provider_unavailable", 2)) == 2, "a renewal was due"
        await subscriber.more_decisions(20)
        await subscriber.more_heartbeats(3, host, *REMOTE_AGENTS)
        assert {name: subscriber.heartbeats[name]["pid"] for name in REMOTE_AGENTS} == {
            n: b["pid"] for n, b in before.items()
        }
        await e2b_standin.ports(api=True)
        await subscriber.until("its state", lambda: subscriber.heartbeats["provider"]["status"] == "live")
        assert len([alert for alert in subscriber.alerts if alert["code"] == "provider_unavailable"]) == 2


@pytest.mark.slow
async def test_a_full_quota_is_reported_once_and_waited_for(tmp_path, e2b_standin):
    async with RemoteSwarm(tmp_path, e2b_standin) as swarm:
        there = await swarm.started()
        await e2b_standin.limits(concurrent=0)
        await e2b_standin.vanish(there.sandbox_id)
        await there.moved_to_local()
        [alert] = await there.subscriber.alerted("provider_unavailable")
        assert "you have reached the maximum number of concurrent E2B sandboxes (0)" in alert["message"]
        await swarm.until_logged("provider_retried", 3)
        await e2b_standin.limits(concurrent=1)
        await swarm.remote_host(there.subscriber, other_than=there.host)
        assert len(there.alerts("provider_unavailable")) == 1
        assert swarm.created() - there.new_ones == 1
        await swarm.assert_exact()


@pytest.mark.slow
@pytest.mark.parametrize("status", [401, 403])
async def test_a_key_that_is_revoked_ends_nothing_that_runs(tmp_path, e2b_standin, status):
    async with RemoteSwarm(tmp_path, e2b_standin, remote_toml(timeout_s=12)) as swarm:
        there = await swarm.started()

        async def revoke():
            await e2b_standin.clear()
            for path in ("/sandboxes/*", "/v2/sandboxes*"):
                await e2b_standin.fail(path, status=status, times=None, message="this key was revoked")

        async def renewal_refused():
            return (await e2b_standin.faults())[0]["used"] >= 3

        await revoke()
        [alert] = await there.subscriber.alerted("provider_refused")
        assert "renewing a lifetime: " in alert["message"]
        assert "this key was revoked; running sandboxes continue until their lifetime ends" in alert["message"]
        await until(renewal_refused)
        await there.untouched()
        assert (await swarm.command("status", "--json")).json["provider"]["status"] == "refused"
        assert [alert["code"] for alert in there.subscriber.alerts] == ["provider_refused"], "told more than once"

        await e2b_standin.clear()
        await there.subscriber.until("its state", lambda: there.subscriber.heartbeats["provider"]["status"] == "live")
        await there.untouched()

        await revoke()
        await there.moved_to_local()  # it was not renewed
        [failed] = await there.subscriber.alerted("sandbox_failed")
        assert "this key was revoked" in failed["message"]
        assert await e2b_standin.sandboxes() == {}
        await there.subscriber.more_decisions(5)
        assert len(there.alerts("provider_refused")) == 2, "once for each time that it was revoked"
        assert len(there.alerts("sandbox_failed")) == 1
        assert psutil.pid_exists(there.launcher), "there is nothing to be gained by its death"
        await swarm.assert_exact()
