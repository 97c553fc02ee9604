"""docker-compose.yml and .env.example name the same settings with the same defaults, and nothing reaches too far."""

from __future__ import annotations

import re

import yaml

from tests.support.repository import ROOT

COMPOSE = (ROOT / "docker-compose.yml").read_text()
EXAMPLE = (ROOT / ".env.example").read_text()
SETTING = re.compile(r"\$\{([A-Z_0-9]+):?-([^}]*)\}")


def test_every_setting_is_in_the_example_with_its_default():
    requested = dict(SETTING.findall(COMPOSE))
    reported = dict(re.findall(r"^#([A-Z_0-9]+)=(.*)$", EXAMPLE, re.MULTILINE))
    assert reported == requested


def test_no_variable_stands_without_a_default():
    assert re.findall(r"\$\{[A-Z_0-9]+\}", COMPOSE) == []


def test_nothing_gets_the_docker_socket_or_more_rights():
    assert "docker.sock" not in COMPOSE
    assert "privileged: true" not in COMPOSE
    assert "cap_add" not in COMPOSE
    assert "0.0.0.0" not in COMPOSE


def test_each_service_mounts_its_own_keys_alone():
    services = yaml.safe_load(COMPOSE)["services"]
    mounted: dict[str, list[str]] = {}
    for service, settings in services.items():
        for mount in settings.get("volumes", ()):
            volume, target, *options = mount.split(":")
            if volume == "keys" or volume.startswith("keys-"):
                mounted.setdefault(volume, []).append(service)
                assert service == "keys" or "ro,nocopy" in options, (service, target)
    watchdogs, base = mounted.pop("keys-watchdog"), mounted.pop("keys-base")
    assert (watchdogs, base) == (["keys", "watchdog", "watchdog-standby"], ["keys", "sandbox-base"])
    assert mounted.pop("keys") == ["keys"]
    assert mounted.pop("keys-nats") == ["keys", "nats", "metrics"]  # public keys, with their names
    assert all(len(services) == 2 for services in mounted.values()), "the service that makes them, and one other"


def test_every_container_has_a_read_only_root():
    services = COMPOSE[COMPOSE.index("\nservices:\n") : COMPOSE.index("\nvolumes:\n")]
    for service in re.split(r"\n  (?=[a-z][a-z-]+:\n)", services)[1:]:
        name = service.partition(":")[0]
        assert re.search(r"^    (read_only: true|<<: \*(role|sandbox)$)", service, re.MULTILINE), name
        assert re.search(r"^    (cap_drop: \[ALL\]|<<: \*(role|sandbox)$)", service, re.MULTILINE), name


def test_the_image_is_built_from_hashed_requirements_only():
    dockerfile = (ROOT / "Dockerfile").read_text()
    installs = re.findall(r"pip install [^&\n]*", dockerfile)
    assert len(installs) == 4
    assert all("--require-hashes" in line or "--no-index" in line for line in installs)
    [product] = [line for line in installs if "-r requirements.lock" in line]
    assert "--no-build-isolation" in product  # pip checks no hash of what it fetches to build in
