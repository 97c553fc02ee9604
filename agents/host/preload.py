"""The imports that all agents need, loaded once by a host's fork server, so that an agent starts in milliseconds.

multiprocessing ignores an ImportError in a preload; the host therefore checks in its first child that this is loaded.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing.popen_forkserver  # noqa: F401 - each child would import it for its start: 1.6 of 16 ms of CPU
import os
from typing import Any

import msgspec
import nats
import nats.micro  # noqa: F401 - loaded for the agents, as what follows
import numpy as np  # noqa: F401
import talib  # noqa: F401
import vaderSentiment.vaderSentiment  # noqa: F401

import agents.builtin.market_data
import agents.builtin.mean_reversion
import agents.builtin.momentum
import agents.builtin.sentiment
import agents.runtime.process
from agents.agent import Agent
from agents.builtin.sentiment import packaged_recording
from agents.feeds.candles import load_candles
from agents.host.stack_probe import ignore_requests
from agents.spec import AgentSpec
from agents.state.codec import StateCodec
from bus.durable.snapshots import Snapshot
from bus.messages import KINDS

FORK_SERVER = os.getpid()
"""The parent of the agents. A child cannot look it up: once the parent has died, the kernel names init.

A fork server that is forked from a process with these imports sets it."""

load_candles()
packaged_recording()
ignore_requests()
known: list[Any] = [*KINDS.values(), Snapshot, AgentSpec, agents.runtime.process.Incarnation]
for agent in (classes := [Agent]):
    classes += agent.__subclasses__()
    known += [agent.State, agent.Options]
    StateCodec.checked(agent.State)
for cls in known:
    with contextlib.suppress(msgspec.ValidationError):
        msgspec.convert({}, cls)  # resolves the type's annotations once, for all children

gc.collect()
gc.freeze()  # what is loaded now is never collected, so that its pages stay shared between all children
