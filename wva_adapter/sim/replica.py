"""How one engine replica works through its requests: batches, KV cache and time, as vLLM V1 does it.

Time is handed in, so an hour passes as fast as it is asked for. Steps that do the same work are
taken in one leap, in closed form: with B requests decoding and nothing to prefill, step k takes
``first + k · growth`` seconds, until a request finishes, the KV cache is full, or one arrives.
"""

from __future__ import annotations

import math
from collections import deque
from heapq import heappop, heappush

from wva_adapter.sim.hardware import Hardware
from wva_adapter.sim.request import FULL_BATCH, Counters, Observer, Progress, Request

TOKEN_BUDGET = 8192
"""Most tokens in one step, of decoding requests and prefill chunks together."""

ADMISSION_SHARE = 0.99
"""The share of the KV cache up to which waiting requests are taken in."""


class Replica:
    """One replica: a queue, a batch and a KV cache.

    Requests wait in order of arrival. A step takes every decoding request with one token, then
    prefill chunks in order while the token budget lasts, then waiting requests while slots and
    KV cache do. When the cache has no room for one more token of every decoding request, the
    newest one loses its place and is computed again later.

    Args:
        hardware: What it runs on.
        max_num_seqs: Most requests in the batch, 1 to ``TOKEN_BUDGET``.
        kv_cache_tokens: KV-cache size; the hardware's own where it is ``None``.
        leap: Take equal steps at once. The outcome is the same without.

    Attributes:
        counters: What it has done.
        running: Requests in the batch, as an engine publishes it: at the end of a step, those
            left after it.
        waiting: Requests that had no place in that step; one that came during it is not counted.
        now_s: The latest time handed in.
        observer: Told of every step, if there is one.

    Raises:
        ValueError: ``max_num_seqs`` or ``kv_cache_tokens`` is out of range.
    """

    __slots__ = (
        "_admission_tokens",
        "_attention_s",
        "_begin_s",
        "_count",
        "_decoded",
        "_decoding",
        "_ends",
        "_ends_s",
        "_finished",
        "_first_s",
        "_gone",
        "_growth_s",
        "_joined",
        "_kv_decoding",
        "_kv_prefilling",
        "_kv_read_s",
        "_leap",
        "_left_waiting",
        "_prefilling",
        "_running",
        "_started",
        "_step_times",
        "_waiting",
        "counters",
        "kv_cache_tokens",
        "max_num_seqs",
        "now_s",
        "observer",
        "running",
        "waiting",
    )

    def __init__(
        self,
        hardware: Hardware,
        *,
        max_num_seqs: int = 256,
        kv_cache_tokens: int | None = None,
        leap: bool = True,
    ) -> None:
        capacity = hardware.kv_cache_tokens if kv_cache_tokens is None else kv_cache_tokens
        if not 1 <= max_num_seqs <= TOKEN_BUDGET:
            raise ValueError(f"max_num_seqs {max_num_seqs}, want 1 to {TOKEN_BUDGET}")
        if int(ADMISSION_SHARE * capacity) < 2:
            raise ValueError(f"kv_cache_tokens {capacity}, want room for a prompt and an answer")
        self.kv_cache_tokens = capacity
        self.max_num_seqs = max_num_seqs
        self.counters = Counters()
        self.now_s = 0.0
        self.running = 0
        self.waiting = 0
        self._admission_tokens = int(ADMISSION_SHARE * capacity)
        self._step_times = hardware.step_times_s(TOKEN_BUDGET)
        self._kv_read_s = hardware.kv_read_s_per_token
        self._attention_s = hardware.attention_s
        self.observer: Observer | None = None
        self._leap = leap
        self._waiting: deque[Request] = deque()
        # Decoding and prefilling requests in the order in which they joined: the newest is last.
        self._running: dict[Request, None] = {}
        self._prefilling: list[tuple[Request, int]] = []
        self._decoding = 0
        # Which decoding request has all its tokens after which decode step; entries of requests
        # that were preempted or cancelled are stale and skipped.
        self._ends: list[tuple[int, int, Request]] = []
        self._joined = 0
        self._decoded = 0
        self._left_waiting = 0
        self._kv_decoding = 0
        self._kv_prefilling = 0
        self._gone: list[Request] = []
        # The steps in progress: none while idle.
        self._count = 0
        self._begin_s = 0.0
        self._ends_s = math.inf
        self._first_s = 0.0
        self._growth_s = 0.0
        self._started: list[Request] = []
        self._finished: list[Request] = []

    @property
    def kv_tokens(self) -> int:
        """Tokens that the KV cache holds, or has set aside for prompts in work."""
        return self._kv_decoding + self._kv_prefilling

    @property
    def queued(self) -> int:
        """Requests that have no place in the batch now."""
        return len(self._waiting)

    @property
    def longest_tokens(self) -> int:
        """Most tokens of one request, prompt and answer together."""
        return self._admission_tokens

    def present(self) -> tuple[Request, ...]:
        """Return the requests that are neither finished nor cancelled, those in the batch first."""
        return (*(r for r in self._running if r not in self._gone), *self._waiting)

    def kv_blocks(self, block_tokens: int) -> int:
        """Return the KV-cache blocks in use: every request fills its own."""
        return sum(-(-self._held(request) // block_tokens) for request in self._running)

    def generated(self, request: Request) -> int:
        """Return the tokens that a request has got by now."""
        if request.last_step < 0:
            return request.tokens_before
        return request.output_tokens - (request.last_step - self._decoded)

    def next_event_s(self) -> float | None:
        """Return until when nothing starts or finishes if nothing arrives; ``None`` while idle."""
        if not self._count:
            return None
        # The end of a step that is cut out of a leap may round to just before the moment of the cut.
        return max(self._ends_s, self.now_s)

    def submit(self, request: Request, at_s: float) -> None:
        """Let a request arrive.

        Raises:
            ValueError: It could never be served, or ``at_s`` lies in the past.
        """
        needed = request.prompt_tokens + request.output_tokens
        if request.prompt_tokens < 1 or request.output_tokens < 1:
            raise ValueError(f"{needed} tokens, want at least one of prompt and one of output")
        if not 0 <= request.cached_tokens < request.prompt_tokens:
            raise ValueError(
                f"{request.cached_tokens} tokens of the prompt cached, want from 0 to fewer than "
                f"its {request.prompt_tokens}"
            )
        if needed > self._admission_tokens:
            raise ValueError(f"{needed} tokens, want at most {self._admission_tokens}")
        self._settle(at_s, at_boundary=False)
        request.arrived_s = at_s
        self._waiting.append(request)
        if self._count:
            self._truncate()
        else:
            self._schedule(at_s)

    def cancel(self, request: Request, at_s: float) -> bool:
        """Give a request up; return whether it was still present.

        One in the batch leaves it at the end of the step, as an engine cannot stop one midway.

        Raises:
            ValueError: ``at_s`` lies in the past.
        """
        self._settle(at_s, at_boundary=False)
        if request in self._running:
            if request in self._gone:
                return False
            self._gone.append(request)
            self._truncate()
            return True
        try:
            self._waiting.remove(request)
        except ValueError:
            return False
        # The one behind it may have a place at once.
        self._truncate()
        return True

    def advance(self, to_s: float) -> Progress:
        """Let time pass; return who started and finished since the last call.

        Raises:
            ValueError: ``to_s`` lies in the past.
        """
        self._settle(to_s, at_boundary=True)
        progress = Progress(self._started, self._finished)
        if progress.started:
            self._started = []
        if progress.finished:
            self._finished = []
        return progress

    def _held(self, request: Request) -> int:
        if request.last_step < 0:
            return request.prompt_tokens + request.tokens_before
        # The newest token's keys and values are computed in the next step.
        return request.prompt_tokens + self.generated(request) - 1

    def _settle(self, to_s: float, *, at_boundary: bool) -> None:
        """Do the steps that end before ``to_s``, and with ``at_boundary`` those that end then."""
        if to_s < self.now_s:
            raise ValueError(f"time {to_s} s lies before {self.now_s} s")
        self.now_s = to_s
        while (end_s := self._ends_s) < to_s or (end_s == to_s and at_boundary):
            if self._prefilling:
                self._end_prefill(end_s)
            else:
                self._end_decode(self._count)
            self._leave(end_s)
            self._publish()
            self._schedule(end_s)
        if self._count > 1:
            done = self._steps_within(to_s - self._begin_s, at_boundary)
            if done:
                self._end_decode(done)
                self._publish()

    def _publish(self) -> None:
        self.running = len(self._running)
        self.waiting = self._left_waiting

    def _steps_within(self, elapsed_s: float, at_boundary: bool) -> int:
        """Return how many of the steps in progress, but for the last, have ended by now."""
        first, growth, most = self._first_s, self._growth_s, self._count - 1
        linear = first - growth / 2
        if growth > 0:
            root = math.sqrt(linear * linear + 2 * growth * elapsed_s)
            count = int((root - linear) / growth)
        else:
            count = int(elapsed_s / first)
        # The root is exact to a few bits, which is not enough on which side of a step it falls.
        count = min(max(count, 0), most)
        while count < most and self._ended(count + 1, elapsed_s, at_boundary):
            count += 1
        while count and not self._ended(count, elapsed_s, at_boundary):
            count -= 1
        return count

    def _ended(self, count: int, elapsed_s: float, at_boundary: bool) -> bool:
        needed_s = self._duration_s(count)
        return needed_s < elapsed_s or (at_boundary and needed_s == elapsed_s)

    def _duration_s(self, count: int) -> float:
        return count * self._first_s + self._growth_s * (count * (count - 1) / 2)

    def _truncate(self) -> None:
        """Let the steps in progress end with the one that is running now."""
        if self._count > 1:
            self._count = 1
            self._ends_s = self._begin_s + self._first_s

    def _end_decode(self, count: int) -> None:
        """Count ``count`` of the steps in progress, in which only decoding requests took part."""
        batch = self._decoding
        tokens = batch * count
        duration_s = self._duration_s(count)
        self._decoded += count
        self._kv_decoding += tokens
        counters = self.counters
        counters.steps += count
        counters.generation_tokens += tokens
        counters.itl_count += tokens
        counters.itl_sum_s += batch * duration_s
        counters.decode_steps_s += duration_s
        counters.decode_load_s += duration_s * min(1.0, batch / FULL_BATCH)
        if self.observer is not None:
            self.observer.on_steps(count, batch, self._first_s, self._growth_s, 0)
        self._begin_s += duration_s
        self._first_s += self._growth_s * count
        self._count -= count

    def _end_prefill(self, end_s: float) -> None:
        """Count the one step in progress, in which prefill chunks took part."""
        batch = self._decoding
        self._decoded += 1
        self._kv_decoding += batch
        step_s = end_s - self._begin_s
        counters = self.counters
        counters.steps += 1
        counters.generation_tokens += batch
        counters.itl_count += batch
        counters.itl_sum_s += batch * step_s
        counters.prefill_steps_s += step_s
        prompts_tokens = 0
        joined = 0
        unfinished: list[tuple[Request, int]] = []
        for request, chunk in self._prefilling:
            request.prefilled += chunk
            held = request.prompt_tokens + request.tokens_before
            if request.prefilled < held:
                unfinished.append((request, 0))
                continue
            joined += 1
            self._kv_prefilling -= held
            self._kv_decoding += held
            self._joined += 1
            request.tokens_before += 1
            request.last_step = self._decoded + request.output_tokens - request.tokens_before
            heappush(self._ends, (request.last_step, self._joined, request))
            counters.generation_tokens += 1
            if request.first_token_s is None:
                request.first_token_s = end_s
                prompts_tokens += request.prompt_tokens
                counters.prompt_tokens += request.prompt_tokens
                counters.cached_prompt_tokens += request.cached_tokens
                counters.ttft_count += 1
                counters.ttft_sum_s += end_s - request.arrived_s
                if request.scheduled_s is not None:
                    counters.prefill_sum_s += end_s - request.scheduled_s
                if request not in self._gone:
                    self._started.append(request)
            else:
                gap_s = end_s - request.paused_s
                counters.itl_count += 1
                counters.itl_sum_s += gap_s
                if self.observer is not None:
                    self.observer.on_resume(gap_s)
        if self.observer is not None:
            self.observer.on_steps(1, batch, step_s, 0.0, prompts_tokens + joined)
        self._decoding += joined
        self._prefilling = unfinished
        self._count = 0

    def _leave(self, end_s: float) -> None:
        """Let go of the requests that were cancelled or have all their tokens."""
        for request in self._gone:
            del self._running[request]
            self._release(request)
        self._gone.clear()
        ends, decoded = self._ends, self._decoded
        while ends and ends[0][0] <= decoded:
            step, _, request = heappop(ends)
            if request.last_step != step:
                continue
            del self._running[request]
            self._release(request)
            request.finished_s = end_s
            counters = self.counters
            counters.finished += 1
            counters.finished_prompt_tokens += request.prompt_tokens
            counters.finished_output_tokens += request.output_tokens
            self._finished.append(request)

    def _release(self, request: Request) -> None:
        """Free what a request held; it is no longer in the batch."""
        held = self._held(request)
        if request.last_step < 0:
            self._kv_prefilling -= held
            self._prefilling = [entry for entry in self._prefilling if entry[0] is not request]
        else:
            self._kv_decoding -= held
            self._decoding -= 1
            request.tokens_before = self.generated(request)
            request.last_step = -1
        request.prefilled = 0

    def _preempt(self, now_s: float) -> None:
        request, _ = self._running.popitem()
        if request.last_step >= 0:
            request.paused_s = now_s
        self._release(request)
        request.preemptions += 1
        self.counters.preemptions += 1
        self._waiting.appendleft(request)

    def _schedule(self, now_s: float) -> None:
        """Begin the next step, or the next leap, or rest."""
        full = False
        while self._decoding + self._kv_decoding + self._kv_prefilling > self.kv_cache_tokens:
            self._preempt(now_s)
            full = True
        batch = self._decoding
        budget = TOKEN_BUDGET - batch
        attention = 0.0
        for index, (request, _) in enumerate(self._prefilling):
            left = request.prompt_tokens + request.tokens_before - request.prefilled
            chunk = min(left, budget)
            budget -= chunk
            attention += chunk * (request.prefilled + chunk / 2)
            self._prefilling[index] = (request, chunk)
        waiting, running = self._waiting, self._running
        while waiting and budget > 0 and not full and len(running) < self.max_num_seqs:
            request = waiting[0]
            held = request.prompt_tokens + request.tokens_before
            if self._kv_decoding + self._kv_prefilling + held + batch > self._admission_tokens:
                break
            waiting.popleft()
            running[request] = None
            if request.scheduled_s is None:
                request.scheduled_s = now_s
            self._kv_prefilling += held
            # What is computed again after a preemption finds its prefix in the cache too.
            request.prefilled = request.cached_tokens
            chunk = min(held - request.prefilled, budget)
            budget -= chunk
            attention += chunk * (request.prefilled + chunk / 2)
            self._prefilling.append((request, chunk))
        self._left_waiting = len(waiting)
        self._begin_s = now_s
        if self._prefilling:
            self._count = 1
            self._growth_s = 0.0
            self._first_s = (
                self._step_times[TOKEN_BUDGET - budget]
                + self._kv_read_s * self._kv_decoding
                + self._attention_s * attention
            )
            self._ends_s = now_s + self._first_s
        elif batch:
            self._first_s = self._step_times[batch] + self._kv_read_s * self._kv_decoding
            self._growth_s = self._kv_read_s * batch
            self._count = self._equal_steps() if self._leap else 1
            self._ends_s = now_s + self._duration_s(self._count)
        else:
            self._count = 0
            self._ends_s = math.inf
            # No further step will show that those who waited have been cancelled.
            self._publish()

    def _equal_steps(self) -> int:
        """Return how many steps will pass until one finishes or the KV cache is full."""
        ends = self._ends
        while ends[0][2].last_step != ends[0][0]:
            heappop(ends)
        room = (self.kv_cache_tokens - self._kv_decoding) // self._decoding
        return min(ends[0][0] - self._decoded, room)
