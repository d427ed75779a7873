"""A pytest plugin that streams what happens to a log which the worker reads; stdlib and pytest only.

It runs inside the sandbox, beside the project's own code. Each line carries a MAC chained to the line before,
under a key that is read once and removed before any project code is loaded, so that a line which is forged,
changed or dropped shows; a log that stops early lacks its end.

`PTC_KEY` names the file with the key; `PTC_EVENTS` the file for the log, or `fd:N` for an open descriptor.

PYTEST_DONT_REWRITE: it may be loaded before pytest starts.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import time
import unittest
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator

MAX_TEXT = 6000
"""Characters kept of one failure: its start and its end."""


class Log:
    """An append-only file of chained lines."""

    def __init__(self, key_file: str, events: str) -> None:
        with open(key_file, "rb") as file:
            self._key = file.read()
        os.unlink(key_file)
        self._mac = ""
        kind, _, number = events.partition(":")
        self._fd = (
            int(number) if kind == "fd" else os.open(events, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        )

    def add(self, kind: str, **facts: object) -> None:
        """Write one event at once, so that a crash loses none."""
        line = json.dumps({"event": kind, **facts})
        self._mac = hmac.new(self._key, (self._mac + line).encode(), hashlib.sha256).hexdigest()
        os.write(self._fd, f"{self._mac} {line}\n".encode())


class Reporter:
    """Turns pytest's hooks into events."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._started = time.monotonic()

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Tell of a file that cannot be collected."""
        if report.failed:
            self._log.add("collect_error", id=report.nodeid, text=trimmed(report.longreprtext))

    @pytest.hookimpl(tryfirst=True)
    def pytest_itemcollected(self, item: pytest.Item) -> None:
        """Tell of every test that was found, before anything can deselect it."""
        self._log.add("collected", id=item.nodeid)

    @pytest.hookimpl(tryfirst=True, wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, Any, Any]:
        """Tell what a phase raised, whatever another plugin will make of it."""
        if call.excinfo is not None and not call.excinfo.errisinstance(
            (pytest.skip.Exception, unittest.SkipTest)
        ):
            self._log.add("raised", id=item.nodeid, when=call.when)
        return (yield)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Tell how a phase, or a subtest in it, was reported."""
        self._log.add(
            "phase",
            id=report.nodeid,
            when=report.when,
            outcome=report.outcome,
            xfail=hasattr(report, "wasxfail"),
            seconds=round(report.duration, 4),
            text=trimmed(report.longreprtext) if report.failed else "",
        )

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, exitstatus: int) -> None:
        """Tell that the run ended by itself."""
        self._log.add("end", exit=int(exitstatus), seconds=round(time.monotonic() - self._started, 4))


def trimmed(text: str) -> str:
    """Cut the middle out of a long text."""
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT // 2]}\n…\n{text[-MAX_TEXT // 2 :]}"


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Start reporting: the last moment before code of the project is loaded."""
    early_config.pluginmanager.register(
        Reporter(Log(os.environ.pop("PTC_KEY"), os.environ.pop("PTC_EVENTS"))), "ptc-reporter"
    )
