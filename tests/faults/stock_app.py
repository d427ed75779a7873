"""The worker's application on kombu's own Redis transport, to see what ours is for."""

from kombu.transport import TRANSPORT_ALIASES

from ptc_worker.app import app

app.finalize()
assert app.conf.broker_url
TRANSPORT_ALIASES.update(dict.fromkeys(("redis", "rediss"), "kombu.transport.redis:Transport"))

__all__ = ["app"]
