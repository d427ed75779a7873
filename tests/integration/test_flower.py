"""Flower, as deploy/ configures it, shows runs by their id and none of their files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from redis import Redis
from support import answer_with

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cluster import Cluster

    from roma_bridge import PlanHandle

DEPLOY = Path(__file__).parents[2] / "deploy"
MARK = "what_stands_in_the_files"
TESTS = "from calc import {0}\n\ndef test_add():\n    assert {0}(1, 2) == 3"
RED = answer_with(calc_py=f"def {MARK}(a, b):\n    return a - b", tests__test_calc_py=TESTS.format(MARK))
GREEN = answer_with(calc_py=f"def {MARK}(a, b):\n    return a + b")
SECONDS = 60.0


@dataclass(frozen=True)
class Flower:
    """A running Flower."""

    socket: Path
    log: Path
    process: subprocess.Popen[bytes]

    def ask(self, path: str, method: str = "GET") -> tuple[int, str]:
        """Send a request; return the status and the body."""
        connection = _SocketConnection(self.socket)
        try:
            connection.request(method, path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def wait_for(self, path: str, satisfied: Callable[[str], bool]) -> str:
        """Ask until the answer satisfies."""
        deadline, answer = time.monotonic() + SECONDS, "nothing"
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                status, answer = self.ask(path)
            except (OSError, HTTPException) as error:
                status, answer = 0, repr(error)
            if status == 200 and satisfied(answer):
                return answer
            time.sleep(0.05)
        raise AssertionError(f"Flower does not show it: {answer[:2000]}\n{self.log.read_text()}")


class _SocketConnection(HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=10)
        self._path = path

    def connect(self) -> None:
        import socket

        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
