"""Reads the product's source: docstrings of attributes, calls with literal arguments."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("bus", "agents", "coordinator")


@cache
def tree(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text("utf-8"))


@cache
def product() -> tuple[Path, ...]:
    """Every Python file of the product, sorted; what only tests use is left out."""
    found = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    return tuple(path for path in found if "testing" not in path.parts)


def relative_path(path: Path) -> str:
    """The path of a file, relative to the repository."""
    return str(path.relative_to(ROOT))


def _attribute_docs(body: list[ast.stmt]) -> Iterator[tuple[str, str]]:
    for item, following in pairwise(body):
        if not (isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)):
            continue
        text = following.value.value
        targets = (
            item.targets if isinstance(item, ast.Assign) else [item.target] if isinstance(item, ast.AnnAssign) else []
        )
        if isinstance(text, str):
            yield from ((target.id, inspect.cleandoc(text)) for target in targets if isinstance(target, ast.Name))


def docs_of(cls: type) -> dict[str, str]:
    """Attribute -> docstring, of a class and its bases."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        file = getattr(sys.modules.get(base.__module__), "__file__", None)
        if file is None or base is object:
            continue
        parts = base.__qualname__.split(".")
        body: list[Any] = tree(Path(file)).body
        for part in parts:
            body = next((item.body for item in body if isinstance(item, ast.ClassDef) and item.name == part), [])
        found |= dict(_attribute_docs(body))
    return found


def constants_of(module: Any) -> dict[str, str]:
    """Constant of a module -> its docstring."""
    return dict(_attribute_docs(tree(Path(module.__file__)).body))


def calls(path: Path) -> Iterator[ast.Call]:
    """Every call of a file, in its order."""
    found = [item for item in ast.walk(tree(path)) if isinstance(item, ast.Call)]
    return iter(sorted(found, key=lambda item: (item.lineno, item.col_offset)))


def called(call: ast.Call) -> str:
    """The last name of what is called: `alert` of `self.reports.alert(...)`."""
    if isinstance(call.func, ast.Attribute):
        return call.func.attr
    return call.func.id if isinstance(call.func, ast.Name) else ""


def literal(node: ast.AST | None) -> str:
    """The text of a string literal, "" of anything else."""
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
