"""A notebook cell as a call: which names it takes from the notebook, and running it on a node.

Internal; `magics` is its face.
"""

from __future__ import annotations

import ast
import builtins
import linecache
from collections.abc import Iterable, Mapping
from typing import Any

from .errors import NotSerializable

FILE = "<ks cell>"
"""What tracebacks call a cell."""


def names(source: str) -> tuple[set[str], set[str]]:
    """The names that a cell reads, also those that it then sets, and those that it sets at its top. Errors:
    SyntaxError."""
    parsed = ast.parse(source, FILE)
    read = {node.id for node in ast.walk(parsed) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    made: set[str] = set()
    for statement in parsed.body:
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            made.add(statement.name)
            continue
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                made.add(node.id)
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                made.update((alias.asname or alias.name).partition(".")[0] for alias in node.names)
    return read, made


def inputs(source: str, namespace: Mapping[str, Any], wanted: Iterable[str] | None = None) -> dict[str, Any]:
    """What a cell takes along from the notebook: the names in `wanted`, else all that it reads and that are there.
    Errors: NameError, SyntaxError."""
    read, _ = names(source)
    if wanted is None:
        found = {name for name in read if name in namespace and not hasattr(builtins, name)}
    else:
        found = set(wanted)
        missing = sorted(found - set(namespace))
        if missing:
            raise NameError(f"{', '.join(missing)}: not defined here")
    return {name: namespace[name] for name in sorted(found)}


def run(source: str, values: dict[str, Any], outputs: list[str]) -> tuple[Any, dict[str, Any]]:
    """On the node: runs the cell; the value of its last expression, and those of the names in `outputs`."""
    linecache.cache[FILE] = (len(source), None, source.splitlines(True), FILE)
    parsed = ast.parse(source, FILE)
    last = parsed.body[-1] if parsed.body else None
    if isinstance(last, ast.Expr):
        parsed.body.pop()
    namespace: dict[str, Any] = {"__name__": "__main__", **values}
    exec(compile(parsed, FILE, "exec"), namespace)
    value = None
    if isinstance(last, ast.Expr):
        value = eval(compile(ast.Expression(last.value), FILE, "eval"), namespace)
    missing = [name for name in outputs if name not in namespace]
    if missing:
        raise NameError(f"the cell does not define {', '.join(missing)}")
    return value, {name: namespace[name] for name in outputs}


def explain(error: NotSerializable, values: Iterable[str]) -> NotSerializable:
    """The same, with the cure: which names went along."""
    made = NotSerializable(f"{error} (sent along: {', '.join(values)}; -i names what is to be sent)")
    made.__cause__ = error
    return made
