"""What a function's code is: its syntax tree where the source can be found, else its byte code; and the names it uses.

Comments, formatting and docstrings have no part in the tree, so that versions of Python agree on it.
"""

from __future__ import annotations

import ast
import dis
import linecache
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from types import CodeType
from typing import Any

_WITH_DOCSTRING = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_ATTRIBUTES = ("LOAD_ATTR", "LOAD_METHOD")
_GLOBALS = ("LOAD_GLOBAL", "LOAD_NAME")


def code_text(code: CodeType) -> str:
    """A text of what the code does: the same after other comments, formatting or docstrings."""
    node = _find(code)
    return _binary(code) if node is None else f"tree {canonical(node)}"


def canonical(node: Any) -> str:
    """A syntax tree as text, without positions, docstrings and empty fields."""
    if isinstance(node, ast.AST):
        fields = ((name, value) for name, value in ast.iter_fields(node) if name not in ("ctx", "kind", "type_comment"))
        body = {"body": node.body[1:]} if isinstance(node, _WITH_DOCSTRING) and _has_docstring(node) else {}
        shown = [
            f"{n}={canonical(v)}" for n, v in ((n, body.get(n, v)) for n, v in fields) if v is not None and v != []
        ]
        return f"{type(node).__name__}({','.join(shown)})"
    if isinstance(node, list):
        return f"[{','.join(map(canonical, node))}]"
    return f"{type(node).__name__} {node!r}"  # a name, a number or a text of the source


def file_text(file: str) -> str:
    """The source of a file as it is now; empty where there is none."""
    linecache.checkcache(file)
    return "".join(linecache.getlines(file))


@dataclass(frozen=True)
class Reference:
    """A global name that code uses, with the attributes that it takes of it; or a module that it imports.

    Attributes:
        names: the global and its attributes, as in `helpers.scale`; of an import, the module's name alone.
        level: of an import: 0, or the number of dots; None for a global.
    """

    names: tuple[str, ...]
    level: int | None = None


def references(code: CodeType) -> list[Reference]:
    """All that code, and the code inside it, takes from outside; in sorted order."""
    return sorted(set(_references(code)), key=lambda r: (r.names, -1 if r.level is None else r.level))


def _references(code: CodeType) -> Iterator[Reference]:
    chain: list[str] = []
    level = 0
    for step in dis.get_instructions(code):
        if chain and step.opname in _ATTRIBUTES:
            chain.append(str(step.argval))
            continue
        if chain:
            yield Reference(tuple(chain))
            chain = []
        if step.opname in _GLOBALS:
            chain = [str(step.argval)]
        elif step.opname in ("LOAD_CONST", "LOAD_SMALL_INT") and isinstance(step.argval, int):
            level = step.argval  # the last number before IMPORT_NAME is how many dots there are
        elif step.opname == "IMPORT_NAME":
            yield Reference((str(step.argval),), level)
    if chain:
        yield Reference(tuple(chain))
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _references(inner)


def _has_docstring(node: Any) -> bool:
    first = node.body[0] if node.body else None
    return isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)


def _find(code: CodeType) -> ast.AST | None:
    """The node of the code in its source; None where there is no source, or another one than was compiled."""
    text = file_text(code.co_filename)
    if not text:
        return None
    nodes, codes = _parsed(text)
    if code not in codes:
        return None
    found = nodes.get((code.co_firstlineno, code.co_name), [])
    if len(found) > 1:
        spans = [_span(p) for p in code.co_positions() if None not in p and p[2:] != (0, 0)]
        held = [n for n in found if all(_inside(s, n) for s in spans)]
        # Of a function within a function on one line, the inner one.
        found = sorted(held, key=lambda n: (n.lineno, n.col_offset))[-1:] if spans else []
    return found[0] if len(found) == 1 else None


@lru_cache(maxsize=64)
def _parsed(text: str) -> tuple[dict[tuple[int, str], list[Any]], frozenset[CodeType]]:
    """The functions of a source by first line and name, and all code that it compiles to."""
    try:
        tree, whole = ast.parse(text), compile(text, "<source>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError):
        return {}, frozenset()
    nodes: dict[tuple[int, str], list[Any]] = {}
    for node in ast.walk(tree):
        if isinstance(node, _FUNCTIONS):
            first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
            nodes.setdefault((first, getattr(node, "name", "<lambda>")), []).append(node)
    return nodes, frozenset(_all_code(whole))


def _all_code(code: CodeType) -> Iterator[CodeType]:
    yield code
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _all_code(inner)


def _span(position: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    first, last, begin, end = position
    return (first, begin), (last, end)


def _inside(span: tuple[tuple[int, int], tuple[int, int]], node: Any) -> bool:
    """Whether a piece of source lies in the body of a lambda, or anywhere in a function."""
    body = node.body if isinstance(node, ast.Lambda) else node
    return (body.lineno, body.col_offset) <= span[0] and span[1] <= (body.end_lineno, body.end_col_offset)


def _binary(code: CodeType) -> str:
    """Byte code as text: of one version of Python."""
    held = [_binary(c) if isinstance(c, CodeType) else _constant(c) for c in code.co_consts]
    parts = (sys.version_info[:2], code.co_code.hex(), held, code.co_names, code.co_varnames, code.co_freevars)
    return f"code {parts!r}"


def _constant(value: Any) -> str:
    """A constant of byte code; sets have no order of their own."""
    if isinstance(value, frozenset):
        return f"frozenset {sorted(map(_constant, value))}"
    if isinstance(value, tuple):
        return f"tuple {[_constant(v) for v in value]}"
    return f"{type(value).__name__} {value!r}"
