"""What a sandbox host must know to run an agent, and how its class is found and imported.

Owns neither swarm.toml (coordinator/config/loader.py) nor the processes: an AgentSpec is plain data that travels as
JSON.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import orjson

from agents.agent import Agent, check_class, published_kinds
from bus.errors import UsageError
from bus.utils.error_text import describe_error
from signalmesh import PACKAGES

__all__ = ["AgentSpec", "ClassTraits", "check_class_path", "load_class"]

CLASS_PATH_FORM = "'module:Class' or 'path/to/file.py:Class'"


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSpec:
    """One agent as configured. Exactly one of `class_path` and `command` is given; neither for an external agent."""

    name: str
    kind: str = ""
    """Built-in kind, 'command' or 'external'; empty for a user's class, which defines it itself."""
    class_path: str = ""
    """`module:Class`, or `path/to/file.py:Class` (relative to `search_path`)."""
    search_path: str = ""
    """Directory to put last on sys.path: that of swarm.toml; empty for the built-in kinds."""
    command: tuple[str, ...] = ()
    """Program and arguments of an agent in any language, run in `search_path`."""
    listens: tuple[str, ...] = ()
    """Kinds that a command receives; of a class those that it defines itself, once it was imported."""
    publishes: tuple[str, ...] = ()
    """Kinds that a command answers with; of a class as `listens`."""
    options: dict[str, Any] = field(default_factory=dict)
    memory_key: str = ""
    """Last part of its memory key; empty: as the class defines it."""
    sandbox: str = ""
    """Where it prefers to run; empty for an external agent."""
    swarm: str = "swarm"
    nice: int = 0
    """Niceness of its process, 0 to 19; 0 for agents that all others wait for."""
    start_after: int = 0
    """Without a saved state it reads the stream from after this message; 0: from its beginning."""
    start_outputs: int = 0
    """Without a saved state its first output has the number after this one."""

    def to_json(self) -> bytes:
        return orjson.dumps(self)

    @classmethod
    def from_json(cls, data: bytes) -> AgentSpec:
        """The inverse of `to_json`.

        Raises:
            UsageError: not a spec.
        """
        try:
            return msgspec.convert(orjson.loads(data), cls)
        except (orjson.JSONDecodeError, msgspec.ValidationError) as error:
            raise UsageError(f"agent spec: {error}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassTraits:
    """What a swarm's settings need to know of an agent's class."""

    kind: str
    listens: tuple[str, ...]
    publishes: tuple[str, ...]
    memory_key: str
    is_source: bool

    @classmethod
    def of(cls, agent_class: type[Agent]) -> ClassTraits:
        return cls(
            kind=agent_class.kind,
            listens=agent_class.listens,
            publishes=published_kinds(agent_class),
            memory_key=agent_class.memory_key,
            is_source=agent_class.produce is not None,
        )


def check_class_path(class_path: str) -> tuple[str, str]:
    """Module (or file) and class of a class path, checked for its form only.

    Raises:
        UsageError: of neither form.
    """
    module, colon, name = class_path.rpartition(":")
    is_file = module.endswith(".py")
    if colon and name.isidentifier() and (is_file or all(part.isidentifier() for part in module.split("."))):
        return module, name
    raise UsageError(f"{class_path!r}: expected {CLASS_PATH_FORM}")


def load_class(spec: AgentSpec) -> type[Agent]:
    """Import and check the class of `spec`. Puts `search_path` last on sys.path: a file there shadows no other module.

    Raises:
        UsageError: no such module, file or class; its import fails; it is no proper Agent. The message names the
            agent, and for a failing import the original error with file and line.
    """
    where = f"agent {spec.name!r}"
    module_path, name = check_class_path(spec.class_path)
    if spec.search_path and spec.search_path not in sys.path:
        sys.path.append(spec.search_path)
        importlib.invalidate_caches()
    file = Path(spec.search_path, module_path) if module_path.endswith(".py") else None
    if file is not None and not file.is_file():
        raise UsageError(f"{where}: there is no file {file}")
    try:
        module = _import_file(file.resolve()) if file else importlib.import_module(module_path)
    except ModuleNotFoundError as error:
        if beside := _beside_ours(error.name or "", spec.search_path):
            raise UsageError(
                f"{where}: importing {module_path} failed: {error.name.partition('.')[0]!r} is a package of "  # type: ignore[union-attr]
                f"signalmesh, so {beside} cannot be imported by that name; name the class by its path, like "
                f"{beside.relative_to(spec.search_path)}:Class, or rename its folder"
            ) from None
        if error.name is None or not (module_path + ".").startswith(error.name + "."):
            raise UsageError(_import_failure(where, spec, error)) from None
        place = f" (looked in {spec.search_path} and in the installed packages)" if spec.search_path else ""
        raise UsageError(f"{where}: there is no module {module_path!r}{place}; {_similar_files(spec)}") from None
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - a user's module may raise anything at all
        raise UsageError(_import_failure(where, spec, error)) from None
    _check_origin(where, module, module_path, spec.search_path)
    cls = getattr(module, name, None)
    if cls is None:
        raise UsageError(f"{where}: {module_path} has no class {name!r}; {_similar_classes(module, name)}")
    if not (isinstance(cls, type) and issubclass(cls, Agent)):
        raise UsageError(
            f"{where}: {spec.class_path} is no agent: expected `class {name}(Agent)`, with Agent from agents.agent"
        )
    check_class(cls, f"{where}: {spec.class_path}")
    return cls


def _import_file(path: Path) -> ModuleType:
    """Import a file by its resolved path, once: the same file gives the same module."""
    name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    found = importlib.util.spec_from_file_location(name, path)
    if found is None or found.loader is None:
        raise ImportError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module  # before it runs: dataclasses and type hints look their module up
    try:
        found.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _check_origin(where: str, module: ModuleType, module_path: str, search_path: str) -> None:
    """Refuse a module of the same name from elsewhere, where one is beside swarm.toml."""
    if not search_path or module_path.endswith(".py"):
        return
    top = Path(search_path, *module_path.split("."))
    own = [path.resolve() for path in (top.with_suffix(".py"), top / "__init__.py") if path.is_file()]
    origin = getattr(module, "__file__", None)
    if own and (origin is None or Path(origin).resolve() not in own):
        raise UsageError(
            f"{where}: the name {module_path!r} is taken by another module ({origin or 'built in'}); "
            f"rename {own[0]}, or name it by its path: {own[0].name}:Class"
        )


def _beside_ours(module: str, search_path: str) -> Path | None:
    """The file or folder beside swarm.toml that an import of `module` looks for inside a package of ours."""
    parts = module.split(".")
    if not search_path or len(parts) == 1 or parts[0] not in PACKAGES:
        return None
    path = Path(search_path, *parts)
    return next((found for found in (path.with_suffix(".py"), path) if found.exists()), None)


def _import_failure(where: str, spec: AgentSpec, error: BaseException) -> str:
    """What went wrong, and the line of the user's own code (else the deepest one) where it did."""
    place, problem = "", describe_error(error)
    if isinstance(error, SyntaxError):
        problem = f"{type(error).__name__}: {error.msg}"
        place = f" ({error.filename}, line {error.lineno})"
    else:
        frames = [(f.filename, f.lineno) for f in traceback.extract_tb(error.__traceback__)]
        ours = (__file__, importlib.__file__, "<frozen ")
        frames = [frame for frame in frames if not frame[0].startswith(ours)]
        own = [frame for frame in frames if spec.search_path and frame[0].startswith(spec.search_path)]
        if frames:
            place = " ({}, line {})".format(*(own or frames)[-1])
    module = check_class_path(spec.class_path)[0]
    return f"{where}: importing {module} failed: {problem}{place}"


def _similar_files(spec: AgentSpec) -> str:
    module = check_class_path(spec.class_path)[0]
    if not spec.search_path:
        return "expected a module that can be imported"
    try:
        stems = sorted(path.stem for path in Path(spec.search_path).glob("*.py"))
    except OSError:
        stems = []
    near = difflib.get_close_matches(module, stems, n=3)
    return f"did you mean {' or '.join(near)}?" if near else f"expected a file {module.replace('.', '/')}.py there"


def _similar_classes(module: ModuleType, name: str) -> str:
    own = [
        key
        for key, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, Agent) and value is not Agent
    ]
    near = difflib.get_close_matches(name, own, n=3)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"its agents are: {', '.join(own)}" if own else "it defines no agent at all"
