"""Jigsaw toxicity (Borkan et al. 2019) as Parquet: the texts of Chhabra 2024 and Yu 2025, embedded by MiniLM.

The original is the archive of WILDS (Koh et al. 2021), which holds the comments whose identities people annotated.
Kaggle's `train.csv` of "Jigsaw Unintended Bias in Toxicity Classification" does as well, and needs an account there.

    jigsaw_text.parquet   `text`; `label` (1: at least half of the annotators said toxic); `sensitive` (1: at least half
                          said that it speaks of Black people)
    jigsaw.parquet        with --embed: the same rows, MiniLM's 384 numbers `e0` to `e383` in the place of the text

Both papers have 30,000 rows, and do not say which: here as many at random (`--rows`), of those with identities. They
have 385 features, without a list.

    pip install 'rayinf[text]'                        # for --embed
    python examples/data/jigsaw.py --out data --embed
    python examples/data/jigsaw.py --out data --original train.csv
"""

from __future__ import annotations

import io
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from originals import Original, arguments, obtain, unexpected, write

JIGSAW = Original(
    "civilcomments_v1.0.tar.gz",
    "https://worksheets.codalab.org/rest/bundles/0x8cd3de0634154aeaad2ee6eb96723c6e/contents/blob/",
)
TABLE = "all_data_with_identities.csv"
TEXT, GROUP, LABELS = "comment_text", "black", ("toxicity", "target")
BATCH, TOKENS = 64, 128
MINILM = Path(__file__).parents[1] / "transformer"


def read(path: Path) -> pd.DataFrame:
    """Texts, labels and groups of the rows whose identities are annotated; from the archive, or from a CSV.

    Raises:
        SystemExit: the file is neither, or has other columns.
    """
    try:
        frame = _table(path)
    except (tarfile.TarError, OSError, EOFError, KeyError, ValueError) as error:
        raise unexpected(path, error, f"an archive that holds {TABLE}, or Kaggle's train.csv") from None
    label = next((name for name in LABELS if name in frame), None)
    if label is None or TEXT not in frame or GROUP not in frame:
        raise unexpected(path, f"columns {list(frame)[:4]}, ...", f"{TEXT}, {GROUP} and one of {', '.join(LABELS)}")
    known = frame[frame[GROUP].notna() & frame[TEXT].notna()]
    if known.empty:
        raise unexpected(path, f"{len(frame):,} rows without identities", "rows with")
    flags = {
        name: (known[column] >= 0.5).to_numpy(np.int64) for name, column in (("label", label), ("sensitive", GROUP))
    }
    return pd.DataFrame({"text": known[TEXT].astype(str).to_numpy(), **flags})


def _table(path: Path) -> pd.DataFrame:
    if not tarfile.is_tarfile(path):
        return pd.read_csv(path)
    with tarfile.open(path) as held:
        found = next((e for e in held if e.name.rsplit("/", 1)[-1] == TABLE), None)
        source = held.extractfile(found) if found else None
        if source is None:
            raise KeyError(f"no {TABLE}")
        return pd.read_csv(io.BytesIO(source.read()))


def drawn(frame: pd.DataFrame, rows: int, seed: int) -> pd.DataFrame:
    """So many rows at random, or all where there are fewer, in the original's order."""
    picked = np.random.default_rng(seed).permutation(len(frame))[:rows]
    return frame.iloc[np.sort(picked)].reset_index(drop=True)


def embedded(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows with the mean of MiniLM's last hidden states in the place of the text."""
    import torch
    from minilm import Tokens, pretrained
    from rich.progress import track

    model, tokens = pretrained(seed=0).eval(), Tokens(TOKENS)
    model.head = torch.nn.Identity()
    found = []
    with torch.no_grad():
        for start in track(range(0, len(frame), BATCH), description="MiniLM"):
            inputs = tokens(frame["text"].to_numpy()[start : start + BATCH])
            found.append(model(**{name: torch.from_numpy(v) for name, v in inputs.items()}).numpy())
    values = np.concatenate(found)
    columns = [f"e{k}" for k in range(values.shape[1])]
    return pd.concat([pd.DataFrame(values, columns=columns), frame[["label", "sensitive"]]], axis=1)


def main(argv: Sequence[str] | None = None) -> None:
    """Fetch, read, draw, write, and embed where that is asked for."""
    parser = arguments(__doc__)
    parser.add_argument("--rows", type=int, default=30_000, help="at random (default: 30,000)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default: 0)")
    parser.add_argument("--embed", action="store_true", help="also write MiniLM's embeddings")
    args = parser.parse_args(argv)
    if args.rows < 1:
        parser.error(f"--rows {args.rows}: pass at least one")
    if args.embed:
        sys.path.insert(0, str(MINILM))
        from minilm import require_extra

        require_extra()
    (path,) = obtain([JIGSAW], args)
    frame = drawn(read(path), args.rows, args.seed)
    write(frame, args.out / "jigsaw_text.parquet")
    if args.embed:
        write(embedded(frame), args.out / "jigsaw.parquet")


if __name__ == "__main__":
    main()
