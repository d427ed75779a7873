"""The worker's application on kombu's own Redis transport, to see what ours is for."""

from ptc_worker.app import app

app.conf.broker_transport = "redis"

__all__ = ["app"]
