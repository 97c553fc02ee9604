from __future__ import annotations

import statistics
import sys
from pathlib import Path

import pytest

from benchmarks import comparing
from benchmarks.peers.catalogue import PEERS
from benchmarks.pipeline import SIZES

BARE = [peer for peer in PEERS if peer.environment == "nats-py"]
"""Their programs run in the development environment as well."""


@pytest.mark.parametrize("peer", BARE, ids=lambda peer: peer.way)
async def test_the_full_speed_of_bare_nats_py_is_measured(peer):
    assert await comparing.peer_rate(peer, Path(sys.executable), 50, 16, dict(SIZES)) > 0


@pytest.mark.slow
@pytest.mark.parametrize("peer", BARE, ids=lambda peer: peer.way)
async def test_a_killed_voter_of_bare_nats_py_does_not_vote_again(peer):
    found = await comparing.peer_paced(peer, Path(sys.executable), 20, dict(SIZES))
    assert len(found.latencies_ms) == 20
    # An observer that is late handles a tick and its decision at once, in either order.
    assert statistics.median(found.latencies_ms) > 0
    assert found.start_s > 0
    assert (found.back_ms, found.lost, found.state) == (None, None, "-")
