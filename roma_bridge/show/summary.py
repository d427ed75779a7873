"""Words a result for people."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

import click

from roma_bridge.terminal import marks, one_line, printable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ptc_contracts import PTCArtifactResult

_MORE_ISOLATION = {
    "landlock": "where the worker may make user namespaces, tests get bubblewrap, and a loopback network with it",
    "none": "nothing kept these tests in: see 'What isolates the tests' in the README",
}
"""How to get more than the isolation that a result names."""


def summary(result: PTCArtifactResult, folder: Path | None) -> str:
    """Tell, in signs that standard output has, status, files, tests, cost, savings, and where the files are, if anywhere."""
    parts = (_ending(result), _tests(result), _files(result, folder), _models(result), _saved(result))
    return "\n".join(line for part in parts for line in part)


def _ending(result: PTCArtifactResult) -> Iterator[str]:
    colour = "green" if result.success else "red" if not result.artifacts else "yellow"
    iterations = f"{result.iterations_used} iteration{'s' if result.iterations_used != 1 else ''}"
    status = click.style(result.status.value, fg=colour, bold=True)
    yield f"{status} in {result.duration_seconds:.1f} s, {iterations}"
    reason = str(result.metadata.get("stop_reason"))
    if not result.success and reason in _REASONS:
        yield f"  stopped   {_REASONS[reason]}"
    if result.error_message:
        yield f"  error     {_indented(result.error_message)}"
    yield from (f"  warning   {_indented(warning)}" for warning in result.warnings)


def _tests(result: PTCArtifactResult) -> Iterator[str]:
    if not (tests := result.test_results):
        return
    isolation = one_line(str(result.metadata.get("isolation") or ""))
    where = f" (isolation: {isolation})" if isolation else ""
    yield f"  tests     {tests.tests_passed} passed, {tests.tests_failed} failed{where}"
    if isolation in _MORE_ISOLATION:
        yield f"            {_MORE_ISOLATION[isolation]}"
    right, wrong = marks(getattr(sys.stdout, "encoding", None) or "utf-8")
    for test in _rows(result, "tests", {"id", "outcome"}):
        passed = test["outcome"] == "passed"
        mark = click.style(right, fg="green") if passed else click.style(wrong, fg="red")
        told = f"{test['id']}" if passed else f"{test['id']} ({test['outcome']})"
        yield f"            {mark} {one_line(told)}"


def _files(result: PTCArtifactResult, folder: Path | None) -> Iterator[str]:
    if result.artifacts and folder is not None:
        yield f"  files     {len(result.artifacts)} in {folder}/"
        yield from (f"            {one_line(artifact.file_path)}" for artifact in result.artifacts)


def _models(result: PTCArtifactResult) -> Iterator[str]:
    for usage in result.llm_usage:
        cost = "price unknown" if usage.cost_usd is None else f"${usage.cost_usd:.4f}"
        used = f"{usage.total_tokens:,} tokens in {usage.api_calls} calls"
        yield one_line(f"  model     {usage.provider} {usage.model}: {used}, {cost}")
    yield from (
        one_line(f"  no answer {name}: {outcomes}") for name, outcomes in _failed_calls(result).items()
    )


def _saved(result: PTCArtifactResult) -> Iterator[str]:
    hits = _number(result, "response_cache_hits")
    if not result.from_cache and not hits:
        return
    answers = "" if result.from_cache else f" ({hits} answer{'s' if hits != 1 else ''} kept from before)"
    tokens, cost = (_number(result, name) for name in ("saved_tokens", "saved_cost_usd"))
    yield f"  saved     {tokens:,} tokens, ${cost:.4f}{answers}"


_REASONS = {
    "max_iterations": "every iteration that the plan allows was used",
    "stuck": "stuck: the same failure came three times",
    "unparseable_output": "the models' answers held no file",
    "budget": "budget: the next call could have cost more than is left to spend",
    "no_answer": "no provider answered",
    "timeout": "the plan's time ran out",
    "cancelled": "cancelled",
    "unsupported": "nothing here can run this project's tests",
    "not_run": "the tests could not be run",
    "configuration": "a setting is missing or wrong",
    "given_up": "its workers died or fell silent again and again",
    "internal_error": "an internal error",
}
"""Why a run stopped that is not green, by the result's `stop_reason`."""


def _failed_calls(result: PTCArtifactResult) -> dict[str, str]:
    """Count the calls that brought no answer, by provider and model; a result may be an older peer's."""
    failed: dict[str, Counter[str]] = defaultdict(Counter)
    for call in _rows(result, "calls", {"provider", "model", "outcome"}):
        if call["outcome"] not in {"ok", "truncated"}:
            failed[f"{call['provider']} {call['model']}"][str(call["outcome"])] += 1
    return {
        name: ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items())
        for name, outcomes in failed.items()
    }


def _indented(text: str) -> str:
    """Keep the lines of a text under its first, so that none passes for one of the summary's own."""
    return printable(text).replace("\n", "\n            ")


def _number(result: PTCArtifactResult, name: str) -> float:
    told = result.metadata.get(name)
    return told if isinstance(told, int | float) else 0


def _rows(result: PTCArtifactResult, name: str, fields: set[str]) -> list[dict[str, Any]]:
    """List what a result's metadata tells row by row; one from the cache may be a stranger's."""
    told = result.metadata.get(name)
    rows = told if isinstance(told, list) else []
    return [row for row in rows if isinstance(row, dict) and fields <= row.keys()]
