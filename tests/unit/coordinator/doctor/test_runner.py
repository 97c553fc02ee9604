"""What `doctor` finds before any check: its configuration and its state directory."""

from __future__ import annotations

from coordinator.doctor.runner import diagnose


async def test_a_mistake_in_the_configuration(tmp_path):
    (tmp_path / "swarm.toml").write_text("[stream]\ndurability = 'disk'\n")
    found = await diagnose(None, tmp_path / ".signalmesh", None, tmp_path)
    assert not found.ok
    [finding] = [finding for finding in found.findings if finding.level == "error"]
    assert finding.check == "configuration"
    assert "stream.durability" in finding.text


async def test_a_state_directory_that_is_a_file(tmp_path):
    (tmp_path / "state").write_text("not a directory")
    found = await diagnose(None, tmp_path / "state", None, tmp_path)
    errors = {finding.check for finding in found.findings if finding.level == "error"}
    assert errors == {"run record", "permissions"}
