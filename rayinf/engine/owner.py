"""Whose code it is: the user's own, which is followed, or an installed package's, which its name stands for."""

from __future__ import annotations

import os
import sys
import sysconfig
from functools import lru_cache
from types import ModuleType

_PACKAGE = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
_INSTALLED = {"site-packages", "dist-packages"}


def is_own_file(file: str) -> bool:
    """Whether a source file is the user's: neither the standard library, an installed package, nor rayinf."""
    if file.startswith("<"):  # a notebook, a REPL, exec: the user's
        return not file.startswith("<frozen")
    return _is_own_path(file)


def is_own_module(module: ModuleType) -> bool:
    """Whether a module is the user's."""
    if module.__name__ in ("__main__", "__mp_main__"):
        return True
    file = getattr(module, "__file__", None)
    if file is None:  # built in, a namespace, or made on the fly
        paths = list(getattr(module, "__path__", []))
        return _is_own_path(paths[0]) if paths else module.__name__.partition(".")[0] not in sys.stdlib_module_names
    return is_own_file(file)


def is_own_class(cls: type) -> bool:
    """Whether a class is the user's."""
    module = sys.modules.get(cls.__module__)
    if module is None:
        top = sys.modules.get(cls.__module__.partition(".")[0])
        return top is None or is_own_module(top)
    return is_own_module(module)


@lru_cache(maxsize=4096)
def _is_own_path(path: str) -> bool:
    real = os.path.realpath(path)
    if _INSTALLED & set(real.split(os.sep)):
        return False
    roots = [_PACKAGE, *(os.path.realpath(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib"))]
    return not any(real.startswith(root + os.sep) for root in roots)
