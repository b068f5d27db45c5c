"""The files of a local folder, one at a time: a folder may have 100,000 and more, which are never held together."""

from __future__ import annotations

import os
from collections.abc import Iterator


def walk(folder: str, *, links: bool = True, ignore: type[OSError] = FileNotFoundError) -> Iterator[str]:
    """The paths of all files under a folder, at any depth, in any order.

    Args:
        folder: looked through.
        links: whether links to folders are followed. Links to files are.
        ignore: what listing a folder may raise, which is then passed over; one may be removed meanwhile.

    Raises:
        OSError: a folder in it cannot be listed.
    """
    inner = [folder]
    while inner:
        try:
            entries = os.scandir(inner.pop())
        except ignore:
            continue
        with entries:
            for entry in entries:
                try:
                    if entry.is_dir(follow_symlinks=links):
                        inner.append(entry.path)
                    elif entry.is_file():
                        yield entry.path
                except OSError:  # a chain of links that ends nowhere
                    continue
