"""What ResourceQuota objects bound, as far as devices and pods go."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from wva_adapter.collect.accelerators import is_device
from wva_adapter.collect.autoscalers import parse_quantity
from wva_adapter.collect.objects import QuotaObject
from wva_adapter.core.inventory import PODS, ResourceQuota

_OF_PODS = (PODS, f"count/{PODS}")
_REQUESTS = "requests."
_EVERY_SERVER = {"NotTerminating"}
"""Scopes that all pods of variants are in, since those have no deadline."""


def read_quotas(
    objects: Iterable[QuotaObject], namespaces: Collection[str]
) -> tuple[ResourceQuota, ...]:
    """Return the bounds on devices and pods in these namespaces, in the order of their names.

    One whose scopes need not be those of a variant's pods says nothing, nor does one of which the
    API server has not counted yet what is used.
    """
    found = (
        bound
        for quota in objects
        if quota.metadata.namespace in namespaces and _counts_servers(quota)
        for bound in _bounds(quota)
    )
    return tuple(sorted(found, key=lambda bound: (bound.namespace, bound.name, bound.key)))


def _counts_servers(quota: QuotaObject) -> bool:
    return quota.spec.scope_selector is None and set(quota.spec.scopes) <= _EVERY_SERVER


def _bounds(quota: QuotaObject) -> Iterator[ResourceQuota]:
    for key, hard in quota.status.hard.items():
        used = quota.status.used.get(key)
        device = key.startswith(_REQUESTS) and is_device(key.removeprefix(_REQUESTS))
        if used is None or not (device or key in _OF_PODS):
            continue
        place = quota.metadata.key
        try:
            amounts = int(parse_quantity(hard)), int(parse_quantity(used))
        except ValueError:
            continue
        yield ResourceQuota(place.namespace, place.name, key, *amounts)
