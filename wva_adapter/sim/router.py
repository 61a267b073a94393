"""Which replica a request goes to."""

from __future__ import annotations

from array import array
from collections import deque
from typing import Literal

import numpy as np

from wva_adapter.sim.clients import Call
from wva_adapter.sim.cluster import Pod

Routing = Literal["least-load", "round-robin"]
WhenSaturated = Literal["pass", "shed", "queue"]

QUEUE_FULL = 5
KV_FULL = 0.8
"""From so many waiting requests, or this share of the KV cache, on an endpoint is saturated."""

_NO_ENDPOINT = float("inf")
_SESSIONS = 256
_DRAWN_AT_ONCE = 4096


class Gateway:
    """Sends each request to one endpoint, and knows what it sent.

    A share of the requests goes where their prefix has gone before, the others by ``routing``. The
    load of an endpoint is the tokens of its unfinished requests by its KV-cache size. With
    ``shed`` or ``queue`` only endpoints that are not saturated get requests; while there is none,
    requests are refused, or wait here in order of arrival.

    Attributes:
        queue: Requests that wait here; those that have ended meanwhile are still in it.
        queued: How many have not.
        arrivals_total: Requests that came.
        offline_total: Those of them that nobody waits for.
        endpoints: Pods that take requests, saturated ones too.
    """

    def __init__(
        self,
        routing: Routing,
        when_saturated: WhenSaturated,
        *,
        sticky_share: float = 0.0,
        sessions: np.random.Generator | None = None,
    ) -> None:
        self._routing = routing
        self.when_saturated = when_saturated
        self.queue: deque[Call] = deque()
        self.queued = 0
        self.arrivals_total = 0
        self.offline_total = 0
        self.endpoints = 0
        self._endpoints: list[Pod | None] = []
        self._free: list[int] = []
        self._loads = array("d")
        self._choices = array("d")
        self._choice_view = np.empty(0)
        self._turn = -1
        self._sticky_share = sticky_share
        self._sessions = sessions
        self._drawn: list[tuple[float, int]] = []
        self._active: list[Pod] = []

    def add(self, pod: Pod) -> None:
        """Let a pod take requests."""
        if not self._free:
            # A view pins the array's memory, which is about to move.
            self._choice_view = np.empty(0)
            self._free.append(len(self._endpoints))
            self._endpoints.append(None)
            self._loads.append(0.0)
            self._choices.append(_NO_ENDPOINT)
            self._choice_view = np.frombuffer(self._choices)
        slot = self._free.pop()
        self._endpoints[slot] = pod
        self._loads[slot] = 0.0
        self._choices[slot] = 0.0
        pod.slot = slot
        pod.gateway = self
        self.endpoints += 1
        self._active.append(pod)

    def remove(self, pod: Pod) -> None:
        """Let a pod take no more requests."""
        if pod.slot >= 0:
            self._endpoints[pod.slot] = None
            self._choices[pod.slot] = _NO_ENDPOINT
            self._free.append(pod.slot)
            pod.slot = -1
            self.endpoints -= 1
            self._active.remove(pod)

    def pick(self, call: Call) -> Pod | None:
        """Return the endpoint for a request; ``None`` if none can take it."""
        if not self.endpoints:
            return None
        if self._sticky_share:
            pod = self._known(call)
            if pod is not None:
                return pod
        if self._routing == "round-robin":
            return self._next_in_turn()
        slot = int(self._choice_view.argmin())
        return self._endpoints[slot] if self._choices[slot] != _NO_ENDPOINT else None

    def _known(self, call: Call) -> Pod | None:
        """Return where a request's prefix has gone before; ``None`` if it is new, or that is full.

        There are ``_SESSIONS`` prefixes. Each stays where it is while the endpoints do.
        """
        assert self._sessions is not None
        while len(self._drawn) <= call.index:
            chances = self._sessions.random((_DRAWN_AT_ONCE, 2))
            self._drawn.extend((float(c), int(s * _SESSIONS)) for c, s in chances)
        chance, session = self._drawn[call.index]
        if chance >= self._sticky_share:
            return None
        pod = self._active[session % len(self._active)]
        return pod if self._choices[pod.slot] != _NO_ENDPOINT else None

    def _next_in_turn(self) -> Pod | None:
        count = len(self._endpoints)
        for step in range(1, count + 1):
            slot = (self._turn + step) % count
            if self._choices[slot] != _NO_ENDPOINT:
                self._turn = slot
                return self._endpoints[slot]
        return None

    def sent(self, pod: Pod, call: Call) -> None:
        """Count a request that goes to an endpoint."""
        pod.in_flight += 1
        pod.unprefilled_tokens += call.prompt_tokens - call.cached_tokens
        self._weigh(pod, call.prompt_tokens + call.output_tokens)

    def ended(self, pod: Pod, call: Call) -> None:
        """Count a request that has left an endpoint, however."""
        pod.in_flight -= 1
        if call.first_token_s is None:
            pod.unprefilled_tokens -= call.prompt_tokens - call.cached_tokens
        if pod.slot >= 0:
            self._weigh(pod, -(call.prompt_tokens + call.output_tokens))

    def load(self, pod: Pod) -> float:
        """Return the tokens of an endpoint's unfinished requests by its KV-cache size."""
        return self._loads[pod.slot] if pod.slot >= 0 else 0.0

    def _weigh(self, pod: Pod, tokens: int) -> None:
        assert pod.replica is not None
        slot = pod.slot
        load = self._loads[slot] + tokens / pod.replica.kv_cache_tokens
        self._loads[slot] = load
        if self.when_saturated == "pass":
            self._choices[slot] = load
        else:
            self.judge(pod)

    def judge(self, pod: Pod) -> None:
        """Look whether an endpoint is saturated."""
        replica, slot = pod.replica, pod.slot
        assert replica is not None
        full = (
            replica.queued >= QUEUE_FULL or replica.kv_tokens >= KV_FULL * replica.kv_cache_tokens
        )
        self._choices[slot] = _NO_ENDPOINT if full else self._loads[slot]
