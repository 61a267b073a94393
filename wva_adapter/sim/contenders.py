"""Who competes: the adapter at its levels, the rivals, and fleets that know what will come."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from wva_adapter.core.policy import Policy, ServiceLevel
from wva_adapter.errors import ConfigError
from wva_adapter.sim.adapter import AdapterScaler
from wva_adapter.sim.laws import Law
from wva_adapter.sim.laws import scaler as law_scaler
from wva_adapter.sim.policy_files import law, law_names
from wva_adapter.sim.replica import TOKEN_BUDGET
from wva_adapter.sim.router import WhenSaturated
from wva_adapter.sim.scaler import Scaler
from wva_adapter.sim.scenarios import Scenario
from wva_adapter.sim.world import ScalerMaker, Stage


@dataclass(frozen=True, slots=True)
class Contender:
    """Someone who sets counts.

    Attributes:
        when_saturated: What its set-up has the gateway do; ``None`` leaves that to the scenario.
    """

    name: str
    make: ScalerMaker
    when_saturated: WhenSaturated | None = None


def _demand(level: ServiceLevel) -> Callable[[float], ScalerMaker]:
    return lambda prior_scale: (
        lambda stage: AdapterScaler(
            stage.scenario,
            stage.observatory,
            Policy(
                analysis="demand",
                service_level=level,
                slo_ttft_s=stage.scenario.slo.ttft_s,
                slo_itl_s=stage.scenario.slo.itl_s,
            ),
            prior_scale=prior_scale,
        )
    )


def _saturation(prior_scale: float) -> ScalerMaker:
    return lambda stage: AdapterScaler(
        stage.scenario, stage.observatory, Policy(analysis="saturation"), prior_scale=prior_scale
    )


_OURS: Mapping[str, Callable[[float], ScalerMaker]] = {
    "demand": _demand("balanced"),
    "demand-frugal": _demand("frugal"),
    "demand-premium": _demand("premium"),
    "saturation": _saturation,
}


def contender_names() -> tuple[str, ...]:
    """Return the names that ``contender`` knows: ours first."""
    return (*_OURS, *law_names())


def contender(name: str, *, prior_error: float = 1.0) -> Contender:
    """Return the contender of this name, or the law in the YAML file of this path.

    Args:
        name: A name, or a path that ends in ``.yaml`` or ``.yml``.
        prior_error: By how much the times that ours believes at first are off: 2 is twice as slow.

    Raises:
        ConfigError: There is none of this name, or the file is wrong.
    """
    if name in _OURS:
        return Contender(name, _OURS[name](prior_error))
    if name not in law_names() and Path(name).suffix not in (".yaml", ".yml"):
        near = difflib.get_close_matches(name, contender_names(), n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(contender_names())}"
        raise ConfigError(f"policy {name!r}: unknown; {hint}")
    rival = law(name)
    return Contender(rival.name, _rival(rival), "queue" if rival.flow_control else None)


def _rival(rival: Law) -> ScalerMaker:
    def make(stage: Stage) -> Scaler:
        return law_scaler(rival, _constants(stage.scenario))

    return make


def _constants(scenario: Scenario) -> Mapping[str, Mapping[str, float]]:
    """Return what a rival is told of the service and of each variant's hardware."""
    constants = {}
    for deployed in scenario.fleet:
        hardware = deployed.hardware
        chunk_s = hardware.step_times_s(TOKEN_BUDGET)[TOKEN_BUDGET]
        chunk_s += hardware.attention_s * TOKEN_BUDGET * TOKEN_BUDGET / 2
        constants[deployed.name] = {
            "slo_ttft_s": scenario.slo.ttft_s,
            "slo_itl_s": scenario.slo.itl_s,
            "prefill_tokens_per_s": TOKEN_BUDGET / chunk_s,
        }
    return constants
