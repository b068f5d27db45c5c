"""Bank marketing (Moro et al. 2014) as Parquet: the table of Figures 2 to 9 of Chhabra 2024 and 2, 8 and 13 of Yu 2025.

The original is the zip of UCI's data set 222. Of it `bank-additional-full.csv` is read (41,188 rows, 20 inputs), in the
zip inside the zip. Rows with an `unknown` are left out; Chhabra 2024 has 30,488 rows.

    bank.parquet   numeric inputs; each other input as columns of 0 and 1 (`job=admin.`, ...; one column for an input
                   with two values); `label` (1: a term deposit); `sensitive` (1: 25 to 59 years old)

The original has no column for sex, which both papers name as the group; here it is the age, as in AIF360. The papers
have 51 and 50 features, without a list. The scripts of what_data_benefits train on 60% of the rows: 18,292.

    python examples/data/bank.py --out data
    python examples/data/bank.py --out data --original bank+marketing.zip
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from originals import Original, arguments, codes, obtain, unexpected, write

BANK = Original("bank+marketing.zip", "https://archive.ics.uci.edu/static/public/222/bank+marketing.zip")
INNER, TABLE = "bank-additional.zip", "bank-additional-full.csv"
NUMERIC = (
    "age", "duration", "campaign", "pdays", "previous",
    "emp.var.rate", "cons.price.idx", "cons.conf.idx", "euribor3m", "nr.employed",
)  # fmt: skip
WORDS = (
    "job", "marital", "education", "default", "housing", "loan", "contact", "month", "day_of_week", "poutcome",
)  # fmt: skip
GROUP_AGES = (25, 59)


def read(path: Path) -> pd.DataFrame:
    """The CSV of the zip in the zip, of such a zip alone, or of the bare CSV.

    Raises:
        SystemExit: the file is none of these, or has other columns.
    """
    try:
        frame = pd.read_csv(io.BytesIO(_csv(path.read_bytes())), sep=";")
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise unexpected(path, error, f"a zip that holds {TABLE}") from None
    if missing := [c for c in (*NUMERIC, *WORDS, "y") if c not in frame]:
        raise unexpected(path, f"columns {list(frame)[:4]}, ...", f"also {', '.join(missing)}")
    return frame


def _csv(raw: bytes) -> bytes:
    if not raw.startswith(b"PK"):
        return raw
    with zipfile.ZipFile(io.BytesIO(raw)) as held:
        names = [n for n in held.namelist() if not n.startswith("__MACOSX")]
        for wanted in (TABLE, INNER):
            for name in names:
                if name.rsplit("/", 1)[-1] == wanted:
                    return held.read(name) if wanted == TABLE else _csv(held.read(name))
    raise KeyError(f"neither {TABLE} nor {INNER}")


def features(frame: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Known rows, numbers as they are, words as columns of 0 and 1, label and group.

    Raises:
        SystemExit: a label other than yes and no, or no row left.
    """
    known = frame[~(frame[list(WORDS)] == "unknown").any(axis=1)].reset_index(drop=True)
    if known.empty:
        raise unexpected(path, f"{len(frame):,} rows, each with an unknown", "rows without")
    columns = {name: known[name] for name in NUMERIC}
    for name in WORDS:
        values = sorted(known[name].unique())
        for value in values[-1:] if len(values) == 2 else values:
            columns[f"{name}={value}"] = (known[name] == value).astype(np.int8)
    label = codes(path, known["y"], {"no": 0, "yes": 1})
    return pd.DataFrame(columns).assign(label=label, sensitive=known["age"].between(*GROUP_AGES).astype(np.int64))


def main(argv: Sequence[str] | None = None) -> None:
    """Fetch, read and write."""
    args = arguments(__doc__).parse_args(argv)
    (path,) = obtain([BANK], args)
    write(features(read(path), path), args.out / "bank.parquet")


if __name__ == "__main__":
    main()
