"""The CPU quota of the group of a process, and of those around it."""

from __future__ import annotations

from pathlib import Path

import pytest

from bus.utils.cgroups import cpu_quota


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("files", "cgroup", "quota"),
    [
        ({"cpu.max": "15000 100000"}, "0::/", 0.15),
        ({"a/b/cpu.max": "max 100000", "a/cpu.max": "50000 100000"}, "0::/a/b", 0.5),
        ({"a/b/cpu.max": "max 100000"}, "0::/a/b", None),
        ({"cpu/x/cpu.cfs_quota_us": "15000", "cpu/x/cpu.cfs_period_us": "100000"}, "3:cpu,cpuacct:/x\n1:pids:/x", 0.15),
        ({"cpu/x/cpu.cfs_quota_us": "-1", "cpu/x/cpu.cfs_period_us": "100000"}, "3:cpu:/x", None),
        ({"cpu.max": "nonsense"}, "0::/", None),
        ({}, "0::/../elsewhere", None),
        ({}, "", None),
    ],
)
def test_the_smallest_quota_counts(tmp_path, files, cgroup, quota):
    for name, text in files.items():
        write(tmp_path / "root" / name, text)
    write(tmp_path / "cgroup", cgroup)
    assert cpu_quota(tmp_path / "root", tmp_path / "cgroup") == quota


def test_without_cgroups_there_is_none(tmp_path):
    assert cpu_quota(tmp_path, tmp_path / "missing") is None
