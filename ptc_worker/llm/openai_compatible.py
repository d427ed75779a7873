"""OpenAI, Kimi and OpenRouter, and whatever else speaks `/chat/completions`, through the `openai` SDK."""

from __future__ import annotations

import json
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any

import httpx2
import openai

from ptc_worker.llm.errors import TransientError, UnavailableError, from_answer, in_our_terms
from ptc_worker.llm.protocol import Reply

# openai looks into it where it is there, and does not wait for another thread that is just importing it
with suppress(ImportError):
    import_module("httpx")

if TYPE_CHECKING:
    from openai.types import CompletionUsage
    from openai.types.chat import ChatCompletionChunk

    from ptc_worker.llm.protocol import Prompt, Tally
    from ptc_worker.settings import ProviderSettings

_TIMEOUT = httpx2.Timeout(connect=5, read=120, write=30, pool=5)
"""Per read, not per call: the deadline over the whole call is the caller's (`calls.py`)."""


class OpenAICompatibleProvider:
    """Asks one model behind `/chat/completions`."""

    def __init__(self, settings: ProviderSettings, max_output_tokens: int) -> None:
        self.name = settings.name
        self.model = settings.model
        self.mark, self.rpm, self.tpm = settings.mark, settings.rpm, settings.tpm
        self.max_output_tokens = max_output_tokens
        # OpenAI's reasoning models refuse max_tokens; the others know nothing else.
        self._limit = "max_completion_tokens" if settings.name == "openai" else "max_tokens"
        self._client = openai.AsyncOpenAI(
            api_key=settings.key_or_stand_in, base_url=settings.base_url, timeout=_TIMEOUT, max_retries=0
        )

    async def ask(self, prompt: Prompt, tally: Tally, max_output_tokens: int) -> Reply:
        """Ask once, streaming. No sampling parameter is sent: current models refuse them."""
        answer = self._ask(prompt, tally, max_output_tokens)
        return await in_our_terms(answer, openai.OpenAIError, httpx2.HTTPError)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _ask(self, prompt: Prompt, tally: Tally, max_output_tokens: int) -> Reply:
        return _reply(await self._stream(prompt, tally, max_output_tokens), tally)

    async def _stream(self, prompt: Prompt, tally: Tally, max_output_tokens: int) -> str | None:
        messages: list[Any] = [{"role": "system", "content": prompt.system}]
        messages += [{"role": m.role, "content": m.content} for m in prompt.messages]
        stream = await self._client.chat.completions.create(
            model=self.model,
            messages=messages,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={self._limit: max_output_tokens},
        )
        finish_reason = None
        async with stream:
            if "json" in stream.response.headers.get("content-type", ""):
                # OpenRouter's errors inside HTTP 200; the SDK would read them as a stream without events.
                body = json.loads(await stream.response.aread())
                raise from_answer(None, body, "the answer is not a stream")
            tally.accepted = True
            async for chunk in stream:
                finish_reason = _take(chunk, tally) or finish_reason
        return finish_reason


def _reply(finish_reason: str | None, tally: Tally) -> Reply:
    """Judge a stream that ended by how its end was announced."""
    if finish_reason in {None, "error"}:
        raise TransientError("cut_off", "the stream ended before its end was announced")
    if finish_reason == "content_filter":
        raise UnavailableError("refused", "the provider's filter stopped the answer")
    return Reply(text="".join(tally.text), truncated=finish_reason == "length")


def _take(chunk: ChatCompletionChunk, tally: Tally) -> str | None:
    """Add one chunk to the tally; return the finish reason if it carries one."""
    extra = chunk.model_extra or {}
    if error := extra.get("error"):
        raise from_answer(None, {"error": error}, "error inside the stream")
    tally.model = chunk.model or tally.model
    _count(chunk.usage, tally)
    for choice in chunk.choices or []:
        if choice.delta.refusal:
            raise UnavailableError("refused", "the model refused to answer")
        if choice.delta.content:
            tally.write(choice.delta.content)
        extra = choice.delta.model_extra or {}
        if thought := extra.get("reasoning_content") or extra.get("reasoning"):
            tally.think(thought)
        if usage := (choice.model_extra or {}).get("usage"):  # Kimi's place for it
            _count(openai.types.CompletionUsage.model_construct(**usage), tally)
        if choice.finish_reason:
            return choice.finish_reason
    return None


def _count(usage: CompletionUsage | None, tally: Tally) -> None:
    if usage is None:
        return
    extra = usage.model_extra or {}
    details = usage.prompt_tokens_details
    # Kimi's place, then everyone else's.
    cached = extra.get("cached_tokens") or getattr(details, "cached_tokens", None)
    tally.prompt_tokens, tally.completion_tokens = usage.prompt_tokens, usage.completion_tokens
    tally.cached_tokens = cached or 0
    tally.cache_write_tokens = getattr(details, "cache_write_tokens", None) or 0
    written = usage.completion_tokens_details
    tally.reasoning_tokens = getattr(written, "reasoning_tokens", None) or 0
    if isinstance(cost := extra.get("cost"), int | float):  # OpenRouter tells what it bills
        tally.cost_usd = float(cost)
