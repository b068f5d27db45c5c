"""README, CONTRIBUTING and docs/: links lead somewhere, code names what there is, printed output is what is printed."""

import ast
import inspect
import re
import runpy
from pathlib import Path

import numpy as np
import pytest

import rayinf

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted(p for folder in ("docs", "examples", "deploy") for p in (ROOT / folder).rglob("*.md")),
    ROOT / "tests" / "benchmarks" / "README.md",
]
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"^```(\w*)\n(.*?)^```", re.S | re.M)
name_of_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def blocks(text: str, language: str) -> list[str]:
    return [body for kind, body in CODE.findall(text) if kind == language]


def anchors(text: str) -> set[str]:
    """Names of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", CODE.sub("", text), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path, text: str) -> list[str]:
    """Relative links of a page that lead to no file, or to no heading of it."""
    out = []
    for link in LINK.findall(CODE.sub("", text)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            out.append(link)
    return out


def unknown_names(text: str) -> list[str]:
    """`rayinf.name` in prose and code that is neither a public name nor a module."""
    named = set(re.findall(r"(?<![\w/.\-])rayinf\.([A-Za-z_]\w*)", text)) - set(rayinf.__all__)
    return sorted(name for name in named if not any((ROOT / "rayinf" / n).exists() for n in (name, f"{name}.py")))


def unknown_arguments(source: str) -> list[str]:
    """Keywords of calls of `rayinf.verb(...)` that the verb does not take."""
    out = []
    for call in ast.walk(ast.parse(source)):
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
            continue
        if not isinstance(call.func.value, ast.Name) or call.func.value.id != "rayinf":
            continue
        known = inspect.signature(getattr(rayinf, call.func.attr)).parameters
        out += [f"{call.func.attr}({k.arg}=...)" for k in call.keywords if k.arg and k.arg not in known]
    return out


def missing_files(text: str) -> list[str]:
    """Files that CONTRIBUTING names, in its map of the package or in its prose, and that are not there."""
    named = re.findall(r"`((?:rayinf|tests|docs|examples|deploy)/[\w/.*\-]+)`", CODE.sub("", text))
    folder = ""
    for line in blocks(text, "")[0].splitlines():
        if found := re.match(r"(  )?(\w+)/ ", line):
            folder = f"rayinf/{found[2]}/" if found[1] else f"{found[2]}/"
        elif re.match(r"  \w", line):
            folder = "rayinf/"
        named += [folder + name for name in re.findall(r"\b[\w*]+\.py\b", line)]
    return sorted({name for name in named if not list(ROOT.glob(name))})


@name_of_page
def test_relative_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page, page.read_text()) == []


@name_of_page
def test_names_and_arguments_are_those_of_the_package(page: Path) -> None:
    text = page.read_text()
    assert unknown_names(text) == []
    assert [found for source in blocks(text, "python") for found in unknown_arguments(source)] == []


def test_the_files_that_contributing_names_are_there() -> None:
    assert missing_files((ROOT / "CONTRIBUTING.md").read_text()) == []


def test_the_checks_find_what_is_wrong() -> None:
    page = ROOT / "README.md"
    text = "[a](docs/none.md) [b](docs/figures.md#none) [c](docs/figures.md#wrong-labels) [d](https://example.org/x)"
    assert broken_links(page, text) == ["docs/none.md", "docs/figures.md#none"]
    assert unknown_names("`rayinf.influence`, `rayinf.influences`") == ["influences"]
    house = (
        "```\n  task.py  x   none.py  x\n  core/  x\n    kfac.py  x   ray_*.py  x\n```\n`rayinf/none/`, `rayinf/core/`"
    )
    assert missing_files(house) == ["rayinf/core/ray_*.py", "rayinf/none.py", "rayinf/none/"]
    assert unknown_arguments("rayinf.trim(scores, budget=1, buget=2)") == ["trim(buget=...)"]


def test_the_first_example_of_readme_is_the_script_that_was_run() -> None:
    source = (ROOT / "docs" / "quickstart.py").read_text()
    assert blocks((ROOT / "README.md").read_text(), "python")[0].strip() == source.split('"""', 2)[2].strip()


def test_the_first_example_of_readme_prints_what_readme_shows(capsys: pytest.CaptureFixture[str]) -> None:
    """Rows and values, but for what another processor's rounding does to a network's training."""
    found = runpy.run_path(str(ROOT / "docs" / "quickstart.py"))
    heading, *rows, last = capsys.readouterr().out.splitlines()
    shown_heading, *shown_rows, shown_last = blocks((ROOT / "README.md").read_text(), "text")[0].splitlines()
    assert (heading, len(rows)) == (shown_heading, len(shown_rows))
    values = dict(zip(found["worst"].row_id, found["worst"].total, strict=True))
    shown = [line.split() for line in shown_rows]
    np.testing.assert_allclose([values[int(r[0])] for r in shown], [float(r[3]) for r in shown], rtol=0.15)
    assert abs(int(last.split()[0]) - int(shown_last.split()[0])) <= 3
    assert last.split()[1:] == shown_last.split()[1:]
