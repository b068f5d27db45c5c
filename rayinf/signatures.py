"""The arguments of rayinf's public functions and classes: names, types, defaults and what the docstring says of each.

They are read from the source without importing it. Importing a verb imports torch, which takes seconds, and `--help`
and messages about a config need only this.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import cache
from inspect import Parameter
from itertools import takewhile
from pathlib import Path
from typing import Any

import rayinf

_ENTRY = re.compile(r" {4}(\w+): (.*)")


@dataclass(frozen=True)
class Argument:
    """An argument of a function, or a field of a dataclass.

    Attributes:
        name: as in Python.
        annotation: its type, as the source has it.
        default: the value; `inspect.Parameter.empty` where the argument is required.
        meaning: the text of the docstring's `Args`, on one line.
    """

    name: str
    annotation: str
    default: Any
    meaning: str

    @property
    def required(self) -> bool:
        """Whether there is no default."""
        return self.default is Parameter.empty


@cache
def arguments_of(public: str) -> tuple[Argument, ...]:
    """The arguments of a public function, or the fields of a public dataclass, in order.

    Args:
        public: the name, as in `rayinf.influence` or `rayinf.Cluster`.
    """
    module = rayinf.HOMES[public]
    file = Path(rayinf.__file__).parent.joinpath(*module.split(".")[1:]).with_suffix(".py")
    tree = ast.parse(file.read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.ClassDef)
    node = next(n for n in tree.body if isinstance(n, kinds) and n.name == public)
    constants = {
        target.id: n.value
        for n in tree.body
        if isinstance(n, ast.Assign)
        for target in n.targets
        if isinstance(target, ast.Name)
    }
    meanings = _meanings(ast.get_docstring(node) or "")
    found = []
    for name, annotation, default in _fields(node) if isinstance(node, ast.ClassDef) else _parameters(node):
        value = constants.get(default.id, default) if isinstance(default, ast.Name) else default
        held = Parameter.empty if value is None else ast.literal_eval(value)
        found.append(Argument(name, ast.unparse(annotation), held, meanings.get(name, "")))
    return tuple(found)


def _parameters(node: ast.FunctionDef) -> list[tuple[str, Any, ast.expr | None]]:
    """Name, annotation and default of every parameter."""
    given, named = node.args.args, node.args.kwonlyargs
    defaults = [*[None] * (len(given) - len(node.args.defaults)), *node.args.defaults, *node.args.kw_defaults]
    return [(a.arg, a.annotation, d) for a, d in zip([*given, *named], defaults, strict=True)]


def _fields(node: ast.ClassDef) -> list[tuple[str, Any, ast.expr | None]]:
    """Name, annotation and default of every field."""
    return [
        (line.target.id, line.annotation, line.value)
        for line in node.body
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)
    ]


def _meanings(docstring: str) -> dict[str, str]:
    """The texts of the section `Args` of a docstring in Google's style."""
    section = docstring.partition("\nArgs:\n")[2].splitlines()
    found: dict[str, str] = {}
    name = ""
    for line in takewhile(lambda line: line.startswith("    "), section):
        entry = _ENTRY.fullmatch(line)
        name = entry[1] if entry else name
        found[name] = entry[2] if entry else f"{found[name]} {line.strip()}"
    return found
