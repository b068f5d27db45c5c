"""STL-10 (Coates et al. 2011) as Parquet: for Figure 6 of Nahin 2025.

The original is Stanford's archive (2.6 GB, most of it images without labels, which are not read). Labels 1 to 10 become
0 to 9.

    stl10_train.parquet (5,000 rows), stl10_test.parquet (8,000)   `image` (27,648 bytes: 96 x 96, RGB, row by row) and
                                                                   `label`

`--side 32` or `--side 48` averages squares of pixels, for networks made for smaller images.

    python examples/data/stl10.py --out data --side 32
    python examples/pareto_ceiling/removal.py --data data/stl10_train.parquet --test data/stl10_test.parquet --rows 4000
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from originals import IMAGES_A_GROUP, Original, arguments, obtain, unexpected, write_images

STL10 = Original(
    "stl10_binary.tar.gz",
    "http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",
    md5="91f7769df0f17e558f3565bffb0c7dfb",
    from_="torchvision",
)
SIDE, CLASSES, SIDES = 96, 10, (96, 48, 32)
PARTS = ("train", "test")


def members(path: Path) -> dict[str, np.ndarray]:
    """The bytes of the four files with labels or labelled images, by name.

    Raises:
        SystemExit: the file is not such an archive.
    """
    wanted, found = {f"{part}_{kind}.bin" for part in PARTS for kind in "Xy"}, {}
    try:
        with tarfile.open(path, "r|gz") as held:
            for entry in held:
                name = entry.name.rsplit("/", 1)[-1]
                if name in wanted and (source := held.extractfile(entry)) is not None:
                    found[name] = np.frombuffer(source.read(), np.uint8)
                if len(found) == len(wanted):
                    break
    except (tarfile.TarError, OSError, EOFError) as error:
        raise unexpected(path, error, "Stanford's stl10_binary.tar.gz") from None
    if missing := sorted(wanted - set(found)):
        raise unexpected(path, sorted(found), f"also {', '.join(missing)}")
    return found


def upright(raw: np.ndarray, side: int) -> Iterator[np.ndarray]:
    """Images `[n, 3, columns, rows]` -> pieces `[n, side, side, 3]`."""
    images, square = raw.reshape(-1, 3, SIDE, SIDE), SIDE // side
    for start in range(0, len(images), IMAGES_A_GROUP):
        piece = images[start : start + IMAGES_A_GROUP].transpose(0, 3, 2, 1)
        if square > 1:
            squares = piece.reshape(-1, side, square, side, square, 3)
            piece = squares.mean((2, 4)).round().astype(np.uint8)
        yield piece


def main(argv: Sequence[str] | None = None) -> None:
    """Fetch, read and write both parts."""
    parser = arguments(__doc__)
    parser.add_argument("--side", type=int, choices=SIDES, default=SIDE, help=f"pixels a side (default: {SIDE})")
    args = parser.parse_args(argv)
    (path,) = obtain([STL10], args)
    found = members(path)
    for part in PARTS:
        raw, labels = found[f"{part}_X.bin"], found[f"{part}_y.bin"].astype(np.int64)
        if raw.size != len(labels) * 3 * SIDE * SIDE or labels.min() < 1 or labels.max() > CLASSES:
            seen = f"{raw.size:,} bytes for {len(labels):,} labels of {labels.min()} to {labels.max()}"
            raise unexpected(path, seen, f"{3 * SIDE * SIDE:,} an image, labels 1 to {CLASSES}")
        write_images(upright(raw, args.side), labels - 1, args.out / f"stl10_{part}.parquet")


if __name__ == "__main__":
    main()
