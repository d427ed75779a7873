"""The sandbox stage: a draft's tests run in isolation, and their verdict decides what follows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ptc_contracts.progress import StopReason
from ptc_worker.app import settings
from ptc_worker.dependencies import missing_verdict, needs_of
from ptc_worker.environments import CacheDirError
from ptc_worker.installer import InstallError
from ptc_worker.refinement import spent
from ptc_worker.runner import run_tests
from ptc_worker.steps import examined

if TYPE_CHECKING:
    from ptc_worker.leases import Hold
    from ptc_worker.steps import Step


def run_draft(hold: Hold) -> Step:
    """Run the tests of the draft that waits for its verdict.

    Raises:
        SandboxError: no sandbox can be had.
        TimeoutError: the run's time was over before the tests began.
    """
    run = hold.run
    files = run.progress.draft or []
    needs = needs_of(run.plan.scaffolding.dependencies, files, settings().ptc_allowed_dependencies)
    progress = run.progress.noting(needs.warnings)
    if needs.unknown:
        return examined(run, progress, missing_verdict(needs.unknown), files)
    try:
        verdict, isolation = run_tests(
            settings(), files, needs.requirements, run.time_left(), hold.halt, given=run.plan.test_files
        )
    except InstallError as error:
        if not needs.drafted or isinstance(error, CacheDirError):  # no model can mend that
            return progress, spent(progress, StopReason.NOT_RUN, str(error))
        return examined(run, progress, missing_verdict([str(error)]), files)
    progress = progress.noting(_isolation_warnings(isolation), isolation=isolation)
    return examined(run, progress, verdict, files)


def _isolation_warnings(isolation: str) -> list[str]:
    return [_UNISOLATED] if isolation == "none" else []


_UNISOLATED = (
    "the tests ran without isolation (PTC_SANDBOX_ALLOW_UNISOLATED): limited and cleaned up, but able to read this "
    "worker's files and, where it has no user of its own, its environment, and to use its network"
)
