"""The user's own modules: those that a Python file imports from beside it, found in syntax trees and never run.

An import is followed wherever it stands in a file, in functions too, with the packages on its way; so is
`importlib.import_module` with a name in quotes. What is not found in the folders that are looked through is taken to be
installed. Names that a program puts together while it runs cannot be seen.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path

from rayinf.errors import InputError

# Never taken along: a checkout of rayinf that lies there too.
_NOT_OWN = ("rayinf",)
_IMPORTERS = ("import_module", "__import__")


def follow(files: Sequence[Path], modules: Sequence[str], folders: Sequence[Path]) -> dict[Path, bytes]:
    """What files and modules import from some folders, and what that imports, with themselves.

    Args:
        files: Python files, each of which lies in one of the folders.
        modules: dotted names.
        folders: that Python would look through, in this order.

    Returns:
        The content by absolute path.

    Raises:
        InputError: a file that cannot be read, or is not Python.
    """
    walk = _Walk([f.absolute() for f in folders])
    for file in files:
        walk.take(file.absolute(), (file.stem,))
    for name in modules:
        walk.take_module(tuple(name.split(".")))
    return dict(sorted(walk.found.items()))


class _Walk:
    """Files that were found, each looked through once."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = folders
        self.found: dict[Path, bytes] = {}

    def take(self, file: Path, name: tuple[str, ...]) -> None:
        """A file, and what it imports.

        Args:
            file: absolute.
            name: of the module, in parts.

        Raises:
            InputError: it cannot be read, or is not Python.
        """
        if file in self.found:
            return
        try:
            self.found[file] = file.read_bytes()
            tree = ast.parse(self.found[file], str(file))
        except OSError as error:
            raise InputError(f"{file} cannot be read: {error.strerror}.", "check the path.") from error
        except (SyntaxError, ValueError) as error:
            where = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
            said = error.msg if isinstance(error, SyntaxError) else str(error)
            raise InputError(f"{file}{where} is not Python: {said}.", "mend it there.") from error
        package = name if file.name == "__init__.py" else name[:-1]
        for wanted in _imports(tree, package):
            self.take_module(wanted)

    def take_module(self, name: tuple[str, ...]) -> None:
        """A module and the packages that it lies in, as far as they are in the folders."""
        if name[0] in _NOT_OWN:
            return
        for folder in self._folders:
            found = list(_files_of(folder, name))
            if found:
                for file, inner in found:
                    self.take(file, inner)
                return


def _files_of(folder: Path, name: tuple[str, ...]) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """The files that importing a dotted name runs, and the name of each; as far as they are there."""
    place = folder
    for k, part in enumerate(name):
        inner = name[: k + 1]
        module, place = place / f"{part}.py", place / part
        if (place / "__init__.py").is_file():
            yield place / "__init__.py", inner
        elif module.is_file():
            yield module, inner
            return
        elif not place.is_dir():  # a package without __init__.py is a folder
            return


def _imports(tree: ast.AST, package: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Names that are imported anywhere in a tree, in parts; a name after `from` may be a module or not."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            base += tuple(node.module.split(".")) if node.module else ()
            if base:
                yield base
            yield from ((*base, alias.name) for alias in node.names if alias.name != "*")
        elif isinstance(node, ast.Call) and _called(node.func) in _IMPORTERS and node.args:
            given = node.args[0]
            if isinstance(given, ast.Constant) and isinstance(given.value, str) and given.value.strip("."):
                yield tuple(given.value.strip(".").split("."))


def _called(function: ast.expr) -> str:
    return str(getattr(function, "attr", None) or getattr(function, "id", ""))
