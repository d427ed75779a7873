"""What a courier is asked, and answers, as bytes."""

from __future__ import annotations

import zlib
from hashlib import sha256

import pytest

from ptc_worker.sandbox.inside.blob import packed, unpacked


def test_what_was_packed_is_unpacked() -> None:
    """Facts and contents are the same, contents of no length among them."""
    assert unpacked(packed({"number": 1}, (b"one", b"", b"three"))) == (
        {"number": 1},
        [b"one", b"", b"three"],
    )


@pytest.mark.parametrize("cut", [0, 10, 40])
def test_what_came_cut_is_refused(cut: int) -> None:
    """Wherever it was cut."""
    blob = packed({"number": 1}, (b"one",))

    with pytest.raises(ValueError, match="not whole"):
        unpacked(blob[:cut])


def test_what_unpacks_to_more_than_there_is_room_for_is_refused() -> None:
    """Whoever rules a machine at a vendor's must not fill the worker's memory with a small file."""
    packing = zlib.compressobj()
    body = b"".join([packing.compress(bytes(2**20)) for _ in range(300)]) + packing.flush()

    with pytest.raises(ValueError, match="too large"):
        unpacked(sha256(body).digest() + body)
