"""Blobs: what goes in comes out, and nothing else is ever taken for it."""

from __future__ import annotations

import json
import tracemalloc
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptc_contracts import ConfigurationError, PayloadTooLargeError, UnreadableBlobError
from ptc_contracts.blobs import COMPRESS_FROM, Blobs

KEY = b"not-a-real-signing-key"
PLACE = ("run-1", "draft", "generate", 2)
LARGE = json.dumps([file.read_text("utf-8") for file in sorted(Path(__file__).parent.glob("*.py"))])

bare, signing = Blobs(), Blobs(signing_key=KEY)

texts = st.text() | st.text(min_size=1).map(lambda text: text * (1 + COMPRESS_FROM // len(text.encode())))
places = st.lists(st.text() | st.integers(), max_size=4).map(tuple)


@given(texts, places, st.sampled_from([b"", KEY]))
def test_a_text_comes_back_as_it_was(text: str, place: tuple[str | int, ...], key: bytes) -> None:
    """Whatever it begins with, however long it is, signed or not."""
    blobs = Blobs(signing_key=key)

    assert blobs.open(blobs.seal(text, *place), *place) == text


def test_no_first_character_is_taken_for_another_form() -> None:
    """One of each that UTF-8 can begin with."""
    for code in [*range(0x800), *range(0x800, 0xD800, 0x800), *range(0xE000, 0x110000, 0x800)]:
        text = chr(code) + "{}"

        assert bare.open(bare.seal(text, *PLACE), *PLACE) == text


def test_a_small_record_can_be_read_by_people() -> None:
    """With redis-cli, without a program of ours."""
    assert bare.seal('{"iteration": 1}', *PLACE) == b'{"iteration": 1}'


def test_a_large_one_takes_less_than_half_the_room() -> None:
    """A signature adds 33 bytes to it."""
    size = len(bare.seal(LARGE, *PLACE))

    assert size < len(LARGE.encode()) / 2
    assert len(signing.seal(LARGE, *PLACE)) == size + 33


@given(texts, st.data())
def test_a_signed_blob_with_any_bit_changed_is_refused(text: str, data: st.DataObject) -> None:
    """In its first byte, its signature or its content."""
    blob = bytearray(signing.seal(text, *PLACE))
    blob[data.draw(st.integers(0, len(blob) - 1))] ^= data.draw(st.integers(1, 255))

    with pytest.raises(UnreadableBlobError):
        signing.open(bytes(blob), *PLACE)


@pytest.mark.parametrize("text", ["{}", LARGE], ids=["small", "large"])
def test_every_byte_of_a_signed_blob_counts(text: str) -> None:
    """None may change, the last may not be missing, and nothing may follow."""
    blob = signing.seal(text, *PLACE)
    changed = [blob[:at] + bytes([blob[at] ^ 1]) + blob[at + 1 :] for at in [*range(35), len(blob) - 1]]

    for forged in [*changed, blob[:-1], blob + b" ", blob[:33], blob[:1], b""]:
        with pytest.raises(UnreadableBlobError):
            signing.open(forged, *PLACE)


@given(places, places)
def test_a_signed_blob_belongs_to_one_place(
    place: tuple[str | int, ...], other: tuple[str | int, ...]
) -> None:
    """Moved to another run, part, stage or iteration it is refused."""
    blob = signing.seal("{}", *place)

    if place != other:
        with pytest.raises(UnreadableBlobError, match="wrong signature"):
            signing.open(blob, *other)


@pytest.mark.parametrize(
    "other", [("a", "bc"), ("abc",), ("ab", "c", ""), ('ab", "c',), ("c", "ab"), ("ab", 1)]
)
def test_the_parts_of_a_place_do_not_run_together(other: tuple[str | int, ...]) -> None:
    """Each begins and ends where it did when the blob was made."""
    blob = signing.seal("{}", "ab", "c")

    with pytest.raises(UnreadableBlobError, match="wrong signature"):
        signing.open(blob, *other)


@pytest.mark.parametrize(
    "content", ['"run-2"{}', '"run-2"\n{}', '\n"run-2"{}', '\n["run-2"]\n{}', ', "run-2"]\n{}']
)
def test_content_cannot_pass_for_a_part_of_its_place(content: str) -> None:
    """Nobody can cut a name off the content and claim that the blob was made for it."""
    blob = signing.seal(content, "run-1")

    with pytest.raises(UnreadableBlobError, match="wrong signature"):
        signing.open(blob[:33] + b"{}", "run-1", "run-2")


def test_another_key_is_refused() -> None:
    """Installations that share a server do not share runs."""
    blob = signing.seal("{}", *PLACE)

    with pytest.raises(UnreadableBlobError, match=r"run-1 draft generate 2 .*PTC_SIGNING_KEY differs"):
        Blobs(signing_key=b"another-signing-key").open(blob, *PLACE)


@pytest.mark.parametrize("text", ["", "{}", LARGE], ids=["empty", "small", "large"])
def test_whoever_has_a_key_refuses_what_is_not_signed(text: str) -> None:
    """Otherwise leaving the signature out would be enough."""
    with pytest.raises(UnreadableBlobError, match="not signed"):
        signing.open(bare.seal(text, *PLACE), *PLACE)


def test_whoever_has_no_key_refuses_what_is_signed_and_says_why() -> None:
    """What cannot be checked is not taken on trust."""
    with pytest.raises(UnreadableBlobError, match="PTC_SIGNING_KEY is missing here"):
        bare.open(signing.seal("{}", *PLACE), *PLACE)


def test_a_text_above_the_limit_names_itself_its_size_and_the_setting() -> None:
    """The limit is in bytes of UTF-8, not in characters; a text that just fits passes."""
    blobs = Blobs(limit=2000)

    assert blobs.open(blobs.seal("é" * 1000), *()) == "é" * 1000
    with pytest.raises(
        PayloadTooLargeError,
        match=r"run-1 draft generate 2 has 2,001 bytes, and PTC_MAX_PAYLOAD_MB allows 2,000",
    ):
        blobs.seal("é" * 1000 + "x", *PLACE)


@pytest.mark.parametrize("size", [20_001, 19_999], ids=["compressed", "as it is"])
def test_a_blob_from_a_process_with_a_higher_limit_is_refused(size: int) -> None:
    """The setting to raise is named."""
    blob = bare.seal("x" * 20_001, *PLACE) if size > 20_000 else ("x" * size).encode()

    with pytest.raises(UnreadableBlobError, match="more than PTC_MAX_PAYLOAD_MB allows here"):
        Blobs(limit=size - 1).open(blob, *PLACE)


def test_a_bomb_is_refused_before_it_fills_the_memory() -> None:
    """Half a gigabyte in half a megabyte costs a few times the limit."""
    stream = zlib.compressobj(9)
    bomb = b"\xfe" + b"".join(stream.compress(bytes(2**20)) for _ in range(512)) + stream.flush()
    tracemalloc.start()

    with pytest.raises(UnreadableBlobError, match="more than PTC_MAX_PAYLOAD_MB allows here"):
        Blobs(limit=2**20).open(bomb, *PLACE)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 2**20


@pytest.mark.parametrize(
    "blob",
    [
        b"\xfe",
        b"\xfenot zlib",
        b"\xfe" + zlib.compress(b"{}")[:-1],
        b"\xfe" + zlib.compress(b"{}") + b"x",
        b"\xfd{}",
    ],
    ids=["nothing", "not zlib", "cut", "followed", "unknown form"],
)
def test_a_damaged_blob_is_refused(blob: bytes) -> None:
    """Without a key too, as far as its form tells."""
    with pytest.raises(UnreadableBlobError, match="run-1 draft generate 2 is damaged"):
        bare.open(blob, *PLACE)


def test_the_settings_come_from_the_environment() -> None:
    """Unset and empty mean the defaults; spaces around a key are no part of it."""
    assert Blobs.from_environment({}) == Blobs.from_environment({"PTC_SIGNING_KEY": " "}) == Blobs(16 * 2**20)
    assert Blobs.from_environment(
        {"PTC_MAX_PAYLOAD_MB": "3", "PTC_SIGNING_KEY": f" {KEY.decode()}\n"}
    ) == Blobs(limit=3 * 2**20, signing_key=KEY)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PTC_MAX_PAYLOAD_MB", "0"),
        ("PTC_MAX_PAYLOAD_MB", "501"),
        ("PTC_MAX_PAYLOAD_MB", "-1"),
        ("PTC_MAX_PAYLOAD_MB", "much"),
        ("PTC_SIGNING_KEY", "fifteen-letters"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(name: str, value: str) -> None:
    """Before anything is read or written with it."""
    with pytest.raises(ConfigurationError, match=name):
        Blobs.from_environment({name: value})


def test_the_key_is_never_shown() -> None:
    """Neither in the object's text nor in what refuses it."""
    with pytest.raises(ConfigurationError) as caught:
        Blobs.from_environment({"PTC_SIGNING_KEY": "fifteen-letters"})

    assert KEY.decode() not in repr(signing)
    assert "fifteen" not in str(caught.value)
