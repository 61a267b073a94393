"""What is deployed: variants of models, their bounds and readers, and the nodes they run on."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args


class VariantKey(NamedTuple):
    """Who a variant is. Sorts by namespace, then name; ties between variants break on it."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


Role = Literal["both", "prefill", "decode"]
"""What a replica does for a request: all of it, or one part of it."""


class LoadKey(NamedTuple):
    """Who shares one load: the variants of one model in one namespace that do the same part of it."""

    namespace: str
    model_id: str
    role: Role = "both"

    def __str__(self) -> str:
        part = "" if self.role == "both" else f" ({self.role})"
        return f"{self.namespace}/{self.model_id}{part}"


class Taint(NamedTuple):
    """What keeps pods off a node unless they tolerate it; ``value`` may be empty."""

    key: str
    value: str = ""
    effect: str = "NoSchedule"


class Toleration(NamedTuple):
    """What a pod tolerates. An empty key means every one, an empty effect every effect."""

    key: str = ""
    value: str | None = None
    effect: str = ""

    def covers(self, taint: Taint) -> bool:
        """Return whether a pod with this toleration may run despite the taint.

        A ``value`` of ``None`` tolerates every value of the key.
        """
        return (
            self.key in ("", taint.key)
            and self.value in (None, taint.value)
            and self.effect in ("", taint.effect)
        )


@dataclass(frozen=True, slots=True)
class NodeState:
    """A node as it stands; ``None`` is unknown.

    Attributes:
        accelerator: Type of its devices, such as ``H100``; ``None`` where it has none, or where
            nothing says.
        allocatable: Devices that pods may have.
        requested: Devices that pods on it have requested, whoever owns them.
        ready: Whether it takes part in the cluster.
        cordoned: Whether it takes no new pods.
        taints: Those that keep new pods away.

    Raises:
        ValueError: A number of devices is negative.
    """

    name: str
    accelerator: str | None
    allocatable: int | None
    requested: int | None
    ready: bool = True
    cordoned: bool = False
    taints: tuple[Taint, ...] = ()

    def __post_init__(self) -> None:
        for field in ("allocatable", "requested"):
            value = getattr(self, field)
            if value is not None and value < 0:
                raise ValueError(f"node {self.name}: {field} {value}, want at least 0")

    @property
    def free(self) -> int:
        """Devices that a new pod could get; none where that is not known."""
        if not self.ready or self.cordoned or self.allocatable is None or self.requested is None:
            return 0
        return max(0, self.allocatable - self.requested)

    def admits(self, tolerations: tuple[Toleration, ...]) -> bool:
        """Return whether its taints let pods with these tolerations in."""
        return all(any(t.covers(taint) for t in tolerations) for taint in self.taints)


@dataclass(frozen=True, slots=True)
class Reader:
    """The autoscaler that turns the served value into a count (autoscaling/v2 arithmetic).

    Attributes:
        name: How a person would call it: ``HorizontalPodAutoscaler chat/llama-a100``.
        target_type: Which of the two target fields of the external metric it sets.
        target: The target, in replicas for ``AverageValue``; positive.
        tolerance_up: Relative change upwards that it ignores, ``behavior.scaleUp.tolerance``.
        tolerance_down: The same downwards.
        shaped: Whether the value may be shaped for its arithmetic: only who reads the external
            metrics API gets such values, everyone else the count itself.
        least_active: Fewest replicas that it makes of any count above 0.
        paused: Whether it is told not to act.
        paused_replicas: The count at which it is paused; ``None`` where it leaves what there is.
    """

    name: str
    target_type: Literal["AverageValue", "Value"] = "AverageValue"
    target: float = 1.0
    tolerance_up: float = 0.1
    tolerance_down: float = 0.1
    shaped: bool = True
    least_active: int = 0
    paused: bool = False
    paused_replicas: int | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.target) and self.target > 0):
            raise ValueError(f"{self.name}: target {self.target}, want a positive number")
        for field in ("tolerance_up", "tolerance_down"):
            value = getattr(self, field)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{self.name}: {field} {value}, want a number of at least 0")


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to serve a model: a scale target on one accelerator.

    Attributes:
        model_id: The model that it serves; variants with one model id in one namespace share
            the model's load, those of each role its own part of it.
        target: The scale target as a person would name it: ``Deployment llama-a100``.
        accelerator: Device type, such as ``H100``; ``None`` where nothing says.
        accelerators_per_replica: Devices that one replica occupies.
        cost_per_h: What one replica costs in $ per hour.
        min_replicas: Fewest replicas that the operator allows.
        max_replicas: Most replicas that the operator allows; ``None`` where there is no bound.
        reader: Who reads the served value; ``None`` where nobody is known to.
        max_num_seqs: Most requests in one replica's batch; ``None`` where nothing says.
        max_num_batched_tokens: Most tokens that one replica computes in a step; ``None`` where
            nothing says.
        tolerations: Taints of nodes that its pods tolerate.
        resource: The name under which its pods request their devices, such as ``nvidia.com/gpu``;
            ``None`` where nothing says, or where there are several.
        role: What its replicas do for a request.

    Raises:
        ValueError: A number is negative or not finite, ``min_replicas`` is above
            ``max_replicas``, or the role is none.
    """

    key: VariantKey
    model_id: str
    target: str = ""
    accelerator: str | None = None
    accelerators_per_replica: int = 1
    cost_per_h: float = 10.0
    min_replicas: int = 1
    max_replicas: int | None = None
    reader: Reader | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    tolerations: tuple[Toleration, ...] = ()
    resource: str | None = None
    role: Role = "both"

    def __post_init__(self) -> None:
        if self.role not in get_args(Role):
            raise ValueError(f"{self.key}: role {self.role!r}, {want_role(self.role)}")
        if not (math.isfinite(self.cost_per_h) and self.cost_per_h >= 0):
            raise ValueError(
                f"{self.key}: cost_per_h {self.cost_per_h}, want a finite number of at least 0"
            )
        if self.accelerators_per_replica < 0:
            raise ValueError(
                f"{self.key}: accelerators_per_replica {self.accelerators_per_replica}, "
                "want at least 0"
            )
        for field in ("max_num_seqs", "max_num_batched_tokens"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise ValueError(f"{self.key}: {field} {value}, want at least 1")
        if self.min_replicas < 0:
            raise ValueError(f"{self.key}: min_replicas {self.min_replicas}, want at least 0")
        if self.max_replicas is not None and self.max_replicas < self.min_replicas:
            raise ValueError(
                f"{self.key}: max_replicas {self.max_replicas} is below "
                f"min_replicas {self.min_replicas}"
            )

    @property
    def load_key(self) -> LoadKey:
        """With whom it shares a load."""
        return LoadKey(self.key.namespace, self.model_id, self.role)

    def clamp(self, replicas: int) -> int:
        """Return the count nearest to ``replicas`` within this variant's bounds."""
        highest = replicas if self.max_replicas is None else min(replicas, self.max_replicas)
        return max(self.min_replicas, highest)


def want_role(found: str) -> str:
    """Return which roles there are, and which one may have been meant."""
    near = difflib.get_close_matches(found.lower(), get_args(Role), n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"want {', '.join(get_args(Role))}{hint}"
