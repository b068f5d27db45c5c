"""What other jobs of a cluster hold or run. Nothing is imported: each is a process that need not import torch."""

import time


class Hog:
    """Holds what Ray reserves for it, and starts after some seconds."""

    def __init__(self, seconds: float = 0.0) -> None:
        time.sleep(seconds)

    def ready(self) -> bool:
        """Answers once it has started."""
        return True


def minus(x: int) -> int:
    """Minus x."""
    return -x
