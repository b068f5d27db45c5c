"""The files of a local folder, one at a time: a folder may have 100,000 and more, which are never held together."""

from __future__ import annotations

import os
from collections.abc import Iterator


def walk(folder: str) -> Iterator[str]:
    """The paths of all files under a folder, at any depth, in any order. Links to files and folders are followed.

    Raises:
        OSError: a folder in it cannot be listed.
        UnicodeDecodeError: a name that is not UTF-8.
    """
    inner = [folder]
    while inner:
        try:
            entries = os.scandir(inner.pop())
        except FileNotFoundError:  # removed meanwhile
            continue
        with entries:
            for entry in entries:
                path = os.fsencode(entry.path).decode()
                try:
                    if entry.is_dir():
                        inner.append(path)
                    elif entry.is_file():
                        yield path
                except OSError:  # a chain of links that ends nowhere
                    continue
