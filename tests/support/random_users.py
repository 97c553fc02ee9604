"""Who used Python's global random generator last: Hypothesis fails a test for it, but names nobody."""

from __future__ import annotations

import itertools
import random
import sys
import threading
import traceback
from collections import deque
from types import CodeType
from typing import Any

COMPLAINT = "Do not use the `random` module inside strategies"
DEPTH = 14
_users: deque[tuple[str, str, list[tuple[CodeType, int]]]] = deque(maxlen=20)


def watch() -> None:
    """From now on remember who draws from the generator, seeds it or sets its state."""
    generator: Any = random._inst
    for name in ("random", "getrandbits", "seed", "setstate"):
        setattr(generator, name, _told(name, getattr(generator, name)))
        setattr(random, name, getattr(generator, name))


def _told(name: str, used: Any) -> Any:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        caller = sys._getframe(1)
        if not caller.f_code.co_filename.endswith("hypothesis/internal/entropy.py"):  # it puts everything back
            frames = itertools.islice(traceback.walk_stack(caller), DEPTH)
            where = [(frame.f_code, line) for frame, line in frames]
            _users.append((name, threading.current_thread().name, where))
        return used(*args, **kwargs)

    return wrapper


def last_users() -> str:
    """The last of them, newest last, each with its stack, innermost call first."""
    return "\n".join(
        f"{name}, in thread {thread}:\n"
        + "\n".join(f"  {code.co_filename}:{line} {code.co_qualname}" for code, line in where)
        for name, thread, where in _users
    )
