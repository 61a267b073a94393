"""Who competes: the adapter at its levels, the rivals, and fleets that know what will come."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from wva_adapter.core.hpa_sync import RECOMMENDED, Behavior, Direction, Rate
from wva_adapter.core.policy import Policy
from wva_adapter.errors import ConfigError
from wva_adapter.sim.adapter import AdapterScaler
from wva_adapter.sim.foresight import Clairvoyant, Still, measure, sized_for_peak
from wva_adapter.sim.laws import Law
from wva_adapter.sim.laws import scaler as law_scaler
from wva_adapter.sim.observe import SCRAPE_PERIOD_S
from wva_adapter.sim.policy_files import law, law_names
from wva_adapter.sim.replica import TOKEN_BUDGET
from wva_adapter.sim.router import WhenSaturated
from wva_adapter.sim.scaler import Scaler
from wva_adapter.sim.scenarios import Scenario
from wva_adapter.sim.world import ScalerMaker, Stage, draw_traffic

Prepare = Callable[[Scenario, int], Scenario]

_FULL = (0.80, 0.85, 0.90, 0.95, 1.00)
"""How full a clairvoyant's replicas may be: it takes the largest that costs it no share in SLO."""


@dataclass(frozen=True, slots=True)
class Contender:
    """Someone who sets counts.

    Attributes:
        tries: Makers of the law, the cheaper the later. Of several all are run, and the last whose
            share in SLO is nearly the best counts: only who knows the future can do that.
        when_saturated: What its set-up has the gateway do; ``None`` leaves that to the scenario.
        prepare: What its operator sets up beforehand, from the scenario and the seed.
    """

    name: str
    tries: tuple[ScalerMaker, ...]
    when_saturated: WhenSaturated | None = None
    prepare: Prepare | None = None


def _adapter(
    policy: Policy,
    *,
    behavior: Behavior | None = RECOMMENDED,
    cycle_s: float = SCRAPE_PERIOD_S,
    shaped: bool = True,
) -> Callable[[float], ScalerMaker]:
    def of_prior(prior_scale: float) -> ScalerMaker:
        return lambda stage: AdapterScaler(
            stage.scenario,
            stage.observatory,
            replace(
                policy,
                slo_ttft_s=stage.scenario.slo.ttft_s,
                slo_itl_s=stage.scenario.slo.itl_s,
                deadline_s=_deadline_s(stage.scenario, policy),
            ),
            behavior=behavior,
            prior_scale=prior_scale,
            cycle_s=cycle_s,
            shaped=shaped,
        )

    return of_prior


def _deadline_s(scenario: Scenario, policy: Policy) -> float:
    """Return within how long offline requests are to be done: those that come first, at least."""
    return min((k.due_s for k in scenario.kinds if k.due_s is not None), default=policy.deadline_s)


_LLM_D_CYCLE_S = 30.0

_OF_ITS_AUTHORS = Behavior(
    Direction(240.0, (Rate("Pods", 1, 60.0),)), Direction(240.0, (Rate("Percent", 10, 60.0),))
)
"""What the authors of the paper set in their public benchmark, as in ``hpa-q3kv60-throttled``."""

OUR_POLICIES: Mapping[str, Policy] = {
    "demand": Policy(),
    "demand-frugal": Policy(service_level="frugal"),
    "demand-premium": Policy(service_level="premium"),
    "tokens": Policy(analysis="tokens"),
    "saturation": Policy(analysis="saturation"),
}
"""The adapter's own policies by name."""

_ADAPTERS: Mapping[str, Callable[[float], ScalerMaker]] = {
    **{name: _adapter(policy) for name, policy in OUR_POLICIES.items()},
    # llm-d's controller decided as these do, on its own cycle, without a window of its own and
    # without a thought for the HPA's tolerance. The first was measured by its authors through the
    # HPA that they gave to all (and its chart waits as long); of the second nothing is published,
    # so it has one as Kubernetes makes it, which is kinder.
    "wva-v1": _adapter(
        Policy(analysis="saturation", scale_down_window_s=0.0, max_down_share=1.0),
        behavior=_OF_ITS_AUTHORS,
        cycle_s=_LLM_D_CYCLE_S,
        shaped=False,
    ),
    "wva-v2": _adapter(
        Policy(analysis="tokens", scale_down_window_s=0.0, max_down_share=1.0),
        behavior=None,
        cycle_s=_LLM_D_CYCLE_S,
        shaped=False,
    ),
}


OURS = tuple(OUR_POLICIES)
FORESEEING = ("static-peak", "clairvoyant")


def contender_names() -> tuple[str, ...]:
    """Return the names that ``contender`` knows: ours first, those that foresee last."""
    rivals = (*law_names(), *(name for name in _ADAPTERS if name not in OURS))
    return (*OURS, *rivals, *FORESEEING)


def contender(name: str, *, prior_error: float = 1.0) -> Contender:
    """Return the contender of this name, or the law in the YAML file of this path.

    Args:
        name: A name, or a path that ends in ``.yaml`` or ``.yml``.
        prior_error: By how much the times that ours believes at first are off: 2 is twice as slow.

    Raises:
        ConfigError: There is none of this name, or the file is wrong.
    """
    if name in _ADAPTERS:
        return Contender(name, (_ADAPTERS[name](prior_error),))
    if name == "static-peak":
        return Contender(name, (lambda stage: Still(),), prepare=_sized)
    if name == "clairvoyant":
        return Contender(name, tuple(_clairvoyant(share) for share in _FULL))
    if name not in law_names() and Path(name).suffix not in (".yaml", ".yml"):
        near = difflib.get_close_matches(name, contender_names(), n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(contender_names())}"
        raise ConfigError(f"policy {name!r}: unknown; {hint}")
    rival = law(name)
    return Contender(rival.name, (_rival(rival),), "queue" if rival.flow_control else None)


def _sized(scenario: Scenario, seed: int) -> Scenario:
    return sized_for_peak(scenario, draw_traffic(scenario, seed), seed)


def _clairvoyant(share: float) -> ScalerMaker:
    def make(stage: Stage) -> Scaler:
        capacity = measure(stage.scenario, stage.traffic, stage.seed)
        return Clairvoyant(stage.scenario, stage.traffic, capacity, share)

    return make


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
