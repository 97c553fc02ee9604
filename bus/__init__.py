"""The bus: messages, subjects, connections, outbox, reader, snapshots. It knows no trading and imports no agents."""

import importlib
import sys
from importlib.machinery import PathFinder
from types import ModuleType
from typing import Any

__version__ = "0.1.0"


class _PutOff(ModuleType):
    """Stands for a module until something of it is used; `import` alone does not load it.

    importlib.util.LazyLoader would be loaded by the second `import` already, which asks for the module's `__spec__`.
    """

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


# nats-py imports it always, and needs it for WebSockets only: a third of a second, and 12 MB in each process.
if "aiohttp" not in sys.modules and PathFinder.find_spec("aiohttp") is not None:
    sys.modules["aiohttp"] = _PutOff("aiohttp")
