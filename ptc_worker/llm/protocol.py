"""What a model provider is asked and what it answers, free of every vendor."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

BYTES_PER_TOKEN = 3.5
"""For estimates, before a call and where a provider's own count never comes: code in English runs at 3 to 4.

Texts are counted in UTF-8: a character that takes three bytes is about one token.
"""


@dataclass(frozen=True, kw_only=True)
class Message:
    """One turn of a conversation."""

    role: Literal["user", "assistant"]
    content: str


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What a model is asked. The stable part comes first, so that providers can cache it."""

    system: str
    messages: tuple[Message, ...]

    @property
    def tokens(self) -> int:
        """Estimate of its tokens."""
        texts = (self.system, *(message.content for message in self.messages))
        return round(sum(map(_bytes_of, texts)) / BYTES_PER_TOKEN)


@dataclass(frozen=True, kw_only=True)
class Reply:
    """A complete answer, or one that was cut at the token limit."""

    text: str
    """Empty when the model wrote nothing: an answer all the same, complete and billed."""
    truncated: bool = False


@dataclass
class Tally:
    """What one call has used so far; filled while the answer streams in, so that a failure leaves it true."""

    model: str
    """The model that answers, as the provider names it."""
    accepted: bool = False
    """Whether the provider took the request, and so may bill the call, even if all it sent were keep-alives."""
    prompt_tokens: int | None = None
    """Tokens read, cached ones included; None until the provider says."""
    cached_tokens: int = 0
    """Of these, read from the provider's cache."""
    cache_write_tokens: int = 0
    """Of these, written to it."""
    completion_tokens: int | None = None
    """Tokens written, reasoning included; None until the provider says."""
    reasoning_tokens: int = 0
    """Of these, reasoning, where the provider tells."""
    cost_usd: float | None = None
    """US dollars, where the provider itself tells."""
    thought_bytes: int = 0
    """Length of the reasoning so far, which is billed as written and not part of the answer."""
    text: list[str] = field(default_factory=list)
    """The answer so far."""
    heard: Callable[[], None] = lambda: None
    """Called with each piece of text or reasoning."""
    wrote: Callable[[str], None] = lambda _: None
    """Called with each piece of text; with an empty one for reasoning."""

    @property
    def used_tokens(self) -> int:
        """Tokens read and written; 0 for a request that was not accepted."""
        return (self.prompt_tokens or 0) + (self.completion_tokens or 0) if self.accepted else 0

    @property
    def written_tokens(self) -> int:
        """Estimate of the tokens written so far, reasoning included."""
        return round((self.thought_bytes + sum(map(_bytes_of, self.text))) / BYTES_PER_TOKEN)

    def write(self, text: str) -> None:
        """Add a piece of the answer."""
        self.text.append(text)
        self.heard()
        self.wrote(text)

    def think(self, thought: str) -> None:
        """Add a piece of reasoning."""
        self.thought_bytes += _bytes_of(thought)
        self.heard()
        self.wrote("")


def _bytes_of(text: str) -> int:
    return len(text.encode(errors="replace"))


class Provider(Protocol):
    """One vendor's way to a model."""

    name: str
    """The plan's name for it: claude, kimi, openai or openrouter."""
    model: str
    """The model that is asked for."""
    mark: str
    """What tells its address and key from others, without naming them."""
    rpm: int | None
    """Most requests a minute, of all workers together."""
    tpm: int | None
    """Most tokens a minute, of all workers together."""
    max_output_tokens: int
    """Most tokens of an answer, reasoning included."""

    async def ask(self, prompt: Prompt, tally: Tally, max_output_tokens: int) -> Reply:
        """Ask once, streaming, keeping the tally up to date.

        `max_output_tokens` bounds this one answer.

        Raises:
            ModelError: there is no usable answer; nothing of the vendor's exception goes along.
        """

    async def close(self) -> None:
        """Close the connections."""
