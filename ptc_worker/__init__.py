"""The worker: `celery -A ptc_worker worker` serves both queues, `-Q generate` or `-Q sandbox` one of them."""

try:
    from ptc_worker.app import app
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"there is no package {error.name}: pip install 'ptc-worker[worker,local]'", name=error.name
    ) from None

__all__ = ["app"]
