"""What clients of a model do, and what they get: open-loop arrivals, streams, latencies."""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import aiohttp
import numpy as np

from wva_adapter.sim.workload import arrivals, lengths

_TAIL_BYTES = 2048
_KEEP_ALIVE_S = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What clients ask for; times are model seconds.

    Attributes:
        schedule: Points ``(t_s, rate_per_s)``, in order of time; straight between them, and over
            at the last one.
        prompt_tokens: Mean of the prompts' lengths.
        output_tokens: Mean of the answers' lengths.
        variation: Standard deviation of both by their mean; lengths are lognormal.
        most_tokens: Longest prompt, and longest answer.
        deadline_s: After so long from its arrival a client gives up.
        most_requests: What would arrive after so many is not sent.
    """

    schedule: Sequence[tuple[float, float]]
    prompt_tokens: float = 1024.0
    output_tokens: float = 256.0
    variation: float = 0.8
    most_tokens: int = 8000
    deadline_s: float = 120.0
    most_requests: int = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One request and what its client got; times are model seconds.

    Attributes:
        arrived_s: When it should be sent, from the start of the load.
        ttft_s: From there to the first token; ``None`` if none came.
        itl_s: Mean time from token to token; ``None`` with fewer than two.
        output_tokens: Tokens that came, as the server counted them.
        failure: Why it has failed; ``None`` if it has not.
    """

    arrived_s: float
    prompt_tokens: int
    ttft_s: float | None
    itl_s: float | None
    output_tokens: int
    failure: str | None

    def in_slo(self, ttft_s: float, itl_s: float) -> bool:
        """Return whether it was answered within both bounds."""
        return (
            self.failure is None
            and self.ttft_s is not None
            and self.ttft_s <= ttft_s
            and (self.itl_s is None or self.itl_s <= itl_s)
        )


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What all clients got."""

    outcomes: tuple[Outcome, ...]

    @property
    def requests(self) -> int:
        """How many requests arrived."""
        return len(self.outcomes)

    @property
    def failures(self) -> Mapping[str, int]:
        """Return the failed requests by reason."""
        return Counter(outcome.failure for outcome in self.outcomes if outcome.failure is not None)

    @property
    def failed(self) -> int:
        """How many failed."""
        return sum(self.failures.values())

    def in_slo(self, ttft_s: float, itl_s: float) -> float | None:
        """Return the share of all requests answered within both bounds; ``None`` without any."""
        if not self.outcomes:
            return None
        return sum(outcome.in_slo(ttft_s, itl_s) for outcome in self.outcomes) / len(self.outcomes)

    def ttft_percentile_s(self, percent: float) -> float | None:
        """Return a percentile of the time to first token; a failed request's is infinite."""
        return _percentile(
            [
                math.inf
                if outcome.failure is not None or outcome.ttft_s is None
                else outcome.ttft_s
                for outcome in self.outcomes
            ],
            percent,
        )

    def itl_percentile_s(self, percent: float) -> float | None:
        """Return a percentile of the mean inter-token times of answered requests."""
        return _percentile(
            [r.itl_s for r in self.outcomes if r.failure is None and r.itl_s is not None], percent
        )


def _percentile(values: list[float], percent: float) -> float | None:
    """Return the smallest value that ``percent`` of them do not exceed; ``None`` without any."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(percent / 100 * len(values)) - 1)]


class Load:
    """Clients that send what a workload says, whatever becomes of it.

    Args:
        url: Where to send it, without a path.
        model: Name of the model to ask for.
        generator: Draws arrivals and lengths, all of them now.
        speed: Model seconds per second of the event loop.

    Attributes:
        in_flight: Requests without an end yet.

    Raises:
        ValueError: The workload's schedule is not one.
    """

    def __init__(
        self,
        url: str,
        model: str,
        workload: Workload,
        generator: np.random.Generator,
        *,
        speed: float = 1.0,
    ) -> None:
        self.in_flight = 0
        self._url = f"{url}/v1/completions"
        self._model = model
        self._speed = speed
        self._deadline_s = workload.deadline_s
        at_s = arrivals(workload.schedule, generator)[: workload.most_requests]
        shape = (workload.variation, workload.most_tokens, len(at_s), generator)
        self._requests = list(
            zip(
                at_s.tolist(),
                lengths(workload.prompt_tokens, *shape).tolist(),
                lengths(workload.output_tokens, *shape).tolist(),
                strict=True,
            )
        )
        self._outcomes: list[Outcome] = []

    def result(self) -> LoadResult:
        """Return what has ended so far, in order of arrival."""
        return LoadResult(tuple(sorted(self._outcomes, key=lambda outcome: outcome.arrived_s)))

    async def run(self) -> LoadResult:
        """Send every request at its time, and return when the last one has ended.

        Cancelled, it ends what is in flight, and ``result`` has what ended before.
        """
        loop = asyncio.get_running_loop()
        async with (
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_S),
                timeout=aiohttp.ClientTimeout(total=None),
            ) as session,
            asyncio.TaskGroup() as clients,
        ):
            begin_s = loop.time()
            for arrived_s, prompt_tokens, output_tokens in self._requests:
                due_s = begin_s + arrived_s / self._speed
                if (left_s := due_s - loop.time()) > 0:
                    await asyncio.sleep(left_s)
                clients.create_task(
                    self._ask(session, due_s, arrived_s, prompt_tokens, output_tokens)
                )
        return self.result()

    async def _ask(
        self,
        session: aiohttp.ClientSession,
        due_s: float,
        arrived_s: float,
        prompt_tokens: int,
        output_tokens: int,
    ) -> None:
        stream = _Stream()
        self.in_flight += 1
        try:
            # Latencies count from when it was due: a late client must not look like a fast server.
            async with asyncio.timeout_at(due_s + self._deadline_s / self._speed):
                failure = await self._read(session, stream, prompt_tokens, output_tokens)
        except TimeoutError:
            failure = "timeout"
        finally:
            self.in_flight -= 1
        ttft_s = itl_s = None
        if stream.first_s is not None:
            ttft_s = (stream.first_s - due_s) * self._speed
            if stream.tokens > 1:
                itl_s = (stream.last_s - stream.first_s) / (stream.tokens - 1) * self._speed
        self._outcomes.append(
            Outcome(
                arrived_s=arrived_s,
                prompt_tokens=prompt_tokens,
                ttft_s=ttft_s,
                itl_s=itl_s,
                output_tokens=stream.tokens,
                failure=failure,
            )
        )

    async def _read(
        self,
        session: aiohttp.ClientSession,
        stream: _Stream,
        prompt_tokens: int,
        output_tokens: int,
    ) -> str | None:
        """Send a request and read its stream; return why it failed, if it did."""
        body = {
            "model": self._model,
            "prompt": "word " * prompt_tokens,
            "max_tokens": output_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
            "ignore_eos": True,
        }
        try:
            async with session.post(self._url, json=body) as answer:
                if answer.status != 200:
                    return f"HTTP {answer.status}"
                now_s = asyncio.get_running_loop().time
                async for part in answer.content.iter_any():
                    stream.take(part, now_s())
        except aiohttp.ClientConnectorError:
            return "refused"
        except aiohttp.ClientError:
            return "cut"
        return stream.close()


class _Stream:
    """The events of one answer; only its times and its end are looked at."""

    def __init__(self) -> None:
        self.first_s: float | None = None
        self.last_s = 0.0
        self.tokens = 0
        self._tail = b""

    def take(self, part: bytes, at_s: float) -> None:
        if self.first_s is None:
            self.first_s = at_s
        self.last_s = at_s
        self._tail = (self._tail + part)[-_TAIL_BYTES:]

    def close(self) -> str | None:
        """Count the tokens; return why this is not a whole answer, if it is not."""
        events = [event.removeprefix(b"data: ") for event in self._tail.split(b"\n\n") if event]
        if not events or events[-1] != b"[DONE]":
            return "cut"
        usage = json.loads(events[-2]).get("usage") if len(events) > 1 else None
        if not usage:
            return "error in the stream"
        self.tokens = usage["completion_tokens"]
        return None
