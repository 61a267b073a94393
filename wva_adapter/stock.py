"""The inventory as operators write it: accelerators, what they draw, quotas."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from wva_adapter.core.inventory import Inventory, NamespaceQuota
from wva_adapter.core.power import DRAWS, Draw
from wva_adapter.documents import Section

_Devices = Annotated[int, Field(ge=0)]
_Watts = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class AcceleratorSection(Section):
    """One type of accelerator"""

    name: str = Field(description="Type, as variants have it, such as H100")
    devices: _Devices | None = Field(
        None, description="Most devices that all variants together may hold; null: no bound"
    )
    idle_w: _Watts | None = Field(
        None, description="Draw of one device that waits; default: a fifth of tdp_w"
    )
    tdp_w: _Watts | None = Field(None, description="Largest draw; default: its data sheet's")


class QuotaSection(Section):
    """The most devices that one namespace may hold"""

    namespace: str = Field(description="The namespace")
    devices: _Devices = Field(description="Most devices that its variants together may hold")
    accelerator: str | None = Field(None, description="Only this type; null: all types together")


class InventorySection(Section):
    """What replicas can be put on. It bounds what is added, never what runs"""

    accelerators: Annotated[tuple[AcceleratorSection, ...], Field(strict=False)] = Field(
        (), description="Types that are scarce, or draw other than their data sheet says"
    )
    quotas: Annotated[tuple[QuotaSection, ...], Field(strict=False)] = Field(
        (), description="Devices per namespace; its ResourceQuota objects bound beside them"
    )
    fixed_nodes: bool = Field(
        False, description="No nodes come by themselves, so what fits on none is not asked for"
    )

    def problems(self) -> Iterator[str]:
        """Yield what is wrong, a sentence each."""
        described = {one.name for one in self.accelerators if one.tdp_w is not None}
        seen: set[str] = set()
        for index, one in enumerate(self.accelerators):
            where = f"inventory.accelerators[{index}]"
            yield from _unknown(f"{where}.name", one.name, described)
            if one.name in seen:
                yield f"{where}.name: {one.name} is there twice"
            seen.add(one.name)
            try:
                _draw(one)
            except ValueError as error:
                yield f"{where}: {error}"
        for index, quota in enumerate(self.quotas):
            if quota.accelerator is not None:
                where = f"inventory.quotas[{index}].accelerator"
                yield from _unknown(where, quota.accelerator, described)

    def to_inventory(self) -> Inventory:
        """Return it as the core takes it; without ``problems`` alone."""
        draws = {one.name: _draw(one) for one in self.accelerators}
        return Inventory(
            {one.name: one.devices for one in self.accelerators if one.devices is not None},
            tuple(
                NamespaceQuota(one.namespace, one.devices, one.accelerator) for one in self.quotas
            ),
            self.fixed_nodes,
            {name: draw for name, draw in draws.items() if draw is not None},
        )


def _draw(one: AcceleratorSection) -> Draw | None:
    if one.idle_w is None and one.tdp_w is None:
        return None
    known = DRAWS.get(one.name, Draw(0.0, 0.0))
    typical = known if one.tdp_w is None else Draw.of_tdp(one.tdp_w)
    return typical if one.idle_w is None else Draw(one.idle_w, typical.full_w)


def _unknown(where: str, name: str, described: set[str]) -> Iterator[str]:
    if name in DRAWS or name in described or name.partition("-MIG-")[0] in DRAWS:
        return
    near = difflib.get_close_matches(name.upper(), DRAWS, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}? " if near else ""
    yield f"{where}: unknown accelerator {name!r}; {hint}One that is not known needs its tdp_w"
