"""What arrived at one model: its rate now, smoothed, and its past at two resolutions."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from wva_adapter.core.change import replace
from wva_adapter.core.portable import ITEM_BYTES

SLOT_S = 5.0
SLOTS = 1440
MINUTE_SLOTS = 12
MINUTES = 8 * 1440

# A cycle that ends this close to the edge of a slot ends on it, and a shorter one is none.
_EDGE_S = 1e-3
# No model gets more; a counter that says so is broken, and its cycle unknown.
_HIGHEST_PER_S = 1e9
_HIGHEST_HALF = 65504.0
_LEVEL_HALVES_S = 15.0
# One cycle so many standard deviations off comes by chance; two on end, to the same side, do once
# in a month.
_STEP_DEVIATIONS = 3.0


@dataclass(frozen=True, slots=True)
class ArrivalHistory:
    """The arrivals of one model, in requests per second; a fresh one knows nothing.

    Time is cut into slots of 5 s that begin with the first cycle, so that regular cycles fill one
    slot each and irregular ones are spread over those they cover. The series are packed numbers,
    oldest first, which a reader views in place; a slot of which less than half was seen is NaN,
    unknown. A cycle of unknown arrivals changes nothing, and what follows shows it as a gap:
    whatever is read from a history stays as it was until something is seen again.

    Attributes:
        rates: Arrivals per second of each slot, 8-byte floats (``<f8``), at most 2 h.
        presents: What counted as the rate at the end of each slot, likewise; never NaN.
        minutes: Arrivals per second of every 12 slots, 2-byte floats (``<e``), at most 8 days.
        minute_slots: Slots at the end of ``rates`` that no minute holds yet, 0 to 11.
        slot_s: Unix time at which the slot begins that is being filled.
        slot_requests: Requests seen in it so far.
        slot_seen_s: Seconds of it that were seen.
        at_s: Unix time up to which arrivals are known; ``None`` before the first cycle.
        span_s: How long the last known cycle was.
        rate_per_s: Its arrivals per second.
        level_per_s: The rate, smoothed, anew after each step.
        level_s: How much of the past the level may be a mean of: what is known since the last step.

    Raises:
        ValueError: The series do not belong together.
    """

    rates: bytes = field(default=b"", metadata={ITEM_BYTES: 8})
    presents: bytes = field(default=b"", metadata={ITEM_BYTES: 8})
    minutes: bytes = field(default=b"", metadata={ITEM_BYTES: 2})
    minute_slots: int = 0
    slot_s: float = 0.0
    slot_requests: float = 0.0
    slot_seen_s: float = 0.0
    at_s: float | None = None
    span_s: float = SLOT_S
    rate_per_s: float = 0.0
    level_per_s: float = 0.0
    level_s: float = 0.0

    def __post_init__(self) -> None:
        slots, odd = divmod(len(self.rates), 8)
        if odd or len(self.presents) != len(self.rates) or len(self.minutes) % 2:
            raise ValueError(
                f"arrivals: {len(self.rates)}, {len(self.presents)} and {len(self.minutes)} bytes, "
                "want 8, 8 and 2 per number, the first two alike"
            )
        if not 0 <= self.minute_slots <= min(slots, MINUTE_SLOTS - 1) or self.span_s <= 0:
            raise ValueError(
                f"arrivals: minute_slots {self.minute_slots} of {slots} and span_s {self.span_s}, "
                "want at most 11 of those there are, and more than 0 s"
            )

    @property
    def present_per_s(self) -> float:
        """The rate that counts now: the level, or a jump above it that chance does not explain.

        The newest cycle less two standard deviations of its own count (Poisson).
        """
        certain = self.rate_per_s - 2 * math.sqrt(self.rate_per_s / self.span_s)
        return max(self.level_per_s, certain)

    @property
    def sigma_per_s(self) -> float:
        """Standard deviation of the level by chance alone (Poisson).

        A smoothed mean is as sure as a plain one over so many seconds, and no more than what is
        known since the last step.
        """
        alpha = 1 - 0.5 ** (self.span_s / _LEVEL_HALVES_S)
        averaged_s = min(self.span_s * (2 - alpha) / alpha, max(self.level_s, self.span_s))
        return math.sqrt(self.level_per_s / averaged_s)

    @property
    def seen_s(self) -> float:
        """How far back the fine series reaches, in seconds."""
        return len(self.rates) // 8 * SLOT_S

    def add(self, at_s: float, requests: float | None, span_s: float) -> ArrivalHistory:
        """Return the history with one more cycle.

        A cycle that overlaps the one before counts from where that ended; where the clock went
        back, the past moves with it.

        Args:
            at_s: Unix time at which the cycle ended.
            requests: Requests that arrived in it; ``None`` where that is unknown.
            span_s: How long it was.
        """
        usable = math.isfinite(at_s) and _EDGE_S <= span_s < math.inf
        if requests is None or not usable or not 0 <= requests <= _HIGHEST_PER_S * span_s:
            return self
        if self.at_s is not None and abs(at_s - self.at_s) < _EDGE_S:
            return self
        rate = requests / span_s
        begin_s = at_s - span_s
        if self.at_s is None:
            first = replace(self, slot_s=begin_s, at_s=begin_s, level_per_s=rate)
            return first._seen(at_s, rate, span_s)
        if at_s < self.at_s:
            back_s = self.at_s - begin_s
            moved = replace(self, slot_s=self.slot_s - back_s, at_s=begin_s)
            return moved._seen(at_s, rate, span_s)
        if begin_s - self.at_s > MINUTES * MINUTE_SLOTS * SLOT_S:
            return ArrivalHistory().add(at_s, requests, span_s)
        return self._seen(at_s, rate, span_s)

    def _seen(self, at_s: float, rate: float, span_s: float) -> ArrivalHistory:
        assert self.at_s is not None
        begin_s = max(self.at_s, at_s - span_s)
        gap = self if begin_s <= self.at_s else self._filled(begin_s, None)
        elapsed_s = at_s - self.at_s
        if self._steps(rate, span_s):
            level_s = self.span_s + span_s
            level = (self.rate_per_s * self.span_s + rate * span_s) / level_s
        else:
            # No trend: one that follows a step carries the level past it for two minutes, and a
            # steady rise is looked for apart.
            level_s = self.level_s + elapsed_s
            alpha = max(1 - 0.5 ** (elapsed_s / _LEVEL_HALVES_S), elapsed_s / level_s)
            level = self.level_per_s + alpha * (rate - self.level_per_s)
        smoothed = replace(
            gap,
            span_s=span_s,
            rate_per_s=rate,
            level_per_s=level,
            level_s=level_s,
        )
        return smoothed._filled(at_s, rate)

    def _steps(self, rate: float, span_s: float) -> bool:
        """Return whether this cycle and the one before are off the level, further than by chance."""

        def off(rate: float, span_s: float) -> float:
            # One request more or less is never surprising.
            chance = math.sqrt(max(self.level_per_s, 1 / span_s) / span_s)
            return (rate - self.level_per_s) / chance

        both = off(self.rate_per_s, self.span_s), off(rate, span_s)
        return min(both) > _STEP_DEVIATIONS or max(both) < -_STEP_DEVIATIONS

    def _filled(self, until_s: float, rate: float | None) -> ArrivalHistory:
        """Return the history carried on to ``until_s`` at one rate; ``None`` is an unknown one."""
        assert self.at_s is not None
        closed = int((until_s - self.slot_s + _EDGE_S) // SLOT_S)
        if closed <= 0:
            spent_s = 0.0 if rate is None else until_s - self.at_s
            return replace(
                self,
                at_s=until_s,
                slot_requests=self.slot_requests + spent_s * (rate or 0.0),
                slot_seen_s=self.slot_seen_s + spent_s,
            )
        first, value = self.slot_requests, math.nan if rate is None else rate
        seen_s = self.slot_seen_s
        if rate is not None:
            rest_s = max(0.0, self.slot_s + SLOT_S - self.at_s)
            first, seen_s = first + rest_s * rate, seen_s + rest_s
        slots = [first / seen_s if seen_s >= SLOT_S / 2 else math.nan] + [value] * (closed - 1)
        slot_s = self.slot_s + closed * SLOT_S
        spent_s = 0.0 if rate is None else max(0.0, until_s - slot_s)
        present = struct.pack("<d", self.present_per_s)
        rates = self.rates + struct.pack(f"<{closed}d", *slots)
        minutes, minute_slots = self._minutes(rates, closed)
        return replace(
            self,
            rates=rates[-8 * SLOTS :],
            presents=(self.presents + present * closed)[-8 * SLOTS :],
            minutes=minutes,
            minute_slots=minute_slots,
            slot_s=slot_s,
            slot_requests=spent_s * (rate or 0.0),
            slot_seen_s=spent_s,
            at_s=until_s,
        )

    def _minutes(self, rates: bytes, closed: int) -> tuple[bytes, int]:
        """Return the minutes once ``closed`` more slots ended ``rates``, and how many are left."""
        loose = self.minute_slots + closed
        full = loose // MINUTE_SLOTS
        if not full:
            return self.minutes, loose
        slots = struct.unpack(f"<{loose}d", rates[-8 * loose :])
        means = [_mean(slots[k * MINUTE_SLOTS : (k + 1) * MINUTE_SLOTS]) for k in range(full)]
        minutes = self.minutes + struct.pack(f"<{full}e", *means)
        return minutes[-2 * MINUTES :], loose % MINUTE_SLOTS


def _mean(slots: Sequence[float]) -> float:
    known = [rate for rate in slots if not math.isnan(rate)]
    if len(known) < MINUTE_SLOTS / 2:
        return math.nan
    return min(_HIGHEST_HALF, sum(known) / len(known))
