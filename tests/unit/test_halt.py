"""How the work on a run is told to stop, from whichever thread, at whichever moment."""

from __future__ import annotations

import logging
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import pytest

from ptc_worker.halt import Halt, HaltedError, Why

if TYPE_CHECKING:
    from collections.abc import Iterator

ROUNDS = 300


@pytest.fixture
def _hasty_threads() -> Iterator[None]:
    """Let threads take turns at almost every instruction."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


def halted_with(halt: Halt, failure: BaseException) -> None:
    """Halt the work in a block, which then raises this."""
    with halt.calling(lambda: None):
        halt.set(Why.CANCELLED)
        raise failure


def test_work_may_go_on_until_it_is_told_otherwise() -> None:
    """A fresh halt lets every check and every block pass, and calls nothing."""
    halt, stops = Halt(), list[str]()
    with halt.calling(lambda: stops.append("stop")):
        halt.check()

    assert (halt.why, stops) == (None, [])


def test_the_first_reason_stays() -> None:
    """Whoever asks later learns why the work was really ended."""
    halt = Halt()
    halt.set(Why.LEASE_LOST)
    halt.set(Why.CANCELLED)

    assert halt.why is Why.LEASE_LOST
    with pytest.raises(HaltedError, match="lease_lost") as error:
        halt.check()
    assert error.value.why is Why.LEASE_LOST


def test_what_a_block_returned_is_not_taken_for_a_result() -> None:
    """It is left by an exception, though it ended by itself."""
    halt = Halt()
    with pytest.raises(HaltedError), halt.calling(lambda: None):
        halt.set(Why.CANCELLED)


def test_what_a_block_raised_is_kept_as_the_cause() -> None:
    """The halt goes before the failure that it brought about, which stays visible."""
    halt, failure = Halt(), OSError("the stream was closed")
    with pytest.raises(HaltedError) as error:
        halted_with(halt, failure)

    assert error.value.__cause__ is failure


def test_an_interrupt_is_not_hidden_behind_a_halt() -> None:
    """The process is to end, whatever becomes of the run."""
    with pytest.raises(KeyboardInterrupt):
        halted_with(Halt(), KeyboardInterrupt())


def test_a_failure_without_a_halt_stays_what_it_is() -> None:
    """Nothing is turned into something else."""
    with pytest.raises(OSError, match="mine"), Halt().calling(lambda: None):
        raise OSError("mine")


def test_a_block_is_not_begun_once_the_work_must_stop() -> None:
    """Neither its body runs, nor what would have stopped it."""
    halt, seen = Halt(), list[str]()
    halt.set(Why.SHUTDOWN)

    with pytest.raises(HaltedError), halt.calling(lambda: seen.append("stop")):
        seen.append("body")
    assert seen == []


def test_nothing_is_called_after_its_block() -> None:
    """What a block used may be gone by then."""
    halt, stops = Halt(), list[str]()
    with halt.calling(lambda: stops.append("stop")):
        pass
    halt.set(Why.CANCELLED)

    assert stops == []


def test_everything_is_called_though_one_fails(caplog: pytest.LogCaptureFixture) -> None:
    """The failure is logged, the others are called, once each however often the halt is set."""
    halt, stops = Halt(), list[str]()

    def fail() -> None:
        stops.append("fail")
        raise OSError("no way to stop")

    with ExitStack() as blocks:
        blocks.enter_context(pytest.raises(HaltedError))
        for stop in (lambda: stops.append("outer"), fail, lambda: stops.append("inner")):
            blocks.enter_context(halt.calling(stop))
        halt.set(Why.CANCELLED)
        halt.set(Why.SHUTDOWN)

    assert sorted(stops) == ["fail", "inner", "outer"]
    assert [(r.levelno, "no way to stop" in str(r.exc_info)) for r in caplog.records] == [
        (logging.ERROR, True)
    ]


def test_a_block_is_not_left_while_what_stops_it_runs() -> None:
    """What `stop` works on may be given up behind the block."""
    halt, entered, stopping, go_on = Halt(), threading.Event(), threading.Event(), threading.Event()
    order = list[str]()

    def stop() -> None:
        stopping.set()
        go_on.wait()
        order.append("stopped")

    def work() -> None:
        with suppress(HaltedError), halt.calling(stop):
            entered.set()
            stopping.wait()
            go_on.set()
        order.append("left")

    with ThreadPoolExecutor(2) as threads:
        working = threads.submit(work)
        entered.wait()
        setting = threads.submit(halt.set, Why.CANCELLED)
        working.result()
        setting.result()

    assert order == ["stopped", "left"]


@pytest.mark.usefixtures("_hasty_threads")
def test_a_halt_at_any_moment_is_noticed_by_every_block() -> None:
    """Set by two threads while two others go in and out: a block is over before, or it is stopped."""

    def work(halt: Halt, going: threading.Event) -> None:
        while True:
            stopped, noticed = threading.Event(), True
            try:
                with halt.calling(stopped.set):
                    if halt.why:
                        noticed = stopped.wait(10)
            except HaltedError:
                assert noticed
                return
            assert not stopped.is_set()
            going.set()

    def end(halt: Halt, going: threading.Event, why: Why) -> None:
        going.wait()
        halt.set(why)

    with ThreadPoolExecutor(4) as threads:
        for _ in range(ROUNDS):
            halt, going = Halt(), threading.Event()
            working = [threads.submit(work, halt, going) for _ in range(2)]
            setting = [threads.submit(end, halt, going, why) for why in (Why.CANCELLED, Why.SHUTDOWN)]
            for ended in working:
                ended.result()
            wait(setting)

            assert halt.why in {Why.CANCELLED, Why.SHUTDOWN}


def test_a_lock_is_waited_for_and_given_back() -> None:
    """Whoever waits has it once the other lets go, and lets go of it himself."""
    halt, lock = Halt(), threading.Lock()

    def wait_for_it() -> bool:
        with halt.taking(lock, time.monotonic() + 60, "too late"):
            return lock.locked()

    lock.acquire()
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(wait_for_it)
        lock.release()

    assert (waiting.result(), lock.locked()) == (True, False)


def test_whoever_waits_for_a_lock_is_halted() -> None:
    """However long it could have waited; the lock stays with whoever has it."""
    halt, lock = Halt(), threading.Lock()
    with lock, ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(halt.taking(lock, time.monotonic() + 60, "too late").__enter__)
        halt.set(Why.CANCELLED)
        with pytest.raises(HaltedError):
            waiting.result()

        assert lock.locked()


def test_a_lock_that_is_not_to_be_had_in_time_is_told_in_the_callers_words() -> None:
    """A deadline that has passed waits for nothing."""
    lock = threading.Lock()
    with lock, pytest.raises(TimeoutError, match=r"^too late$"), Halt().taking(lock, 0, "too late"):
        pytest.fail("it was held by somebody else")
