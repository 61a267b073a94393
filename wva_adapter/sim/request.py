"""What a request goes through in a replica, and what is counted of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol


@dataclass(slots=True, eq=False)
class Request:
    """One request and what has become of it; times are model seconds.

    Attributes:
        prompt_tokens: At least 1.
        output_tokens: Tokens that it will generate, at least 1.
        cached_tokens: Tokens of its prompt that the prefix cache holds, fewer than all of them: at
            least one is computed.
        arrived_s: When it was submitted.
        scheduled_s: When it first entered the batch; ``None`` before.
        first_token_s: When its first token was there; ``None`` before.
        finished_s: When its last token was there; ``None`` before.
        preemptions: How often its KV cache was taken away and had to be computed again.
        tokens_before: Tokens that it had when it last joined the decoding ones; kept, as what
            follows, by the replica. What it has while it decodes follows from ``last_step``.
        last_step: The decode step after which it has all tokens; negative while it does not decode.
        prefilled: Tokens of its prompt, and of those it had, that are computed by now.
        paused_s: When it got its last token before a preemption.
    """

    prompt_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    arrived_s: float = 0.0
    scheduled_s: float | None = None
    first_token_s: float | None = None
    finished_s: float | None = None
    preemptions: int = 0
    tokens_before: int = 0
    last_step: int = -1
    prefilled: int = 0
    paused_s: float = 0.0


FULL_BATCH = 128
"""Decoding requests from which a step draws no more power."""


@dataclass(slots=True)
class Counters:
    """What a replica has done since it started, as an engine's page counts it.

    Prompt tokens count when their prefill ends, and not again after a preemption. An inter-token
    latency is counted for every token but a request's first.

    Attributes:
        cached_prompt_tokens: Those of the prompt tokens that the prefix cache held.
        prefill_steps_s: Seconds of steps in which prompts were worked on.
        decode_steps_s: Seconds of all other steps.
        decode_load_s: The same, each second times its batch by ``FULL_BATCH``, 1 at most.
    """

    steps: int = 0
    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    generation_tokens: int = 0
    finished: int = 0
    preemptions: int = 0
    ttft_sum_s: float = 0.0
    ttft_count: int = 0
    prefill_sum_s: float = 0.0
    itl_sum_s: float = 0.0
    itl_count: int = 0
    finished_prompt_tokens: int = 0
    finished_output_tokens: int = 0
    prefill_steps_s: float = 0.0
    decode_steps_s: float = 0.0
    decode_load_s: float = 0.0


class Progress(NamedTuple):
    """What happened to requests since the last question, in order of time."""

    started: list[Request]
    """Those that have got their first token."""

    finished: list[Request]
    """Those that have got their last one."""


class Observer(Protocol):
    """Who wants to see every step, such as a page with histograms."""

    def on_steps(
        self, count: int, decoding: int, first_s: float, growth_s: float, other_tokens: int
    ) -> None:
        """Hear of ``count`` equal steps; step k took ``first_s + k · growth_s``.

        Args:
            count: Steps, at least 1.
            decoding: Requests that got one token in each, this long after the one before.
            first_s: Seconds of the first.
            growth_s: Seconds by which each is longer than the one before.
            other_tokens: In each, prompt tokens whose prefill ended, and the tokens that followed.
        """

    def on_resume(self, gap_s: float) -> None:
        """Hear that a preempted request got its next token, so long after the one before."""
