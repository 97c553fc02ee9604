"""How a command reaches the bus. Apart from the settings, whose import takes longer than the connection."""

from __future__ import annotations

from typing import Literal

Authentication = Literal["open", "keys"]
"""How the server of a run admits clients."""
AuthenticationSetting = Literal["auto", "keys", "open"]
"""What swarm.toml may say of it."""
DEFAULT_URL = "nats://127.0.0.1:4222"
"""NATS URL if none is given: the default port of the server that `up` starts."""
CONNECT_S = 2.0
"""How long a command tries to connect."""
