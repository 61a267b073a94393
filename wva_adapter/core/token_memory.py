"""What is remembered of the tokens that replicas of one model carry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from wva_adapter.core.fleet import VariantKey


class Hardware(NamedTuple):
    """What a replica runs on; replicas that are equal in it carry the same."""

    accelerator: str | None
    accelerators_per_replica: int


class BoundKey(NamedTuple):
    """Under what a compute bound was observed: the hardware, and how long outputs were."""

    hardware: Hardware
    output_bucket: str | None


@dataclass(frozen=True, slots=True)
class TokenMemory:
    """What one model's replicas taught of their capacity; it outlives them.

    Attributes:
        observed: Tokens in use while requests waited, the oldest first, at most
            ``tokens.BOUNDS_KEPT``.
        capacities: By variant, what its replicas ran on, and what one of them carried in tokens.
        read_at_s: By variant and replica, the Unix time of the page that was added last.
    """

    observed: Mapping[BoundKey, tuple[float, ...]] = field(default_factory=dict)
    capacities: Mapping[VariantKey, tuple[Hardware, float]] = field(default_factory=dict)
    read_at_s: Mapping[tuple[VariantKey, str], float] = field(default_factory=dict)
