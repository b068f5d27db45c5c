"""What a Python file imports from beside it: found by the syntax tree, and nothing else taken along."""

from __future__ import annotations

from pathlib import Path

import pytest

import rayinf
from rayinf.engine.own_modules import follow


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def names(folder: Path, *files: str, modules: tuple[str, ...] = ()) -> set[str]:
    found = follow([folder / f for f in files], modules, [folder])
    assert all(content == file.read_bytes() for file, content in found.items())
    return {f.relative_to(folder).as_posix() for f in found}


def test_imports_are_followed_wherever_they_stand(tmp_path):
    write(
        tmp_path,
        {
            "task.py": (
                "import os, numpy as np\nimport one\nfrom two import name\nfrom pack import inner\n"
                "def late():\n    import pack.deep.leaf as leaf\n    from three import *\n"
                "    importlib.import_module('four')\n"
            ),
            "one.py": "import five",
            "two.py": "",
            "three.py": "",
            "four.py": "import task",  # a circle
            "five.py": "",
            "pack/__init__.py": "from .side import thing",
            "pack/side.py": "from . import other\nfrom .deep import up",
            "pack/other.py": "",
            "pack/inner.py": "from ..nowhere import x",
            "pack/deep/__init__.py": "",
            "pack/deep/up.py": "from ..other import y",
            "pack/deep/leaf.py": "",
            "unused.py": "",
            "pack/unused.py": "",
            "data.csv": "1,2",
            ".git/config": "",
            "rayinf/__init__.py": "",
        },
    )
    assert names(tmp_path, "task.py") == {
        "task.py", "one.py", "two.py", "three.py", "four.py", "five.py", "pack/__init__.py", "pack/side.py",
        "pack/other.py", "pack/inner.py", "pack/deep/__init__.py", "pack/deep/up.py", "pack/deep/leaf.py",
    }  # fmt: skip


def test_a_module_by_its_dotted_name_and_packages_without_init(tmp_path):
    write(tmp_path, {"space/tasks.py": "import space.helpers\nimport rayinf", "space/helpers.py": "", "rayinf.py": ""})
    assert names(tmp_path, modules=("space.tasks",)) == {"space/tasks.py", "space/helpers.py"}
    assert names(tmp_path, modules=("sklearn.datasets",)) == set()


@pytest.mark.parametrize(("text", "said"), [("def f(:\n", "line 1 is not Python"), ("x = '\0'", "is not Python")])
def test_what_is_not_python_is_refused(tmp_path, text, said):
    write(tmp_path, {"task.py": "import broken", "broken.py": text})
    with pytest.raises(rayinf.InputError, match=said) as found:
        names(tmp_path, "task.py")
    assert "broken.py" in found.value.what and "\n" not in str(found.value)
