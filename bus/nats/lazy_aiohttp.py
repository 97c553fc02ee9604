"""Where aiohttp is installed, nats-py imports it in every process, for WebSocket addresses, which few processes use.

It takes 0.1 s of CPU time and 5 MB. An import of this module, before that of nats, defers it to its first use.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import LazyLoader
from types import ModuleType


class _LazyAiohttp(MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name == "aiohttp" else None
        if spec is not None and spec.loader is not None:
            spec.loader = LazyLoader(spec.loader)
        return spec


def _import_nats() -> None:
    finder = _LazyAiohttp()
    sys.meta_path.insert(0, finder)
    try:
        importlib.import_module("nats.aio.transport")
    finally:
        sys.meta_path.remove(finder)


_import_nats()
