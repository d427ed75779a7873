"""The worker: `celery -A ptc_worker worker` serves both queues, `-Q generate` or `-Q sandbox` one of them."""

from ptc_worker.app import app

__all__ = ["app"]
