"""The examples' READMEs have a line for every figure, table and algorithm of the papers, and name what is there."""

import re
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
# Figures, tables and algorithms of Yu 2025, Chhabra 2024 and Nahin 2025, appendices included.
PAPERS = {
    "influence_measure": {"Figure": 13, "Table": 9, "Algorithm": 8},
    "what_data_benefits": {"Figure": 24, "Table": 2, "Algorithm": 2},
    "pareto_ceiling": {"Figure": 8, "Table": 2, "Algorithm": 1},
}
ITEMS = re.compile(r"(Figure|Table|Algorithm)s? (\d+(?:(?:, | and | to )\d+)*)")


def first_cells(text: str) -> list[str]:
    """The first cell of every line of the tables whose heading begins with the paper's."""
    cells, inside = [], False
    for line in text.splitlines():
        first = line.split("|")[1].strip() if line.startswith("|") else None
        inside = first is not None and (inside or first == "the paper's")
        if inside:
            cells.append(first)
    return cells


def items(cells: list[str]) -> set[tuple[str, int]]:
    """`Figures 11 to 13, Table 2` as pairs of a kind and a number."""
    found = set()
    for kind, numbers in (match for cell in cells for match in ITEMS.findall(cell)):
        for part in re.split(r", | and ", numbers):
            ends = [int(n) for n in part.split(" to ")]
            found |= {(kind, n) for n in range(ends[0], ends[-1] + 1)}
    return found


@pytest.mark.parametrize("folder", PAPERS)
def test_every_figure_table_and_algorithm_has_a_line(folder: str) -> None:
    wanted = {(kind, n) for kind, count in PAPERS[folder].items() for n in range(1, count + 1)}
    found = items(first_cells((EXAMPLES / folder / "README.md").read_text()))
    assert sorted(wanted - found) == []
    assert sorted(found - wanted) == []  # and none that the paper does not have


@pytest.mark.parametrize("folder", [p.name for p in EXAMPLES.iterdir() if p.is_dir() and any(p.glob("*.py"))])
def test_every_script_is_in_its_readme_and_every_folder_in_the_index(folder: str) -> None:
    readme = (EXAMPLES / folder / "README.md").read_text()
    assert [p.name for p in (EXAMPLES / folder).glob("*.py") if f"`{p.name}`" not in readme] == []
    assert f"({folder}/README.md)" in (EXAMPLES / "README.md").read_text()


@pytest.mark.parametrize("folder", PAPERS)
def test_scripts_that_lines_name_are_there(folder: str) -> None:
    lines = [line for line in (EXAMPLES / folder / "README.md").read_text().splitlines() if line.startswith("|")]
    named = {name for line in lines for name in re.findall(r"`(\w+\.py)\b", line)}
    assert {name for name in named if not (EXAMPLES / folder / name).exists()} == set()


def test_items_are_read_from_ranges_and_lists() -> None:
    lines = ["| the paper's | ours |", "|---|---|", "| Figures 2, 8 and 9 to 11, Table 1 | Figure 99 |", ""]
    text = "\n".join([*lines, "| other |", "| Figure 5 |"])
    assert items(first_cells(text)) == {("Figure", n) for n in (2, 8, 9, 10, 11)} | {("Table", 1)}
