"""How OpenAI's API asks for tokens and how vLLM answers: bodies, chunks, errors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, Field

from wva_adapter.emulator.page import FinishedReason

USUAL_ANSWER_TOKENS = 256
"""Tokens after which a chat answer ends by itself, where the request sets no bound."""

_WORD = " token"


class StreamOptions(BaseModel):
    """What a stream carries beside tokens."""

    include_usage: bool = False


class _Body(BaseModel):
    # Sampling parameters and the like change nothing about the time that tokens take.
    model: str
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Literal[1] = 1

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with a count of its tokens."""
        return self.stream_options is not None and self.stream_options.include_usage


class CompletionBody(_Body):
    """The body of ``POST /v1/completions``; one prompt, as text or as tokens."""

    prompt: str | list[int] | list[str] | list[list[int]]
    max_tokens: int | None = Field(16, ge=1)

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt; text counts a token per word.

        Raises:
            ValueError: There is none, or more than one prompt.
        """
        prompt: str | Sequence[int] | Sequence[str] | Sequence[list[int]] = self.prompt
        if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
            if len(prompt) > 1:
                raise ValueError(f"{len(prompt)} prompts in one request, want one")
            prompt = prompt[0]
        count = len(prompt.split()) if isinstance(prompt, str) else len(prompt)
        if not count:
            raise ValueError("the prompt is empty, want at least one token")
        return count

    @property
    def most_tokens(self) -> int | None:
        """Most tokens to generate; ``None`` where the request sets no bound."""
        return self.max_tokens


class ChatPart(BaseModel):
    """A part of a message; what is not text counts nothing."""

    type: str
    text: str = ""


class ChatMessage(BaseModel):
    """One message of a conversation."""

    role: str
    content: str | list[ChatPart] | None = None

    @property
    def tokens(self) -> int:
        """Its tokens: one per word, and one for its role."""
        if isinstance(self.content, str):
            return 1 + len(self.content.split())
        return 1 + sum(len(part.text.split()) for part in self.content or ())


class ChatBody(_Body):
    """The body of ``POST /v1/chat/completions``."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the conversation so far."""
        return sum(message.tokens for message in self.messages)

    @property
    def most_tokens(self) -> int | None:
        """Most tokens to generate; ``None`` where the request sets no bound."""
        return self.max_completion_tokens or self.max_tokens


class Writer:
    """The words of one answer.

    Args:
        chat: An answer to a chat, else a completion.
        number: Tells this answer from others of the server.
        model: Name under which the model is served.
        created_s: Unix time of the request.
        prompt_tokens: Tokens of the prompt.
    """

    def __init__(
        self, *, chat: bool, number: int, model: str, created_s: float, prompt_tokens: int
    ) -> None:
        self._chat = chat
        self._prompt_tokens = prompt_tokens
        self._head: dict[str, object] = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{number:016x}",
            "object": "chat.completion" if chat else "text_completion",
            "created": int(created_s),
            "model": model,
        }
        self._chunk_head = self._head | ({"object": "chat.completion.chunk"} if chat else {})
        # Chunks differ only in their text and in how they end: the rest is written once.
        said = {"delta": {"content": "\0"}} if chat else {"text": "\0"}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": "\0"}
        parts = _event(self._chunk_head | {"choices": [choice]}).split(json.dumps("\0").encode())
        self._before, self._between, self._after = parts

    def first(self) -> bytes:
        """Return what a stream begins with, before any token."""
        if not self._chat:
            return b""
        delta = {"role": "assistant", "content": ""}
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
        return _event(self._chunk_head | {"choices": [choice]})

    def chunk(self, tokens: int, reason: FinishedReason | None) -> bytes:
        """Return the event that carries so many more tokens; the last one carries the reason."""
        text = b'"%b"' % (_WORD * tokens).encode()
        return self._before + text + self._between + json.dumps(reason).encode() + self._after

    def end(self, tokens: int | None) -> bytes:
        """Return what a stream ends with: the count of its tokens if wanted, and the end's mark."""
        usage = b""
        if tokens is not None:
            usage = _event(self._chunk_head | {"choices": [], "usage": self._usage(tokens)})
        return usage + b"data: [DONE]\n\n"

    def whole(self, tokens: int, reason: FinishedReason) -> bytes:
        """Return the answer in one piece."""
        text = _WORD * tokens
        said = {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": reason}
        return json.dumps(self._head | {"choices": [choice], "usage": self._usage(tokens)}).encode()

    def _usage(self, tokens: int) -> dict[str, int]:
        return {
            "prompt_tokens": self._prompt_tokens,
            "total_tokens": self._prompt_tokens + tokens,
            "completion_tokens": tokens,
        }


def rough_tokens(body: object) -> int:
    """Return about how many tokens a body asks for, prompt and answer; 0 if it asks for none."""
    if not isinstance(body, dict):
        return 0
    prompt = body.get("prompt") or [
        message.get("content")
        for message in body.get("messages") or ()
        if isinstance(message, dict)
    ]
    most = body.get("max_completion_tokens") or body.get("max_tokens")
    return _rough_count(prompt) + (most if isinstance(most, int) else USUAL_ANSWER_TOKENS)


def _rough_count(prompt: object) -> int:
    if isinstance(prompt, str):
        return prompt.count(" ") + 1
    if isinstance(prompt, list):
        if prompt and isinstance(prompt[0], int):
            return len(prompt)
        return sum(_rough_count(part) for part in prompt)
    return _rough_count(prompt.get("text")) if isinstance(prompt, dict) else 0


def _event(content: dict[str, object]) -> bytes:
    return f"data: {json.dumps(content)}\n\n".encode()


def error(message: str, kind: str, status: int) -> dict[str, object]:
    """Return the body of a refusal."""
    return {"error": {"message": message, "type": kind, "param": None, "code": status}}
