"""How long requests wait for a place in a replica's batch, in the long run."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def occupancy(
    arrival_rate_per_s: float, completion_rate_per_s: NDArray[np.float64], capacity: int
) -> NDArray[np.float64]:
    """Return the stationary distribution of the number of requests in one replica.

    A birth-death chain: requests arrive at a constant rate and complete at a rate that depends
    on how many share the batch. Those that find ``capacity`` requests are lost.

    Args:
        arrival_rate_per_s: Requests per second, positive.
        completion_rate_per_s: Shape ``(max_batch,)``, positive. Entry ``n - 1`` is the replica's
            completions per second with ``n`` requests in the batch; the last one also holds while
            more requests queue.
        capacity: Most requests present at once, running and queued; at least ``max_batch``.

    Returns:
        Shape ``(capacity + 1,)``; entry ``n`` is the probability of ``n`` requests. Sums to 1.

    Raises:
        ValueError: A rate is not positive and finite, or ``capacity`` is below ``max_batch``.

    References:
        L. Kleinrock, *Queueing Systems*, vol. 1, 1975, ch. 3.
    """
    # Imported here: the adapter starts without it, and few replicas are short of places.
    import numpy as np

    max_batch = len(completion_rate_per_s)
    if not 0 < arrival_rate_per_s < np.inf:
        raise ValueError(f"arrival rate {arrival_rate_per_s}, want a positive number")
    if max_batch < 1 or capacity < max_batch:
        raise ValueError(f"room for {capacity} with a batch of {max_batch}, want as many, and some")
    if not (np.all(completion_rate_per_s > 0) and np.all(np.isfinite(completion_rate_per_s))):
        raise ValueError("completion rates: want positive numbers only")
    # Logarithms, since the ratios' product overflows at a few hundred requests.
    climb = np.log(arrival_rate_per_s) - np.log(completion_rate_per_s)
    height = np.zeros(capacity + 1)
    height[1 : max_batch + 1] = np.cumsum(climb)
    height[max_batch + 1 :] = height[max_batch] + climb[-1] * np.arange(1, capacity - max_batch + 1)
    share: NDArray[np.float64] = np.exp(height - height.max())
    share /= share.sum()
    return share


def mean_wait_s(
    arrival_rate_per_s: float, completion_rate_per_s: NDArray[np.float64], capacity: int
) -> float:
    """Return how long a request waits for its place in the batch on average, those lost aside.

    By Little's law: who waits, over who gets in. Arguments and errors as of ``occupancy``.
    """
    import numpy as np

    share = occupancy(arrival_rate_per_s, completion_rate_per_s, capacity)
    beyond = share[len(completion_rate_per_s) + 1 :]
    waiting = float(beyond @ np.arange(1, len(beyond) + 1))
    admitted_per_s = arrival_rate_per_s * (1 - float(share[-1]))
    return waiting / admitted_per_s if waiting else 0.0
