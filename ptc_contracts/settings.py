"""How to reach Redis, from the environment variables that users already have."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Self
from urllib.parse import SplitResult, quote, urlsplit

from pydantic import BaseModel, ConfigDict, Field

from ptc_contracts.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

_SOCKET_SCHEMES = {"unix", "redis+socket"}
_SCHEMES = {"redis", "rediss"} | _SOCKET_SCHEMES
_DATABASE = re.compile(r"(?:^|&)(db=[0-9]+)(?=&|$)")


class RedisSettings(BaseModel):
    """One Redis database, in the two spellings that redis-py and Celery want."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    url: str = Field(repr=False)
    """The address as redis-py reads it: `redis://`, `rediss://` or `unix://`. It may hold a password."""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """Read `REDIS_URL`, or `REDIS_PORT` and `REDIS_DB` on this machine; `REDIS_PASSWORD` completes both.

        Raises:
            ConfigurationError: a value cannot be understood. The message names the variable, not the value.
        """
        password = environ.get("REDIS_PASSWORD", "")
        if not (url := environ.get("REDIS_URL", "").strip()):
            port = _whole_number(environ, "REDIS_PORT", 6379)
            url = f"redis://localhost:{port}/{_whole_number(environ, 'REDIS_DB', 0)}"
        parts = _split(url)
        if parts.scheme not in _SCHEMES:
            raise ConfigurationError(
                f"REDIS_URL must start with one of {', '.join(f'{s}://' for s in sorted(_SCHEMES))}"
            )
        if password and not parts.password:
            user, host = parts.username or "", parts.netloc.rpartition("@")[2]
            parts = parts._replace(netloc=f"{user}:{quote(password, safe='')}@{host}")
        if parts.scheme in _SOCKET_SCHEMES:
            query = parts.query.replace("virtual_host=", "db=")
            return cls(url=_joined(parts._replace(scheme="unix", query=query)))
        return cls(url=_joined(parts))

    @property
    def celery_url(self) -> str:
        """The same address as Celery reads it: sockets are `redis+socket://`, the database `virtual_host`."""
        parts = urlsplit(self.url)
        if parts.scheme == "rediss" and "ssl_cert_reqs" not in parts.query:
            query = "&".join(filter(None, (parts.query, "ssl_cert_reqs=CERT_REQUIRED")))  # Celery insists
            return _joined(parts._replace(query=query))
        if parts.scheme != "unix":
            return self.url
        query = parts.query.replace("db=", "virtual_host=")
        return _joined(parts._replace(scheme="redis+socket", query=query or "virtual_host=0"))

    @property
    def shown(self) -> str:
        """The address without its password, for messages; of its query, which may hold one too, only the database."""
        parts = urlsplit(self.url)
        database = _DATABASE.search(parts.query)
        query = database[1] if database else ""
        return _joined(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=query))


def _split(url: str) -> SplitResult:
    """Take an address apart, refusing a port or a database that is no number."""
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ConfigurationError("REDIS_URL is not an address") from None
    try:
        _ = parts.port
    except ValueError:
        raise ConfigurationError("REDIS_URL has a port that is not a number up to 65535") from None
    database = parts.path.strip("/") if parts.scheme in {"redis", "rediss"} else ""
    if database and not database.isdecimal():
        raise ConfigurationError(
            "REDIS_URL has a database that is not a whole number (a / in its password is written %2F)"
        )
    return parts


def _joined(parts: SplitResult) -> str:
    """Write an address; unlike `urlunsplit` it keeps the slashes of an empty host, which sockets have."""
    query = f"?{parts.query}" if parts.query else ""
    return f"{parts.scheme}://{parts.netloc}{parts.path}{query}"


def _whole_number(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name, "").strip() or str(default)
    if not text.isdecimal():
        raise ConfigurationError(f"{name} must be a whole number")
    return int(text)
