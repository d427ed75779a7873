"""What one thread is just importing does no harm to another."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys, threading
import openai
import ptc_worker.providers
begun, go_on = threading.Event(), threading.Event()

class Late:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "httpx._client":
            begun.set()
            go_on.wait()
        return None

sys.meta_path.insert(0, Late)
slow = threading.Thread(target=lambda: __import__("httpx"))
slow.start()
begun.wait()

def open_one():
    from ptc_contracts import LLMProvider
    from ptc_worker.providers import open_configured
    from ptc_worker.settings import WorkerSettings
    if open_configured(LLMProvider.KIMI, WorkerSettings(kimi_api_key="no-key")):
        print("opened")

opening = threading.Thread(target=open_one)
opening.start()
opening.join(5)
go_on.set()
opening.join()
slow.join()
"""


def test_a_provider_can_be_opened_while_another_thread_imports_an_sdk() -> None:
    """A worker's first run may come while its sandboxes are made ready."""
    told = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)

    assert told.stdout == "opened\n", told.stderr
