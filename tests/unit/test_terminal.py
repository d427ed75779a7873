"""Text that models and tests wrote does nothing to a terminal, and hides nothing."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roma_bridge.terminal import one_line, printable


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("\x1b[1;31mred\x1b[0m, \x1b[38;5;9mtoo\x1b[m", "red, too"),
        ("\x9b31mred\x9b0m", "red"),
        ("a\x1b[2Jb\x1b[Hc\x1b[?1049hd\x1b[1Ae", "abcde"),
        ("\x1b]0;a title\x07text", "text"),
        ("\x1b]8;;https://example.org\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1b]52;c;Y2xpcGJvYXJk\x07x\x9d52;c;eA==\x9cy", "xy"),
        ("\x1bP1$r0m\x1b\\x\x1b_G1;\x1b\\y", "xy"),
        ("\x1bcreset\x1b(0lqk", "resetlqk"),
        ("a\x1b", "a"),
        ("a\x1b[31", "a31"),
        ("\x1b]0;never ends\nnext line", "0;never ends\nnext line"),
        ("\x1b\x1b[31m[31m", "[31m"),
        ("passed\rfailed\r\nnext", "passed\nfailed\nnext"),
        ("a\x0bb\x0cc\x85d\u2028e\u2029f", "a\nb\nc\nd\ne\nf"),
        ("wrong\x08\x08right\x07\x00\x7f", "wrongright"),
        ("access\u202e\u2066 // check\u2069\u2066", "access // check"),
        ("in\u200bvi\u2060si\ufeffble\U000e0041", "invisible"),
        ("half \ud83d", "half \ufffd"),
    ],
)
def test_what_would_do_something_is_taken_out(text: str, seen: str) -> None:
    """Colours, moves, titles, links, the clipboard, turned and hidden text; what stands between them stays."""
    assert printable(text) == seen


@pytest.mark.parametrize(
    "text",
    [
        "plain\n\ttext\n",
        "ÉTÉ Bâtir 日本語 한국어 עברית العربية हिन्दी",
        "👩‍👩‍👧 ✓ ✗ ❤️",
        "می‌خواهم",
        "[31m 100% \\x1b",
    ],
)
def test_text_in_any_language_stays_as_it_is(text: str) -> None:
    """Joiners of letters and emoji are a part of it."""
    assert printable(text) == text


@given(st.text() | st.text(alphabet="\x1b[]0;m\x07\x9b\\\r\n\u202e\ud800a"))
def test_whatever_comes_in_nothing_that_acts_comes_out(text: str) -> None:
    """Once is enough, and it can be written as UTF-8."""
    seen = printable(text)

    assert {c for c in seen if unicodedata.category(c) in {"Cc", "Cs", "Zl", "Zp"}} <= {"\n", "\t"}
    assert not {c for c in seen if unicodedata.bidirectional(c) in {"LRO", "RLO", "LRE", "RLE", "LRI", "RLI"}}
    assert printable(seen) == seen
    assert one_line(text).splitlines() in ([one_line(text)], [])


def test_a_line_stays_one() -> None:
    """A name cannot forge lines of whoever shows it."""
    assert one_line("a.py\r\nSUCCESS\tin 0.0 s\u2028") == "a.py SUCCESS in 0.0 s "
