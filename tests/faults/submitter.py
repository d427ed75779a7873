"""A client process of the storm: submits each plan it reads from standard input, and prints what it gets.

A line `{"plan": {…}}` is a plan. A line `{"arm": true}` makes it die at its next run of its own, between the
claim and the message. It prints a line for each result, and for each plan that it had to give up.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

from roma_bridge import PTC, PlanHandle, PTCError, ServerUnavailableError

GIVE_UP_SECONDS = 900.0
_THREADS = 64
_RETRY_SECONDS = 0.2

_printing = threading.Lock()


def main() -> None:
    """Follow orders until they end."""
    ptc = PTC()
    with ThreadPoolExecutor(_THREADS) as pool:
        for line in sys.stdin:
            order = json.loads(line)
            if "arm" in order:
                ptc.app.send_task = _die  # type: ignore[method-assign]  # this process will not see the end of it
            else:
                pool.submit(_follow, ptc, order["plan"])


def _follow(ptc: PTC, plan: dict[str, Any]) -> None:
    try:
        handle = _submit(ptc, plan)
        result = handle.get(timeout=GIVE_UP_SECONDS)
        facts = {"run_id": handle.run_id, "result": result.model_dump(mode="json")}
    except Exception as error:  # noqa: BLE001 whatever it is, the storm has to know
        traceback.print_exc()
        facts = {"error": f"{type(error).__name__}: {error}"}
    with _printing:
        print(json.dumps({"execution_id": plan["execution_id"], **facts}), flush=True)


def _submit(ptc: PTC, plan: dict[str, Any]) -> PlanHandle:
    """Submit until the server takes the plan: under its own execution id that is a retry."""
    deadline = time.monotonic() + GIVE_UP_SECONDS
    while True:
        try:
            return ptc.submit(plan)
        except ServerUnavailableError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_RETRY_SECONDS)


def _die(*_: Any, **__: Any) -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise PTCError("unreachable")


if __name__ == "__main__":
    main()
