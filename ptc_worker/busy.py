"""What a stage needs cannot be had just now: its run waits in the queue, not in a worker."""

from __future__ import annotations


class BusyError(Exception):
    """Nobody serves this for a while that is longer than a worker's slot should be held."""

    def __init__(self, seconds: float, message: str) -> None:
        super().__init__(seconds, message)
        self.seconds = seconds
        """After which it is worth asking again."""

    def __str__(self) -> str:
        return str(self.args[1])
