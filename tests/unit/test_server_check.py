"""A server's answer to INFO becomes reasons to refuse it and reasons to warn."""

from __future__ import annotations

from typing import Any

import pytest

from ptc_worker.server_check import problems

GOOD = {
    "redis_version": "7.0.15",
    "maxmemory_policy": "noeviction",
    "aof_enabled": 1,
    "cluster_enabled": 0,
    "role": "master",
}


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"redis_version": "6.2.0"},
        {"redis_version": 6.2},  # redis-py makes a number of it
        {"redis_version": "10.0.1"},
        {"redis_version": "7.2.4", "valkey_version": "9.1.2", "server_mode": "standalone"},
    ],
)
def test_a_server_as_it_should_be_is_taken_without_a_word(facts: dict[str, Any]) -> None:
    """Redis from 6.2 on, and Valkey."""
    assert problems({**GOOD, **facts}) == ([], [])


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"redis_version": "6.0.16"}, "Redis 6.0.16 is too old: PTC needs Redis 6.2"),
        ({"redis_version": "5.0.7"}, "Redis 5.0.7 is too old"),
        ({"cluster_enabled": 1}, "set `cluster-enabled no`"),
        ({"role": "slave"}, "let REDIS_URL name its primary"),
        *(
            ({"maxmemory_policy": policy}, f"maxmemory-policy is {policy}")
            for policy in ("allkeys-lru", "allkeys-random", "volatile-lru", "volatile-ttl")
        ),
        ({"maxmemory_policy": "allkeys-lfu"}, "set `maxmemory-policy noeviction`"),
    ],
)
def test_a_server_that_would_lose_runs_is_refused(facts: dict[str, Any], reason: str) -> None:
    """One reason, which names the setting and the way out."""
    refusals, warnings = problems({**GOOD, **facts})

    assert (len(refusals), warnings) == (1, [])
    assert reason in refusals[0]


def test_every_reason_is_told_at_once() -> None:
    """Nobody has to start a worker three times to learn of three mistakes."""
    facts = {"redis_version": "5.0.7", "maxmemory_policy": "volatile-lru", "role": "slave", "aof_enabled": 0}

    refusals, warnings = problems({**GOOD, **facts})

    assert (len(refusals), len(warnings)) == (3, 1)


def test_a_server_that_forgets_at_its_end_draws_a_warning() -> None:
    """Its name for it is `appendonly`."""
    refusals, (warning,) = problems({**GOOD, "aof_enabled": 0})

    assert refusals == []
    assert "set `appendonly yes`" in warning


@pytest.mark.parametrize("info", [{}, {"redis_version": "unknown"}])
def test_what_a_server_does_not_tell_is_not_held_against_it(info: dict[str, Any]) -> None:
    """Managed servers hide parts of INFO; what would lose runs is worth a warning."""
    refusals, (warning,) = problems(info)

    assert refusals == []
    assert "maxmemory-policy cannot be read" in warning
