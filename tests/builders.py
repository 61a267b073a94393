"""Values for tests: what a test does not say is unremarkable."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from wva_adapter.core.decision import Plan
from wva_adapter.core.fleet import Reader, Variant, VariantKey
from wva_adapter.core.memory import Memory
from wva_adapter.core.planner import plan
from wva_adapter.core.policy import Policy
from wva_adapter.core.snapshot import Phase, ReplicaSample, ReplicaState, Snapshot, VariantState


def a_key(name: str = "llama-a100", namespace: str = "chat") -> VariantKey:
    return VariantKey(namespace, name)


def a_variant(
    name: str = "llama-a100",
    *,
    namespace: str = "chat",
    model_id: str = "llama",
    cost: float = 1.2,
    minimum: int = 1,
    maximum: int | None = 10,
    reader: Reader | None = None,
) -> Variant:
    return Variant(
        key=VariantKey(namespace, name),
        model_id=model_id,
        target=f"Deployment {name}",
        accelerator="A100",
        cost_per_h=cost,
        min_replicas=minimum,
        max_replicas=maximum,
        reader=reader,
    )


def a_sample(
    replica: str = "r0",
    *,
    at_s: float = 0.0,
    usage: float | None = 0.3,
    queue: float | None = 0.0,
    awake: bool | None = True,
) -> ReplicaSample:
    return ReplicaSample(
        replica=replica,
        at_s=at_s,
        awake=awake,
        kv_cache_usage=usage,
        kv_cache_tokens=100_000,
        running_requests=4.0,
        queued_requests=queue,
        prompt_tokens_total=1000.0,
        generation_tokens_total=1000.0,
    )


def a_replica(
    name: str = "r0",
    *,
    at_s: float = 0.0,
    usage: float | None = 0.3,
    queue: float | None = 0.0,
    awake: bool | None = True,
    problem: str | None = None,
    seen: bool = True,
) -> ReplicaState:
    sample = a_sample(name, at_s=at_s, usage=usage, queue=queue, awake=awake) if seen else None
    return ReplicaState(name, Phase.READY, sample=sample, problem=problem)


def a_state(
    variant: Variant | None = None,
    *,
    at_s: float = 0.0,
    usage: float | Sequence[float] = 0.3,
    queue: float = 0.0,
    ready: int = 2,
    spec: int | None = -1,
    status: int | None = None,
    replicas: Sequence[ReplicaState] | None = None,
) -> VariantState:
    """A variant with ``ready`` replicas, all alike or as full as ``usage`` lists.

    ``spec`` is the count asked for; as many as exist if not said.
    """
    variant = variant or a_variant()
    if replicas is None:
        usages = [usage] * ready if isinstance(usage, int | float) else list(usage)
        replicas = [
            a_replica(f"{variant.key.name}-{i}", at_s=at_s, usage=u, queue=queue)
            for i, u in enumerate(usages)
        ]
    return VariantState(
        variant=variant,
        spec_replicas=len(replicas) if spec == -1 else spec,
        status_replicas=status,
        replicas=tuple(replicas),
    )


def decide(
    *states: VariantState,
    at_s: float = 0.0,
    policy: Policy | None = None,
    memory: Memory | None = None,
) -> tuple[Plan, Memory]:
    """Run one cycle on these states."""
    return plan(Snapshot(at_s, states), policy or Policy(analysis="saturation"), memory or Memory())


def filled(kind: Any) -> Any:
    """Return a value of this type in which nothing is unknown, empty or, if it can, the default.

    It is made from the type hints, so that a new field is in it without anybody's doing.
    """
    plain = {float: 1.5, int: 1, str: "text", bool: True, bytes: bytes(range(16))}
    origin, arguments = get_origin(kind), get_args(kind)
    if kind in plain:
        return plain[kind]
    if origin in (Union, types.UnionType):
        return filled(next(a for a in arguments if a is not types.NoneType))
    if origin is Literal:
        return arguments[-1]
    if origin is tuple and arguments[-1] is Ellipsis:
        return (filled(arguments[0]),)
    if origin is tuple:
        return tuple(filled(argument) for argument in arguments)
    if origin is frozenset:
        return frozenset({filled(arguments[0])})
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {filled(arguments[0]): filled(arguments[1])}
    if issubclass(kind, Enum):
        return list(kind)[-1]
    hints = get_type_hints(kind)
    names = [f.name for f in fields(kind) if f.init] if is_dataclass(kind) else kind._fields
    make: Any = kind
    return make(**{name: filled(hints[name]) for name in names})
