"""SST-2 (Socher et al. 2013) as Parquet: for Figure 24 of Chhabra 2024.

The original is GLUE's zip. Its test rows have no labels, so its 872 rows for development are the test set here.

    sst2_train.parquet (67,349 rows), sst2_test.parquet (872)   `text`; `label` (1: positive)

    python examples/data/sst2.py --out data
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from originals import Original, arguments, codes, obtain, unexpected, write

SST2 = Original(
    "SST-2.zip",
    "https://dl.fbaipublicfiles.com/glue/data/SST-2.zip",
    md5="9f81648d4199384278b86e315dac217c",
    from_="torchtext",
)
FILES = {"train": "SST-2/train.tsv", "test": "SST-2/dev.tsv"}
HEADER = ["sentence", "label"]


def read(path: Path, name: str) -> pd.DataFrame:
    """Texts and labels of one file of the zip; quotes in it are a part of the text.

    Raises:
        SystemExit: the file is not such a zip, or the table has other columns.
    """
    try:
        with zipfile.ZipFile(path) as held:
            lines = held.read(name).decode("utf-8").splitlines()
    except (zipfile.BadZipFile, KeyError) as error:
        raise unexpected(path, error, f"a zip that holds {name}") from None
    header, rows = lines[:1], [line.rsplit("\t", 1) for line in lines[1:] if line.strip()]
    if not rows or header[0].split("\t") != HEADER or any(len(row) != 2 for row in rows):
        raise unexpected(path, f"{name} that begins with {header}", f"the columns {', '.join(HEADER)} and rows")
    frame = pd.DataFrame(rows, columns=["text", "word"])
    return pd.DataFrame({"text": frame["text"].str.strip(), "label": codes(path, frame["word"], {"0": 0, "1": 1})})


def main(argv: Sequence[str] | None = None) -> None:
    """Fetch, read and write both parts."""
    args = arguments(__doc__).parse_args(argv)
    (path,) = obtain([SST2], args)
    frames = {part: read(path, name) for part, name in FILES.items()}
    for part, frame in frames.items():
        write(frame, args.out / f"sst2_{part}.parquet")


if __name__ == "__main__":
    main()
