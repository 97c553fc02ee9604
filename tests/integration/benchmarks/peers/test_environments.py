from __future__ import annotations

import pytest

from benchmarks.peers import environments


@pytest.mark.slow
def test_one_that_cannot_be_installed_is_reported_with_the_reason(tmp_path, monkeypatch):
    lock = tmp_path / "ray.lock"
    lock.write_text("./no-such-file.whl --hash=sha256:" + "0" * 64 + "\n")
    monkeypatch.setattr(environments, "lock_of", lambda _: lock)
    why = environments.install("ray", tmp_path / "build")
    assert why is not None
    assert why.startswith("cannot be installed here: ERROR")
    assert "no-such-file" in why
    assert environments.why_not("ray", tmp_path / "build") == why


@pytest.mark.slow
def test_one_that_is_there_is_made_again_only_after_its_lock_file_has_changed(tmp_path, monkeypatch):
    lock = tmp_path / "nats-py.lock"
    lock.write_text("# nothing\n")
    monkeypatch.setattr(environments, "lock_of", lambda _: lock)
    directory = tmp_path / "build"
    assert environments.install("nats-py", directory) is None
    assert environments.why_not("nats-py", directory) is None
    (directory / "nats-py" / "kept").touch()
    assert environments.install("nats-py", directory) is None
    assert (directory / "nats-py" / "kept").exists()
    lock.write_text("# nothing else\n")
    assert environments.install("nats-py", directory) is None
    assert not (directory / "nats-py" / "kept").exists()
