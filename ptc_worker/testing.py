"""The sandbox stage: a draft's tests run in isolation, and their verdict decides what follows."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ptc_contracts.progress import StopReason
from ptc_contracts.verdicts import Outcome, Verdict
from ptc_worker.announcing import TestNews
from ptc_worker.app import settings, us
from ptc_worker.dependencies import missing_verdict, needs_of
from ptc_worker.environments import CacheDirError
from ptc_worker.gate import has_python_tests
from ptc_worker.installer import InstallError
from ptc_worker.javascript import has_node_tests
from ptc_worker.node.installed import NodeMissingError
from ptc_worker.node.runner import run_node_tests
from ptc_worker.refinement import spent, with_tests_frozen
from ptc_worker.runner import run_tests
from ptc_worker.sandbox.vendors import NETWORKED
from ptc_worker.steps import examined
from ptc_worker.verdict import both

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ptc_contracts import CodeArtifact
    from ptc_worker.dependencies import Needs
    from ptc_worker.leases import Hold
    from ptc_worker.sandbox.protocol import Purpose
    from ptc_worker.steps import Step
    from ptc_worker.telling import Listener

Ran = tuple[Verdict, str]
"""What became of tests, and what isolated them; nothing did where they could not be run."""


def run_draft(hold: Hold) -> Step:
    """Run the tests of the draft that waits for its verdict; tell of them while they run.

    Raises:
        SandboxError: no sandbox can be had.
        BusyError: there is no room for one just now.
        TimeoutError: the run's time was over before the tests began.
    """
    run, files = hold.run, hold.run.progress.draft or []
    needs = needs_of(run.plan.scaffolding.dependencies, files, settings().ptc_allowed_dependencies)
    progress = run.progress.noting(needs.warnings if has_python_tests(files) else ())
    try:
        verdict, isolation = _all_tests(hold, files, needs, TestNews(hold.report))
    except NodeMissingError as error:
        return progress, spent(progress, StopReason.UNSUPPORTED, str(error))
    except InstallError as error:  # no model can mend that
        return progress, spent(progress, StopReason.NOT_RUN, str(error))
    if isolation:
        progress = progress.noting(_walls_that_lack(isolation), isolation=isolation)
    if (
        verdict.test_results
    ):  # what could not be run may yet be written for another runner, or without a package
        progress = with_tests_frozen(run.plan, progress, files)
    return examined(run, progress, verdict, files)


def _all_tests(hold: Hold, files: Sequence[CodeArtifact], needs: Needs, told: Listener) -> Ran:
    """Run what pytest collects, then, unless that is red, what Node's test runner does."""
    if not has_python_tests(files):
        return _node(hold, files, told)
    verdict, isolation = _pytest(hold, files, needs, told)
    if verdict.outcome is not Outcome.PASSED or not has_node_tests(files):
        return verdict, isolation
    second, isolation = _node(hold, files, told)
    return both(verdict, second), isolation


def _pytest(hold: Hold, files: Sequence[CodeArtifact], needs: Needs, told: Listener) -> Ran:
    if needs.unknown:
        return missing_verdict(needs.unknown), ""
    try:
        return run_tests(
            settings(),
            files,
            needs.requirements,
            hold.run.time_left(),
            hold.halt,
            given=hold.run.plan.test_files,
            purpose=_purpose(hold),
            told=told,
        )
    except InstallError as error:
        if not needs.drafted or isinstance(error, CacheDirError):
            raise
        return missing_verdict([str(error)]), ""


def _node(hold: Hold, files: Sequence[CodeArtifact], told: Listener) -> Ran:
    try:
        return run_node_tests(
            settings(),
            files,
            hold.run.time_left(),
            hold.halt,
            hold.run.plan.scaffolding.dependencies,
            given=hold.run.plan.test_files,
            purpose=_purpose(hold),
            told=told,
        )
    except CacheDirError:
        raise
    except InstallError as error:  # the versions are the draft's
        return missing_verdict([str(error)]), ""


def _purpose(hold: Hold) -> Purpose:
    return replace(us(), run_id=hold.run.run_id, fence=hold.run.fence)


def _walls_that_lack(isolation: str) -> list[str]:
    """Tell the result's reader from what the tests were not kept."""
    if isolation == "none":
        return [_UNISOLATED]
    return [_NETWORKED] if isolation.endswith(NETWORKED) else []


_NETWORKED = "the tests could reach networks from their sandbox (PTC_DAYTONA_NETWORK=tier): whatever its vendor lets through"

_UNISOLATED = (
    "the tests ran without isolation (PTC_SANDBOX_ALLOW_UNISOLATED): limited and cleaned up, but able to read this "
    "worker's files and, where it has no user of its own, its environment, and to use its network"
)
