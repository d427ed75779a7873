"""What is prepared ahead is no more than was asked for."""

from __future__ import annotations

import pytest

from ptc_worker.sandbox.pool import Pool


class Box:
    """Counts itself."""

    made = 0

    def __init__(self, _: str) -> None:
        Box.made += 1
        self.running = True

    def destroy(self) -> None:
        """End."""
        self.running = False


@pytest.mark.parametrize("dead", [0, 1])
def test_nothing_is_prepared_that_would_only_be_thrown_away(dead: int) -> None:
    """Each costs time, and at a vendor's money; those that can be of no use any more do not count."""
    made, boxes = Box.made, []

    def make(key: str) -> Box:
        boxes.append(Box(key))
        return boxes[-1]

    pool: Pool[str, Box] = Pool(2, make)
    pool.prepare("python", 2)
    pool.wait()
    for box in boxes[:dead]:
        box.destroy()
    pool.prepare("python")
    pool.prepare("python")
    pool.wait()
    pool.close()

    assert Box.made - made == 2 + dead
    assert not any(box.running for box in boxes)
