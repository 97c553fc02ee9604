"""The peers: what each runs, what happens to a voter that dies, and what it does not do."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.peers.work import OPEN_ROUNDS, VOTERS

ROLES = ("coordinator", *VOTERS, "source")
DEEP = 4096
"""Undecided rounds of the deep pipeline."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """`module` runs in `environment`, once for each of `roles`, in this order.

    `over_nats`: an outside subscriber measures it; otherwise its own processes take the times. `rounds` are measured
    at full speed. `windows` are the numbers of undecided rounds with which that is done.
    """

    name: str
    environment: str
    module: str
    way: str = ""
    roles: tuple[str, ...] = ROLES
    over_nats: bool = True
    distributions: tuple[str, ...]
    rounds: int
    windows: tuple[int, ...] = (OPEN_ROUNDS,)
    lacks: str


NATS_LACKS = (
    "Nothing starts a dead process again. No state that outlives a process, no numbering, deduplication or fence, "
    "no check of what was decided"
)
FASTSTREAM_LACKS = (
    "No state that outlives a process, no numbering, deduplication or fence, no check of what was decided. "
    "`faststream run --workers N` starts dead copies of one program again, without state; it is not measured here, "
    "where each role is one process"
)
PEERS = (
    Peer(
        name="nats-py, core",
        environment="nats-py",
        module="benchmarks.peers.nats_py",
        way="core",
        distributions=("nats-py", "uvloop"),
        rounds=20_000,
        windows=(OPEN_ROUNDS, DEEP),
        lacks=f"{NATS_LACKS}. Stores nothing: a message that nobody reads at that moment is gone.",
    ),
    Peer(
        name="nats-py, JetStream",
        environment="nats-py",
        module="benchmarks.peers.nats_py",
        way="js",
        distributions=("nats-py", "uvloop"),
        rounds=10_000,
        windows=(OPEN_ROUNDS, DEEP),
        lacks=f"{NATS_LACKS}. Stores each message, and leaves it to the program to find where to go on.",
    ),
    Peer(
        name="FastStream, core",
        environment="faststream",
        module="benchmarks.peers.faststream_nats",
        way="core",
        distributions=("faststream", "nats-py", "pydantic"),
        rounds=5_000,
        lacks=f"{FASTSTREAM_LACKS}. Stores nothing. It checks the types of messages.",
    ),
    Peer(
        name="FastStream, JetStream",
        environment="faststream",
        module="benchmarks.peers.faststream_nats",
        way="js",
        distributions=("faststream", "nats-py", "pydantic"),
        rounds=3_000,
        lacks=f"{FASTSTREAM_LACKS}. Stores each message, and waits for each acknowledgement. It checks the types.",
    ),
    Peer(
        name="autogen-core, gRPC",
        environment="autogen-core",
        module="benchmarks.peers.autogen_grpc",
        roles=("host", *ROLES),
        over_nats=False,
        distributions=("autogen-core", "autogen-ext", "grpcio"),
        rounds=1_500,
        lacks="Nothing starts a dead worker again. Stores no message; `save_state` is for the program to call. "
        "Without its host nothing is passed on.",
    ),
    Peer(
        name="Ray actors",
        environment="ray",
        module="benchmarks.peers.ray_actors",
        roles=("driver",),
        over_nats=False,
        distributions=("ray",),
        rounds=1_500,
        lacks="Starts a dead actor again and repeats its calls, with the state of a new one. Stores no message.",
    ),
)
