"""Key files of incarnations: prepared, taken once, and reduced to their public keys."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from bus.errors import UsageError
from bus.nats.credentials import public_key_of
from bus.nats.incarnation_keys import (
    agent_files,
    forget_seed,
    prepare,
    prepared_file,
    public_key_taken,
    record,
    remove_taken,
    take,
    taken_keys,
)
from bus.nats.key_files import new_seed


def test_a_prepared_key_is_taken_once(tmp_path: Path):
    public = prepare(tmp_path, "a-b")
    assert stat.S_IMODE(prepared_file(tmp_path, "a-b").stat().st_mode) == 0o600
    seed = take(tmp_path, "a-b", 7)
    assert seed is not None
    assert public_key_of(seed) == public == public_key_taken(tmp_path, "a-b", 7)
    assert take(tmp_path, "a-b", 8) is None
    assert taken_keys(tmp_path) == {("a-b", 7)}
    forget_seed(tmp_path, "a-b", 7, seed)
    assert public_key_taken(tmp_path, "a-b", 7) == public
    assert seed not in "".join(file.read_text() for file in tmp_path.iterdir())


@pytest.mark.parametrize("files", [("a.7.nk",), ("a.7.nk", "a.7.pub"), ("a.7.pub",)])
def test_each_step_of_a_take_leaves_the_key_known(tmp_path: Path, files: tuple[str, ...]):
    public = prepare(tmp_path, "a")
    seed = take(tmp_path, "a", 7)
    assert seed is not None
    (tmp_path / "a.7.pub").write_text(public + "\n")
    for file in tmp_path.iterdir():
        if file.name not in files:
            file.unlink()
    assert (taken_keys(tmp_path), public_key_taken(tmp_path, "a", 7)) == ({("a", 7)}, public)
    remove_taken(tmp_path, "a", 7)
    assert list(tmp_path.iterdir()) == []
    forget_seed(tmp_path, "a", 7, seed)
    assert list(tmp_path.iterdir()) == [], "a removed key is a revoked one"


def test_the_newest_file_of_an_agent_is_shown(tmp_path: Path):
    prepare(tmp_path, "a")
    record(tmp_path, "b", 9, new_seed())
    record(tmp_path, "b", 11, new_seed())
    prepare(tmp_path, "b")
    assert agent_files(tmp_path) == {"a": tmp_path / "a.next.nk", "b": tmp_path / "b.11.pub"}
    assert agent_files(tmp_path / "none") == {}


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\xff", b"U" + 55 * b"0"])
def test_a_wrong_file_is_named(tmp_path: Path, content: bytes):
    (tmp_path / "a.7.pub").write_bytes(content)
    with pytest.raises(UsageError, match=r"a\.7\.pub: expected a public key"):
        public_key_taken(tmp_path, "a", 7)


def test_an_unusable_prepared_key_is_named_and_not_taken_again(tmp_path: Path):
    prepare(tmp_path, "a")
    prepared_file(tmp_path, "a").chmod(0o644)
    with pytest.raises(UsageError, match=r"a\.7\.nk: others may read or write it"):
        take(tmp_path, "a", 7)
    assert take(tmp_path, "a", 8) is None
