"""What a run tells while it goes on, and who can follow it."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

import pytest
from cluster import FAKE_KEY
from structlog.testing import capture_logs
from support import PATIENCE_SECONDS, answer_with, until

from ptc_contracts import RunNotFinishedError, RunNotFoundError
from ptc_contracts.events import StreamEventType, StreamMessage
from ptc_contracts.keys import events_key, run_key
from ptc_contracts.run import Run
from ptc_contracts.runs import EVENTS_TTL_SECONDS
from ptc_contracts.stages import Stage
from ptc_contracts.work import WorkStore
from ptc_worker.llm.replay.faults import Fault
from ptc_worker.redaction import Redactor
from ptc_worker.reporting import MOST_WAITING, Publisher, Reporter
from roma_bridge import PlanHandle

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cluster import Cluster


GREEN = answer_with(
    calc_py="def add(a, b):\n    return a + b",
    tests__test_calc_py="from calc import add\n\ndef test_add():\n    assert add(1, 2) == 3",
)
RED = GREEN.replace("a + b", "a - b")
FIXED = answer_with(calc_py="def add(a, b):\n    return a + b")
BROKEN = GREEN.replace("def add(a, b):", "def add(a, b)")


@pytest.fixture(autouse=True)
def _quick_models(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let the models of the next test answer at once."""
    yield
    if "cluster" in request.fixturenames:
        replay = request.getfixturevalue("cluster").replay
        replay.chunk_chars, replay.chunk_seconds = 400, 0.0


def kinds(messages: Sequence[StreamMessage]) -> list[str]:
    """Name what messages tell of."""
    return [message.event_type.value for message in messages]


def facts(message: StreamMessage) -> dict[str, Any]:
    """Give the facts of a message; none where it has none."""
    return message.data or {}


def told(handle: PlanHandle) -> list[StreamMessage]:
    """Follow a run to its end."""
    return list(handle.events(timeout=PATIENCE_SECONDS))


def test_a_run_tells_of_every_step_in_order(cluster: Cluster) -> None:
    """From its start to its end, with each test as it ends."""
    handle = cluster.ptc.submit(cluster.record([BROKEN, RED, FIXED]))

    messages = told(handle)

    writes = ["code_generating", "code_generating", "code_generated"]
    looks = ["code_block_ready", "code_block_ready", "validation_started"]
    assert kinds(messages) == [
        *("execution_started", "stage_started", *writes, *looks, "validation_failed", "stage_completed"),
        *("stage_started", *writes, "code_block_ready", "validation_started", "validation_passed"),
        *("stage_completed", "stage_started", "test_started", "test_failed", "stage_completed"),
        *("stage_started", *writes, "code_block_ready", "validation_started", "validation_passed"),
        *("stage_completed", "stage_started", "test_started", "test_passed", "stage_completed"),
        "execution_completed",
    ]
    assert {message.execution_id for message in messages} == {handle.plan.execution_id}
    assert len({message.id for message in messages}) == len(messages)
    shares = [message.progress or 0.0 for message in messages]
    assert shares == sorted(shares)
    verdicts = [
        facts(m)
        for m in messages
        if m.event_type is StreamEventType.STAGE_COMPLETED and "outcome" in facts(m)
    ]
    assert [(v["iteration"], v["outcome"], v["follows"]) for v in verdicts] == [
        (1, "gate", "generate"),
        (2, "failed", "generate"),
        (3, "passed", "end"),
    ]
    end = facts(messages[-1])
    assert (end["status"], end["files"], end["tests_passed"], end["usage"]["calls"]) == ("SUCCESS", 2, 1, 3)


def test_usage_grows_with_every_answer(cluster: Cluster) -> None:
    """Each answer tells what the run has used by then, those of earlier stages included."""
    messages = told(cluster.ptc.submit(cluster.record([RED, FIXED])))

    usage = [facts(m)["usage"] for m in messages if m.event_type is StreamEventType.CODE_GENERATED]
    assert [sums["calls"] for sums in usage] == [1, 2]
    assert usage[1] == facts(messages[-1])["usage"]


def test_whoever_comes_late_sees_the_run_from_its_start(cluster: Cluster) -> None:
    """The same messages, from another process's handle or long after the end."""
    handle = cluster.ptc.submit(cluster.record([GREEN]))
    at_once = told(handle)

    assert told(handle) == at_once


def test_whoever_comes_back_goes_on_after_the_last_message_that_it_has(cluster: Cluster) -> None:
    """Nothing twice, and nothing left out, wherever it broke off."""
    handle = cluster.ptc.submit(cluster.record([RED, FIXED]))
    messages = told(handle)

    for place, message in enumerate(messages):
        assert list(handle.events(after=message.id, timeout=PATIENCE_SECONDS)) == messages[place + 1 :]
    assert list(handle.events(after="never-told", timeout=PATIENCE_SECONDS)) == messages


def test_whoever_stops_half_way_goes_on_with_the_same_object(cluster: Cluster) -> None:
    """After a break, when the time was over, after a wait that was given up, and on another loop."""
    handle = cluster.written(cluster.record([GREEN]))
    until(lambda: cluster.ptc.store.redis.xlen(events_key(handle.run_id)) == 3)
    events, awaited = handle.events(timeout=0), handle.events()
    got = [next(events)]

    def ended() -> bool:
        with suppress(RunNotFinishedError):
            got.extend(events)
            return True
        return False

    async def begin() -> list[StreamMessage]:
        first = [await anext(awaited) for _ in range(3)]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(awaited), 0.1)
        return first

    async def break_off() -> list[StreamMessage]:
        async for message in awaited:
            return [message]
        return []

    async def go_on() -> list[StreamMessage]:
        return [message async for message in awaited]

    assert not ended()
    got_on_loops = asyncio.run(begin())
    handle.cancel()
    until(ended)
    got_on_loops += [*asyncio.run(break_off()), next(awaited), *asyncio.run(go_on())]

    assert got == told(handle)
    assert got_on_loops == got
    assert (next(events, None), next(awaited, None)) == (None, None)


def test_sync_and_async_followers_see_the_same(cluster: Cluster) -> None:
    """Many at once, while the run goes on."""
    handle = cluster.ptc.submit(cluster.record([RED, FIXED]))
    seen: list[list[StreamMessage]] = []
    threads = [threading.Thread(target=lambda: seen.append(told(handle))) for _ in range(5)]
    for thread in threads:
        thread.start()

    async def follow() -> list[StreamMessage]:
        return [message async for message in handle.events(timeout=PATIENCE_SECONDS)]

    async def many() -> list[list[StreamMessage]]:
        return await asyncio.gather(*(follow() for _ in range(20)))

    seen += asyncio.run(many())
    for thread in threads:
        thread.join()

    assert len(seen) == 25
    assert all(messages == seen[0] for messages in seen)


def test_whoever_loses_the_connection_goes_on_where_it_was(cluster: Cluster) -> None:
    """With and without an event loop; nothing twice, and nothing left out."""
    handle = cluster.written(cluster.record([GREEN]))
    redis = cluster.ptc.store.redis

    async def follow() -> list[StreamMessage]:
        return [message async for message in handle.events(timeout=PATIENCE_SECONDS)]

    def listening() -> list[str]:
        return [client["id"] for client in redis.client_list() if client["cmd"] == "xread"]

    with ThreadPoolExecutor() as pool:
        followers = [pool.submit(told, handle), pool.submit(lambda: asyncio.run(follow()))]
        until(lambda: len(listening()) == 2)
        lost = listening()
        for client in lost:
            redis.client_kill_filter(_id=client)
        until(lambda: len(set(listening()) - set(lost)) == 2)
        handle.cancel()
        seen = [follower.result() for follower in followers]

    assert seen[0] == seen[1] == told(handle)
    assert kinds(seen[0])[:3] == ["execution_started", "stage_started", "code_generating"]
    assert kinds(seen[0])[-1] == "execution_failed"


def test_a_joiner_gets_the_events_under_its_own_name(cluster: Cluster) -> None:
    """They belong to the run, which is told to each caller as its own."""
    plan = cluster.record([GREEN])
    first = cluster.ptc.submit(plan)
    second = cluster.ptc.submit(plan.model_copy(update={"execution_id": "another"}))

    mine, others = told(first), told(second)

    assert {message.execution_id for message in others} == {"another"}
    assert [message.id for message in others] == [message.id for message in mine]


def test_a_cache_hit_has_two_events(cluster: Cluster) -> None:
    """Its start and its end; there is no run behind it."""
    plan = cluster.record([GREEN])
    cluster.ptc.submit(plan).get(timeout=PATIENCE_SECONDS)
    hit = cluster.ptc.submit(plan.model_copy(update={"execution_id": "later"}))

    messages = told(hit)

    assert hit.from_cache
    assert kinds(messages) == ["execution_started", "execution_completed"]
    assert facts(messages[0])["from_cache"] is True
    assert facts(messages[1])["status"] == "CACHE_HIT"
    assert {message.execution_id for message in messages} == {"later"}
    assert [m.id for m in hit.events(after=messages[0].id)] == [messages[1].id]


def test_what_a_model_writes_is_told_while_it_writes(cluster: Cluster) -> None:
    """Long before its answer is there."""
    plan = cluster.record([GREEN])
    cluster.replay.chunk_chars, cluster.replay.chunk_seconds = 20, 0.3
    handle = cluster.ptc.submit(plan)

    events = handle.events(timeout=PATIENCE_SECONDS)
    first = next(m for m in events if facts(m).get("text"))
    assert not handle.ready()
    texts = [first, *(m for m in events if "text" in facts(m))]

    assert len(texts) > 2
    assert "".join(facts(m)["text"] for m in texts) == GREEN
    assert facts(texts[-1])["chars"] == len(GREEN)


def test_it_is_not_told_where_that_is_switched_off(empty_cluster: Cluster) -> None:
    """Only how much it is, and nothing twice."""
    empty_cluster.start_worker(environment={**empty_cluster.environment, "PTC_STREAM_OUTPUT": "false"})

    messages = told(empty_cluster.ptc.submit(empty_cluster.record([GREEN])))

    written = [facts(m) for m in messages if "text" in facts(m)]
    counted = [data["chars"] for data in written]
    assert {data["text"] for data in written} == {""}
    assert counted == sorted(set(counted))
    assert counted[-1] == len(GREEN)


def test_no_secret_is_told_not_even_in_pieces(cluster: Cluster) -> None:
    """The model writes the worker's key a few characters at a time, and a test prints it."""
    answer = answer_with(
        calc_py=f"KEY = '{FAKE_KEY}'\nEND = 1",
        tests__test_calc_py=f"import pytest\n\n@pytest.mark.parametrize('key', ['{FAKE_KEY}'])\ndef test_it(key):\n    assert key == 1",
    )
    cluster.replay.chunk_chars, cluster.replay.chunk_seconds = 5, 0.02
    handle = cluster.ptc.submit(cluster.record([answer], max_iterations=1))

    messages = told(handle)

    everything = json.dumps([message.model_dump(mode="json") for message in messages])
    assert "END = 1" in everything
    assert "test_failed" in everything
    assert FAKE_KEY not in everything


def test_a_worker_that_dies_leaves_no_gap(empty_cluster: Cluster) -> None:
    """Another one tells that it begins again, and the end comes once."""
    first = empty_cluster.start_worker()
    plan = empty_cluster.record([GREEN])
    handle = empty_cluster.written(plan)
    events = handle.events(timeout=PATIENCE_SECONDS)
    before = [next(events), next(events), next(events)]

    first.kill()
    empty_cluster.replay.chunk_seconds = 0
    empty_cluster.start_worker()
    after = list(events)

    assert kinds(before) == ["execution_started", "stage_started", "code_generating"]
    starts = [facts(m)["start"] for m in (*before, *after) if m.event_type is StreamEventType.STAGE_STARTED]
    assert starts[:2] == [1, 2]
    assert kinds(after).count("execution_completed") == 1
    assert "execution_started" not in kinds(after)


def test_a_provider_that_fails_is_told(cluster: Cluster) -> None:
    """With what it was, before the fallback is asked."""
    plan = cluster.record([GREEN])
    cluster.replay.faults.script([Fault.REFUSAL])

    messages = told(cluster.ptc.submit(plan))

    warned = [m for m in messages if m.event_type is StreamEventType.WARNING]
    assert [facts(m)["provider"] for m in warned] == ["claude"]
    asked = [facts(m)["provider"] for m in messages if "request" in facts(m) and "outcome" not in facts(m)]
    assert asked == ["claude", "kimi"]


def test_a_failed_run_ends_with_its_error(cluster: Cluster) -> None:
    """`execution_failed`, with the reason that the result has."""
    plan = cluster.record([GREEN])
    cluster.replay.faults.script([Fault.REFUSAL, Fault.REFUSAL])
    handle = cluster.ptc.submit(plan)

    end = told(handle)[-1]

    assert end.event_type is StreamEventType.EXECUTION_FAILED
    assert end.error == handle.get(timeout=0).error_message
    assert facts(end)["status"] == "FAILURE"


def test_a_cancelled_run_that_nobody_began_tells_its_end(empty_cluster: Cluster) -> None:
    """There is no worker that could."""
    handle = empty_cluster.ptc.submit(empty_cluster.record([GREEN]))
    handle.cancel()

    assert kinds(told(handle)) == ["execution_failed"]


def test_a_run_that_is_over_with_nobody_there_is_ended_by_whoever_follows(empty_cluster: Cluster) -> None:
    """As it is by whoever waits for its result."""
    plan = empty_cluster.record([GREEN])
    handle = empty_cluster.submit_with_timeout(plan, 0.001)
    assert empty_cluster.work.begin(handle.run_id, Stage.GENERATE, 1)
    empty_cluster.ptc.store.redis.hset(run_key(handle.run_id), "deadline_at", 1)

    assert kinds(told(handle)) == ["execution_failed"]


def test_an_end_that_older_workers_did_not_tell_is_told_all_the_same(cluster: Cluster) -> None:
    """The record knows it."""
    handle = cluster.ptc.submit(cluster.record([GREEN]))
    handle.get(timeout=PATIENCE_SECONDS)
    cluster.ptc.store.redis.delete(events_key(handle.run_id))

    assert kinds(told(handle)) == ["execution_completed"]


def test_nothing_follows_a_runs_end_even_where_its_stream_has_passed(cluster: Cluster) -> None:
    """Whoever has its last message gets nothing more; whoever lacks it gets the one that was told before."""
    handle = cluster.ptc.submit(cluster.record([GREEN]))
    *before, end = told(handle)
    cluster.ptc.store.redis.delete(events_key(handle.run_id))

    async def follow() -> list[StreamMessage]:
        return [message async for message in handle.events(after=end.id, timeout=PATIENCE_SECONDS)]

    assert list(handle.events(after=end.id, timeout=PATIENCE_SECONDS)) == asyncio.run(follow()) == []
    assert [m.id for m in handle.events(after=before[-1].id, timeout=PATIENCE_SECONDS)] == [end.id]


def test_each_consumer_has_events_of_its_own(empty_cluster: Cluster) -> None:
    """Who takes another's is told so, on a thread and on a loop; the other one misses nothing."""
    ptc = empty_cluster.ptc
    handle = ptc.submit(empty_cluster.record([GREEN]))
    events, awaited = handle.events(timeout=PATIENCE_SECONDS), handle.events(timeout=PATIENCE_SECONDS)

    def listening() -> bool:
        return any(client["cmd"] == "xread" for client in ptc.store.redis.client_list())

    async def follow() -> list[StreamMessage]:
        first = asyncio.ensure_future(anext(awaited))
        await asyncio.to_thread(until, listening)
        with pytest.raises(RuntimeError, match=r"call events\(\) once for each consumer"):
            await anext(awaited)
        with pytest.raises(RuntimeError, match=r"call events\(\) once for each consumer"):
            next(awaited)
        handle.cancel()
        return [await first]

    with ThreadPoolExecutor() as pool:
        first = pool.submit(next, events)
        until(listening)
        with pytest.raises(RuntimeError, match=r"call events\(\) once for each consumer"):
            next(events)
        got = asyncio.run(follow())

        assert [first.result(), *events] == got == told(handle)


def test_messages_of_a_kind_that_is_not_known_are_passed_over(cluster: Cluster) -> None:
    """Newer peers may tell more."""
    handle = cluster.ptc.submit(cluster.record([GREEN]))
    messages = told(handle)
    redis, key = cluster.ptc.store.redis, events_key(handle.run_id)
    redis.xtrim(key, maxlen=0)
    for text in ('{"event_type": "to_come"}', "no JSON", messages[-1].model_dump_json()):
        redis.xadd(key, {"m": text})

    assert told(handle) == messages[-1:]


def test_time_that_is_over_ends_the_following_and_not_the_run(cluster: Cluster) -> None:
    """What was told by then is told even with no time at all."""
    handle = cluster.written(cluster.record([GREEN]))
    until(lambda: cluster.ptc.store.redis.xlen(events_key(handle.run_id)) == 3)
    got: list[StreamMessage] = []

    with pytest.raises(RunNotFinishedError):
        got.extend(handle.events(timeout=0))

    assert kinds(got) == ["execution_started", "stage_started", "code_generating"]
    assert not handle.ready()
    handle.cancel()


def test_a_run_that_is_not_there_cannot_be_followed(cluster: Cluster) -> None:
    """An error, in place of a wait for what will never come."""
    handle = cluster.ptc.submit(cluster.record([GREEN]))
    handle.get(timeout=PATIENCE_SECONDS)
    cluster.ptc.store.redis.delete(run_key(handle.run_id), events_key(handle.run_id))

    with pytest.raises(RunNotFoundError):
        told(handle)


def test_events_pass_after_the_end_and_never_before(cluster: Cluster) -> None:
    """What models wrote is kept for an hour; the result has it for longer."""
    handle = cluster.written(cluster.record([GREEN]))
    redis, key = cluster.ptc.store.redis, events_key(handle.run_id)
    until(lambda: redis.exists(key))
    before = redis.ttl(key)

    handle.cancel()
    handle.get(timeout=PATIENCE_SECONDS)

    assert before == -1
    assert 0 < redis.ttl(key) <= EVENTS_TTL_SECONDS


def test_a_follower_that_is_frozen_or_dies_harms_nobody(cluster: Cluster) -> None:
    """Neither the run nor those who follow beside it."""
    handle = cluster.ptc.submit(cluster.record([RED, FIXED]))
    follow = f"from roma_bridge import PlanHandle\nfor m in PlanHandle.of({handle.run_id!r}).events(): print(m.id, flush=True)"
    others = [
        subprocess.Popen([sys.executable, "-c", follow], env=cluster.environment, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    others[0].send_signal(signal.SIGSTOP)
    others[1].kill()

    messages = told(handle)
    others[0].send_signal(signal.SIGCONT)
    late = others[0].communicate(timeout=PATIENCE_SECONDS)[0].decode().split()

    others[1].communicate()
    assert late == [message.id for message in messages]


def test_nothing_that_goes_wrong_with_events_stops_a_run(cluster: Cluster) -> None:
    """Their place in the database is taken by something else."""
    plan = cluster.record([GREEN])
    submission = cluster.ptc.store.submit(plan)
    cluster.ptc.store.redis.set(events_key(submission.run_id), "taken")

    handle = PlanHandle.of(submission.run_id, cluster.ptc)

    assert handle.get(timeout=PATIENCE_SECONDS).status == "SUCCESS"


def reporting(cluster: Cluster) -> tuple[Run, Publisher]:
    """Hold a run of its own, and get what tells of it: a worker's means, in this process."""
    store = WorkStore.connect(cluster.settings, patience=0.5)
    run = store.begin(cluster.ptc.submit(cluster.record([])).run_id, Stage.GENERATE, 1)
    assert isinstance(run, Run)
    return run, Publisher(store, Redactor(()), output=True)


def numbers(cluster: Cluster, run: Run) -> list[object]:
    """Read the numbers that a run told, in order."""
    entries = cluster.ptc.store.redis.xrange(events_key(run.run_id))
    messages = [
        StreamMessage.model_validate_json(cast("Any", fields)[b"m"]) for _, fields in cast("Any", entries)
    ]
    return [facts(message).get("number") or facts(message).get("lost") for message in messages[1:]]


def failed_to_send(logs: list[Any]) -> bool:
    """Tell whether a telling went out to which no answer came."""
    return any(line["event"] == "events_not_sent" for line in logs)


def test_what_is_told_while_redis_stands_still_is_there_once_it_goes_on(empty_cluster: Cluster) -> None:
    """In order, each once, though nobody knew what had arrived; what was too much is counted."""
    run, publisher = reporting(empty_cluster)
    with publisher.reporting(run) as report, capture_logs() as logs:
        report.tell(StreamEventType.PROGRESS, number=1)
        until(lambda: numbers(empty_cluster, run) == [1])
        with empty_cluster.frozen_server():
            report.tell(StreamEventType.PROGRESS, number=2)
            until(lambda: failed_to_send(logs))
            for number in range(3, MOST_WAITING + 8):
                report.tell(StreamEventType.PROGRESS, number=number)
        until(lambda: len(numbers(empty_cluster, run)) > MOST_WAITING + 2)

    assert numbers(empty_cluster, run) == [*range(1, MOST_WAITING + 3), 5]


def test_what_may_have_arrived_counts_once_when_the_run_moves_on(empty_cluster: Cluster) -> None:
    """It goes with what moves the run on, which knows what had arrived."""
    run, publisher = reporting(empty_cluster)
    with publisher.reporting(run) as report, capture_logs() as logs:
        report.tell(StreamEventType.PROGRESS, number=1)
        until(lambda: numbers(empty_cluster, run) == [1])
        with empty_cluster.frozen_server():
            report.tell(StreamEventType.PROGRESS, number=2)
            until(lambda: failed_to_send(logs))
            report.tell(StreamEventType.PROGRESS, number=3)
            left = report.drained()
        empty_cluster.work.hand_back(run, left)

    assert numbers(empty_cluster, run) == [1, 2, 3]


def test_a_stage_that_is_over_at_once_opens_its_run_all_the_same(empty_cluster: Cluster) -> None:
    """Before anything could be sent."""
    run, _ = reporting(empty_cluster)
    report = Reporter(run, Redactor(()), threading.Event())
    report.tell(StreamEventType.PROGRESS, number=1)

    empty_cluster.work.hand_back(run, report.drained())

    entries = empty_cluster.ptc.store.redis.xrange(events_key(run.run_id))
    first = StreamMessage.model_validate_json(cast("Any", entries)[0][1][b"m"])
    assert (first.event_type, facts(first)["run_id"]) == (StreamEventType.EXECUTION_STARTED, run.run_id)
    assert numbers(empty_cluster, run) == [1]


def test_whoever_lost_the_run_is_not_heard_any_more(empty_cluster: Cluster) -> None:
    """Only the worker that holds a run tells of it."""
    run, publisher = reporting(empty_cluster)
    store = empty_cluster.work
    store.hand_back(run)
    second = store.begin(run.run_id, Stage.GENERATE, 2)
    assert isinstance(second, Run)
    with publisher.reporting(run) as old, publisher.reporting(second) as new:
        old.tell(StreamEventType.PROGRESS, number=1)
        new.tell(StreamEventType.PROGRESS, number=2)
        until(lambda: numbers(empty_cluster, run) == [2] and not (old._waiting or old._sending))

    assert numbers(empty_cluster, run) == [2]


def test_what_cannot_be_written_is_left_out(empty_cluster: Cluster) -> None:
    """A value without a form in JSON does not hold up what comes after it."""
    run, publisher = reporting(empty_cluster)
    with publisher.reporting(run) as report:
        report.tell(StreamEventType.PROGRESS, number=object())
        report.tell(StreamEventType.PROGRESS, "half a pair: \ud800", number=2)
        until(lambda: not (report._waiting or report._sending))

    assert numbers(empty_cluster, run) == [2]
