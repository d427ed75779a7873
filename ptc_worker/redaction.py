"""Takes secrets out of texts: those that are configured, and what looks like the keys of well-known vendors."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote, quote_plus

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ptc_contracts.progress import Progress
    from ptc_contracts.verdicts import Verdict

REDACTED = "[redacted]"
"""What stands in a text where a secret was."""

SHORTEST = 6
"""Characters: shorter values are found in any text, and are no secrets."""

T = TypeVar("T")


class Redactor:
    """Replaces secrets; takes time in proportion to a text's length, whatever the text."""

    def __init__(self, secrets: Iterable[str]) -> None:
        known = {secret for secret in secrets if len(secret) >= SHORTEST}
        self._forms = _forms_of(known)
        self._forms_in_code = _forms_of(secret for secret in known if not _WORDS.fullmatch(secret))

    def text(self, text: str) -> str:
        """Replace configured secrets, and what has the form of a key."""
        text = _without(text, self._forms)
        for needle, pattern, replacement in _PATTERNS:
            if needle in text:
                text = pattern.sub(replacement, text)
        return text

    def parted(self, text: str) -> int:
        """Tell how much of a text that still grows can be redacted by itself: whole lines that no secret goes beyond."""
        lines = [form.count("\n") for form in self._forms if "\n" in form]
        end = _line_starts(text, back=max(lines, default=0))
        if (opened := _opened_at(text[:end])) is not None:
            end = text.rfind("\n", 0, opened) + 1
        if text[:end].rstrip()[-5:].lower() == "earer":
            end = text.rfind("\n", 0, len(text[:end].rstrip())) + 1
        whole = self.text(text[:end]) + self.text(text[end:]) == self.text(text)
        return end if whole else 0

    def exact(self, text: str) -> str:
        """Replace configured secrets alone: for code, which may well describe what keys look like.

        Values that are plain words stay, for code is full of them: a local server's key may be its name.
        """
        return _without(text, self._forms_in_code)

    def value(self, value: T) -> T:
        """Replace secrets in all strings of a JSON-like value, names included; the shape stays."""
        return self._value(value)  # type: ignore[return-value]  # a string for a string, a list for a list …

    def _value(self, value: object) -> object:
        match value:
            case str():
                return self.text(value)
            case dict():
                return {self._value(name): self._value(item) for name, item in value.items()}
            case list() | tuple():
                return [self._value(item) for item in value]
        return value


def redact_verdict(redactor: Redactor, verdict: Verdict) -> Verdict:
    """Replace secrets in all that a verdict quotes from a draft and its tests."""
    ran = verdict.test_results
    told = (
        {name: redactor.text(getattr(ran, name)) for name in ("test_command", "stdout", "stderr")}
        if ran
        else {}
    )
    return verdict.model_copy(
        update={
            "feedback": redactor.text(verdict.feedback),
            "test_results": ran.model_copy(update=told) if ran else None,
            "tests": [
                {**test, "id": redactor.text(test["id"])} if "id" in test else test for test in verdict.tests
            ],
            "issues": [
                issue.model_copy(
                    update={"file": redactor.text(issue.file), "message": redactor.text(issue.message)}
                )
                for issue in verdict.issues
            ],
        }
    )


def redact_progress(redactor: Redactor, progress: Progress) -> Progress:
    """Replace secrets in what a result tells of its run beside files and verdict."""
    repair = progress.repair
    told = repair and repair.model_copy(update={"note": redactor.text(repair.note)})
    return progress.model_copy(
        update={
            "warnings": redactor.value(progress.warnings),
            "facts": redactor.value(progress.facts),
            "repair": told,
        }
    )


def _forms_of(secrets: Iterable[str]) -> list[str]:
    """List how secrets may be written, the longest first: one may be a part of another."""
    forms = {form for secret in secrets for form in _forms(secret)}
    return sorted(forms, key=lambda form: (-len(form), form))


def _forms(secret: str) -> Iterator[str]:
    for url in (quote(secret), quote(secret, safe=""), quote_plus(secret)):
        yield url
        yield re.sub("%..", lambda code: code[0].lower(), url)
    for escaped in (json.dumps(secret), json.dumps(secret, ensure_ascii=False), repr(secret)):
        yield escaped[1:-1]
    yield secret


def _opened_at(text: str) -> int | None:
    """Find where the last private key begins that has no end; None if each has one."""
    begun = [found.start() for found in re.finditer(_PEM, text)] if "PRIVATE KEY-----" in text else []
    return begun[-1] if begun and text.find("-----END ", begun[-1]) < 0 else None


def _line_starts(text: str, back: int) -> int:
    """Find where the last line of a text starts that has an end, or one so many lines before it."""
    end = len(text) + 1
    for _ in range(back + 1):
        end = text.rfind("\n", 0, max(0, end - 1)) + 1
    return end


def _without(text: str, forms: Iterable[str]) -> str:
    for form in forms:
        text = text.replace(form, REDACTED)
    return text


_WORDS = re.compile(r"(?=.{,20}\Z)[A-Za-z]+(?:[-_ ][A-Za-z]+)*")


def _key(start: str, rest: str, *, word: str = "A-Za-z0-9") -> tuple[str, re.Pattern[str], str]:
    r"""Describe keys that begin like this, where no word goes on: `task-…` is no `sk-…`.

    Escapes before it end a word too: `\n` in what was quoted, `%3D` in an address. The start comes first in the
    pattern, for then its search is as fast as that for a word.
    """
    begins = rf"(?<![{word}]{start})|(?<=\\[bfnrt]{start})|(?<=%[0-9A-Fa-f]{{2}}{start})"
    return start, re.compile(rf"{start}(?:{begins}){rest}", re.ASCII), REDACTED


_PEM = r"-----BEGIN [A-Z ]{,40}PRIVATE KEY-----"
_PATTERNS: tuple[tuple[str, re.Pattern[str], str], ...] = (
    _key("sk-", r"(?:(?:ant|proj|or-v1|svcacct|admin)-[\w-]{20,}|[A-Za-z0-9]{20,})"),
    *(_key(f"gh{kind}_", "[A-Za-z0-9]{36,}") for kind in "pousr"),
    _key("github_pat_", r"\w{22,}"),
    _key("AKIA", "[0-9A-Z]{16}(?![A-Za-z0-9])"),
    # No dash or underscore before it: else a text of starts alone would be read from each of them to its end.
    _key("eyJ", r"[\w-]{8,}+\.eyJ[\w-]{8,}+\.[\w-]*", word=r"\w-"),
    # A token has digits and no braces: what code puts together, and prose about tokens, stay.
    (
        "earer",
        re.compile(r"earer(?<=\b[Bb]earer)(\s{1,8})(?=[A-Za-z_.~+/-]*\d)[\w.~+/-]{16,}=*", re.ASCII),
        rf"earer\1{REDACTED}",
    ),
    (
        "PRIVATE KEY-----",
        re.compile(
            rf"{_PEM}(?:(?:[^-]|-(?!----))*+-----END [A-Z ]{{,40}}PRIVATE KEY-----"
            r"|(?:(?:\s|\\[nr])*+[A-Za-z0-9+/=]{40,}+)++)"
        ),
        REDACTED,
    ),
    (
        "://",
        re.compile(r"""://([^\s/:@'"{}<>]*):(?!%s@)[^\s/'"{}<>$*,\\]+@"""),
        rf"://\1:{REDACTED}@",
    ),
)
"""What to look for first, for that is quick; the form of a secret; what comes in its place."""
