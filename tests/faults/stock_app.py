"""The worker's application on kombu's own Redis transport, to see what ours is for."""

from kombu.transport.redis import Transport

from ptc_worker.app import app

app.conf.broker_transport = f"{Transport.__module__}:{Transport.__name__}"
app.conf.broker_read_url = app.conf.broker_write_url = app.conf.broker_url

__all__ = ["app"]
