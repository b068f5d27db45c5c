"""The digest of a value by its content: equal in any process, whatever the order of sets and dicts or the addresses.

A function is the syntax tree of its source, its closure, defaults, attributes and all of the user's own code and values
that it names, followed as far as they go; a partial its function and arguments; an object its class and its state, as
it would be pickled; a tensor or an array its dtype, shape and bytes. Installed packages and the standard library are
known by name. `repr` is never used, but of numbers and texts.
"""

from __future__ import annotations

import ast
import copyreg
import functools
import hashlib
import importlib.util
import logging
import sys
import types
import weakref
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import is_dataclass
from enum import Enum
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rayinf.engine.owner import is_own_class, is_own_file, is_own_module
from rayinf.engine.source import Reference, canonical, code_text, file_text, references
from rayinf.errors import InputError

_PLAIN = (type(None), bool, int, float, complex, str, bytes, type(...), type(NotImplemented), range)
_TORCH = (torch.dtype, torch.device, torch.layout, torch.memory_format)
_BUILTIN = (types.BuiltinFunctionType, types.MethodWrapperType, types.WrapperDescriptorType,
            types.MethodDescriptorType, types.ClassMethodDescriptorType)  # fmt: skip
_CACHED = (type(functools.lru_cache(len)), functools.cached_property)
_DESCRIPTORS = (types.MemberDescriptorType, types.GetSetDescriptorType)
# Bookkeeping of a class, beside all of its `__names__` that are not methods: some come with the first pickling.
_NO_MEMBERS = {"_abc_impl", "__annotate__", "__annotate_func__"}
_METHODS = (types.FunctionType, staticmethod, classmethod, property)
# Of a module, what is not a part of what it computes in eval mode.
_NO_ATTRIBUTES = {"training", "_compiled_call_impl", "_is_full_backward_hook", "_non_persistent_buffers_set"}
_STATE = ("_parameters", "_buffers")
_DEPTH = 10_000


def digest(value: Any, name: str = "the value", version: str | None = None) -> str:
    """The digest of a value by its content, as 64 hexadecimal digits.

    Args:
        value: of any kind.
        name: how errors call it, as in "Task(loss=...)".
        version: of `Task(version=...)`: it stands for all that cannot be digested, which is otherwise refused.

    Raises:
        InputError: an open file, a lock, a generator or another object whose state cannot be read.

    Cost: a look at the source of each function that is followed, and SHA-256 over all tensors and arrays.
    """
    with deep():
        return Digester(name, version).of(value).hex()


@contextmanager
def deep() -> Generator[None]:
    """Room for values that are nested some thousand levels deep, as chains of functions and of modules of code are."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(max(before, _DEPTH))
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


class Digester:
    """One walk over a value. An object that is met again inside itself is known by how far above it stands."""

    def __init__(self, name: str, version: str | None = None, contents: bool = True) -> None:
        """Prepare a walk.

        Args:
            name: how errors call the value.
            version: what stands for parts that cannot be digested.
            contents: False: of the parameters and buffers of modules, dtypes and shapes alone.
        """
        self._name, self._version, self._contents = name, version, contents
        self._open: dict[int, int] = {}
        # By address; the value is kept, so that its address is not used again.
        self._done: dict[int, tuple[bytes, Any]] = {}
        self._path: list[str] = []

    def of(self, value: Any, step: str = "") -> bytes:
        """The digest of a value; `step` is how it was reached, for errors."""
        if type(value) in _PLAIN:
            return _plain(value)
        key = id(value)
        if key in self._done:
            return self._done[key][0]
        if key in self._open:
            return _join("above", _text(len(self._open) - self._open[key]))
        self._open[key] = len(self._open)
        self._path.append(step)
        try:
            found = self._compound(value)
        except RecursionError:
            found = self._unseen(value, "is nested too deeply")
        finally:
            del self._open[key]
            self._path.pop()
        self._done[key] = found, value
        return found

    def tensor(self, value: Tensor) -> bytes:
        """Dtype, shape and bytes; neither the device nor what requires a gradient."""
        if value.layout != torch.strided:
            held = value.detach().cpu().coalesce() if value.layout == torch.sparse_coo else None
            if held is None:
                return self._unseen(value, f"is a tensor of layout {value.layout}")
            return _join("sparse", _text(tuple(held.shape)), self.tensor(held.indices()), self.tensor(held.values()))
        if value.is_meta or value.is_quantized:
            return self._unseen(value, "is a tensor without readable data (quantised, or on the device meta)")
        head = _text(f"{value.dtype}{tuple(value.shape)}")
        raw = value.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8).numpy().data
        return _join("tensor", head, hashlib.sha256(raw).digest())

    def _compound(self, value: Any) -> bytes:
        found = self._values(value)
        if found is None:
            found = self._code(value)
        return self._object(value) if found is None else found

    def _values(self, value: Any) -> bytes | None:
        """Tensors, arrays, modules and containers; None for others."""
        kind = type(value)
        if isinstance(value, nn.Module):
            return self._module(value)
        if isinstance(value, Tensor):
            return self.tensor(value)
        if isinstance(value, np.ndarray):
            if value.dtype.hasobject:
                return _join("objects", _text(value.shape), self.of(value.tolist()))
            raw = hashlib.sha256(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data).digest()
            return _join("array", _text(f"{value.dtype.descr}{value.shape}"), raw)
        if isinstance(value, np.generic):
            return _join("number", _text(value.dtype.str), value.tobytes())
        if kind in (list, tuple):
            return _join(kind.__name__, *(self.of(v, f"[{k}]") for k, v in enumerate(value)))
        if kind in (set, frozenset):
            return _join("set", *sorted(self._alone(v) for v in value))
        if kind in (dict, types.MappingProxyType):
            return self._mapping(value)
        if isinstance(value, _TORCH):
            return _join("torch", _text(str(value)))
        if isinstance(value, PurePath):
            return _join("path", _text(str(value)))
        if isinstance(value, Enum):
            return _join("enum", _text(f"{kind.__qualname__}.{value.name}"), self.of(value.value, ".value"))
        return None

    def _code(self, value: Any) -> bytes | None:
        """Functions, classes and modules of code; None for others."""
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, types.MethodType):
            return _join("method", self.of(value.__func__, f".{value.__name__}"), self.of(value.__self__, ".__self__"))
        if isinstance(value, functools.partial):
            parts = self.of(value.func, ".func"), self.of(value.args, ".args"), self.of(value.keywords, ".keywords")
            return _join("partial", *parts, self.of(vars(value)))
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, _BUILTIN):
            owner = getattr(value, "__self__", None)
            held = b"" if owner is None or isinstance(owner, types.ModuleType) else self.of(owner, ".__self__")
            home = getattr(value, "__objclass__", None)
            place = getattr(value, "__module__", None) if home is None else f"{home.__module__}.{home.__qualname__}"
            return _join("built in", _text(f"{place}.{value.__name__}"), held)
        if isinstance(value, types.ModuleType):
            return self._file(value) if is_own_module(value) else _join("package", _text(value.__name__))
        if isinstance(value, types.CodeType):
            return _join("code", _text(code_text(value)))
        if isinstance(value, property):
            return _join("property", *(self.of(f) for f in (value.fget, value.fset, value.fdel)))
        if isinstance(value, staticmethod | classmethod):
            return _join(type(value).__name__, self.of(value.__func__))
        if isinstance(value, _CACHED):
            return _join(
                "cached", self.of(value.func if isinstance(value, functools.cached_property) else value.__wrapped__)
            )
        if isinstance(value, weakref.ref):
            return _join("weak reference")
        if isinstance(value, logging.Logger):
            return _join("logger", _text(value.name))
        return None

    def _function(self, function: types.FunctionType) -> bytes:
        code = function.__code__
        cells = [self._cell(n, c) for n, c in zip(code.co_freevars, function.__closure__ or (), strict=True)]
        if not is_own_file(code.co_filename) and code.co_name != "<lambda>":
            home = function.__globals__.get("__name__", "")
            return _join("installed", _text(f"{home}.{code.co_qualname}"), *cells)
        defaults = self.of(function.__defaults__, "'s defaults"), self.of(function.__kwdefaults__, "'s defaults")
        named = [self._named(function.__globals__, r) for r in references(code)]
        beside = {k: v for k, v in vars(function).items() if k != "__wrapped__"}
        lists = (_join("list", *part) for part in (cells, named))
        return _join("function", _text(code_text(code)), *defaults, *lists, self._mapping(beside, "."))

    def _cell(self, name: str, cell: Any) -> bytes:
        try:
            held = cell.cell_contents
        except ValueError:
            return _join("empty", _text(name))
        return _join("cell", _text(name), self.of(held, f"'s variable {name!r}"))

    def _named(self, names: Mapping[str, Any], reference: Reference) -> bytes:
        """What a name of a function's globals stands for; the user's own modules are followed to what is taken."""
        if reference.level is not None:
            return self._imported(names, reference)
        first, *more = reference.names
        label = _text(first)
        if first not in names:
            return _join("missing", label)  # a built-in name, or one that is not there yet
        value = names[first]
        step = first
        while isinstance(value, types.ModuleType) and is_own_module(value) and more and hasattr(value, more[0]):
            value, step = getattr(value, more[0]), f"{step}.{more.pop(0)}"
        rest = _text(".".join(more)) if isinstance(value, types.ModuleType) else b""
        return _join("named", label, self.of(value, f"'s global {step!r}"), rest)

    def _imported(self, names: Mapping[str, Any], reference: Reference) -> bytes:
        """A module that a function imports when it runs."""
        name = "." * (reference.level or 0) + reference.names[0]
        try:
            full = importlib.util.resolve_name(name, str(names.get("__package__") or ""))
            module = sys.modules.get(full)
            spec = importlib.util.find_spec(full) if module is None else None
        except (ImportError, ValueError, AttributeError):
            return _join("import", _text(name))
        if module is not None:
            return _join("import", self.of(module, f"'s import {full!r}"))
        origin = spec.origin if spec is not None and spec.has_location else None
        own = origin is not None and origin.endswith(".py") and is_own_file(origin)
        return _join("import", _text(full), _tree(file_text(str(origin))) if own else b"")

    def _file(self, module: types.ModuleType) -> bytes:
        """A module of the user's as a whole: its source, and what it takes from others."""
        taken = {
            name: value
            for name, value in vars(module).items()
            if isinstance(value, types.ModuleType | types.FunctionType | type)
            and getattr(value, "__module__", None) != module.__name__
            and not name.startswith("__")
        }
        return _join("module", _tree(file_text(getattr(module, "__file__", None) or "")), self._mapping(taken, "."))

    def _class(self, cls: type) -> bytes:
        if not is_own_class(cls):
            bases = [self.of(b) for b in cls.__mro__[1:] if is_own_class(b)]  # of a class made by a package
            return _join("installed", _text(f"{cls.__module__}.{cls.__qualname__}"), *bases)
        made = is_dataclass(cls)  # its generated methods follow from its fields
        members = {
            name: value
            for name, value in vars(cls).items()
            if _is_member(name, value)
            and not (made and isinstance(value, types.FunctionType) and value.__code__.co_filename == "<string>")
        }
        bases = [self.of(b) for b in cls.__bases__]
        return _join("class", _text(cls.__qualname__), _join("list", *bases), self._mapping(members, "."))

    def _object(self, value: Any) -> bytes:
        """An object: its class, and its state as it would be pickled."""
        try:
            made = copyreg.dispatch_table.get(type(value))
            held: Any = made(value) if made is not None else value.__reduce_ex__(4)
        except Exception:
            return self._unseen(value, "is an object whose state cannot be read")
        if isinstance(held, str):
            return _join("global", _text(f"{type(value).__module__}.{held}"))
        whole: list[Any] = [*held, None, None, None]
        function, arguments, state, items, pairs = whole[:5]
        parts = [self.of(type(value)), self.of(function), self.of(arguments), self._part(state)]
        parts += [self.of(None if items is None else list(items)), self.of(None if pairs is None else dict(pairs))]
        return _join("object", *parts)

    def _part(self, state: Any) -> bytes:
        """An object's state; its attributes by name."""
        if isinstance(state, dict):
            return self._mapping(state, ".")
        if isinstance(state, tuple) and len(state) == 2 and all(isinstance(s, dict | None) for s in state):
            return _join("slots", *(b"" if s is None else self._mapping(s, ".") for s in state))
        return self.of(state)

    def _module(self, module: nn.Module) -> bytes:
        """A module: its classes, parameters, buffers, submodules in order, hooks, and plain attributes."""
        inner = getattr(module, "_orig_mod", None)
        if isinstance(inner, nn.Module):  # what torch.compile wraps
            return self.of(inner)
        own = is_own_class(type(module))
        parts = [self.of(type(module))]
        for name, value in sorted(vars(module).items()):
            label = _text(name)
            if name in _NO_ATTRIBUTES:
                continue
            if name in _STATE:
                parts.append(_join(name, *self._tensors(value)))
            elif name == "_modules":  # a Sequential runs them in this order
                parts += [_join("child", _text(k), self.of(v, f".{k}")) for k, v in value.items()]
            elif "_hooks" in name:  # by numbers that count all hooks of the process
                parts.append(_join("hooks", label, self.of([*value.values()], f"'s {name}")))
            elif own or not name.startswith("_"):  # the private ones of a package follow from the others
                parts.append(_join("attribute", label, self.of(value, f".{name}")))
        return _join("layer", *parts)

    def _tensors(self, held: Mapping[str, Tensor | None]) -> Iterable[bytes]:
        for name, value in sorted(held.items()):
            yield _text(name)
            if value is None or torch.nn.parameter.is_lazy(value):
                yield _text(value is None)
            elif self._contents:
                yield self.of(value, f".{name}")
            else:
                yield _text(f"{value.dtype}{tuple(value.shape)}")

    def _mapping(self, held: Mapping[Any, Any], mark: str = "") -> bytes:
        """Pairs in the order of the digests of their keys."""
        ordered = sorted(((self._alone(k), k) for k in held), key=lambda pair: pair[0])
        shown: Callable[[Any], str] = (lambda k: f".{k}") if mark else (lambda k: f"[{k!r}]" if _short(k) else "[...]")
        return _join("mapping", *(part for d, k in ordered for part in (d, self.of(held[k], shown(k)))))

    def _alone(self, value: Any) -> bytes:
        """A member of a set or a key: by itself, since the order in which these come may differ."""
        if type(value) in _PLAIN:
            return _plain(value)
        return Digester(self._name, self._version, self._contents).of(value)

    def _unseen(self, value: Any, why: str) -> bytes:
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        if self._version is not None:
            return _join("unseen", _text(kind))
        raise UnreadableError(self._name + "".join(self._path), kind, why)


class UnreadableError(InputError):
    """What cannot be digested."""

    def __init__(self, place: str, kind: str, why: str) -> None:
        """Say where it stands, and how to go on."""
        super().__init__(
            f"{place} ({kind}) {why}, so that two runs with and without a change of it could not be distinguished.",
            'leave it out, make it picklable, or name this code yourself with Task(version="1"), and change the name '
            "whenever the code or its data changes.",
        )


def _is_member(name: str, value: Any) -> bool:
    """Whether something that stands in a class is a part of what it does."""
    special = name.startswith("__") and name.endswith("__")
    plain = name not in _NO_MEMBERS and not isinstance(value, _DESCRIPTORS)
    return plain and (not special or isinstance(value, _METHODS) or callable(value))


def _plain(value: Any) -> bytes:
    return _join(type(value).__name__, value if isinstance(value, bytes) else _text(repr(value)))


def _short(key: Any) -> bool:
    return type(key) in (str, int) and len(str(key)) <= 40


def _tree(text: str) -> bytes:
    """The syntax tree of a whole source file."""
    try:
        return _text(canonical(ast.parse(text)))
    except (SyntaxError, ValueError):
        return _text(text)


def _text(value: Any) -> bytes:
    return str(value).encode("utf-8", "surrogatepass")


def _join(tag: str, *parts: bytes) -> bytes:
    """SHA-256 over parts of any length, so that none can run into the next."""
    found = hashlib.sha256(tag.encode() + b"\0")
    for part in parts:
        found.update(len(part).to_bytes(8, "little"))
        found.update(part)
    return found.digest()
