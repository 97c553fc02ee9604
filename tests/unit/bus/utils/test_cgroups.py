"""The CPU quota of the group of a process, and of those around it, and how long it held them back."""

from __future__ import annotations

from pathlib import Path

import pytest

from bus.utils.cgroups import Throttling, cpu_quota, throttling


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


@pytest.mark.parametrize(
    ("files", "cgroup", "expected"),
    [
        ({"a/b/cpu.stat": "usage_usec 9\nnr_throttled 3\nthrottled_usec 1500000\n"}, "0::/a/b", (1.5, 3)),
        (
            {
                "a/b/cpu.stat": "nr_throttled 3\nthrottled_usec 1500000",
                "a/cpu.stat": "nr_throttled 1\nthrottled_usec 500000",
            },
            "0::/a/b",
            (2.0, 4),
        ),
        ({"a/cpu.stat": "usage_usec 9", "cpu.stat": "usage_usec 9"}, "0::/a", (0.0, 0)),
        ({"cpu/x/cpu.stat": "nr_throttled 4\nthrottled_time 250000000"}, "3:cpu,cpuacct:/x\n1:pids:/x", (0.25, 4)),
        ({"cpu,cpuacct/cpu.stat": "nr_throttled 4\nthrottled_time 0"}, "3:cpu,cpuacct:/docker/1", (0.0, 4)),
        ({"cpu.stat": "nonsense"}, "0::/", (0.0, 0)),
        ({"cpu.stat": "nr_throttled 4\nthrottled_usec many"}, "0::/", (0.0, 0)),
        ({}, "0::/../elsewhere", (0.0, 0)),
    ],
)
def test_the_time_for_which_the_groups_were_held_back_is_counted(tmp_path, files, cgroup, expected):
    for name, text in files.items():
        write(tmp_path / "root" / name, text)
    write(tmp_path / "cgroup", cgroup)
    assert throttling(tmp_path / "cgroup", tmp_path / "root") == Throttling(*expected)


def test_two_names_of_one_directory_count_once(tmp_path):
    write(tmp_path / "root" / "cpu,cpuacct" / "cpu.stat", "nr_throttled 4\nthrottled_time 250000000")
    (tmp_path / "root" / "cpu").symlink_to("cpu,cpuacct")
    write(tmp_path / "cgroup", "3:cpu,cpuacct:/")
    assert throttling(tmp_path / "cgroup", tmp_path / "root") == Throttling(0.25, 4)
