"""A user's own fleet: variants, the tables of their hardware, and prices, from a YAML file."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated

from pydantic import Field

from wva_adapter.core.fleet import Role
from wva_adapter.documents import Duration, Section, read_document
from wva_adapter.errors import ConfigError
from wva_adapter.sim.cluster import Deployed
from wva_adapter.sim.files import hardware, hardware_names
from wva_adapter.sim.hardware import Hardware
from wva_adapter.sim.replica import TOKEN_BUDGET

_HARDWARE_NAME = r"^[^/]+/[^/]+/tp[1-9][0-9]*$"

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]


class _Table(Section):
    tokens: Annotated[list[Positive], Field(min_length=2)]
    iteration_ms: Annotated[list[Positive], Field(min_length=2)]
    kv_read_us_per_token: NotNegative = 0.0
    attention_ns: NotNegative = 0.0
    kv_cache_tokens: Annotated[int, Field(ge=100)]
    idle_w: NotNegative = 0.0
    tdp_w: NotNegative = 0.0
    usd_per_h: NotNegative


class _Variant(Section):
    name: Annotated[str, Field(min_length=1)]
    hardware: Annotated[str, Field(pattern=_HARDWARE_NAME)]
    usd_per_h: NotNegative | None = None
    min_replicas: Count = 1
    max_replicas: Annotated[int, Field(ge=1)] = 20
    start_replicas: Count | None = None
    startup: Duration = 120.0
    max_num_seqs: Annotated[int, Field(ge=1, le=TOKEN_BUDGET)] = 256
    role: Role = "both"


class _Fleet(Section):
    hardware: dict[Annotated[str, Field(pattern=_HARDWARE_NAME)], _Table] = Field(
        default_factory=dict
    )
    variants: Annotated[list[_Variant], Field(min_length=1)]


def read_fleet(file: Path) -> tuple[Deployed, ...]:
    """Return the variants in a file.

    Its hardware is the product's own, and what the file has tables for: as many sizes in tokens as
    times in milliseconds, rising.

    Raises:
        ConfigError: The file is wrong, or a variant's hardware has no table; the message says which
            there are.
    """
    document = read_document(file, _Fleet)
    tables = {
        name: _hardware(f"{file}: hardware.{name}", name, table)
        for name, table in document.hardware.items()
    }
    fleet: dict[str, Deployed] = {}
    for index, variant in enumerate(document.variants):
        where = f"{file}: variants[{index}]"
        if variant.name in fleet:
            raise ConfigError(f"{where}.name: {variant.name!r} is the name of another one too")
        if variant.min_replicas > variant.max_replicas:
            raise ConfigError(
                f"{where}: min_replicas {variant.min_replicas} is above "
                f"max_replicas {variant.max_replicas}"
            )
        fleet[variant.name] = _deployed(where, variant, tables)
    models = sorted({d.hardware.name.split("/")[0] for d in fleet.values()})
    if len(models) > 1:
        raise ConfigError(
            f"{file}: variants: hardware for {' and '.join(models)}, want one model for all"
        )
    roles = {d.role for d in fleet.values()}
    if roles not in ({"both"}, {"prefill", "decode"}):
        raise ConfigError(
            f"{file}: variants: roles {', '.join(sorted(roles))}, want prefill and decode, or both "
            "alone"
        )
    return tuple(fleet.values())


def _deployed(where: str, variant: _Variant, tables: Mapping[str, Hardware]) -> Deployed:
    known = [*tables, *hardware_names()]
    if variant.hardware not in known:
        near = difflib.get_close_matches(variant.hardware, known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(
            f"{where}.hardware: no table for {variant.hardware!r}; {hint}there are: "
            f"{', '.join(known)}"
        )
    of = tables.get(variant.hardware) or hardware(variant.hardware)
    start = variant.start_replicas
    if start is None:
        start = max(variant.min_replicas, 1)
    return Deployed(
        name=variant.name,
        hardware=of,
        usd_per_h=of.usd_per_h if variant.usd_per_h is None else variant.usd_per_h,
        min_replicas=variant.min_replicas,
        max_replicas=variant.max_replicas,
        start_replicas=start,
        startup_s=variant.startup,
        max_num_seqs=variant.max_num_seqs,
        role=variant.role,
    )


def _hardware(where: str, name: str, table: _Table) -> Hardware:
    if len(table.tokens) != len(table.iteration_ms):
        raise ConfigError(
            f"{where}: {len(table.tokens)} tokens and {len(table.iteration_ms)} iteration_ms, "
            "want as many of each"
        )
    for column, values in (("tokens", table.tokens), ("iteration_ms", table.iteration_ms)):
        for before, after in pairwise(values):
            # Sizes must differ for a line between them; times may stay.
            if after < before or (column == "tokens" and after == before):
                raise ConfigError(
                    f"{where}.{column}: {after:g} after {before:g}, want them to rise"
                )
    return Hardware(
        name=name,
        tokens=tuple(table.tokens),
        iteration_s=tuple(ms / 1e3 for ms in table.iteration_ms),
        kv_read_s_per_token=table.kv_read_us_per_token / 1e6,
        attention_s=table.attention_ns / 1e9,
        kv_cache_tokens=table.kv_cache_tokens,
        idle_w=table.idle_w,
        tdp_w=table.tdp_w,
        usd_per_h=table.usd_per_h,
    )
