"""Which processes `up` starts, with which arguments."""

from __future__ import annotations

from pathlib import Path

from coordinator.config.live_swarm import LiveSwarm
from coordinator.config.loader import load_swarm
from coordinator.runner.child_process import ChildSpec, FoundOut, UpOptions, plan_children

COMMON = ("--swarm", "swarm", "--log-level", "info")
CHANGES = ("--changes", "state")


def options(
    *, config_file: Path | None = None, speed: float | None = None, agents: int | None = None, standby: bool = False
) -> UpOptions:
    return UpOptions(
        config_file=config_file,
        state_dir=Path("state"),
        port=0,
        url=None,
        for_s=None,
        log_level="info",
        speed=speed,
        agents=agents,
        standby=standby,
    )


def config_of(directory: Path, text: str = "") -> LiveSwarm:
    (directory / "swarm.toml").write_text(text)
    return LiveSwarm(load_swarm(directory=directory).resolve())


def by_name(children: list[ChildSpec]) -> dict[str, ChildSpec]:
    return {child.name: child for child in children}


def test_a_host_for_each_default_sandbox_and_a_watchdog_are_started_without_any_option(tmp_path):
    children = plan_children(config_of(tmp_path), options(), FoundOut())
    assert [(child.kind, child.name, child.args) for child in children] == [
        *(("sandbox", name, ("sandbox", name, *COMMON)) for name in ("base", "nodejs", "python")),
        ("watchdog", "watchdog", ("watchdog", *CHANGES, *COMMON, "--clear-quarantine", "--alone")),
    ]


def test_all_roles_are_started_in_order_and_only_the_provider_gets_its_key(tmp_path):
    text = '[sandboxes.near]\n[sandboxes.far]\nprovider = "e2b"\n'
    found = FoundOut(
        metrics=("metrics", "--listen", "127.0.0.1:0"),
        provider_env={"KEY": "secret"},
        proxy_fd=7,
        proxy_env={"AGENTS": "nats://127.0.0.1:1"},
        mirror=True,
    )
    children = plan_children(config_of(tmp_path, text), options(standby=True), found)
    assert [child.name for child in children] == [
        "proxy", "near", "provider", "watchdog", "standby", "metrics", "mirror",
    ]  # fmt: skip
    named = by_name(children)
    assert {name: dict(child.env) for name, child in named.items() if child.env} == {
        "proxy": {"SIGNALMESH_LISTENER": "7"},
        "near": {"AGENTS": "nats://127.0.0.1:1"},
        "provider": {"KEY": "secret"},
    }
    assert named["proxy"].pass_fds == (7,)
    assert named["metrics"].args[:3] == ("metrics", "--listen", "127.0.0.1:0")
    assert named["mirror"].args == ("mirror", "--file", "state/mirror.sqlite", *COMMON)
    assert "secret" not in repr(named["provider"])


def test_the_quarantine_is_cleared_by_the_first_watchdog_only_and_a_restarted_one_stands_by(tmp_path):
    alone = by_name(plan_children(config_of(tmp_path), options(), FoundOut()))["watchdog"]
    assert alone.args == ("watchdog", *CHANGES, *COMMON, "--clear-quarantine", "--alone")
    assert alone.restart_args == ("watchdog", *CHANGES, *COMMON, "--alone")
    pair = by_name(plan_children(config_of(tmp_path), options(standby=True), FoundOut()))
    assert pair["watchdog"].restart_args == ("watchdog", *CHANGES, *COMMON, "--standby") == pair["standby"].args


def test_the_overrides_reach_the_children_that_read_the_configuration(tmp_path):
    given = options(config_file=Path("other.toml"), speed=2.0, agents=9)
    named = by_name(plan_children(config_of(tmp_path), given, FoundOut(metrics=("metrics",), stored=6, mirror=True)))
    config = ("--config", "other.toml")
    assert named["watchdog"].args[:7] == ("watchdog", *config, "--speed", "2.0", "--agents", "9")
    assert named["metrics"].restart_args == ("metrics", *config, "--agents", "9", *COMMON)
    assert named["metrics"].args == (*named["metrics"].restart_args, "--count-from", "7")
    assert named["mirror"].args[:3] == ("mirror", *config)
    assert "--config" not in named["base"].args
