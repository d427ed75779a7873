"""The workers' pool: threads, which can be asked to stop."""

from __future__ import annotations

from celery.concurrency.thread import TaskPool

from ptc_worker.app import leases


class Threads(TaskPool):
    """Celery's pool of threads, with what it lacks for a cold shutdown (SIGQUIT, or SIGINT twice)."""

    def terminate_job(self, pid: int, signal: object = None) -> None:  # noqa: ARG002 threads have neither
        """Stop all work at once: its runs are handed back."""
        leases().end()
