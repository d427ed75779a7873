"""Claude, through the `anthropic` SDK."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anthropic
import httpx2

from ptc_worker.llm.errors import TransientError, UnavailableError, in_our_terms
from ptc_worker.llm.protocol import Reply

if TYPE_CHECKING:
    from anthropic.types import MessageDeltaUsage, RawMessageStreamEvent, Usage

    from ptc_worker.llm.protocol import Prompt, Tally
    from ptc_worker.settings import ProviderSettings

_TIMEOUT = httpx2.Timeout(connect=5, read=120, write=30, pool=5)
"""Per read, not per call: the deadline over the whole call is the caller's (`calls.py`)."""

_CUT = {"max_tokens", "model_context_window_exceeded"}


class ClaudeProvider:
    """Asks one Claude model."""

    name = "claude"

    def __init__(self, settings: ProviderSettings, max_output_tokens: int) -> None:
        self.model = settings.model
        self.mark, self.rpm, self.tpm = settings.mark, settings.rpm, settings.tpm
        self.max_output_tokens = max_output_tokens
        self._client = anthropic.AsyncAnthropic(
            api_key=settings.key_or_stand_in, base_url=settings.base_url, timeout=_TIMEOUT, max_retries=0
        )

    async def ask(self, prompt: Prompt, tally: Tally, max_output_tokens: int) -> Reply:
        """Ask once, streaming. No sampling parameter is sent: current models refuse them."""
        answer = self._ask(prompt, tally, max_output_tokens)
        return await in_our_terms(answer, anthropic.AnthropicError, httpx2.HTTPError)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _ask(self, prompt: Prompt, tally: Tally, max_output_tokens: int) -> Reply:
        return _reply(await self._stream(prompt, tally, max_output_tokens), tally)

    async def _stream(self, prompt: Prompt, tally: Tally, max_output_tokens: int) -> str | None:
        messages: list[Any] = [{"role": m.role, "content": m.content} for m in prompt.messages]
        stream = await self._client.messages.create(
            model=self.model,
            max_tokens=max_output_tokens,
            system=prompt.system,
            messages=messages,
            cache_control={"type": "ephemeral"},
            stream=True,
        )
        tally.accepted = True
        stop_reason = None
        async with stream:
            async for event in stream:
                stop_reason = _take(event, tally) or stop_reason
        return stop_reason


def _reply(stop_reason: str | None, tally: Tally) -> Reply:
    """Judge a stream that ended by how its end was announced."""
    if stop_reason is None:
        raise TransientError("cut_off", "the stream ended before its end was announced")
    if stop_reason == "refusal":
        raise UnavailableError("refused", "the model refused to answer")
    return Reply(text="".join(tally.text), truncated=stop_reason in _CUT)


def _take(event: RawMessageStreamEvent, tally: Tally) -> str | None:
    """Add one event to the tally; return the stop reason if it carries one."""
    match event.type:
        case "message_start":
            tally.model = event.message.model
            _count(event.message.usage, tally)
        case "content_block_delta" if event.delta.type == "text_delta":
            tally.write(event.delta.text)
        case "content_block_delta" if event.delta.type == "thinking_delta":
            tally.think(event.delta.thinking)
        case "message_delta":
            tally.completion_tokens = event.usage.output_tokens
            details = event.usage.output_tokens_details
            tally.reasoning_tokens = getattr(details, "thinking_tokens", None) or 0
            return event.delta.stop_reason
    return None


def _count(usage: Usage | MessageDeltaUsage, tally: Tally) -> None:
    """Read the prompt's tokens: Anthropic's `input_tokens` leaves the cached ones out, our tally does not."""
    tally.cached_tokens = usage.cache_read_input_tokens or 0
    tally.cache_write_tokens = usage.cache_creation_input_tokens or 0
    tally.prompt_tokens = (usage.input_tokens or 0) + tally.cached_tokens + tally.cache_write_tokens
