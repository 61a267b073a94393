"""Where new replicas fit: free devices node by node, and the limits and quotas on them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from wva_adapter.core.allocation import Option
from wva_adapter.core.fleet import NodeState, Toleration, VariantKey
from wva_adapter.core.inventory import taken


@dataclass(frozen=True, slots=True)
class Quota:
    """What pods of one namespace may still request.

    Attributes:
        name: What its operator calls it.
        left: What is left of it now, at least 0.
        accelerator: The type of the devices that it counts; ``None`` where it counts all.
        resource: What a ResourceQuota object counts: devices by the name under which pods request
            them, or pods; ``None`` where the settings have the quota.
    """

    namespace: str
    name: str
    left: int
    accelerator: str | None = None
    resource: str | None = None

    def uses(self, option: Option) -> int:
        """Return what one replica takes of it."""
        if option.key.namespace != self.namespace:
            return 0
        if self.resource is None:
            return option.devices if self.accelerator in (None, option.accelerator) else 0
        return taken(self.resource, option.resource, option.devices)

    def lacks(self, left: int, needed: int) -> str:
        """Return in words that too little is left for a replica."""
        kind, unit = "quota", "devices"
        if self.resource is not None:
            kind, unit = "ResourceQuota", self.resource
        return f"{kind} {self.name} of namespace {self.namespace} has {left} {unit} left, {needed} needed"


@dataclass(frozen=True, slots=True)
class Supply:
    """What replicas can be added on.

    Attributes:
        nodes: The nodes that there are; ``None`` where nothing is known of them, or where more
            come when pods wait: then they bound nothing.
        limits: By accelerator type, the most devices that all variants together may hold.
        quotas: Per namespace.
    """

    nodes: tuple[NodeState, ...] | None = None
    limits: Mapping[str, int] = field(default_factory=dict)
    quotas: tuple[Quota, ...] = ()

    @property
    def bounded(self) -> bool:
        """Whether anything is bounded at all."""
        return self.nodes is not None or bool(self.limits) or bool(self.quotas)


@dataclass(frozen=True, slots=True)
class Bound:
    """One inequality that all additions together must keep: Σ uses · added ≤ most.

    Attributes:
        uses: By variant, what one added replica uses; absent where it uses nothing.
    """

    most: int
    uses: Mapping[VariantKey, int]


class Room:
    """The devices that are left while a plan is made; ``take`` uses them up.

    A replica needs all its devices on one node. It gets the node with the least room that
    suffices, so that whole nodes stay free for those that need them.

    Args:
        options: All variants. What they hold counts against limits, and replicas that were asked
            for and have no devices yet get theirs first.
    """

    def __init__(self, supply: Supply, options: Iterable[Option]) -> None:
        self._supply = supply
        # By type, by the taints of the nodes, how many nodes have how many devices free.
        self._nodes: dict[str, dict[int, dict[int, int]]] = {}
        self._kinds: list[NodeState] = []
        self._admitting: dict[tuple[str, tuple[Toleration, ...]], tuple[int, ...]] = {}
        kinds: dict[object, int] = {}
        known = [node for node in supply.nodes or () if node.accelerator is not None]
        for node in sorted(known, key=lambda n: (n.accelerator or "", n.taints, n.name)):
            if node.accelerator is None:
                continue
            kind = kinds.setdefault((node.accelerator, node.taints), len(kinds))
            if kind == len(self._kinds):
                self._kinds.append(node)
            free = self._nodes.setdefault(node.accelerator, {}).setdefault(kind, {})
            if node.free:
                free[node.free] = free.get(node.free, 0) + 1
        self._held = dict.fromkeys(supply.limits, 0)
        self._left = [quota.left for quota in supply.quotas]
        ordered = sorted(options, key=lambda o: (-o.devices, o.key))
        for option in ordered:
            if option.accelerator in self._held:
                self._held[option.accelerator] += option.devices * option.current
        for option in ordered:
            for _ in range(option.pending):
                if self._take_node(option) is not None:
                    break

    def take(self, option: Option) -> str | None:
        """Take the devices of one more replica; return why there are none, ``None`` if taken."""
        devices, accelerator = option.devices, option.accelerator
        limit = None if accelerator is None else self._supply.limits.get(accelerator)
        if limit is not None and accelerator is not None and devices:
            held = self._held[accelerator]
            if held + devices > limit:
                return f"{accelerator} limited to {limit} devices, {held} in use, {devices} needed"
        uses = [quota.uses(option) for quota in self._supply.quotas]
        short = [i for i, needed in enumerate(uses) if self._left[i] < needed]
        if short:
            # Where several are too small, the one with room for the fewest is the one to raise.
            least = min(short, key=lambda i: (self._left[i] / uses[i], i))
            return self._supply.quotas[least].lacks(self._left[least], uses[least])
        why = self._take_node(option)
        if why is not None:
            return why
        for index, needed in enumerate(uses):
            self._left[index] -= needed
        if limit is not None and accelerator is not None:
            self._held[accelerator] += devices
        return None

    def bounds(self, options: Sequence[Option]) -> tuple[Bound, ...]:
        """Return the inequalities that every plan which fits keeps.

        For nodes there is one per size of replica: a node with f devices free holds ⌊f/s⌋ blocks
        of s, and a replica of d occupies ⌊d/s⌋ of them. Where each size divides the next larger
        one, plans that keep all of them fit.
        """
        sized = [o for o in options if o.devices and o.accelerator is not None]
        found = [
            Bound(
                max(0, limit - self._held[accelerator]),
                {o.key: o.devices for o in sized if o.accelerator == accelerator},
            )
            for accelerator, limit in sorted(self._supply.limits.items())
        ]
        for quota, left in zip(self._supply.quotas, self._left, strict=True):
            found.append(Bound(left, {o.key: n for o in options if (n := quota.uses(o))}))
        if self._supply.nodes is not None:
            found += self._node_bounds(sized)
        return tuple(bound for bound in found if bound.uses)

    def _node_bounds(self, options: Sequence[Option]) -> list[Bound]:
        groups: dict[tuple[str, frozenset[int]], list[Option]] = {}
        for option in options:
            accelerator = option.accelerator or ""
            kinds: tuple[int, ...] = ()
            if accelerator in self._nodes:
                kinds = self._admits(accelerator, option.tolerations)
            groups.setdefault((accelerator, frozenset(kinds)), []).append(option)
        found = []
        for accelerator, kinds_of in groups:
            # Whoever may go on some of these nodes only shares them too.
            among = [
                option
                for (other, subset), members in groups.items()
                if other == accelerator and subset <= kinds_of
                for option in members
            ]
            for size in sorted({o.devices for o in among}):
                blocks = sum(
                    free // size * nodes
                    for kind in kinds_of
                    for free, nodes in self._nodes[accelerator][kind].items()
                )
                uses = {o.key: o.devices // size for o in among if o.devices >= size}
                found.append(Bound(blocks, uses))
        return found

    def _take_node(self, option: Option) -> str | None:
        devices, accelerator = option.devices, option.accelerator
        if devices == 0 or accelerator is None or self._supply.nodes is None:
            return None
        kinds = self._nodes.get(accelerator)
        if kinds is None:
            return f"no node has {accelerator}"
        best: tuple[int, int] | None = None
        admitting = self._admits(accelerator, option.tolerations)
        for kind in admitting:
            for free, nodes in kinds[kind].items():
                if nodes and free >= devices and (best is None or (free, kind) < best):
                    best = (free, kind)
        if best is None:
            return self._shortage(option, admitting)
        free, kind = best
        counts = kinds[kind]
        counts[free] -= 1
        if free > devices:
            counts[free - devices] = counts.get(free - devices, 0) + 1
        return None

    def _admits(self, accelerator: str, tolerations: tuple[Toleration, ...]) -> tuple[int, ...]:
        place = (accelerator, tolerations)
        if place not in self._admitting:
            self._admitting[place] = tuple(
                kind for kind in self._nodes[accelerator] if self._kinds[kind].admits(tolerations)
            )
        return self._admitting[place]

    def _shortage(self, option: Option, admitting: tuple[int, ...]) -> str:
        accelerator, devices = option.accelerator or "", option.devices
        free = {
            kind: sum(size * nodes for size, nodes in counts.items())
            for kind, counts in self._nodes[accelerator].items()
        }
        usable = sum(free[kind] for kind in admitting)
        if usable >= devices:
            return f"{usable} {accelerator} free, but no node has {devices} together"
        tainted = sum(free.values()) - usable
        words = f"{usable} {accelerator} free, {devices} needed"
        if tainted:
            words += f" ({tainted} more on nodes whose taints it does not tolerate)"
        return words
