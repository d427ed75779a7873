"""Which paths may cross the border, under the contract's rule and under the stricter one for generated files."""

from __future__ import annotations

import posixpath
from pathlib import PurePosixPath, PureWindowsPath

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ptc_contracts.paths import MAX_PATH_CHARS, MAX_PATH_DEPTH, unsafe_reason, untidy_reason

_HARMLESS = [
    "a.py",
    "src/package/module.py",
    ".gitignore",
    ".github/workflows/ci.yml",
    "docs/résumé.md",
    "notes/two words.txt",
    "app/[id]/page.tsx",
    "a..b/c...d.py",
    "console/auxiliary.py",
    "/".join(["d"] * MAX_PATH_DEPTH),
    "a" * MAX_PATH_CHARS,
]

_UNSAFE = {
    "": "empty",
    "  ": "empty",
    ".": "empty",
    "./.": "empty",
    "./": "empty",
    "..": "'..'",
    "../a.py": "'..'",
    "a/../../b.py": "'..'",
    "a/..": "'..'",
    "a\0.py": "control",
    "a\nb.py": "control",
    "a\x7f.py": "control",
    "a\x85.py": "control",
    "a\ud800.py": "control",
    "a\\b.py": "backslash",
    "..\\a.py": "backslash",
    "C:/a.py": "drive",
    "c:a.py": "drive",
}

_UNTIDY = {
    "/etc/passwd": "absolute",
    "//host/share": "absolute",
    "~/a.py": "'~'",
    "~root/a.py": "'~'",
    "a//b.py": "empty or '.'",
    "a/": "empty or '.'",
    "a/./b.py": "empty or '.'",
    "a\u200b.py": "invisible",
    "a\u202egnp.py": "invisible",
    "\ufeffa.py": "invisible",
    "a\u2028b.py": "invisible",
    "a.py ": "dot or a space",
    " a.py": "dot or a space",
    "a./b.py": "dot or a space",
    "CON": "device",
    "src/aux.py": "device",
    "nul.tar.gz": "device",
    "com1": "device",
    "LPT9.txt": "device",
    "com¹.txt": "device",
    "con .txt": "device",
    "CONOUT$": "device",
    "a.py:hidden": "Windows",
    "what?.py": "Windows",
    'say "hi".py': "Windows",
    "a|b": "Windows",
    "<a>.py": "Windows",
    ".git/config": "git",
    "sub/.GIT/hooks/pre-commit": "git",
    "GIT~1/config": "git",
    "é" * 128: "segment is too long",
    "a" * (MAX_PATH_CHARS + 1): "longer than",
    "/".join(["d"] * (MAX_PATH_DEPTH + 1)): "deeper than",
}

_paths = st.text(st.sampled_from("ab./\\:~ \0\n\u200bCON*") | st.characters(), max_size=30)


@pytest.mark.parametrize("path", _HARMLESS)
def test_an_ordinary_path_passes_both_rules(path: str) -> None:
    """What real projects call their files is accepted as it stands."""
    reasons = unsafe_reason(path), untidy_reason(path)

    assert reasons == (None, None)


@pytest.mark.parametrize(("path", "reason"), _UNSAFE.items())
def test_an_unsafe_path_is_refused_by_both_rules(path: str, reason: str) -> None:
    """What the contract forbids is forbidden for generated files, too, and the reason is named."""
    reasons = unsafe_reason(path), untidy_reason(path)

    assert all(reason in (given or "") for given in reasons)


@pytest.mark.parametrize(("path", "reason"), _UNTIDY.items())
def test_an_untidy_path_is_refused_for_generated_files(path: str, reason: str) -> None:
    """A generated file has a path that is the same on every system, and the reason is named."""
    found = untidy_reason(path)

    assert reason in (found or "")


@pytest.mark.parametrize("path", ["~/a.py", "aux.py", ".git/config", "a//b.py", "a\u200b.py"])
def test_the_contract_lets_untidy_paths_of_older_peers_pass(path: str) -> None:
    """Results that other installations stored stay readable."""
    found = unsafe_reason(path)

    assert found is None


@settings(deadline=None)
@given(path=_paths)
@example(path="./.")
@example(path="a/./..")
def test_a_path_that_the_contract_accepts_stays_below_its_base(path: str) -> None:
    """Joined to a folder, a relative path leads to something strictly inside that folder."""
    relative = path.lstrip("/")
    joined = posixpath.normpath(posixpath.join("/base/folder", relative))

    assert unsafe_reason(relative) or joined.startswith("/base/folder/")


@settings(deadline=None)
@given(path=_paths)
@example(path="//a")
@example(path="c:a")
def test_a_path_that_is_accepted_for_a_generated_file_stays_below_its_base_on_every_system(path: str) -> None:
    """Nothing is stripped, nothing is absolute, and Windows reads the same segments as everyone else."""
    posix, windows = PurePosixPath(path), PureWindowsPath(path)

    assert untidy_reason(path) or (
        posixpath.normpath(path) == path
        and not posix.is_absolute()
        and not windows.drive
        and not windows.root
        and posix.parts == windows.parts
        and ".." not in posix.parts
    )


@settings(deadline=None)
@given(path=_paths)
def test_the_stricter_rule_contains_the_contracts_rule(path: str) -> None:
    """Whatever is unsafe is untidy, so that a parsed file always makes a valid artifact."""
    unsafe, untidy = unsafe_reason(path), untidy_reason(path)

    assert unsafe is None or untidy is not None
