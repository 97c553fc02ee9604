"""Mutants: the operators of Cosmic Ray, and two of our own, at a random sample of the places they apply to.

A mutant is a changed file, not a switch in the running code (as of mutmut): a process that a test starts, or that one
of those forks, imports it like any other. Constants, fields and defaults of types are mutated as well.
"""

from __future__ import annotations

import ast
import itertools
import random
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import parso
from cosmic_ray import plugins
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Operator
from parso.python.tree import Class, Decorator, Function
from parso.tree import NodeOrLeaf

MODULES = (
    "agents/runtime",
    "agents/state",
    "bus/durable",
    "bus/mirror",
    "coordinator/supervisor",
    "coordinator/decisions",
)
"""Where mutants are made: what must hold under faults."""

LEFT_OUT = re.compile(
    r"core/(ExceptionReplacer"  # fails at dotted names; `CatchNothing` does the same
    r"|Variable.*"  # need names of variables
    r"|ReplaceBinaryOperator_(Add|Sub|Mul|.*Div|Mod|Pow)_(RShift|LShift|Bit.*|Pow)"  # raise, or are huge
    r"|ReplaceComparisonOperator_(Eq|NotEq|[LG]t|[LG]tE)_Is(Not)?"  # equality of small numbers, or nonsense
    r"|ReplaceComparisonOperator_Is(Not)?_([LG].*|Eq|NotEq))"
)
LOGGERS = ("log.", "_log.", "self._log.", "self.log.")


@dataclass(frozen=True)
class Mutant:
    path: str
    line: int
    operator: str
    occurrence: int
    before: str
    after: str

    @property
    def title(self) -> str:
        return f"{self.path}:{self.line} {self.operator.partition('/')[2]}: {self.before} -> {self.after}"


class RemoveCall(Operator):
    """Leaves out a call whose result is not used, but not one that writes a log line."""

    def mutation_positions(self, node):
        if node.type == "atom_expr" and node.parent.type == "simple_stmt":
            code = node.get_code(include_prefix=False)
            if code.endswith(")") and not code.removeprefix("await ").startswith(LOGGERS):
                yield node.start_pos, node.end_pos

    def mutate(self, node, index):
        return parso.parse(node.get_first_leaf().prefix + "pass")

    @classmethod
    def examples(cls):
        return ()


class CatchNothing(Operator):
    """Lets an exception through."""

    def mutation_positions(self, node):
        if node.type == "except_clause":
            yield node.children[1].start_pos, node.children[1].end_pos

    def mutate(self, node, index):
        node.children[1] = parso.parse(" ()")
        return node

    @classmethod
    def examples(cls):
        return ()


OURS: dict[str, type[Operator]] = {"signalmesh/RemoveCall": RemoveCall, "signalmesh/CatchNothing": CatchNothing}


def sample(root: Path, count: int, seed: int, modules: tuple[str, ...] = MODULES) -> list[Mutant]:
    """At most `count` mutants of the files below `modules`: one at a place, all places equally likely.

    A place that many operators fit counts once: eleven ways to break one addition say no more than one.
    """
    places = []
    for path in sorted({file for name in modules for file in _files(root / name)}):
        found: dict[tuple[tuple[int, int], tuple[int, int]], list[tuple[str, int]]] = defaultdict(list)
        for position, operator, occurrence in _applicable(path.read_text()):
            found[position].append((operator, occurrence))
        places += [(path, found[position]) for position in sorted(found)]
    chance = random.Random(seed)
    chance.shuffle(places)
    mutants = (_mutant(root, path, *chance.choice(choices)) for path, choices in places)
    return list(itertools.islice((mutant for mutant in mutants if mutant is not None), count))


def mutate(source: str, operator: str, occurrence: int) -> str:
    """`source` with one mutation.

    Raises:
        ValueError: the operator does not apply so often.
    """
    mutated: str | None = mutate_code(source, _make(operator), occurrence)
    if mutated is None:
        raise ValueError(f"{operator} applies to fewer than {occurrence + 1} places")
    return mutated


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(path.glob("*.py"))


def _make(operator: str) -> Operator:
    return (OURS.get(operator) or plugins.get_operator(operator))()


def _applicable(source: str) -> Iterator[tuple[tuple[tuple[int, int], tuple[int, int]], str, int]]:
    nodes = [(node, _for_mypy(node)) for node in ast_nodes(get_ast(source))]
    for name in [*(name for name in plugins.operator_names() if not LEFT_OUT.fullmatch(name)), *OURS]:
        operator, occurrence = _make(name), 0
        for node, typed in nodes:
            for position in operator.mutation_positions(node):
                if not typed:
                    yield position, name, occurrence
                occurrence += 1


def _for_mypy(node: NodeOrLeaf) -> bool:
    """Inside an annotation, a decorator's arguments or a class's head: not evaluated, or judged by mypy."""
    child: NodeOrLeaf = node
    while (parent := child.parent) is not None:
        if parent.type == "annassign" and child is parent.children[1]:
            return True
        if parent.type == "tfpdef" and child is not parent.children[0]:
            return True
        if isinstance(parent, Function) and child is parent.annotation:
            return True
        if isinstance(parent, Decorator) or (isinstance(parent, Class) and child is not parent.get_suite()):
            return True
        child = parent
    return False


def _mutant(root: Path, path: Path, operator: str, occurrence: int) -> Mutant | None:
    """None: the result is no Python, as `not` before `name := value`."""
    source = path.read_text()
    mutated = mutate(source, operator, occurrence)
    try:
        ast.parse(mutated)
    except SyntaxError:
        return None
    before, after = source.splitlines(), mutated.splitlines()
    changed = next(number for number, line in enumerate(before) if number >= len(after) or line != after[number])
    if len(before) > len(after):  # a decorator takes its line along
        changed = next(number for number in range(changed, -1, -1) if before[number].strip())
        return Mutant(str(path.relative_to(root)), changed + 1, operator, occurrence, before[changed].strip(), "")
    return Mutant(
        str(path.relative_to(root)), changed + 1, operator, occurrence, before[changed].strip(), after[changed].strip()
    )
