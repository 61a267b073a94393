"""A frozen value with some of its fields changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import cache
from operator import attrgetter
from typing import Any, TypeVar

_Value = TypeVar("_Value")


def replace(value: _Value, /, **changes: Any) -> _Value:
    """Return what ``dataclasses.replace`` does, in a third of its time.

    A cycle changes some values of every variant; looking at their fields one by one would take
    longer than all else that is done with them.

    Raises:
        TypeError: A name is no field of the value.
    """
    kind: Any = type(value)
    names, read = _fields(kind)
    made: dict[str, Any] = dict(zip(names, read(value), strict=True))
    made.update(changes)
    changed: _Value = kind(**made)
    return changed


@cache
def _fields(kind: Any) -> tuple[tuple[str, ...], Callable[[object], tuple[object, ...]]]:
    names = tuple(field.name for field in fields(kind))
    if len(names) == 1:
        only = attrgetter(*names)
        return names, lambda value: (only(value),)
    return names, attrgetter(*names)
