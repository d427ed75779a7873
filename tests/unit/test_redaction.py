"""Secrets leave no text; everything else stays."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptc_contracts import TestResult
from ptc_contracts.verdicts import GateIssue, Outcome, Verdict
from ptc_worker.redaction import REDACTED, Redactor, redact_verdict
from ptc_worker.settings import WorkerSettings, secrets_of

SECRET = 'p/ss w+rd"\\é%'
LOOKS = {
    "anthropic": "sk-" + "ant-api03-" + "Ab1_-" * 8,
    "openai project": "sk-" + "proj-" + "Ab1_-" * 8,
    "openrouter": "sk-" + "or-v1-" + "0a1b" * 10,
    "openai": "sk-" + "Ab1" * 10,
    "github": "gh" + "p_" + "Ab1" * 12,
    "github fine": "github" + "_pat_" + "Ab1_" * 12,
    "aws": "AKI" + "A" + "ABCD0123" * 2,
    "jwt": "ey" + "JhbGciOiJIUzI1NiJ9." + "ey" + "JzdWIiOiIxMjM0NTYifQ." + "c2ln-_c2ln",
}
"""Made up here, in pieces, so that this file holds nothing that looks like a key."""

PEM = "-----BEGIN {}PRIVATE " + "KEY-----\n"
ORDINARY = [
    "task-" + "abcdefghijklmnopqrstuvwxyz",
    "risk-" + "0123456789abcdef" * 2,
    "c6df9d094cb6b702-0123456789ab 12,345 prompt_tokens=4096",
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    'headers = {"Authorization": f"Bearer {token}", "X": "Bearer " + token}',
    "Bearer authentication-is-not-configured here",
    'url = f"redis://{user}:{password}@{host}:{port}/0"',
    "http://localhost:8000/users/@me and https://example.org:443/a@b",
    "redis://:**@localhost",
    'if line == "-----BEGIN PRIVATE ' + 'KEY-----":\n    return Kind.KEY\n',
    "sk-" + "circle-fade-dot-number-twelve-and-more",
    "def eyJ(): ...",
]


@pytest.mark.parametrize("kind", LOOKS)
@pytest.mark.parametrize(
    "place", ["{}", "key={}", "'{}'", '"{}", more', "a\n{}\nb", "a\\n{}", "?key%3D{}", "x: {}!"]
)
def test_what_looks_like_a_key_is_replaced(kind: str, place: str) -> None:
    """Wherever it stands, and nothing around it."""
    text = Redactor(()).text(place.format(LOOKS[kind]))

    assert text == place.format(REDACTED)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("Authorization: Bearer abcdef0123456789abcdef", f"Authorization: Bearer {REDACTED}"),
        ("bearer  abc.def-0123456789_~+/==", f"bearer  {REDACTED}"),
        ("redis://:top-secret@host:6379/0", f"redis://:{REDACTED}@host:6379/0"),
        ("postgres://me:a@b%20c@host/db", f"postgres://me:{REDACTED}@host/db"),
    ],
)
def test_of_headers_and_addresses_the_secret_part_is_replaced(text: str, left: str) -> None:
    """Who asked whom can still be read."""
    assert Redactor(()).text(text) == left


@pytest.mark.parametrize("kind", ["", "RSA ", "ENCRYPTED ", "OPENSSH "])
def test_a_private_key_goes_with_its_lines(kind: str) -> None:
    """Whole, cut off before its end, or quoted with its line ends escaped."""
    body = "\n".join(["QUJD" * 16] * 3)
    whole = f"{PEM.format(kind)}{body}\nQUI=\n-----END {kind}PRIVATE KEY-----"
    cut = f"{PEM.format(kind)}{body}"
    redactor = Redactor(())

    texts = [redactor.text(f"a {text} b") for text in (whole, cut, json.dumps(whole)[1:-1])]

    assert texts == [f"a {REDACTED} b"] * 3


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_stays(text: str) -> None:
    """Hashes, run ids, token counts, and code that handles secrets without holding any."""
    assert Redactor([SECRET]).text(text) == text


def test_our_own_code_stays() -> None:
    """What code looks like is in no pattern."""
    redactor = Redactor([SECRET])
    sources = [file.read_text() for file in Path(__file__).parents[2].glob("ptc_*/**/*.py")]

    changed = [text for text in sources if redactor.text(text) != text]

    assert (len(sources) > 50, changed) == (True, [])


@pytest.mark.parametrize(
    "written",
    [
        SECRET,
        json.dumps(SECRET),
        json.dumps(SECRET, ensure_ascii=False),
        repr(SECRET),
        quote(SECRET),
        quote(SECRET, safe=""),
        quote(SECRET, safe="").lower(),
    ],
)
def test_a_configured_secret_is_replaced_however_it_is_written(written: str) -> None:
    """As it is, and as JSON, Python and addresses write it."""
    redactor = Redactor([SECRET])

    texts = [redactor.text(f"<{written}>"), redactor.exact(f"<{written}>")]

    assert [SECRET[1:5] in text or "%ss" in text for text in texts] == [False, False]
    assert all(REDACTED in text for text in texts)


def test_a_secret_that_holds_another_is_replaced_whole() -> None:
    """Nothing of the longer one is left over."""
    assert Redactor(["abcdef1", "abcdef1-and-2"]).text("abcdef1-and-2 abcdef1") == f"{REDACTED} {REDACTED}"


def test_short_values_are_no_secrets() -> None:
    """They would be found in any text."""
    assert Redactor(["", "a", "12345"]).text("a 12345") == "a 12345"


def test_code_keeps_what_only_looks_like_a_key_and_what_is_a_word() -> None:
    """A project may test keys of its own making, and a local server's key may be its name."""
    redactor = Redactor(["ollama", "password", "s3cret-value"])
    code = f"import ollama\npassword = '{LOOKS['aws']}'\n"

    kept = redactor.exact(code + "x = 's3cret-value'")

    assert kept == code + f"x = '{REDACTED}'"


def test_a_value_keeps_its_shape() -> None:
    """Strings change, wherever they are; numbers, names and order do not."""
    key = LOOKS["openai"]
    value = {"a": [key, 1, None, {"b": f"x {key}"}], key: True, "tokens": 4096}

    redacted = Redactor(()).value(value)

    assert redacted == {"a": [REDACTED, 1, None, {"b": f"x {REDACTED}"}], REDACTED: True, "tokens": 4096}


def test_a_verdict_quotes_no_secret() -> None:
    """Whatever a draft's tests print or are called; what it decides stays."""
    key = LOOKS["github"]
    verdict = Verdict(
        outcome=Outcome.FAILED,
        feedback=f"assert {key}",
        test_results=TestResult(
            test_command=f"pytest -k {key}",
            exit_code=1,
            stdout=key,
            stderr=key,
            tests_failed=1,
            duration_seconds=1,
        ),
        tests=[{"id": f"tests/test_a.py::test[{key}]", "outcome": "failed", "seconds": 0.1}],
        counts={"failed": 1},
        signature="0123456789abcdef",
        issues=[GateIssue(file=f"{key}.py", code="F821", message=f"undefined name {key}")],
    )

    redacted = redact_verdict(Redactor(()), verdict)

    told = redacted.model_dump_json()
    assert (key in told, told.count(REDACTED)) == (False, 7)
    assert (redacted.score, redacted.signature, redacted.counts) == (
        verdict.score,
        verdict.signature,
        verdict.counts,
    )


def test_every_secret_of_a_worker_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys, passwords of addresses, both spellings of them, and what signs and guards."""
    environment = {
        "ANTHROPIC_API_KEY": " claude-key ",
        "KIMI_API_KEY": "kimi-key",
        "OPENAI_API_KEY": "openai-key",
        "OPENAI_BASE_URL": "http://me:base%20word@localhost/v1",
        "OPENROUTER_API_KEY": "router-key",
        "OPENROUTER_BASE_URL": "http://lone-token@localhost/v1",
        "REDIS_URL": "redis://:redis%2Fword@localhost/0?password=in%20query",
        "REDIS_PASSWORD": "redis-password",
        "PTC_SIGNING_KEY": "signing-key-of-16",
        "DAYTONA_API_KEY": "daytona-key",
        "FLOWER_BASIC_AUTH": "ann:flower-a,bob:flower-b",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    secrets = secrets_of(WorkerSettings.read(), environment)

    assert sorted(secrets) == [
        "ann:flower-a,bob:flower-b",
        "base word",
        "base%20word",
        "claude-key",
        "daytona-key",
        "flower-a",
        "flower-b",
        "in query",
        "kimi-key",
        "lone-token",
        "openai-key",
        "redis%2Fword",
        "redis-password",
        "redis/word",
        "router-key",
        "signing-key-of-16",
    ]


PIECES = st.sampled_from([*LOOKS.values(), *ORDINARY, SECRET, "eyJ", "://a:", "Bearer ", "-"])


@given(st.lists(PIECES | st.text(max_size=20)).map("\n".join))
def test_redacting_again_changes_nothing(text: str) -> None:
    """What was redacted on its way in may be redacted again on its way out."""
    once = Redactor([SECRET]).text(text)

    assert Redactor([SECRET]).text(once) == once


@given(st.text(max_size=50), st.sampled_from(sorted(LOOKS)), st.text(max_size=50))
def test_no_surroundings_hide_a_key(before: str, kind: str, after: str) -> None:
    """Whatever stands on the lines before and after."""
    text = Redactor(()).text(f"{before}\n{LOOKS[kind]}\n{after}")

    assert LOOKS[kind] not in text


LINES = """
import logging, os, structlog
from ptc_worker import app

app.log.setup()

class Client:
    def __repr__(self):
        return "Client(" + SECRET + ")"

SECRET = os.environ["KIMI_API_KEY"]
log = structlog.get_logger("ours")
log.warning("event", fact=SECRET, nested={"a": [SECRET]}, client=Client(), key=os.environ["LOOKS"])
logging.getLogger("foreign").warning("said %s", SECRET)
try:
    raise ValueError("raised " + SECRET)
except ValueError:
    logging.getLogger("foreign").exception("trouble")
    log.exception("trouble")
"""


@pytest.mark.parametrize("terminal", [False, True])
def test_no_line_of_a_workers_log_holds_a_secret(*, terminal: bool) -> None:
    """Ours and foreign ones, tracebacks, and what objects tell of themselves; as JSON, and in colours."""
    secret, looks = "made-up-0123456789", LOOKS["openai"]
    reader, writer = pty.openpty() if terminal else os.pipe()
    with subprocess.Popen(
        [sys.executable, "-c", LINES],
        env={"KIMI_API_KEY": secret, "LOOKS": looks, "PATH": "/usr/bin:/bin"},
        stderr=writer,
    ) as process:
        os.close(writer)
        told = _read(reader)

    assert (process.returncode, "\x1b[" in told) == (0, terminal)
    assert (told.count("trouble"), secret in told, looks in told) == (2, False, False)
    assert told.count(REDACTED) == 7


def _read(descriptor: int) -> str:
    """Read to the end, which a terminal tells by an error."""
    read = b""
    with suppress(OSError):
        while piece := os.read(descriptor, 65536):
            read += piece
    os.close(descriptor)
    return read.decode()


LONG_SECRET = "first line of it\nsecond-line-4711\nthird-line-0815"
BLOCK = PEM.format("") + "\n".join(["QUJDREVG" * 8] * 4) + "\n-----END PRIVATE " + "KEY-----\n"


@given(
    st.lists(
        st.sampled_from(
            [*LOOKS.values(), SECRET, LONG_SECRET, BLOCK, "x = 1\n", " ", "\n", "Bearer\n" + "a1" * 20]
        ),
        max_size=8,
    ),
    st.lists(st.integers(1, 40), min_size=1),
)
def test_a_text_that_grows_is_redacted_in_parts_as_it_is_as_a_whole(
    pieces: list[str], steps: list[int]
) -> None:
    """However it is cut on its way: what is told early holds no part of a secret that comes later."""
    redactor = Redactor([SECRET, LONG_SECRET])
    text, told, held = "".join(pieces), "", ""
    place = 0
    while place < len(text):
        held += text[place : place + steps[place % len(steps)]]
        place += steps[place % len(steps)]
        end = redactor.parted(held)
        told, held = told + redactor.text(held[:end]), held[end:]

    assert told + redactor.text(held) == redactor.text(text)


def test_a_text_of_lines_is_told_line_by_line() -> None:
    """Only the last one, which may go on, is held back."""
    redactor = Redactor([SECRET])

    assert [redactor.parted(text) for text in ("", "a = 1", "a = 1\n", "a = 1\nb")] == [0, 0, 6, 6]
