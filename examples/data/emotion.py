r"""Emotion (Saravia et al. 2018) as Parquet: for Figure 4 of Nahin 2025.

The originals are the authors' three files of 16,000, 2,000 and 2,000 tweets, a line each, `text;emotion`.

    emotion_train.parquet, emotion_valid.parquet, emotion_test.parquet   `text`; `label`: sadness, joy, love, anger,
                                                                         fear, surprise as 0 to 5

    python examples/data/emotion.py --out data
    python examples/data/emotion.py --out data --original train.txt val.txt test.txt
    python examples/pareto_ceiling/removal.py --data data/emotion_train.parquet --test data/emotion_test.parquet \
        --model network
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from originals import Original, arguments, codes, obtain, unexpected, write

HOST = "https://www.dropbox.com/s"
EMOTION = [
    Original("train.txt", f"{HOST}/1pzkadrvffbqw6o/train.txt?dl=1"),
    Original("val.txt", f"{HOST}/2mzialpsgf9k5l3/val.txt?dl=1"),
    Original("test.txt", f"{HOST}/ikkqxfdbdec3fuj/test.txt?dl=1"),
]
PARTS = ("train", "valid", "test")
LABELS = {name: k for k, name in enumerate(("sadness", "joy", "love", "anger", "fear", "surprise"))}


def read(path: Path) -> pd.DataFrame:
    """Texts and labels of one file.

    Raises:
        SystemExit: a line without a semicolon, or with another word after it.
    """
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    pairs = [line.rsplit(";", 1) for line in lines]
    short = [line for line, pair in zip(lines, pairs, strict=True) if len(pair) != 2]
    if not pairs or short:
        raise unexpected(path, f"the line {short[0][:40]!r}" if short else "no line", "lines of text;emotion")
    frame = pd.DataFrame(pairs, columns=["text", "word"])
    return pd.DataFrame({"text": frame["text"], "label": codes(path, frame["word"].str.strip(), LABELS)})


def main(argv: Sequence[str] | None = None) -> None:
    """Fetch, read and write the three parts."""
    args = arguments(__doc__, len(EMOTION)).parse_args(argv)
    frames = [read(path) for path in obtain(EMOTION, args)]
    for part, frame in zip(PARTS, frames, strict=True):
        write(frame, args.out / f"emotion_{part}.parquet")


if __name__ == "__main__":
    main()
