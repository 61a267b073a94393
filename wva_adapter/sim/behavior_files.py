"""The ``behavior`` of an autoscaling/v2 manifest, and the quantities in it."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from wva_adapter.core.hpa_sync import DOWN, UP, Behavior, Direction, Rate
from wva_adapter.documents import Section
from wva_adapter.errors import ConfigError

_QUANTITY = re.compile(r"(\d+\.?\d*|\.\d+)([mk]?)")
_SCALE = {"m": 0.001, "": 1.0, "k": 1000.0}


def _quantity(value: object) -> object:
    if not isinstance(value, str):
        return value
    found = _QUANTITY.fullmatch(value)
    if found is None:
        raise ValueError("want a quantity such as 3, 0.6 or 600m")
    return float(found[1]) * _SCALE[found[2]]


Quantity = Annotated[float, BeforeValidator(_quantity)]
"""A number as Kubernetes writes it, with or without quotes."""


class _Policy(Section):
    type: Literal["Pods", "Percent"]
    value: Annotated[int, Field(gt=0)]
    periodSeconds: Annotated[int, Field(gt=0, le=1800)]


class _Direction(Section):
    stabilizationWindowSeconds: Annotated[int | None, Field(ge=0, le=3600)] = None
    selectPolicy: Literal["Max", "Min", "Disabled"] = "Max"
    policies: list[_Policy] | None = None
    tolerance: Annotated[Quantity | None, Field(ge=0)] = None


class BehaviorFile(Section):
    """The ``behavior`` of an autoscaling/v2 manifest."""

    scaleUp: _Direction | None = None
    scaleDown: _Direction | None = None


def to_behavior(document: BehaviorFile | None, where: str) -> Behavior | None:
    """Return what a manifest's ``behavior`` means, with the defaults that Kubernetes fills in.

    Raises:
        ConfigError: A direction has an empty list of policies.
    """
    if document is None:
        return None
    return Behavior(
        _direction(document.scaleUp, UP, f"{where}.scaleUp"),
        _direction(document.scaleDown, DOWN, f"{where}.scaleDown"),
    )


def _direction(document: _Direction | None, default: Direction, where: str) -> Direction:
    if document is None:
        return default
    rates = default.rates
    if document.policies is not None:
        if not document.policies:
            raise ConfigError(f"{where}.policies: found [], want at least one")
        rates = tuple(Rate(p.type, p.value, float(p.periodSeconds)) for p in document.policies)
    window_s = document.stabilizationWindowSeconds
    return Direction(
        default.window_s if window_s is None else float(window_s),
        rates,
        document.selectPolicy,
        document.tolerance,
    )
