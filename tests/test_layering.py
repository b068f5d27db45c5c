"""The house's one rule: imports point down, and Ray is known in one file."""

import ast
from pathlib import Path

import rayinf

PACKAGE = Path(rayinf.__file__).parent
# From the ground up; a name is a folder or a file of the package.
FLOORS = (
    ("redaction",),
    ("errors",),
    ("store",),
    ("arguments", "user_code"),
    ("task",),
    ("core",),
    ("plots",),
    ("data", "select", "pareto"),
    ("engine",),
    ("training",),
    ("signatures",),
    ("api", "references"),
    ("config_keys",),
    ("config_model", "messages", "summaries"),
    ("config", "sent_config"),
    ("submission", "commands"),
    ("cli",),
    ("__main__",),
)
FLOOR = {name: level for level, names in enumerate(FLOORS) for name in names}


def imports_of(source: str) -> list[str]:
    """Every module that a source imports, anywhere in it."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append(node.module or "")
    return found


def faults(place: str, source: str) -> list[str]:
    """What a file at `place` (its path in the package) imports and may not."""
    home = place.split("/")[0].removesuffix(".py")
    out = []
    for module in imports_of(source):
        parts = module.split(".")
        if parts[0] == "ray" and not place.startswith("engine/ray_"):
            out.append(f"{place} imports {module}")
        if parts[0] == "rayinf" and len(parts) > 1 and home in FLOOR:
            above = FLOOR[parts[1]] > FLOOR[home]
            beside = FLOOR[parts[1]] == FLOOR[home] and parts[1] != home
            if above or beside:
                out.append(f"{place} imports {module}")
    return out


def test_imports_point_down_and_ray_is_in_files_that_bear_its_name():
    found = []
    for file in sorted(PACKAGE.rglob("*.py")):
        place = file.relative_to(PACKAGE).as_posix()
        if place != "__init__.py":
            assert place.split("/")[0].removesuffix(".py") in FLOOR, f"{place} has no floor in this test"
            found += faults(place, file.read_text())
    assert not found


def test_the_rule_catches_what_it_forbids():
    assert faults("core/kfac.py", "from rayinf.data.files import Arrays")
    assert faults("data/files.py", "import rayinf.select.top_rows")
    assert faults("engine/stages.py", "import ray")
    assert not faults("engine/ray_runner.py", "import ray")
    assert faults("engine/run.py", "import ray")
    assert not faults("data/files.py", "from rayinf.errors import RunError")


def test_core_has_no_files_no_logging_and_no_processes():
    forbidden = {"os", "pathlib", "logging", "pyarrow", "pandas", "json", "multiprocessing", "threading"}
    for file in sorted((PACKAGE / "core").rglob("*.py")):
        used = {module.split(".")[0] for module in imports_of(file.read_text())}
        assert not used & forbidden, file.name


def test_ray_is_not_imported_until_a_cluster_is_asked_for():
    import subprocess
    import sys

    code = "import rayinf, sys; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
