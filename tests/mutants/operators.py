"""Generates mutants of a module, each with one small change of its syntax tree.

Swaps an operator or comparison, changes a number or boolean, negates a condition, drops an argument or a statement. Does not mutate
strings, annotations, assertions, raised errors, decorators, and arguments that do not change results (`HARMLESS_ARGUMENTS`).
"""

from __future__ import annotations

import ast
import copy
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

SWAPS: dict[type[ast.AST], tuple[type[ast.AST], ...]] = {
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div,),
    ast.Div: (ast.Mult,),
    ast.FloorDiv: (ast.Div, ast.Mult),
    ast.Mod: (ast.FloorDiv,),
    ast.Pow: (ast.Mult,),
    ast.LShift: (ast.RShift,),
    ast.RShift: (ast.LShift,),
    ast.BitAnd: (ast.BitOr,),
    ast.BitOr: (ast.BitAnd,),
    ast.BitXor: (ast.BitAnd,),
    ast.And: (ast.Or,),
    ast.Or: (ast.And,),
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
HARMLESS_ARGUMENTS = {"strict", "non_blocking", "stacklevel"}
SHOWN = 110  # characters of an expression in a label
SKIPPED = (ast.Raise, ast.Assert, ast.JoinedStr, ast.Import, ast.ImportFrom, ast.Global, ast.arg)
Change = Callable[[Any], ast.AST]  # turns a copy of a node into its mutant


@dataclass(frozen=True)
class Mutant:
    label: str  # function, expression before and after; unique in its module, independent of line numbers
    line: int
    unparse: Callable[[], str]

    @property
    def source(self) -> str:
        """Source of the whole mutated module, computed on demand since it takes most of the time."""
        return self.unparse()


def mutants(source: str) -> list[Mutant]:
    """Returns all mutants of a module, ordered by line."""
    tree = ast.parse(source)
    nodes = list(ast.walk(tree))
    for node in nodes:
        for child in ast.iter_child_nodes(node):
            child.parent = node  # type: ignore[attr-defined]
    found: list[Mutant] = []
    seen: Counter[str] = Counter()
    for node in nodes:
        if not _is_skipped(node):
            for change in _changes(node):
                label = _label(node, change)
                seen[label] += 1
                label += f" #{seen[label]}" if seen[label] > 1 else ""
                found.append(Mutant(label, _statement(node).lineno, partial(_source, tree, node, change)))
    return sorted(found, key=lambda mutant: mutant.line)


def _is_skipped(node: ast.AST) -> bool:
    """Returns whether the node is in a part that is not mutated."""
    while (parent := getattr(node, "parent", None)) is not None:
        in_annotation = (node is getattr(parent, "annotation", None) or node is getattr(parent, "returns", None)) and node is not None
        if isinstance(node, SKIPPED) or in_annotation or node in getattr(parent, "decorator_list", ()):
            return True
        if isinstance(node, ast.keyword) and node.arg in HARMLESS_ARGUMENTS:
            return True
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "__name__ == '__main__'"):
            return True
        node = parent
    return False


def _changes(node: ast.AST) -> Iterator[Change]:
    """Returns the possible changes of a node."""
    if isinstance(node, ast.BinOp | ast.AugAssign | ast.BoolOp):
        for operator in SWAPS.get(type(node.op), ()):
            yield lambda copy, operator=operator: _with(copy, op=operator())
    elif isinstance(node, ast.Compare):
        for k, old in enumerate(node.ops):
            for operator in SWAPS[type(old)]:
                yield lambda copy, k=k, operator=operator: _with(copy, ops=[*copy.ops[:k], operator(), *copy.ops[k + 1 :]])
    elif isinstance(node, ast.UnaryOp) and not isinstance(node.operand, ast.Constant):
        yield lambda copy: copy.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield lambda copy: ast.Constant(not copy.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield lambda copy: ast.Constant(copy.value + 1)
        if isinstance(node.value, float) and node.value:
            yield lambda copy: ast.Constant(copy.value / 2)
    elif isinstance(node, ast.Call):
        for k, keyword in enumerate(node.keywords):
            if keyword.arg and keyword.arg not in HARMLESS_ARGUMENTS:
                yield lambda copy, k=k: _with(copy, keywords=copy.keywords[:k] + copy.keywords[k + 1 :])
        if len(node.args) > 1 and not node.keywords and not any(isinstance(arg, ast.Starred) for arg in node.args):
            yield lambda copy: _with(copy, args=copy.args[:-1])
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) or isinstance(node, ast.Break | ast.Continue):
        yield lambda copy: ast.Pass()
    if isinstance(node, ast.If | ast.IfExp | ast.While):
        yield lambda copy: _with(copy, test=ast.UnaryOp(ast.Not(), copy.test))
    elif isinstance(node, ast.comprehension):
        for k in range(len(node.ifs)):
            yield lambda copy, k=k: _with(copy, ifs=[*copy.ifs[:k], ast.UnaryOp(ast.Not(), copy.ifs[k]), *copy.ifs[k + 1 :]])


def _with(node: ast.AST, **fields: object) -> ast.AST:
    for name, value in fields.items():
        setattr(node, name, value)
    return node


def _label(node: ast.AST, change: Change) -> str:
    """Returns the function and the expression before and after the change."""
    shown = node
    while not isinstance(shown, ast.expr | ast.stmt | ast.comprehension) or isinstance(shown, ast.Constant | ast.Slice):
        shown = shown.parent  # type: ignore[attr-defined]
    if isinstance(shown, ast.expr) and isinstance(shown.parent, ast.expr) and len(ast.unparse(shown.parent)) <= SHOWN:  # type: ignore[attr-defined]
        shown = shown.parent  # type: ignore[attr-defined]
    before = _header(shown)
    with _changed(node, change) as new:
        after = _header(new if shown is node else shown)
    return f"{_function(node)}: {before} -> {after}"


def _source(tree: ast.Module, node: ast.AST, change: Change) -> str:
    with _changed(node, change):
        return ast.unparse(ast.fix_missing_locations(tree))


@contextmanager
def _changed(node: ast.AST, change: Change) -> Iterator[ast.AST]:
    """Apply the change to the tree of the node, yield the new node and restore the tree."""
    new = change(copy.copy(node))
    _replace(node.parent, node, new)  # type: ignore[attr-defined]
    yield new
    _replace(node.parent, new, node)  # type: ignore[attr-defined]


def _statement(node: ast.AST) -> ast.stmt:
    while not isinstance(node, ast.stmt):
        node = node.parent  # type: ignore[attr-defined]
    return node


def _header(node: ast.AST) -> str:
    """Format the node in one line; compound statements without their body."""
    return " ".join(ast.unparse(node).split(":\n")[0].split())[: 2 * SHOWN]


def _function(node: ast.AST) -> str:
    names = []
    while (node := getattr(node, "parent", None)) is not None:  # type: ignore[assignment]
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.append(node.name)
    return ".".join(reversed(names)) or "module"


def _replace(parent: ast.AST, old: ast.AST, new: ast.AST) -> None:
    for name, value in ast.iter_fields(parent):
        if value is old:
            setattr(parent, name, new)
        elif isinstance(value, list) and any(item is old for item in value):
            setattr(parent, name, [new if item is old else item for item in value])
