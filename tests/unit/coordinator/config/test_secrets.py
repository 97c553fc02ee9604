"""Sources of secrets, each with a real file, pipe or program; no error shows a secret."""

from __future__ import annotations

import contextlib
import io
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import structlog

from bus.errors import ConfigError
from bus.nats.credentials import CREDS_VARIABLE, SEED_VARIABLE, credentials_from
from bus.observability.logging import set_up_logs
from coordinator.config.loader import load_swarm, parse_swarm
from coordinator.config.secrets import (
    MAX_SECRET_BYTES,
    SecretSettings,
    SecretSource,
    offer_bus_credentials,
    parse_secrets,
    read_secret,
)
from coordinator.config.telemetry import webhook_of
from coordinator.sandboxes.environment import export_key, take_key
from signalmesh import python_command

SECRET = "tell" + "-nobody-of-this"
SEED = "SU" + "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567" + "ABCDEFGHIJKLMNOPQRSTUVWX"


def secret_file(directory: Path, content: str | bytes = SECRET, mode: int = 0o600, name: str = "secret") -> Path:
    path = directory / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    path.chmod(mode)
    return path


def read(directory: Path, **source: Any) -> str:
    return read_secret(SecretSource(**source), str(directory / "swarm.toml"), "secrets.webhook")


def fails(directory: Path, **source: Any) -> str:
    with pytest.raises(ConfigError) as found:
        read(directory, **source)
    text = str(found.value)
    assert SECRET not in text
    assert found.value.__cause__ is None
    assert found.value.__suppress_context__ or found.value.__context__ is None
    assert text.startswith(f"{directory / 'swarm.toml'}: secrets.webhook")
    assert "\n" not in text
    return text


def program(directory: Path, body: str) -> tuple[str, ...]:
    path = directory / "program"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o700)
    return ("./program",)


def test_a_file_beside_swarm_toml(tmp_path):
    secret_file(tmp_path, f"{SECRET}\n")
    assert read(tmp_path, file="secret") == SECRET
    assert read(tmp_path, file=str(secret_file(tmp_path, mode=0o640))) == SECRET


@pytest.mark.parametrize(
    ("content", "mode", "expected"),
    [
        ("", 0o600, "is empty"),
        (" \n\n", 0o600, "is empty"),
        (f"{SECRET}\n{SECRET}", 0o600, "has 2 lines"),
        (SECRET, 0o604, "(mode 0604)"),
        (SECRET, 0o602, "(mode 0602)"),
        (b"\xff" + SECRET.encode(), 0o600, "UTF-8"),
        (SECRET * MAX_SECRET_BYTES, 0o600, f"at most {MAX_SECRET_BYTES} bytes"),
    ],
)
def test_a_file_that_holds_no_secret(tmp_path, content, mode, expected):
    assert expected in fails(tmp_path, file=str(secret_file(tmp_path, content, mode)))


def test_what_is_no_file(tmp_path):
    assert "there is no such file" in fails(tmp_path, file="missing")
    assert "expected a file" in fails(tmp_path, file=str(tmp_path))
    os.mkfifo(tmp_path / "pipe", 0o600)
    assert "expected a file" in fails(tmp_path, file="pipe")
    assert "expected a file" in fails(tmp_path, file="/dev/null")
    assert "not a path" in fails(tmp_path, file="a\0b")


def test_a_variable_is_read_once_and_removed(tmp_path, monkeypatch):
    monkeypatch.setenv("OUR_SECRET", f"{SECRET}\n")
    assert read(tmp_path, env="OUR_SECRET") == SECRET
    assert "OUR_SECRET" not in os.environ
    assert "the variable OUR_SECRET is not set" in fails(tmp_path, env="OUR_SECRET")


def test_a_command_of_the_directory_or_of_the_path(tmp_path):
    secret_file(tmp_path)
    assert read(tmp_path, command=program(tmp_path, "cat secret; echo")) == SECRET
    assert read(tmp_path, command=("printf", SECRET)) == SECRET


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (f"echo {SECRET} >&2; exit 3", "'./program' ended with exit code 3"),
        (f"echo {SECRET}; kill -9 $$", "'./program' ended with signal 9"),
        (f"echo {SECRET} >&2", "'./program' printed nothing"),
        (f"echo {SECRET}; echo {SECRET}; echo", "has 2 lines"),
        (f"yes {SECRET}", f"prints more than {MAX_SECRET_BYTES} bytes"),
        ("read -r answer </dev/tty || exit 4", "exit code 4"),
    ],
)
def test_a_command_that_fails(tmp_path, body, expected):
    assert expected in fails(tmp_path, command=program(tmp_path, body))


def test_a_command_that_cannot_be_run(tmp_path):
    assert "there is no program 'no-such-vault' on the PATH" in fails(tmp_path, command=("no-such-vault", SECRET))
    assert "cannot be run: No such file" in fails(tmp_path, command=("./missing", SECRET))
    secret_file(tmp_path, "#!/bin/sh", 0o600)
    assert "cannot be run: Permission denied" in fails(tmp_path, command=("./secret", SECRET))
    assert "null character" in fails(tmp_path, command=("printf", f"{SECRET}\0"))


@pytest.mark.parametrize(
    "body", ["exec sleep 600", "sleep 600 & wait", "sleep 600 & exit 0", "exec >&-; exec sleep 600"]
)
def test_a_command_that_hangs_ends_with_what_it_has_started(tmp_path, body):
    before = time.monotonic()
    words = f"echo $$ >pid\n{body.replace('sleep 600 &', 'sleep 600 & echo $! >pid;')}"
    assert "did not end within 0.5 s" in fails(tmp_path, command=program(tmp_path, words), timeout_s=0.5)
    assert time.monotonic() - before < 30
    pid = int((tmp_path / "pid").read_text())
    with contextlib.suppress(ProcessLookupError):
        pidfd = os.pidfd_open(pid)
        assert select.select([pidfd], [], [], 30)[0], "it runs on"
        os.close(pidfd)


def reading_stdin(directory: Path, timeout_s: float = 10.0, **given: Any) -> subprocess.CompletedProcess[bytes]:
    code = (
        "from coordinator.config.secrets import *; import sys\n"
        f"source = SecretSource(stdin=True, timeout_s={timeout_s})\n"
        "try: print(read_secret(source, 'swarm.toml', 'secrets.webhook'))\n"
        "except Exception as error: print(error)"
    )
    return subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True, timeout=60, **given)


def test_standard_input(tmp_path):
    assert reading_stdin(tmp_path, input=f"{SECRET}\n".encode()).stdout.decode().strip() == SECRET
    assert b"secrets.webhook: is empty" in reading_stdin(tmp_path, stdin=subprocess.DEVNULL).stdout
    ours, theirs = os.pipe()
    try:
        assert b"did not come to its end within 0.2 s" in reading_stdin(tmp_path, 0.2, stdin=ours).stdout
    finally:
        os.close(ours)
        os.close(theirs)
    primary, terminal = os.openpty()
    try:
        assert b"is a terminal" in reading_stdin(tmp_path, stdin=terminal).stdout
    finally:
        os.close(primary)
        os.close(terminal)


@pytest.mark.parametrize(
    ("table", "key"),
    [
        ({"webhook": SECRET}, "secrets.webhook"),
        ({"webhook": [SECRET]}, "secrets.webhook"),
        ({"webhock": SECRET}, "secrets.webhock"),
        ({"webhook": {"value": SECRET}}, "secrets.webhook.value"),
        ({"webhook": {}}, "secrets.webhook"),
        ({"webhook": {"file": "a", "env": "B"}}, "secrets.webhook"),
        ({"webhook": {"command": f"vault {SECRET}"}}, "secrets.webhook.command"),
        ({"webhook": {"command": []}}, "secrets.webhook.command"),
        ({"webhook": {"command": [""]}}, "secrets.webhook.command"),
        ({"webhook": {"file": ""}}, "secrets.webhook.file"),
        ({"webhook": {"stdin": False}}, "secrets.webhook.stdin"),
        ({"webhook": {"file": "a", "timeout_s": 0}}, "secrets.webhook.timeout_s"),
        ({"webhook": {"stdin": True}, "nats_nkey": {"stdin": True}}, "secrets.nats_nkey.stdin"),
        ({"nats_creds": {"file": "a"}, "nats_nkey": {"file": "b"}}, "secrets.nats_nkey"),
    ],
)
def test_mistakes_in_the_table_show_no_value(table, key):
    with pytest.raises(ConfigError) as found:
        parse_swarm({"secrets": table}, "swarm.toml", "")
    assert str(found.value).startswith(f"swarm.toml: {key}: ")
    assert SECRET not in str(found.value)
    with pytest.raises(ConfigError):
        parse_swarm({"secrets": SECRET}, "swarm.toml", "")


def test_two_sources_of_the_webhook_are_refused():
    raw = {"secrets": {"webhook": {"file": "a"}}, "alerts": {"webhook": "https://example.org"}}
    with pytest.raises(ConfigError, match=r"alerts.webhook: secrets.webhook is set too"):
        parse_swarm(raw, "swarm.toml", "")


def test_the_webhook_and_the_key_of_e2b_come_from_their_sources(tmp_path, monkeypatch):
    (tmp_path / "swarm.toml").write_text(
        '[secrets.webhook]\nfile = "url"\n[secrets.e2b_api_key]\ncommand = ["cat", "key"]\n'
    )
    secret_file(tmp_path, "https://example.org/hook", name="url")
    secret_file(tmp_path, "a_key_of_e2b", name="key")
    for name in ("SIGNALMESH_WEBHOOK", "E2B_API_KEY", "E2B_ACCESS_TOKEN"):
        monkeypatch.setenv(name, "")
    config = load_swarm(tmp_path / "swarm.toml")
    assert webhook_of(config) == "https://example.org/hook"
    export_key(config)
    assert take_key() == "a_key_of_e2b"
    assert "E2B_API_KEY" not in os.environ
    monkeypatch.setenv("SIGNALMESH_WEBHOOK", "https://other.example/")
    monkeypatch.setenv("E2B_API_KEY", "another_key")
    export_key(config)
    assert (webhook_of(config), take_key()) == ("https://other.example/", "another_key"), "the environment comes first"
    monkeypatch.setenv("SIGNALMESH_WEBHOOK", "")
    secret_file(tmp_path, SECRET, name="url")
    with pytest.raises(Exception, match=r"secrets.webhook: expected an http") as found:
        webhook_of(config)
    assert SECRET not in str(found.value)


@pytest.fixture
def no_credentials(monkeypatch):
    for name in (CREDS_VARIABLE, SEED_VARIABLE):
        monkeypatch.setenv(name, "")


@pytest.mark.usefixtures("no_credentials")
def test_a_child_process_opens_the_credentials_of_the_bus_and_no_disk_has_them(tmp_path):
    (tmp_path / "swarm.toml").write_text('[secrets.nats_nkey]\ncommand = ["cat", "seed"]\n')
    secret_file(tmp_path, f"{SEED}\n", name="seed")
    offer_bus_credentials(tmp_path / "swarm.toml")
    assert credentials_from().nkey_seed == SEED
    child = "from bus.nats.credentials import credentials_from as found; print(found().nkey_seed, found().nkey_seed)"
    done = subprocess.run([sys.executable, "-c", child], capture_output=True, check=True)
    assert done.stdout.decode().split() == [SEED, SEED]
    (tmp_path / "seed").unlink()
    offer_bus_credentials(tmp_path / "swarm.toml")
    assert str(Path(os.environ[SEED_VARIABLE]).readlink()).startswith("/memfd:")


@pytest.mark.usefixtures("no_credentials")
def test_credentials_of_several_lines(tmp_path):
    (tmp_path / "swarm.toml").write_text('[secrets.nats_creds]\nfile = "creds"\n')
    creds = f"-----BEGIN NATS USER JWT-----\n{SECRET}\n------END NATS USER JWT------\n\n{SEED}"
    secret_file(tmp_path, creds, name="creds")
    offer_bus_credentials(tmp_path / "swarm.toml")
    assert credentials_from().creds == creds
    os.environ[CREDS_VARIABLE] = ""
    secret_file(tmp_path, SECRET, name="creds")
    with pytest.raises(ConfigError, match=r"expected the text of a .creds file, not other text") as found:
        offer_bus_credentials(tmp_path / "swarm.toml")
    assert SECRET not in str(found.value)


@pytest.mark.usefixtures("no_credentials")
@pytest.mark.parametrize("content", [SECRET, "SA" + SEED[2:], SEED[:-1], SEED.lower()])
def test_what_is_no_seed_is_named_by_its_key(tmp_path, content):
    (tmp_path / "swarm.toml").write_text('[secrets.nats_nkey]\nfile = "seed"\n')
    secret_file(tmp_path, content, name="seed")
    with pytest.raises(ConfigError, match=r"secrets.nats_nkey: expected a user's nkey seed, SU…, not ") as found:
        offer_bus_credentials(tmp_path / "swarm.toml")
    assert content not in str(found.value)
    assert not os.environ[SEED_VARIABLE]


@pytest.mark.usefixtures("no_credentials")
@pytest.mark.parametrize("content", [None, b"", b"secrets = 5", b"secrets = [", b"\xff secrets", b"a = " + b"[" * 9000])
def test_another_files_mistakes_are_left_to_the_command(tmp_path, content):
    if content is not None:
        (tmp_path / "swarm.toml").write_bytes(content)
    offer_bus_credentials(tmp_path / "swarm.toml")
    offer_bus_credentials(tmp_path)
    assert not os.environ[SEED_VARIABLE]


def test_no_log_shows_a_secret_that_was_read(tmp_path):
    before = structlog.get_config()
    out = io.StringIO()
    try:
        set_up_logs("info", out, json=True)
        url = f"https://example.org/{SECRET}"
        read(tmp_path, file=str(secret_file(tmp_path, url)))
        log = structlog.get_logger("test")
        log.info("posted", to=url, detail={"all": [f"to {url}!"]})
        try:
            raise ValueError(url)
        except ValueError as error:
            log.exception("failed", problem=error)
    finally:
        structlog.configure(**before)
    assert SECRET not in out.getvalue()
    assert out.getvalue().count("***") >= 4


def test_the_settings_show_where_a_secret_is_and_nothing_of_it(tmp_path):
    secret_file(tmp_path)
    settings = parse_secrets({"webhook": {"file": "secret"}}, str(tmp_path / "swarm.toml"))
    assert settings == SecretSettings(webhook=SecretSource(file="secret"))
    assert SECRET not in repr(settings)


@pytest.mark.usefixtures("no_credentials")
def test_a_command_reports_a_source_by_its_key(tmp_path):
    (tmp_path / "swarm.toml").write_text('[secrets.nats_nkey]\nfile = "missing"\n')
    done = subprocess.run(
        python_command("status", "--nats", "nats://127.0.0.1:1"), cwd=tmp_path, capture_output=True, check=False
    )
    assert done.returncode == 2
    assert b"swarm.toml: secrets.nats_nkey.file: " in done.stderr
    assert b"there is no such file" in done.stderr
