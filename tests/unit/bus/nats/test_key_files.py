"""Key files: what is refused, with one line that names the file."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import nkeys
import pytest

from bus.errors import UsageError
from bus.nats.credentials import Credentials, credentials_from, inbox_of, jwt_beside, public_key_of
from bus.nats.key_files import new_seed, read_seed, write_seed
from tests.support.jwts import key_pair, signed


def test_what_is_written_is_read_and_of_this_user_alone(tmp_path):
    seed, file = new_seed(), tmp_path / "keys" / "up.nk"
    write_seed(file, seed)
    assert read_seed(file) == seed
    assert [stat.S_IMODE(path.stat().st_mode) for path in (file, file.parent)] == [0o600, 0o700]
    write_seed(file, again := new_seed())
    assert read_seed(file) == again != seed
    assert [*file.parent.iterdir()] == [file]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "not nothing"),
        (b"\n", "not nothing"),
        (b"SUnonsense", "not other text"),
        (b"\xff\xfe", "it is no text"),
        (b"SU" + b"A" * 5000, "not other text"),
        (bytes(nkeys.encode_seed(bytes(32), nkeys.PREFIX_BYTE_ACCOUNT)), "not the seed of an account or an operator"),
    ],
)
def test_other_content_is_refused(tmp_path, content: bytes, found: str):
    file = tmp_path / "x.nk"
    file.write_bytes(content)
    file.chmod(0o600)
    with pytest.raises(UsageError, match=found) as raised:
        read_seed(file)
    assert str(file) in str(raised.value)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o602])
def test_a_file_of_others_is_refused(tmp_path, mode: int):
    file = tmp_path / "x.nk"
    write_seed(file, new_seed())
    file.chmod(mode)
    with pytest.raises(UsageError, match=f"mode {mode:04o}"):
        read_seed(file)


def test_no_file_is_refused(tmp_path):
    for file in (tmp_path / "none.nk", tmp_path, Path("/dev/null")):
        with pytest.raises(UsageError, match=f"key {file}: "):
            read_seed(file)


def test_a_client_with_a_seed_has_inboxes_of_its_own(tmp_path):
    file = tmp_path / "x.nk"
    write_seed(file, seed := new_seed())
    options = credentials_from({"SIGNALMESH_NATS_NKEY": str(file)}).options("nats://x")
    assert options == {"nkeys_seed_str": seed, "inbox_prefix": inbox_of(public_key_of(seed))}
    assert seed not in repr(Credentials(nkey_seed=seed))


def test_a_named_file_with_another_seed_is_refused(tmp_path):
    file = tmp_path / "x.nk"
    file.write_text("SUNSHINE")
    file.chmod(0o600)
    with pytest.raises(UsageError, match=r"--nats-nkey .*x\.nk .*58 characters that begin with SU, not other text"):
        credentials_from({"SIGNALMESH_NATS_NKEY": str(file)})


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o620])
@pytest.mark.parametrize(
    ("option", "variable"),
    [
        ("--nats-nkey", "SIGNALMESH_NATS_NKEY"),
        ("--nats-creds", "SIGNALMESH_NATS_CREDS"),
        ("--nats-cert-key", "SIGNALMESH_NATS_CERT_KEY"),
    ],
)
def test_a_named_file_with_a_secret_that_others_may_use_is_refused(tmp_path, option: str, variable: str, mode: int):
    file = tmp_path / "x"
    file.write_text(f"-----BEGIN NATS USER JWT-----\n{new_seed()}" if variable.endswith("CREDS") else new_seed())
    environment = {variable: str(file), "SIGNALMESH_NATS_CERT": "c.pem" if "CERT" in variable else ""}
    file.chmod(0o600)
    credentials_from(environment)
    file.chmod(mode)
    named = re.escape(f"{option} {file} ({variable}): others may read or write it (mode {mode:04o}): chmod 600 it; ")
    with pytest.raises(UsageError, match=named):
        credentials_from(environment)


def test_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match=r"--nats-nkey .*: expected a file, not a pipe"):
        credentials_from({"SIGNALMESH_NATS_NKEY": str(tmp_path / "pipe")})


def jwt_of(public_key: str) -> str:
    account = key_pair(nkeys.PREFIX_BYTE_ACCOUNT)[1]
    return signed({"type": "user", "version": 2}, account, public_key)


def test_the_jwt_beside_a_key_is_presented_with_it(tmp_path):
    seed, file = new_seed(), tmp_path / "up.nk"
    write_seed(file, seed)
    assert jwt_beside(file) == credentials_from({"SIGNALMESH_NATS_NKEY": str(file)}).jwt == ""
    token = jwt_of(public_key_of(seed))
    (tmp_path / "up.jwt").write_text(token + "\n")
    found = credentials_from({"SIGNALMESH_NATS_NKEY": str(file)})
    assert (found.nkey_seed, found.jwt) == (seed, token)
    options = found.options("nats://127.0.0.1")
    assert (token in options["user_credentials"], seed in options["user_credentials"]) == (True, True)
    assert options["inbox_prefix"] == inbox_of(public_key_of(seed))
    assert "nkeys_seed_str" not in options


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "expected the JWT of the user in up.nk"),
        (b"a.b.c", "expected the JWT of the user in up.nk"),
        (b"a." + b"MQ" + b".c", "expected the JWT of the user in up.nk"),
        (b"\xff\xfe", "it is no text"),
        (jwt_of("SUx").encode(), "expected the JWT of the user in up.nk"),
        (b"a" * 70_000, "expected the JWT of the user in up.nk"),
        (jwt_of("U" + "A" * 55).encode(), "it is the JWT of the user UAAA.*, expected that of U"),
    ],
)
def test_another_jwt_is_refused_with_its_file(tmp_path, content: bytes, problem: str):
    file = tmp_path / "up.nk"
    write_seed(file, new_seed())
    (tmp_path / "up.jwt").write_bytes(content)
    with pytest.raises(UsageError, match=problem) as raised:
        jwt_beside(file)
    assert str(tmp_path / "up.jwt") in str(raised.value)
