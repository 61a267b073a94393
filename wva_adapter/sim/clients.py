"""What clients send, how long they wait, and what becomes of each request."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from wva_adapter.sim.request import Request

if TYPE_CHECKING:
    from wva_adapter.sim.cluster import Pod

_AT_ONCE = 1 << 14


class Fate(IntEnum):
    """What became of a request."""

    PRESENT = 0
    FINISHED = 1
    TIMEOUT = 2
    KILLED = 3
    SHED = 4
    NO_ENDPOINT = 5
    TOO_LONG = 6


RETRIED = (Fate.KILLED, Fate.SHED, Fate.NO_ENDPOINT)
"""What a client may try again; one whose patience is over does not."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A class of requests.

    Attributes:
        hit_share: The share of its prompts that every replica has in its prefix cache, rounded down.
        due_s: Until when offline requests are to be done, however late each of them begins;
            ``None`` for online ones, which are owed latency.

    Raises:
        ValueError: The share is not from 0 to below 1, or the time not above 0.
    """

    hit_share: float = 0.0
    due_s: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.hit_share < 1:
            raise ValueError(f"hit_share {self.hit_share}, want from 0 to below 1")
        if self.due_s is not None and not 0 < self.due_s < float("inf"):
            raise ValueError(f"due_s {self.due_s}, want above 0")


@dataclass(frozen=True, slots=True)
class Traffic:
    """Requests as they come, in order of time.

    Attributes:
        arrived_s: Seconds, rising.
        prompt_tokens: Lengths of prompts, as many.
        output_tokens: Lengths of answers, as many.
        kinds: Which of the scenario's kinds each is; ``None`` where all are of the first.
    """

    arrived_s: NDArray[np.float64]
    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    kinds: NDArray[np.int64] | None = None

    def __iter__(self) -> Iterator[tuple[float, int, int]]:
        # In pieces: as lists, ten million requests would take a gigabyte.
        for begin in range(0, len(self.arrived_s), _AT_ONCE):
            piece = slice(begin, begin + _AT_ONCE)
            yield from zip(
                self.arrived_s[piece].tolist(),
                self.prompt_tokens[piece].tolist(),
                self.output_tokens[piece].tolist(),
                strict=True,
            )


@dataclass(slots=True, eq=False)
class Call(Request):
    """One request as its client sees it.

    Attributes:
        index: Its place among all requests.
        sent_s: When its client sent it for the first time.
        deadline_s: When its client gives up.
        fate: What became of it.
        pod: Where it is; ``None`` while it is nowhere.
        attempts: How often it was sent before.
        due_s: Until when it is to be done, if it is offline; ``None`` if it is not.
        known_tokens: Tokens of its prompt that were in the prefix cache when it came.
        later_tokens: While one replica prefills it for another: the tokens that it will get there.
        moving: Whether its KV cache is on the way to the one that decodes it.
    """

    index: int = -1
    sent_s: float = 0.0
    deadline_s: float = 0.0
    fate: Fate = Fate.PRESENT
    attempts: int = 0
    due_s: float | None = None
    known_tokens: int = 0
    later_tokens: int = 0
    moving: bool = False
    pod: Pod | None = None


def afresh(call: Call) -> Call:
    """Return a request as it was before it was sent anywhere."""
    again = Call(call.prompt_tokens, call.later_tokens or call.output_tokens, call.known_tokens)
    again.index, again.sent_s, again.known_tokens = call.index, call.sent_s, call.known_tokens
    again.deadline_s, again.due_s = call.deadline_s, call.due_s
    return again


class Fates:
    """What became of every request, in order of arrival; times are ``nan`` where there is none."""

    def __init__(self, count: int) -> None:
        nothing = np.full(count, np.nan).tobytes()
        self._sent_s = array("d", nothing)
        self._first_token_s = array("d", nothing)
        self._ended_s = array("d", nothing)
        self._fates = array("b", bytes(count))

    def record(self, call: Call, ended_s: float, fate: Fate) -> None:
        """Write down how a request ended."""
        call.fate = fate
        index = call.index
        self._sent_s[index] = call.sent_s
        if call.first_token_s is not None:
            self._first_token_s[index] = call.first_token_s
        self._ended_s[index] = ended_s
        self._fates[index] = fate

    @property
    def sent_s(self) -> NDArray[np.float64]:
        """When each was sent."""
        return np.frombuffer(self._sent_s)

    @property
    def first_token_s(self) -> NDArray[np.float64]:
        """When each got its first token."""
        return np.frombuffer(self._first_token_s)

    @property
    def ended_s(self) -> NDArray[np.float64]:
        """When each finished, or failed."""
        return np.frombuffer(self._ended_s)

    @property
    def fates(self) -> NDArray[np.int8]:
        """What became of each, as ``Fate``."""
        return np.frombuffer(self._fates, dtype=np.int8)
