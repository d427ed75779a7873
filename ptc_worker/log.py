"""Log lines: names with facts, bound to run, key, stage and iteration; never content, never secrets."""

from __future__ import annotations

import logging
import sys

import stamina
import structlog

_CHATTY = ("anthropic", "openai", "httpx2", "httpcore2", "httpx", "asyncio")
"""Libraries whose debug lines hold whole prompts."""


def configure_logging(level: str) -> None:
    """Send our lines and Celery's to standard error: coloured on a terminal, JSON otherwise."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(colors=True)
        if sys.stderr.isatty()
        else structlog.processors.JSONRenderer(ensure_ascii=False)
    )
    structlog.configure(
        processors=[
            *shared,
            structlog.processors.format_exc_info,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.processors.format_exc_info],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    stamina.instrumentation.set_on_retry_hooks([])  # calls and outages are logged where they happen
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
