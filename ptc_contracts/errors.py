"""The errors that callers meet, grouped by what they can do.

PTCError
├── ConfigurationError   set the variable that the message names
├── InvalidPlanError     fix the plan: the message names each field
├── PayloadTooLargeError make the plan smaller, or raise PTC_MAX_PAYLOAD_MB
├── RunNotFoundError     the run has expired, or the id is wrong
├── RunNotFinishedError  wait longer: the run goes on
└── ServerUnavailableError   Redis cannot be reached: start it, or try later
"""

from __future__ import annotations


class PTCError(Exception):
    """The root of what PTC raises on purpose; all of it crosses processes as its text alone."""


class ConfigurationError(PTCError):
    """A setting is missing or cannot be understood; the message names it."""


class InvalidPlanError(PTCError, ValueError):
    """A plan breaks the contract; the message names every field that does."""


class PayloadTooLargeError(PTCError, ValueError):
    """A part of a run is larger than `PTC_MAX_PAYLOAD_MB`; the message tells which, and by how much."""


class RunNotFoundError(PTCError, LookupError):
    """No record of this run: it has expired or never was."""


class RunNotFinishedError(PTCError, TimeoutError):
    """The caller's own time to wait is over; the run goes on and can be asked again."""


class ServerUnavailableError(PTCError, ConnectionError):
    """Redis did not answer; nothing is known about the outcome of what was asked."""
