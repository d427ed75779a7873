"""Requests to a courier and its answers as bytes: facts, contents, and a digest that tells whether all of it is there."""

from __future__ import annotations

import json
import zlib
from hashlib import sha256
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

_DIGEST_BYTES = sha256().digest_size
_FAST = 1
_MOST_BYTES = 2**28
"""More than any request or answer holds: what unpacks to more was written by somebody else."""


def packed(facts: dict[str, Any], contents: Sequence[bytes] = ()) -> bytes:
    """Write facts and contents as one blob."""
    head = json.dumps({**facts, "sizes": [len(content) for content in contents]}).encode()
    body = zlib.compress(b"".join([len(head).to_bytes(4, "big"), head, *contents]), _FAST)
    return sha256(body).digest() + body


def unpacked(blob: bytes) -> tuple[dict[str, Any], list[bytes]]:
    """Read a blob.

    Raises:
        ValueError: it is not whole, or too large.
    """
    body = blob[_DIGEST_BYTES:]
    if sha256(body).digest() != blob[:_DIGEST_BYTES]:
        raise ValueError("not whole")
    unpacking = zlib.decompressobj()
    try:
        text = unpacking.decompress(body, _MOST_BYTES)
    except zlib.error as error:
        raise ValueError("not packed") from error
    if not unpacking.eof:
        raise ValueError("too large")
    start = 4 + int.from_bytes(text[:4], "big")
    facts: dict[str, Any] = json.loads(text[4:start])
    contents = []
    for size in facts.pop("sizes"):
        contents.append(text[start : start + size])
        start += size
    return facts, contents
