"""The workers' pool: threads, which can be asked to stop."""

from __future__ import annotations

from celery.concurrency.thread import TaskPool

from ptc_worker.app import end_all_work, leases
from ptc_worker.sandbox import close_sandboxes


class Threads(TaskPool):
    """Celery's pool of threads, with what it lacks for a cold shutdown (SIGQUIT, or SIGINT twice)."""

    def on_stop(self) -> None:
        """Let all work end; nothing may be left at a vendor's after it."""
        super().on_stop()
        close_sandboxes()

    def on_terminate(self) -> None:
        """End with the work under way."""
        end_all_work()

    def terminate_job(self, pid: int, signal: object = None) -> None:  # noqa: ARG002 threads have neither
        """Stop all work at once: its runs are handed back."""
        leases().end()
