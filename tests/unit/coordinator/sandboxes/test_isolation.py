"""The isolation of a sandbox follows from two probes, one in it and one outside, and from nothing else."""

from __future__ import annotations

from dataclasses import replace

from agents.host.probe import probe_sandbox
from coordinator.sandboxes.isolation import compare

HERE = replace(
    probe_sandbox(),
    boot_id="boot-1",
    uid=1000,
    cgroup="0::/here",
    namespaces={kind: f"{kind}:[{at}]" for at, kind in enumerate(("cgroup", "mnt", "net", "pid", "user"))},
)
EVERYTHING = ["kernel", *(f"{kind} namespace" for kind in HERE.namespaces), "user", "cgroup"]


def test_a_local_process_shares_everything_and_that_is_reported():
    found = compare(HERE, HERE)
    assert (found.shared, found.own, found.unknown) == (EVERYTHING, [], [])
    assert "only its processes are its own" in found.text
    assert "the same user" in found.text


def test_namespaces_of_its_own_are_named_and_what_is_within_them_is_its_own():
    there = replace(HERE, namespaces=HERE.namespaces | {"pid": "pid:[77]", "cgroup": "cgroup:[78]"})
    found = compare(there, HERE)
    assert found.own == ["cgroup namespace", "pid namespace", "cgroup"], "the path is the same, in another namespace"
    assert found.text == "the same kernel, with namespaces of its own: cgroup, pid; shared: mnt, net, user"


def test_under_another_kernel_the_same_identifiers_mean_nothing():
    found = compare(replace(HERE, boot_id="boot-2"), HERE)
    assert (found.own, found.shared) == (EVERYTHING, [])
    assert found.text.startswith("another kernel")


def test_what_one_side_does_not_report_is_unknown_and_nothing_follows_from_it():
    silent = replace(HERE, boot_id=None, namespaces={}, cgroup=None)
    found = compare(silent, HERE)
    assert (found.own, found.shared) == ([], [])
    assert set(found.unknown) == set(EVERYTHING)
    assert found.text.startswith("not known")
    older = replace(HERE, namespaces={kind: text for kind, text in HERE.namespaces.items() if kind != "cgroup"})
    assert set(compare(older, HERE).unknown) == {"cgroup namespace", "cgroup"}
