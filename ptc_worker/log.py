"""Log lines: names with facts, bound to run, key, stage and iteration; never content, never secrets."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, cast

import stamina
import structlog

if TYPE_CHECKING:
    from structlog.typing import EventDict, Processor

    from ptc_worker.redaction import Redactor

_CHATTY = ("anthropic", "openai", "httpx2", "httpcore2", "httpx", "asyncio")
"""Libraries whose debug lines hold whole prompts."""


def configure_logging(level: str, redactor: Redactor) -> None:
    """Send our lines and Celery's to standard error, without secrets: coloured on a terminal, JSON otherwise."""

    def redacted(_logger: object, _method: str, event: EventDict) -> EventDict:
        return redactor.value(event)

    def redacted_line(_logger: object, _method: str, line: EventDict) -> str:
        return redactor.text(
            cast("str", line)
        )  # what objects tell of themselves is in no event, but in the line

    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: Processor = (
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
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                redacted,
                renderer,
                redacted_line,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    stamina.instrumentation.set_on_retry_hooks([])  # calls and outages are logged where they happen
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
