"""Which pods of a variant its controller takes first, and how many it takes."""

from __future__ import annotations

import math
from collections import Counter

from wva_adapter.core.snapshot import Phase, ReplicaState, VariantState


def leaving(state: VariantState, desired: int, at_s: float) -> tuple[ReplicaState, ...]:
    """Return the replicas that are gone once a variant has no more than ``desired``.

    Those that terminate already are among them.
    """
    going = tuple(r for r in state.replicas if r.phase is Phase.TERMINATING)
    ordered = removal_order(state, at_s)
    return (*going, *ordered[: max(0, len(ordered) - desired)])


def removal_order(state: VariantState, at_s: float) -> tuple[ReplicaState, ...]:
    """Return the replicas that do not terminate yet, the first one to be removed first.

    References:
        Kubernetes, ``ActivePodsWithRanks`` in pkg/controller/controller_utils.go: without a node
        before with one, unready before ready, the lower pod-deletion-cost, the one that shares
        its node with more of its kind, the one that was ready for less time (by doublings of that
        time; within one the smaller uid), the newer one. A StatefulSet takes the highest ordinal.
    """
    there = [r for r in state.replicas if r.phase is not Phase.TERMINATING]
    together = Counter(r.node for r in there if r.node is not None)

    def rank(replica: ReplicaState) -> tuple[object, ...]:
        if replica.ordinal is not None:
            return (0, -replica.ordinal)
        ready = replica.phase is Phase.READY
        since_s = replica.ready_at_s if ready else replica.created_at_s
        return (
            1,
            replica.node is not None,
            ready,
            replica.deletion_cost or 0,
            0 if replica.node is None else -together[replica.node],
            _doublings(since_s, at_s),
            replica.uid or "",
            replica.name,
        )

    return tuple(sorted(there, key=rank))


def _doublings(since_s: float | None, at_s: float) -> int:
    """Return how often a nanosecond was doubled since then; what is not known counts as just now."""
    age_ns = 0.0 if since_s is None else 1e9 * (at_s - since_s)
    return int(math.log2(age_ns)) if age_ns > 1 else -1
