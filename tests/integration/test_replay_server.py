"""The replay server's own books: what is in flight, and for whom."""

from __future__ import annotations

import http.client
import json
import threading
from typing import TYPE_CHECKING

from support import answer_with, make_plan, replaying

from ptc_contracts.progress import Progress
from ptc_worker.llm.replay.faults import Fault
from ptc_worker.prompts import build_prompt

if TYPE_CHECKING:
    from ptc_worker.llm.replay.server import ReplayServer

PLAN = make_plan("Add two numbers")
PROMPT = build_prompt(PLAN, Progress())


def ask(server: ReplayServer, model: str) -> None:
    """Send one request and read its answer."""
    messages = [{"role": message.role, "content": message.content} for message in PROMPT.messages]
    body = json.dumps({"model": model, "messages": messages, "stream": True})
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1])
    try:
        connection.request("POST", "/v1/messages", body)
        connection.getresponse().read()
    finally:
        connection.close()


def test_calls_in_flight_are_told_by_model_until_their_answers_are_written() -> None:
    """Workers that are told apart by their model can be asked about one by one."""
    recording = (PLAN, [answer_with(tests__test_it_py="def test_it():\n    pass")])
    with replaying(recording, latency=3600) as server:
        callers = [threading.Thread(target=ask, args=(server, model)) for model in ("a", "b", "b")]
        for caller in callers:
            caller.start()
        while server.stats()["calls"] < 3 or server.stats()["in_flight"] != {"a": 1, "b": 2}:
            server.stopping.wait(0.01)
        server.stopping.set()  # wakes whoever waits for the latency
        for caller in callers:
            caller.join()
        while server.stats()["in_flight"]:
            threading.Event().wait(0.01)

        assert sorted((call.model, call.turn.number, call.fault) for call in server.journal) == [
            ("a", 1, None),
            ("b", 1, None),
            ("b", 1, None),
        ]
        assert all(call.ended is not None and call.ended >= call.started for call in server.journal)


def test_the_journal_tells_which_calls_met_a_fault() -> None:
    """Whoever counts good answers must be able to leave the others out."""
    with replaying((PLAN, [answer_with(tests__test_it_py="")])) as server:
        server.faults.script([Fault.EMPTY])
        ask(server, "a")
        ask(server, "a")

        assert [call.fault for call in server.journal] == [Fault.EMPTY, None]
