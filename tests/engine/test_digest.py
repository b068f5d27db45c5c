"""Digests: whatever changes what code does changes them, nothing else does, and other processes agree."""

from __future__ import annotations

import copy
import functools
import io
import json
import os
import re
import subprocess
import sys
import threading
import types
from collections import OrderedDict
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from engine import digest_cases as cases
from torch import nn

import rayinf
from rayinf.engine.digest import digest
from rayinf.engine.model_digest import first_difference, model_digest, state_digest

TESTS = Path(__file__).parents[1]


def module_of(text: str, path: Path, name: str = "own_module") -> types.ModuleType:
    """A module of the user's, from a file."""
    file = path / f"{name}.py"
    file.write_text(text)
    module = types.ModuleType(name)
    module.__file__ = str(file)
    exec(compile(text, str(file), "exec", dont_inherit=True), module.__dict__)
    return module


BASE = '''
import math
import torch
import numpy as np
from torch.nn import functional as F

SCALE = 2.0
TABLE = np.arange(4.0)
CHOICES = {"a": 1, "b": 2}

def inner(z):
    return z * SCALE

def helper(z):
    return inner(z) + TABLE.sum()

class Base:
    factor = 3.0
    def part(self, z):
        return z * self.factor

class Loss(Base):
    def __init__(self, t):
        self.t = t
    def __call__(self, z, y):
        return self.part(z)[:, 0] / self.t

def loss(z, y, eps=0.1, *, mode="mean"):
    """Doc."""
    return F.cross_entropy(helper(z), y, reduction="none") + eps * CHOICES["a"]
'''

# What stands in the base, what takes its place, and whether that is another loss.
CHANGES: dict[str, tuple[str, str, bool]] = {
    "a helper's helper": ("return z * SCALE", "return z / SCALE", True),
    "a helper": ("+ TABLE.sum()", "- TABLE.sum()", True),
    "a constant of a helper": ("SCALE = 2.0", "SCALE = 2.5", True),
    "an array of a helper": ("np.arange(4.0)", "np.arange(4.0) + 1", True),
    "a dict": ('"a": 1', '"a": 3', True),
    "its own code": ('reduction="none")', 'reduction="none", label_smoothing=0.1)', True),
    "a default": ("eps=0.1", "eps=0.2", True),
    "a default of a keyword": ('mode="mean"', 'mode="sum"', True),
    "comments and formatting": ("    return z * SCALE", "    # scaled\n\n    return (z *\n            SCALE)", False),
    "a docstring": ('"""Doc."""', '"""Another text."""', False),
    "no docstring": ('    """Doc."""\n', "", False),
    "a docstring of a helper": ("def inner(z):", "def inner(z):\n    'Inner.'", False),
    "a line above": ("import math", "import math\nimport re", False),
    "another order of a dict": ('{"a": 1, "b": 2}', '{"b": 2, "a": 1}', False),
    "a constant that it does not use": ("factor = 3.0", "factor = 4.0", False),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_function(what: str, tmp_path: Path) -> None:
    old, new, differs = CHANGES[what]
    assert BASE.count(old) == 1
    one = digest(module_of(BASE, tmp_path, "one").loss)
    two = digest(module_of(BASE.replace(old, new), tmp_path, "two").loss)
    assert (one != two) == differs


@pytest.mark.parametrize(
    ("old", "new", "differs"),
    [
        ("[:, 0] / self.t", "[:, 1] / self.t", True),
        ("return z * self.factor", "return z + self.factor", True),
        ("factor = 3.0", "factor = 4.0", True),
        ("SCALE = 2.0", "SCALE = 2.5", False),
        ('"""Doc."""', '"""Other."""', False),
    ],
)
def test_an_object(old: str, new: str, differs: bool, tmp_path: Path) -> None:
    one, two = (module_of(BASE.replace(old, t), tmp_path, f"m{k}") for k, t in enumerate((old, new)))
    assert (digest(one.Loss(1.0)) != digest(two.Loss(1.0))) == differs
    assert digest(one.Loss(1.0)) != digest(one.Loss(2.0))


def test_code_that_is_followed_through_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An attribute of a module, and modules that are imported in a function."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def found(scale: int, late: int) -> list[str]:
        deep = module_of(f"def deep(x):\n    return x * {scale}", tmp_path, "deep_module")
        monkeypatch.setitem(sys.modules, "deep_module", deep)
        (tmp_path / "late_module.py").write_text(f"VALUE = {late}\n")
        text = (
            "import deep_module\n"
            "def attribute(x):\n    return deep_module.deep(x)\n"
            "def imported(x):\n    from deep_module import deep\n    return deep(x)\n"
            "def lately(x):\n    import late_module\n    return x + late_module.VALUE\n"
        )
        module = module_of(text, tmp_path, f"top{scale}{late}")
        return [digest(module.attribute), digest(module.imported), digest(module.lately)]

    base = found(1, 1)
    assert found(1, 1) == base
    assert [a != b for a, b in zip(base, found(2, 1), strict=True)] == [True, True, False]
    assert [a != b for a, b in zip(base, found(1, 2), strict=True)] == [False, False, True]


def test_closures_partials_methods_and_attributes() -> None:
    weights = torch.arange(3.0)
    kinds: list[list[Any]] = [
        [cases.make(weights, 1.0), cases.make(weights, 2.0), cases.make(weights + 1, 1.0)],
        [functools.partial(cases.loss, smoothing=0.1), functools.partial(cases.loss, smoothing=0.2), cases.loss],
        [cases.Scaled(m).scaled for m in (np.zeros(3), np.ones(3))] + [cases.Scaled(np.zeros(3)).__call__],
        [cases.Scaled(np.zeros(3)), cases.Scaled(np.zeros(3, np.float32)), cases.Same(np.zeros(3))],
        [cases.Shift(1.0), cases.Shift(2.0), cases.Shift(1.0, ("a",))],
        [torch.relu, torch.sigmoid, nn.functional.relu, nn.functional.gelu, torch.Tensor.relu, np.exp, len],
        [lambda x: x + 1, lambda x: x + 2, lambda x, y=1: x + y, lambda x, y=2: x + y],
        [nn.CrossEntropyLoss(), nn.CrossEntropyLoss(label_smoothing=0.1), nn.CrossEntropyLoss(weights), nn.NLLLoss()],
        [nn.functional.max_pool1d, nn.functional.max_pool2d],
    ]  # fmt: skip
    for values in kinds:
        found = [digest(v) for v in values]
        assert len(set(found)) == len(values), values
        if not callable(getattr(values[0], "__self__", None)):
            assert [digest(copy.deepcopy(v)) for v in values] == found

    def counted(x: Any) -> Any:
        return x

    plain = digest(counted)
    counted.temperature = 2.0  # type: ignore[attr-defined]
    assert digest(counted) != plain


class Colour(Enum):
    RED = 1
    BLUE = 2


def test_values() -> None:
    values: list[Any] = [
        None, True, 1, 1.0, "1", b"1", 1 + 0j, np.float32(1), np.float64(1), np.int64(1), float("inf"), float("nan"),
        0.0, -0.0, [1], (1,), {1}, {1: 1}, {1: 2}, {"1": 1}, [], (), {}, set(), [[1], 2], [1, [2]], [1, 2], [2, 1],
        range(2), slice(1, 2), slice(1, 3), ..., Colour.RED, Colour.BLUE, PurePosixPath("a"), PurePosixPath("b"),
        np.zeros(2), np.zeros((2, 1)), np.zeros(2, np.float32), np.zeros(2, np.int64), np.array(["a", None], object),
        torch.zeros(2), torch.zeros(2, 1), torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.bfloat16),
        torch.ones(2), torch.tensor(1.0), torch.zeros(0), torch.float32, torch.float64, torch.device("cpu"),
        torch.Size([2]), re.compile("a"), re.compile("b"), re.compile("a", re.IGNORECASE), int, str, nn.Linear,
        torch.eye(2).to_sparse(), (2 * torch.eye(2)).to_sparse(), OrderedDict(a=1), np.random.default_rng(0),
        np.random.default_rng(1), "ab", ["a", "b"], ["ab"], ["a", ["b"]],
    ]  # fmt: skip
    found = [digest(v) for v in values]
    assert len(set(found)) == len(found)
    assert [digest(copy.deepcopy(v)) for v in values] == found
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert digest(torch.arange(6.0).reshape(2, 3).T) == digest(torch.arange(6.0).reshape(2, 3).T.contiguous())
    assert digest(np.arange(6.0).reshape(2, 3).T) == digest(np.arange(6.0).reshape(2, 3).T.copy())


@pytest.mark.slow
def test_other_processes_agree() -> None:
    """With other hash seeds, other addresses, and the module as `__main__` or not."""
    code = (
        "import json, runpy, sys; from rayinf.engine.digest import digest\n"
        "if sys.argv[1] == 'module':\n    from engine.digest_cases import many\n"
        "else:\n    many = runpy.run_path(sys.argv[2], run_name='__main__')['many']\n"
        "held = [object() for _ in range(int(sys.argv[3]))]\n"
        "print(json.dumps({k: digest(v) for k, v in many().items()}))"
    )
    found = [json.loads(json.dumps({k: digest(v) for k, v in cases.many().items()}))]
    for seed, how in (("1", "module"), ("2", "script"), ("77", "module")):
        root = str(Path(rayinf.__file__).parents[1])
        env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join([root, str(TESTS)])}
        command = [sys.executable, "-c", code, how, str(TESTS / "engine" / "digest_cases.py"), seed]
        found.append(json.loads(subprocess.run(command, env=env, check=True, capture_output=True, timeout=100).stdout))
    for other in found[1:]:
        assert {k for k in other if other[k] != found[0][k]} == set()


def test_the_versions_of_python_agree_on_a_tree() -> None:
    """No byte code has a part where there is a source, and no line numbers."""
    from rayinf.engine.source import code_text

    assert code_text(cases.helper.__code__) == (
        "tree FunctionDef(name=str 'helper',args=arguments(args=[arg(arg=str 'z',annotation=Name(id=str 'Tensor'))]),"
        "body=[Return(value=BinOp(left=Name(id=str 'z'),op=Div(),right=Name(id=str 'TEMPERATURE')))],"
        "returns=Name(id=str 'Tensor'))"
    )


def test_lambdas_on_one_line_are_told_apart(tmp_path: Path) -> None:
    text = "a, b, c = (lambda x: x + 1), (lambda x: x + 2), (lambda: lambda x: x + 1)\n"
    module, other = (module_of(t, tmp_path, f"l{k}") for k, t in enumerate((text, text.replace("x + 2", "x + 3"))))
    assert digest(module.a) == digest(other.a) == digest(module.c())
    assert digest(module.b) != digest(other.b)
    assert digest(module.c) not in (digest(module.a), digest(module.b))


def test_functions_without_a_source() -> None:
    def made(text: str) -> Callable[..., Any]:
        space: dict[str, Any] = {"np": np}
        exec(text, space)
        return space["f"]

    base = "K = 2\ndef f(x, y=1):\n    g = lambda z: z in {'a', 'b', 'c', 'd'}\n    return x * K + g(y)\n"
    assert digest(made(base)) == digest(made(base))
    for old, new in (("x * K", "x + K"), ("K = 2", "K = 3"), ("y=1", "y=2"), ("'d'", "'e'"), ("z in", "z not in")):
        assert digest(made(base.replace(old, new))) != digest(made(base))


def test_a_source_that_was_edited_after_it_was_loaded(tmp_path: Path) -> None:
    """What runs counts, and not what stands in the file by now."""
    module = module_of("def f(x):\n    return x + 1\n", tmp_path)
    (tmp_path / "own_module.py").write_text("def f(x):\n    return x + 2\n")
    edited = digest(module.f)
    fresh = module_of("def f(x):\n    return x + 2\n", tmp_path)
    assert digest(fresh.f) != edited


# --- Mutants: without a part of the digest, what differs in that part alone is taken for one


def _scaled(scale: float) -> Callable[..., Any]:
    space: dict[str, Any] = {"SCALE": scale}
    exec("def helper(x):\n    return x * SCALE\ndef f(x):\n    return helper(x)\n", space)
    return space["f"]


def _defaults(a: int, b: int) -> Callable[..., Any]:
    def f(x: int, y: int = a, *, z: int = b) -> int:
        return x + y + z

    return f


WEIGHTS = torch.arange(3.0)
MUTANTS: dict[str, tuple[str, Any, Callable[[], tuple[Any, Any]]]] = {
    "closures": ("Digester._cell", lambda *_: b"", lambda: (cases.make(WEIGHTS, 1.0), cases.make(WEIGHTS, 2.0))),
    "names that code uses": ("references", lambda code: [], lambda: (_scaled(1.0), _scaled(2.0))),
    "code": ("code_text", lambda code: "", lambda: (lambda x: x + 1, lambda x: x - 1)),
    "state": ("Digester._part", lambda *_: b"", lambda: (cases.Scaled(np.zeros(2)), cases.Scaled(np.ones(2)))),
}


@pytest.mark.parametrize("part", MUTANTS)
def test_a_digest_without_a_part(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, mutant, pair = MUTANTS[part]
    one, two = pair()
    assert digest(one) != digest(two)
    monkeypatch.setattr(f"rayinf.engine.digest.{name}", mutant)
    assert digest(one) == digest(two)


@pytest.mark.parametrize("attribute", ["__defaults__", "__kwdefaults__"])
def test_defaults_count_by_themselves(attribute: str) -> None:
    """Two functions of one code differ in their defaults alone; with these made equal they agree."""
    one, two = _defaults(1, 1), _defaults(*((2, 1) if attribute == "__defaults__" else (1, 2)))
    assert digest(one) != digest(two)
    setattr(two, attribute, getattr(one, attribute))
    assert digest(one) == digest(two)


@pytest.mark.parametrize("given", [((2,), {"power": 1}), ((1,), {"power": 2}), ((1,), {})])
def test_arguments_of_a_partial_count_by_themselves(given: tuple[tuple[int, ...], dict[str, int]]) -> None:
    one, two = functools.partial(cases.loss, 1, power=1), functools.partial(cases.loss, *given[0], **given[1])
    assert digest(one) != digest(two)
    assert digest(one) == digest(functools.partial(two.func, *one.args, **one.keywords))


# --- What cannot be digested


def generator() -> Iterator[int]:
    yield 1


@pytest.mark.parametrize("held", [threading.Lock(), generator(), io.TextIOWrapper(io.BytesIO()), sys.stdin.__class__])
def test_what_cannot_be_read_is_refused(held: Any) -> None:
    def transform(x: Any) -> Any:
        return held, x

    if isinstance(held, type):
        digest(transform)  # a class is not an open file
        return
    name = type(held).__name__
    with pytest.raises(rayinf.InputError, match=rf"Task\(transform=...\)'s variable 'held' \(.*{name}\).*version="):
        digest(transform, "Task(transform=...)")
    assert digest(transform, version="1") == digest(
        transform, version="2"
    )  # the version is its own part of an identity


def test_where_it_stands_is_told() -> None:
    case = cases.Scaled(np.zeros(2))
    case.deep = {"a": [1, threading.Lock()]}  # type: ignore[attr-defined]
    with pytest.raises(rayinf.InputError, match=r"^Task\(loss=\.\.\.\)\.deep\['?a'?\]\[1\] \(_thread.lock\)"):
        digest(case, "Task(loss=...)")


def test_no_address_has_a_part() -> None:
    class Plain:
        def __repr__(self) -> str:
            raise AssertionError("asked for its repr")

    assert digest([Plain() for _ in range(3)]) == digest([Plain() for _ in range(3)])


def test_cycles_and_deep_nesting() -> None:
    loop: list[Any] = [1]
    loop.append(loop)
    other: list[Any] = [2]
    other.append(other)
    assert digest(loop) != digest(other)
    assert digest(cases.even) != digest(cases.odd)
    deep: list[Any] = []
    for _ in range(500):
        deep = [deep]
    assert digest(deep) == digest(copy.copy(deep))


# --- Models


def changed(change: Callable[[nn.Sequential], Any]) -> nn.Module:
    made = cases.model()
    found = change(made)
    return found if isinstance(found, nn.Module) else made


def _halved(module: nn.Module, given: Any, found: Any) -> Any:
    return found / 2


MODELS: dict[str, Callable[[nn.Sequential], Any]] = {
    "an attribute": lambda m: setattr(m[1], "scale", 2.0),
    "an activation": lambda m: setattr(m[1], "activation", torch.sin),
    "an own activation": lambda m: setattr(m[1], "activation", lambda x: x),
    "a layer of another kind": lambda m: nn.Sequential(m[0], nn.Tanh(), m[2], m[3]),
    "an attribute of a layer of torch": lambda m: setattr(m[2], "eps", 1e-2),
    "a hook": lambda m: m[0].register_forward_hook(_halved),
    "a hook before": lambda m: m[0].register_forward_pre_hook(lambda module, given: given),
    "a parametrization": lambda m: nn.utils.parametrizations.orthogonal(m[0]),
    "another forward of one object": lambda m: setattr(m[1], "forward", types.MethodType(cases.Gate.forward, m[1])),
    "the order of layers": lambda m: nn.Sequential(OrderedDict([("0", m[0]), ("2", m[2]), ("1", m[1]), ("3", m[3])])),
    "a plain attribute of the whole": lambda m: setattr(m, "temperature", 2.0),
    "a nested attribute": lambda m: setattr(m, "config", {"depth": [1, 2]}),
}
STATES: dict[str, Callable[[nn.Sequential], Any]] = {
    "a weight": lambda m: m[0].weight.data[0, 0].add_(1e-7),
    "a buffer": lambda m: m[2].running_mean.add_(1),
    "a buffer that is not saved": lambda m: m.register_buffer("mask", torch.ones(2), persistent=False),
    "a dtype": lambda m: m.double(),
}


@pytest.mark.parametrize("what", [*MODELS, *STATES])
def test_models_that_differ(what: str) -> None:
    base, other = model_digest(cases.model()), model_digest(changed((MODELS | STATES)[what]))
    assert base.whole != other.whole
    weights = what in ("a weight", "a buffer")
    assert (base.architecture == other.architecture) == weights
    if weights:
        names = {"a weight": "0.weight", "a buffer": "2.running_mean"}
        assert first_difference(base.state, other.state) == names[what]


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.train(),
        lambda m: m.eval(),
        lambda m: copy.deepcopy(m),
        lambda m: m.requires_grad_(False),
        lambda m: m[0].register_forward_hook(_halved).remove(),
        lambda m: m(torch.ones(2, 4)) is None or m[2].reset_running_stats(),
        lambda m: torch.compile(m),
        lambda m: m.double().float(),
    ],
)
def test_models_that_agree(change: Callable[[nn.Sequential], Any]) -> None:
    assert model_digest(changed(change)) == model_digest(cases.model())


def test_a_forward_that_was_edited(tmp_path: Path) -> None:
    text = (
        "from torch import nn\nimport torch\n"
        "def shift(x):\n    return x + 1\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.layer = nn.Linear(2, 2)\n"
        "    def forward(self, x):\n        return self.layer(shift(x))\n"
        "class Child(Net):\n    pass\n"
    )
    changes = [text, text.replace("x + 1", "x + 2"), text.replace("self.layer(shift(x))", "2 * self.layer(shift(x))")]
    for name in ("Net", "Child"):
        found = []
        for k, t in enumerate(changes):
            torch.manual_seed(0)
            found.append(model_digest(getattr(module_of(t, tmp_path, f"n{k}"), name)()))
        assert len({m.whole for m in found}) == 3
        assert found[0].state == found[1].state == found[2].state


def test_hooks_are_not_known_by_their_number() -> None:
    """Numbers count all hooks of a process."""
    one = changed(lambda m: m[0].register_forward_hook(_halved))
    for _ in range(3):
        two = changed(lambda m: m[0].register_forward_hook(_halved))
    assert model_digest(one) == model_digest(two)


def test_tied_weights_are_not_equal_ones() -> None:
    def pair(tied: bool) -> nn.Module:
        torch.manual_seed(0)
        made = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        made[1].weight = made[0].weight if tied else nn.Parameter(made[0].weight.detach().clone())
        return made

    assert model_digest(pair(True)).state == model_digest(pair(False)).state
    assert model_digest(pair(True)).architecture != model_digest(pair(False)).architecture
    assert model_digest(copy.deepcopy(pair(True))) == model_digest(pair(True))


@pytest.mark.parametrize(
    "made",
    [
        lambda: nn.LSTM(3, 4, 2),
        lambda: nn.TransformerEncoderLayer(8, 2, 16),
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(2, 3)),
        lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(2, 3)),
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.GroupNorm(1, 2), nn.Flatten()),
        lambda: nn.EmbeddingBag(4, 3),
    ],
)
def test_modules_of_torch(made: Callable[[], nn.Module]) -> None:
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(model_digest(made()))
    assert found[0] == found[1]
    assert found[0].architecture == found[2].architecture
    assert found[0].whole != found[2].whole


def test_the_bytes_of_every_tensor() -> None:
    """Against SHA-256 over what NumPy gives."""
    import hashlib

    held = state_digest(cases.model())
    weight = cases.model()[0].weight.detach().numpy()
    parts = [b"torch.float32(5, 4)", hashlib.sha256(weight.tobytes()).digest()]
    framed = b"tensor\0" + b"".join(len(p).to_bytes(8, "little") + p for p in parts)
    assert held["0.weight"] == hashlib.sha256(framed).hexdigest()
