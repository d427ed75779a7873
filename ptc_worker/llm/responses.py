"""Answers that models have given, for whoever asks the very same within the time that they are kept."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, cast

import structlog
from pydantic import BaseModel, ValidationError

from ptc_contracts.errors import PayloadTooLargeError, UnreadableBlobError
from ptc_contracts.keys import response_key
from ptc_worker.llm.settling import settled

if TYPE_CHECKING:
    from collections.abc import Iterable

    from redis.asyncio import Redis

    from ptc_contracts.blobs import Blobs
    from ptc_worker.llm.protocol import Prompt, Provider

log = structlog.get_logger(__name__)


class Response(BaseModel):
    """An answer and what it cost."""

    text: str
    truncated: bool
    model: str
    """The model that answered."""
    tokens: int
    """Tokens read and written."""
    cost_usd: float | None
    """US dollars; None if the price is unknown."""
    max_output_tokens: int
    """How long it could be."""


class Responses:
    """The response cache in Redis."""

    def __init__(self, redis: Redis, blobs: Blobs, ttl: int) -> None:
        self._redis, self._blobs, self._ttl = redis, blobs, ttl

    async def find(self, asked: str, max_output_tokens: int) -> Response | None:
        """Return the answer that is kept under a hash; one that cannot be read is none, nor is one cut too soon."""
        kept = cast("bytes | None", await self._redis.get(response_key(asked)))
        if kept is None:
            return None
        try:
            response = Response.model_validate_json(self._blobs.open(kept, "llm", asked))
        except (UnreadableBlobError, ValidationError):
            log.warning("response_not_readable", response=asked)
            return None
        cut_too_soon = response.truncated and response.max_output_tokens < max_output_tokens
        return None if cut_too_soon else response

    async def keep(self, asked: str, response: Response) -> None:
        """Keep an answer, for as long as the setting says."""
        try:
            sealed = self._blobs.seal(response.model_dump_json(), "llm", asked)
        except PayloadTooLargeError:
            return
        await settled(self._redis.set(response_key(asked), sealed, ex=self._ttl))

    async def forget(self, hashes: Iterable[str]) -> None:
        """Drop answers that led to nothing, so that whoever asks again gets others."""
        if keys := [response_key(asked) for asked in hashes if asked]:
            await self._redis.delete(*keys)


def asked_of(provider: Provider, prompt: Prompt) -> str:
    """Hash what is asked and of whom. The same provider at another address, or with another key, is another one."""
    question: list[Any] = [provider.name, provider.mark, provider.model, prompt.system]
    question += [[message.role, message.content] for message in prompt.messages]
    return hashlib.sha256(json.dumps(question).encode()).hexdigest()
