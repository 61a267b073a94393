"""What removals free on the nodes, for whom, and which of several equal ones free most."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import NamedTuple

from wva_adapter.core.fleet import NodeState, Toleration, VariantKey

Counts = Mapping[VariantKey, int]

_ROUNDING = 1e-9
"""By this share sums of floats differ."""


@dataclass(frozen=True, slots=True)
class Tenant:
    """The replicas of one variant, as the nodes have them.

    Attributes:
        accelerator: Type of its devices; ``None`` where nothing says.
        devices: Devices of each.
        ending: The nodes of those that terminate already; ``None`` where one has none.
        order: The nodes of the others, the one that is removed first first.
        gated: How many of them wait for somebody else's permission, not for a node.
        tolerations: Taints of nodes that its pods tolerate.
    """

    key: VariantKey
    accelerator: str | None
    devices: int
    ending: tuple[str | None, ...] = ()
    order: tuple[str | None, ...] = ()
    gated: int = 0
    tolerations: tuple[Toleration, ...] = ()

    @property
    def nodes(self) -> Iterator[str]:
        """The nodes of those that could be removed."""
        return (node for node in self.order if node is not None)

    def leaves(self, count: int) -> Counter[str]:
        """Return by node the devices that become free where ``count`` replicas stay."""
        gone = (*self.ending, *self.order[: max(0, len(self.order) - count)])
        found: Counter[str] = Counter()
        for node in gone:
            if node is not None:
                found[node] += self.devices
        return found

    def waiting(self, count: int) -> int:
        """Return how many of ``count`` replicas wait for a node."""
        placed = sum(node is not None for node in self.order)
        return max(0, count - placed - self.gated)


class Placed(NamedTuple):
    """A waiting replica and the node that would take it."""

    node: str
    key: VariantKey
    devices: int


@dataclass(frozen=True, slots=True)
class Freed:
    """What nodes have once all that is to leave has left.

    Attributes:
        placed: Replicas that wait, as far as one node has all that they need.
        whole: Nodes that become empty, with their devices.
    """

    placed: tuple[Placed, ...]
    whole: Mapping[str, int]

    @property
    def worth(self) -> tuple[int, int]:
        """Return the devices of who gets a place, then those of nodes that become empty."""
        return sum(one.devices for one in self.placed), sum(self.whole.values())


class Ground:
    """The nodes, who is on them, and who is to stay.

    Args:
        nodes: Those with accelerators; one that takes no pods, or of which something is unknown,
            is of no use to anybody.
        tenants: All variants, keys unique.
        counts: How many replicas of each are to stay.
    """

    def __init__(
        self, nodes: Sequence[NodeState], tenants: Sequence[Tenant], counts: Counts
    ) -> None:
        self._nodes = {
            node.name: node
            for node in sorted(nodes, key=lambda node: node.name)
            if node.ready
            and not node.cordoned
            and node.allocatable is not None
            and node.requested is not None
        }
        self._tenants = {tenant.key: tenant for tenant in tenants}
        self._counts: dict[VariantKey, int] = {}
        self._released: Counter[str] = Counter()
        self._waiting: set[VariantKey] = set()
        self._roomy: dict[VariantKey, list[str]] = {}
        self.settle(counts)

    def settle(self, counts: Counts) -> None:
        """Let so many replicas of these variants stay, whatever was said before."""
        for key, count in counts.items():
            tenant = self._tenants[key]
            if key in self._counts:
                self._released.subtract(tenant.leaves(self._counts[key]))
            self._released.update(tenant.leaves(count))
            (self._waiting.add if tenant.waiting(count) else self._waiting.discard)(key)
            self._counts[key] = count
        self._roomy = {}

    def freed(self, counts: Counts) -> Freed:
        """Return what is free where so many replicas of these variants stay.

        Args:
            counts: Of the variants of one model; all others stay as settled. Whole nodes are
                looked for where these have replicas.
        """
        released: Counter[str] = Counter()
        for key, count in counts.items():
            released.update(self._tenants[key].leaves(count))
            released.subtract(self._tenants[key].leaves(self._counts[key]))
        own = {node for key in counts for node in self._tenants[key].nodes if node in self._nodes}
        whole = {
            name: self._nodes[name].allocatable or 0
            for name in sorted(own)
            if 0 < (self._nodes[name].requested or 0) <= self._released[name] + released[name]
        }
        return Freed(tuple(self._places(counts, released, own)), whole)

    def _places(
        self, counts: Counts, released: Counter[str], own: AbstractSet[str]
    ) -> Iterator[Placed]:
        """Yield who waits and gets a place, the largest first, each where it leaves least."""
        left: Counter[str] = Counter(released)

        def free(name: str) -> int:
            return self._nodes[name].free + self._released[name] + left[name]

        waiting = [self._tenants[key] for key in self._waiting | counts.keys()]
        for tenant in sorted(waiting, key=lambda tenant: (-tenant.devices, tenant.key)):
            waits = tenant.waiting(counts.get(tenant.key, self._counts[tenant.key]))
            if not waits:
                continue
            # Elsewhere nothing changes, so what has no room there never has any.
            near = {name for name in own if free(name) >= tenant.devices}
            near = {*self._with_room(tenant), *(n for n in near if self._fits(n, tenant))}
            for _ in range(waits):
                able = [name for name in near if free(name) >= tenant.devices]
                if not able:
                    break
                name = min(able, key=lambda name: (free(name), name))
                left[name] -= tenant.devices
                yield Placed(name, tenant.key, tenant.devices)

    def _with_room(self, tenant: Tenant) -> list[str]:
        """Return the nodes that have room for a replica as settled."""
        if tenant.key not in self._roomy:
            self._roomy[tenant.key] = [
                name
                for name, node in self._nodes.items()
                if node.free + self._released[name] >= tenant.devices and self._fits(name, tenant)
            ]
        return self._roomy[tenant.key]

    def _fits(self, name: str, tenant: Tenant) -> bool:
        node = self._nodes[name]
        return (
            tenant.devices > 0
            and node.accelerator is not None
            and node.accelerator == tenant.accelerator
            and node.admits(tenant.tolerations)
        )

    def accelerator(self, node: str) -> str:
        """Return the type of a node's devices, in words."""
        found = self._nodes[node].accelerator
        return "devices" if found is None else found


@dataclass(frozen=True, slots=True)
class Removal:
    """What may be removed of one variant, of several that carry the same load.

    Attributes:
        price: What one replica counts for.
        lowest: Fewest that may stay.
        highest: Most that may stay: those that there are.
    """

    key: VariantKey
    price: float
    lowest: int
    highest: int


def exchange(
    removals: Sequence[Removal], counts: Counts, ground: Ground, allowed: Callable[[Counts], bool]
) -> Counts:
    """Return counts of the same price whose removals free most.

    Replicas of one variant stay and ones of another go instead, as long as that frees more; where
    nothing is gained the counts stay as they are.

    Args:
        removals: The variants of one model.
        counts: Of these variants, as decided.
        ground: Where they and all others are.
        allowed: Whether other counts may be had.
    """
    best, now = ground.freed(counts).worth, dict(counts)
    while True:
        gains = []
        for other in _exchanges(removals, now):
            worth = ground.freed(other).worth
            if worth > best and allowed(other):
                moved = sum(abs(other[one.key] - counts[one.key]) for one in removals)
                order = tuple(-other[one.key] for one in sorted(removals, key=lambda r: r.key))
                gains.append(((-worth[0], -worth[1], moved, order), worth, other))
        if not gains:
            return now
        _, best, now = min(gains, key=lambda gain: gain[0])


def _exchanges(removals: Sequence[Removal], counts: Counts) -> Iterator[dict[VariantKey, int]]:
    """Yield the counts of equal price that differ in two variants, both of which shrink or stay."""
    for kept in removals:
        for gone in removals:
            if kept is gone or kept.price <= 0 or gone.price <= 0:
                continue
            for back in range(1, kept.highest - counts[kept.key] + 1):
                taken = back * kept.price / gone.price
                whole = round(taken)
                if abs(taken - whole) > _ROUNDING * taken or whole < 1:
                    continue
                if counts[gone.key] - whole < gone.lowest:
                    break
                yield {
                    **counts,
                    kept.key: counts[kept.key] + back,
                    gone.key: counts[gone.key] - whole,
                }


def gain(before: Freed, after: Freed, ground: Ground, namespace: str) -> str:
    """Return in words what the second frees that the first does not.

    Args:
        namespace: Whose variants need no namespace in their names.
    """
    said = []
    extra = Counter(one.key for one in after.placed) - Counter(one.key for one in before.placed)
    came = list((Counter(after.placed) - Counter(before.placed)).elements())
    gained = [one for key in sorted(extra) for one in came if one.key == key][: extra.total()]
    for node, devices in after.whole.items():
        if node not in before.whole:
            whom = [one for one in gained if one.node == node]
            named = "".join(f", for {_who(one, namespace)} {one.devices}" for one in whom)
            said.append(f"node {node} whole ({devices} {ground.accelerator(node)}){named}")
            gained = [one for one in gained if one.node != node]
    said += [
        f"room on node {one.node}, for {_who(one, namespace)} {one.devices} "
        f"{ground.accelerator(one.node)}"
        for one in gained
    ]
    return " and ".join(said)


def _who(one: Placed, namespace: str) -> str:
    name = one.key.name if one.key.namespace == namespace else str(one.key)
    return f"{name}, which waits for {'a block of' if one.devices > 1 else ''}".rstrip()
