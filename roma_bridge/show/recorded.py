"""Tells what a run's record says as messages, for runs whose workers tell nothing themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ptc_contracts.events import StreamEventType, StreamMessage
from ptc_contracts.run import RunState

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ptc_contracts.progress import IterationNote
    from ptc_contracts.run import RunStatus
    from roma_bridge.show.view import RunView


def told_by_record(status: RunStatus, view: RunView) -> Iterator[StreamMessage]:
    """Tell what a view does not know yet: iterations that are over, and the stage that is at work."""
    yield from told_by_history(status.history, view)
    known = (view.iteration, view.stage) == (status.iteration, status.stage.value)
    if status.state is RunState.RUNNING and not known:
        yield StreamMessage(
            event_type=StreamEventType.STAGE_STARTED,
            stage=status.stage.value,
            data={"iteration": status.iteration, "max_iterations": status.max_iterations},
        )


def told_by_history(history: Iterable[IterationNote], view: RunView) -> Iterator[StreamMessage]:
    """Tell what became of the iterations that a view knows no verdict of."""
    for note in history:
        if note.iteration not in view.examined:
            yield StreamMessage(event_type=StreamEventType.STAGE_COMPLETED, data=note.model_dump(mode="json"))
