"""Celery's settings for the worker and for Flower; `ptc_worker.app` loads this very file, wherever it runs."""

from pathlib import Path

from dotenv import load_dotenv
from kombu import Exchange, Queue
from kombu.transport import TRANSPORT_ALIASES

from ptc_contracts import ConfigurationError
from ptc_contracts.blobs import Blobs
from ptc_contracts.settings import RedisSettings
from ptc_contracts.stages import CELERY_SETTINGS, Stage
from ptc_worker.settings import WorkerSettings

load_dotenv(Path.cwd() / ".env")  # the worker is a program of ours; the process environment wins

try:
    _redis = RedisSettings.from_environment()
    _settings = WorkerSettings.read()
    Blobs.from_environment()  # read when the first run is, and refused now
except ConfigurationError as error:
    raise SystemExit(f"ptc-worker: {error}") from None

_over_network = not _redis.url.startswith("unix:")  # redis-py refuses keepalive for a socket file

# By its alias, for kombu pays no attention to `broker_transport` when the address is `redis+socket://`.
TRANSPORT_ALIASES.update(dict.fromkeys(("redis", "rediss"), "ptc_worker.transport:Transport"))
broker_url = _redis.celery_url
result_backend = _redis.celery_url

# What client and worker must agree on stands in the contracts; queues and routes follow from the stages.
globals().update(CELERY_SETTINGS)
task_queues = [  # as objects, for Flower asks each for its name
    Queue(name, Exchange(options["exchange"]), routing_key=options["routing_key"])
    for name, options in CELERY_SETTINGS["task_queues"].items()
]
task_routes = {stage.task_name: {"queue": stage.value} for stage in Stage}

# The run record is the truth and a message only a hint: a message that comes twice finds its run taken or
# ended and changes nothing, so it is better delivered twice than lost.
task_acks_late = True
task_reject_on_worker_lost = True
worker_prefetch_multiplier = 1  # a message that waits in a busy worker could be worked on elsewhere
broker_transport_options = {
    **CELERY_SETTINGS["broker_transport_options"],
    # A message that died with its worker comes back after this; one whose worker lives is kept from coming back.
    "visibility_timeout": 60,
    "unacked_restore_interval": 5,
    "unacked_restore_throttle": 1,
    "socket_keepalive": _over_network,
    "health_check_interval": 30,
}
broker_connection_max_retries = None  # a worker outlives any outage of its server
broker_connection_retry_on_startup = True
redis_socket_keepalive = _over_network
redis_socket_timeout = 10
redis_socket_connect_timeout = 5
redis_backend_health_check_interval = 30
result_expires = 24 * 3600  # as long as the record (ptc_contracts.runs.RESULT_TTL_SECONDS)

# A model call is I/O on one shared loop and a test run is a process of its own: threads carry both. There are
# no Celery time limits, for they would store a failure behind the record; deadlines are the run's own.
worker_pool = "ptc_worker.pool:Threads"
worker_concurrency = _settings.max_concurrent_executions
worker_cancel_long_running_tasks_on_connection_loss = False  # it would end them as REVOKED
worker_send_task_events = True  # for Flower
worker_hijack_root_logger = False
worker_log_color = False
