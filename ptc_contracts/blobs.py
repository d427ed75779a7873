"""The parts of a run record as Redis holds them: bounded, compressed when large, signed when there is a key.

A blob's first byte tells its form. UTF-8 has no use for 0xFE and 0xFF, so no text is ever taken for another form:

    0xFE        zlib
    0xFF        an HMAC-SHA256 of 32 bytes, then one of the other two forms
    any other   the text itself, which people can read with redis-cli

The HMAC covers the content and the place it belongs to, so that whoever can write to Redis but has no key can
neither make a blob, nor change one, nor move one to another run, part, stage or iteration. It does not protect
against an older blob of the very same place that is put back, against deletion, or against reading: nothing is
encrypted. It does not cover cache entries and Celery's stored results, whose form the contract fixes, nor queue
messages, which only hold run ids.
"""

from __future__ import annotations

import hmac
import json
import os
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from ptc_contracts.errors import ConfigurationError, PayloadTooLargeError

if TYPE_CHECKING:
    from collections.abc import Mapping

COMPRESS_FROM = 4096
"""Bytes: plans and notes stay readable, and drafts take a third of the room."""

COMPRESSION_LEVEL = 1
"""On JSON of Python projects, 4 KB to 8 MB, it leaves 27 to 40 %; level 6 leaves 22 to 37 % in up to four times the time."""

SHORTEST_KEY = 16
"""Characters of `PTC_SIGNING_KEY`."""

LARGEST_LIMIT_MB = 500
"""Redis itself refuses values above 512 MB unless it is told otherwise."""

_COMPRESSED, _SIGNED = b"\xfe", b"\xff"
_DIGEST_BYTES = 32


class UnreadableBlobError(ValueError):
    """A blob is damaged, larger than the limit, or not signed with this process's key; the message tells which."""


@dataclass(frozen=True)
class Blobs:
    """Turns texts into blobs and back; every process that shares runs needs the same key.

    The context says where a blob belongs: run id, part, stage, iteration, in a fixed order.
    """

    limit: int = 16 * 2**20
    """Most bytes of a text, in UTF-8 and before compression."""
    signing_key: bytes = field(default=b"", repr=False)
    """What blobs are signed with; when empty they are not, and signed ones are refused."""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """Read `PTC_MAX_PAYLOAD_MB` and `PTC_SIGNING_KEY`.

        Raises:
            ConfigurationError: a value cannot be used. The message names the variable and, of the key, no part.
        """
        megabytes = environ.get("PTC_MAX_PAYLOAD_MB", "").strip() or "16"
        if not megabytes.isdecimal() or not 1 <= int(megabytes) <= LARGEST_LIMIT_MB:
            raise ConfigurationError(
                f"PTC_MAX_PAYLOAD_MB must be a whole number from 1 to {LARGEST_LIMIT_MB}, not {megabytes!r}"
            )
        key = environ.get("PTC_SIGNING_KEY", "").strip()
        if key and len(key) < SHORTEST_KEY:
            raise ConfigurationError(f"PTC_SIGNING_KEY must have at least {SHORTEST_KEY} characters")
        return cls(limit=int(megabytes) * 2**20, signing_key=key.encode("utf-8", "surrogateescape"))

    def seal(self, text: str, *context: str | int) -> bytes:
        """Turn a text into the blob that belongs to this context.

        Raises:
            PayloadTooLargeError: the text is above the limit.
        """
        content = text.encode()
        if len(content) > self.limit:
            raise PayloadTooLargeError(
                f"{_named(context)} has {len(content):,} bytes, and PTC_MAX_PAYLOAD_MB allows {self.limit:,}: "
                "make the plan smaller or raise the setting"
            )
        if len(content) >= COMPRESS_FROM:
            content = _COMPRESSED + zlib.compress(content, COMPRESSION_LEVEL)
        if self.signing_key:
            content = _SIGNED + self._signature(content, context) + content
        return content

    def open(self, blob: bytes, *context: str | int) -> str:
        """Turn the blob of this context back into its text.

        Raises:
            UnreadableBlobError: it is damaged, above the limit, not signed, or signed with another key or for
                another context.
        """
        content = self._verified(blob, context)
        if content.startswith(_COMPRESSED):
            content = self._inflated(content[len(_COMPRESSED) :], context)
        if len(content) > self.limit:
            raise UnreadableBlobError(f"{_named(context)} holds more than PTC_MAX_PAYLOAD_MB allows here")
        try:
            return content.decode()
        except UnicodeDecodeError:
            raise UnreadableBlobError(f"{_named(context)} is damaged: it is no text") from None

    def _verified(self, blob: bytes, context: tuple[str | int, ...]) -> bytes:
        """Take the signature off a blob."""
        if not blob.startswith(_SIGNED):
            if self.signing_key:
                raise UnreadableBlobError(f"{_named(context)} is not signed, and PTC_SIGNING_KEY is set here")
            return blob
        if not self.signing_key:
            raise UnreadableBlobError(f"{_named(context)} is signed, and PTC_SIGNING_KEY is missing here")
        end = len(_SIGNED) + _DIGEST_BYTES
        signature, content = blob[len(_SIGNED) : end], blob[end:]
        if not hmac.compare_digest(signature, self._signature(content, context)):
            raise UnreadableBlobError(
                f"{_named(context)} has a wrong signature: it was changed or moved, or PTC_SIGNING_KEY differs"
            )
        return content

    def _signature(self, content: bytes, context: tuple[str | int, ...]) -> bytes:
        """Sign content and place; JSON on one line keeps the two, and the parts of the place, apart."""
        signature = hmac.new(self.signing_key, json.dumps(context).encode() + b"\n", "sha256")
        signature.update(content)
        return signature.digest()

    def _inflated(self, packed: bytes, context: tuple[str | int, ...]) -> bytes:
        """Inflate to one byte above the limit at most."""
        stream = zlib.decompressobj()
        try:
            content = stream.decompress(packed, self.limit + 1)
        except zlib.error as error:
            raise UnreadableBlobError(f"{_named(context)} is damaged: {error}") from None
        if len(content) <= self.limit and (not stream.eof or stream.unused_data):
            raise UnreadableBlobError(f"{_named(context)} is damaged: its end is missing, or more follows it")
        return content


def _named(context: tuple[str | int, ...]) -> str:
    return " ".join(map(str, context))
