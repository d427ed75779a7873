"""The two wire protocols, as bytes: whole answers, streamed answers, and errors."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ptc_worker.llm.prices import REPLAY_PREFIX
from ptc_worker.llm.protocol import BYTES_PER_TOKEN

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class Served:
    """An answer on its way out."""

    text: str
    model: str
    """The model that was asked for."""
    prompt_chars: int
    finish: str = "stop"
    """`stop`, `length` or `refusal`."""
    disguised: bool = False
    """Whether it bears the model's own name, so that it has the model's price."""

    @property
    def named_model(self) -> str:
        """The model as the answer names it: everybody can see that it was replayed, unless it is disguised."""
        return self.model if self.disguised else f"{REPLAY_PREFIX}{self.model}"

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt, by length."""
        return round(self.prompt_chars / BYTES_PER_TOKEN)

    @property
    def completion_tokens(self) -> int:
        """Tokens of the answer, by length."""
        return max(1, round(len(self.text) / BYTES_PER_TOKEN))


class Dialect(Protocol):
    """One wire protocol."""

    def prompt_text(self, request: dict[str, Any]) -> str:
        """Gather the text of a request's messages."""

    def whole(self, answer: Served) -> bytes:
        """Write an answer in one piece."""

    def opening(self, answer: Served) -> Iterator[bytes]:
        """Write what a stream starts with."""

    def piece(self, answer: Served, text: str) -> bytes:
        """Write a part of the text."""

    def closing(self, answer: Served) -> Iterator[bytes]:
        """Write what a stream ends with."""

    def error(self, kind: str, message: str) -> bytes:
        """Write the body of an error."""

    def stream_error(self, kind: str, message: str) -> bytes:
        """Write an error in the middle of a stream."""


class AnthropicDialect:
    """`POST /v1/messages`."""

    _STOP = {"stop": "end_turn", "length": "max_tokens", "refusal": "refusal"}  # noqa: RUF012 never changed

    def prompt_text(self, request: dict[str, Any]) -> str:
        """Gather system prompt and messages."""
        return "\n".join(
            [_flat(request.get("system", "")), *(_flat(m["content"]) for m in request["messages"])]
        )

    def whole(self, answer: Served) -> bytes:
        """Write an answer in one piece."""
        return _json(
            self._message(answer)
            | {
                "content": [{"type": "text", "text": answer.text}],
                "stop_reason": self._STOP[answer.finish],
                "usage": {"input_tokens": answer.prompt_tokens, "output_tokens": answer.completion_tokens},
            }
        )

    def opening(self, answer: Served) -> Iterator[bytes]:
        """Write `message_start`, a ping and the start of the one text block."""
        usage = {"input_tokens": answer.prompt_tokens, "output_tokens": 1}
        yield _event("message_start", message=self._message(answer) | {"usage": usage})
        yield _event("ping")
        yield _event("content_block_start", index=0, content_block={"type": "text", "text": ""})

    def piece(self, answer: Served, text: str) -> bytes:  # noqa: ARG002 the other dialect needs it
        """Write a text delta."""
        return _event("content_block_delta", index=0, delta={"type": "text_delta", "text": text})

    def closing(self, answer: Served) -> Iterator[bytes]:
        """Write the end of the block, the stop reason with the usage, and `message_stop`."""
        yield _event("content_block_stop", index=0)
        yield _event(
            "message_delta",
            delta={"stop_reason": self._STOP[answer.finish], "stop_sequence": None},
            usage={"output_tokens": answer.completion_tokens},
        )
        yield _event("message_stop")

    def error(self, kind: str, message: str) -> bytes:
        """Write an error as Anthropic words it."""
        return _json(
            {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_replay"}
        )

    def stream_error(self, kind: str, message: str) -> bytes:
        """Write an `error` event."""
        return _event("error", error={"type": kind, "message": message})

    @staticmethod
    def _message(answer: Served) -> dict[str, Any]:
        return {
            "id": "msg_replay",
            "type": "message",
            "role": "assistant",
            "model": answer.named_model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
        }


class OpenAIDialect:
    """`POST /v1/chat/completions`."""

    _FINISH = {"stop": "stop", "length": "length", "refusal": "content_filter"}  # noqa: RUF012 never changed

    def prompt_text(self, request: dict[str, Any]) -> str:
        """Gather the messages."""
        return "\n".join(_flat(m["content"]) for m in request["messages"])

    def whole(self, answer: Served) -> bytes:
        """Write an answer in one piece."""
        message = {"role": "assistant", "content": answer.text, "refusal": None}
        choice = {
            "index": 0,
            "message": message,
            "logprobs": None,
            "finish_reason": self._FINISH[answer.finish],
        }
        return _json(
            self._frame(answer, "chat.completion") | {"choices": [choice], "usage": self._usage(answer)}
        )

    def opening(self, answer: Served) -> Iterator[bytes]:
        """Write the chunk that names the role."""
        yield self._chunk(answer, {"role": "assistant", "content": ""})

    def piece(self, answer: Served, text: str) -> bytes:
        """Write a chunk of text."""
        return self._chunk(answer, {"content": text})

    def closing(self, answer: Served) -> Iterator[bytes]:
        """Write the finish reason, the usage and `[DONE]`."""
        yield self._chunk(answer, {}, self._FINISH[answer.finish])
        frame = self._frame(answer, "chat.completion.chunk")
        yield _data(frame | {"choices": [], "usage": self._usage(answer)})
        yield b"data: [DONE]\n\n"

    def error(self, kind: str, message: str) -> bytes:
        """Write an error as OpenAI words it."""
        return _json({"error": {"message": message, "type": kind, "param": None, "code": kind}})

    def stream_error(self, kind: str, message: str) -> bytes:
        """Write an error chunk as OpenRouter does."""
        return _data({"error": {"message": message, "code": kind}})

    def _chunk(self, answer: Served, delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return _data(self._frame(answer, "chat.completion.chunk") | {"choices": [choice]})

    @staticmethod
    def _frame(answer: Served, kind: str) -> dict[str, Any]:
        return {
            "id": "chatcmpl-replay",
            "object": kind,
            "created": int(time.time()),
            "model": answer.named_model,
        }

    @staticmethod
    def _usage(answer: Served) -> dict[str, Any]:
        return {
            "prompt_tokens": answer.prompt_tokens,
            "completion_tokens": answer.completion_tokens,
            "total_tokens": answer.prompt_tokens + answer.completion_tokens,
        }


DIALECTS: dict[str, Dialect] = {
    "/v1/messages": AnthropicDialect(),
    "/v1/chat/completions": OpenAIDialect(),
}
"""The protocol spoken at each path."""


def _flat(content: str | list[dict[str, Any]]) -> str:
    """Gather the text of a message, which is a string or a list of blocks."""
    return content if isinstance(content, str) else "\n".join(str(block.get("text", "")) for block in content)


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


def _event(kind: str, **fields: object) -> bytes:
    return f"event: {kind}\n".encode() + _data({"type": kind, **fields})


def _data(value: object) -> bytes:
    return b"data: " + _json(value) + b"\n\n"
