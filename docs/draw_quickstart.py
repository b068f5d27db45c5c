"""Draws docs/images/quickstart.png: the rows that docs/quickstart.py finds to be the most harmful.

python docs/draw_quickstart.py
"""

import runpy
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

HERE = Path(__file__).parent
SHOWN = 12
WRONG, RIGHT = "#b2182b", "#444444"


def draw(found: dict, file: Path) -> None:
    """The digits of lowest value, with the label in the table and the true one.

    Args:
        found: the variables of quickstart.py after its run.
        file: the PNG to write.
    """
    figure, axes = plt.subplots(2, SHOWN // 2, figsize=(8.4, 4.4), layout="constrained")
    figure.suptitle(f"The {SHOWN} most harmful of 1,200 training rows", fontsize=13)
    for axis, row in zip(axes.flat, found["worst"].head(SHOWN).itertuples(), strict=True):
        axis.imshow(found["pixels"][row.row_id].reshape(8, 8), cmap="gray_r", vmin=0, vmax=16)
        axis.set(xticks=[], yticks=[])
        wrong = row.label != row.digit
        note = f"label {row.label}, in truth {row.digit}" if wrong else f"label {row.label}, which is right"
        axis.set_title(note, fontsize=9.5, color=WRONG if wrong else RIGHT)
        value = f"{row.total:+.2f}".replace("-", "\u2212")
        axis.set_xlabel(f"value {value}\nharms class {row.harms_most.removeprefix('category_')}", fontsize=9)
    figure.savefig(file, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    draw(runpy.run_path(str(HERE / "quickstart.py")), HERE / "images" / "quickstart.png")
