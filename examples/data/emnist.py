r"""EMNIST's letters (Cohen et al. 2017) as Parquet: for Figure 4 and Table 9 of Yu 2025.

The original is NIST's zip of all splits (562 MB), in the format of MNIST. Its images lie on their side: here they are
turned upright. Labels 1 to 26 become 0 to 25, which small and capital letters share; Yu 2025 says 37 classes, and does
not say how they come from the 145,600 letters.

    emnist_train.parquet, emnist_test.parquet   `image` (784 bytes, 28 x 28, grey, row by row), `label`

    python examples/data/emnist.py --out data
    python examples/influence_measure/active_images.py --data data/emnist_train.parquet \
        --test data/emnist_test.parquet --initial 600 --pool 2000 --n 100 --rounds 10
"""

from __future__ import annotations

import gzip
import io
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from originals import IMAGES_A_GROUP, Original, arguments, obtain, unexpected, write_images

EMNIST = Original(
    "gzip.zip",
    "https://biometrics.nist.gov/cs_links/EMNIST/gzip.zip",
    md5="58c8d27c78d21e728a6bc7b3cc06412e",
    from_="torchvision",
)
SIDE, CLASSES = 28, 26


def member(path: Path, name: str) -> bytes:
    """An unpacked file of the zip.

    Raises:
        SystemExit: the file is not such a zip.
    """
    try:
        with zipfile.ZipFile(path) as held:
            found = next((n for n in held.namelist() if n.rsplit("/", 1)[-1] == f"{name}.gz"), None)
            if found is None:
                raise unexpected(path, f"{len(held.namelist())} files", f"{name}.gz among them")
            return gzip.decompress(held.read(found))
    except (zipfile.BadZipFile, OSError) as error:
        raise unexpected(path, error, "NIST's gzip.zip") from None


def idx(path: Path, name: str, dimensions: int) -> np.ndarray:
    """The array of an idx file of bytes.

    Raises:
        SystemExit: another type or number of dimensions, or a file that is cut short.
    """
    raw = io.BytesIO(member(path, name))
    if raw.read(4) != bytes([0, 0, 8, dimensions]):
        raise unexpected(path, f"another header of {name}", f"bytes in {dimensions} dimensions")
    shape = tuple(np.frombuffer(raw.read(4 * dimensions), ">u4").astype(int))
    values = np.frombuffer(raw.read(), np.uint8)
    if values.size != np.prod(shape):
        raise unexpected(path, f"{values.size:,} bytes in {name}", f"{np.prod(shape):,}")
    return values.reshape(shape)


def upright(images: np.ndarray) -> Iterator[np.ndarray]:
    """Images `[n, 28, 28]` with rows and columns exchanged, in pieces."""
    for start in range(0, len(images), IMAGES_A_GROUP):
        yield images[start : start + IMAGES_A_GROUP].transpose(0, 2, 1)


def main(argv: Sequence[str] | None = None) -> None:
    """Fetch, read and write both parts."""
    args = arguments(__doc__).parse_args(argv)
    (path,) = obtain([EMNIST], args)
    for part in ("train", "test"):
        images = idx(path, f"emnist-letters-{part}-images-idx3-ubyte", 3)
        labels = idx(path, f"emnist-letters-{part}-labels-idx1-ubyte", 1).astype(np.int64)
        if images.shape != (len(labels), SIDE, SIDE) or labels.min() < 1 or labels.max() > CLASSES:
            found = f"images {images.shape} for {len(labels):,} labels of {labels.min()} to {labels.max()}"
            raise unexpected(path, found, f"images {(len(labels), SIDE, SIDE)}, labels 1 to {CLASSES}")
        write_images(upright(images), labels - 1, args.out / f"emnist_{part}.parquet")


if __name__ == "__main__":
    main()
