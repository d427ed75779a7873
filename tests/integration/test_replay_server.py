"""The replay server: which turn gets which answer, and its own books."""

from __future__ import annotations

import http.client
import json
import threading
from typing import TYPE_CHECKING, Literal

import pytest
from support import answer_with, make_plan, replaying

from ptc_contracts import ConfigurationError
from ptc_contracts.keys import content_id
from ptc_contracts.progress import Progress
from ptc_worker.llm.replay.faults import Fault
from ptc_worker.llm.replay.recordings import load
from ptc_worker.prompts import build_prompt

if TYPE_CHECKING:
    from pathlib import Path

    from ptc_worker.llm.replay.recordings import Recorded
    from ptc_worker.llm.replay.server import ReplayServer

PLAN = make_plan("Add two numbers")
PROMPT = build_prompt(PLAN, Progress()).messages[0].content

CLAUDE, OTHERS = "/v1/messages", "/v1/chat/completions"


def ask(
    server: ReplayServer, model: str, text: str = PROMPT, *, path: str = CLAUDE, stream: bool = True
) -> bytes:
    """Send one request and read its answer."""
    messages = [{"role": "user", "content": text}]
    body = json.dumps({"model": model, "messages": messages, "stream": stream})
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1])
    try:
        connection.request("POST", path, body)
        return connection.getresponse().read()
    finally:
        connection.close()


def turn(number: int, request: int = 1) -> str:
    """Ask for this request of an iteration of the plan."""
    mark = f"<plan-{content_id(PLAN)}>"
    return f"{mark}\nAttempt {number}{f', request {request}' if request > 1 else ''}. Write the project."


def claude(server: ReplayServer, text: str) -> tuple[str, str]:
    """Return the text and the stop reason that Claude's protocol tells."""
    message = json.loads(ask(server, "a", text, stream=False))
    return message["content"][0]["text"], message["stop_reason"]


def others(server: ReplayServer, text: str) -> tuple[str, str]:
    """Return the text and the finish reason that the other protocol tells."""
    choice = json.loads(ask(server, "a", text, path=OTHERS, stream=False))["choices"][0]
    return choice["message"]["content"], choice["finish_reason"]


RECORDED: list[Recorded] = [["first", {"text": "second", "finish": "length"}], "next"]


def test_each_request_of_an_iteration_has_an_answer_of_its_own() -> None:
    """A cut answer and its continuation can be recorded; a single text answers the first request."""
    with replaying((PLAN, RECORDED)) as server:
        answers = [claude(server, turn(1)), claude(server, turn(1, 2)), claude(server, turn(2))]
        stats = server.stats()["by_turn"]

    assert answers == [("first", "end_turn"), ("second", "max_tokens"), ("next", "end_turn")]
    assert [(call.turn.number, call.turn.request) for call in server.journal] == [(1, 1), (1, 2), (2, 1)]
    assert [name.partition(":")[2] for name in stats] == ["1", "1.2", "2"]


@pytest.mark.parametrize(
    ("finish", "anthropic", "openai"),
    [
        ("stop", "end_turn", "stop"),
        ("length", "max_tokens", "length"),
        ("refusal", "refusal", "content_filter"),
    ],
)
def test_a_recorded_finish_is_told_in_both_protocols(
    finish: Literal["stop", "length", "refusal"], anthropic: str, openai: str
) -> None:
    """Whole and streamed."""
    with replaying((PLAN, [[{"text": "x", "finish": finish}]])) as server:
        whole = claude(server, turn(1))[1], others(server, turn(1))[1]
        streamed = ask(server, "a", turn(1)), ask(server, "a", turn(1), path=OTHERS)

    assert whole == (anthropic, openai)
    assert f'"stop_reason": "{anthropic}"'.encode() in streamed[0]
    assert f'"finish_reason": "{openai}"'.encode() in streamed[1]


@pytest.mark.parametrize("asked", [turn(0), turn(1, 3), turn(2, 2), turn(3)])
def test_a_turn_without_a_recording_is_an_error(asked: str) -> None:
    """The server never invents, and never gives another turn's answer."""
    with replaying((PLAN, RECORDED)) as server:
        answer = json.loads(ask(server, "a", asked))

    assert "no recording for" in answer["error"]["message"]
    assert (server.stats()["unknown"], server.journal) == (1, [])


def test_answers_of_several_requests_are_read_from_a_line(tmp_path: Path) -> None:
    """The form of a JSONL file is the one that the server takes."""
    file = tmp_path / "recordings.jsonl"
    file.write_text(json.dumps({"plan": PLAN.model_dump(mode="json"), "answers": RECORDED}))

    assert load([file]) == {content_id(PLAN): RECORDED}


@pytest.mark.parametrize(
    "answers", [[{"text": "no list around it"}], [["x", {"finish": "stop"}]], "x", [[1]]]
)
def test_answers_in_another_form_are_refused(tmp_path: Path, answers: object) -> None:
    """A recording that cannot be played is told when it is loaded."""
    file = tmp_path / "recordings.jsonl"
    file.write_text(json.dumps({"plan": PLAN.model_dump(mode="json"), "answers": answers}))

    with pytest.raises(ConfigurationError, match="cannot be read"):
        load([file])


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
