"""The decision as a whole: analyses, allocation, rules and signal, composed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby

from wva_adapter.core.allocation import Option, allocate
from wva_adapter.core.decision import Decision, Plan
from wva_adapter.core.fleet import VariantKey
from wva_adapter.core.load import ModelLoad
from wva_adapter.core.memory import Memory, VariantMemory
from wva_adapter.core.policy import Policy
from wva_adapter.core.rules import RULES, Case, Decisions, blind_reasons
from wva_adapter.core.saturation import analyze_saturation, remember_peaks
from wva_adapter.core.signal import shape
from wva_adapter.core.snapshot import Snapshot, VariantState


def plan(snapshot: Snapshot, policy: Policy, memory: Memory) -> tuple[Plan, Memory]:
    """Decide the desired replicas of every variant in the fleet.

    The adapter and the simulator both call this function, once per cycle. It reads no
    clock, draws no random numbers and does no IO: equal arguments give equal results.

    Returns:
        The plan, and the memory to hand in with the next snapshot.
    """
    states = sorted(snapshot.variants, key=lambda s: _model(s))
    peaks = remember_peaks(states, memory.replicas, policy)
    loads: list[ModelLoad] = []
    load_of: dict[VariantKey, ModelLoad] = {}
    wanted: dict[VariantKey, int] = {}
    needed: dict[VariantKey, int] = {}
    undecided: dict[VariantKey, str] = {}
    decidable: dict[VariantKey, VariantState] = {}
    for _, group in groupby(states, key=lambda s: _model(s)[:2]):
        members = tuple(group)
        load = analyze_saturation(members, peaks, snapshot.at_s, policy)
        loads.append(load)
        known = [state for state in members if state.spec_replicas is not None]
        wanted |= _counts(load, known, policy, step=load.step)
        needed |= _counts(load, known, policy, step=None)
        for state in members:
            key = state.variant.key
            load_of[key] = load
            if state.spec_replicas is None:
                undecided[key] = state.problem or f"the count of {state.variant.target} is unknown"
            else:
                decidable[key] = state

    remembered = {
        key: _remember_need(state, needed[key], snapshot.at_s, policy, memory)
        for key, state in sorted(decidable.items())
    }
    case = Case(snapshot.at_s, policy, decidable, load_of, wanted, remembered)
    decisions: Decisions = {key: _undisputed(state) for key, state in sorted(decidable.items())}
    for rule in RULES:
        decisions = rule(decisions, case)
    decisions = {key: _signalled(d, decidable[key]) for key, d in decisions.items()}
    after = Memory(
        variants=_remember_published(
            remembered, decisions, undecided, snapshot.at_s, policy, memory
        ),
        replicas=peaks,
    )
    return Plan(snapshot.at_s, decisions, undecided, tuple(loads)), after


def _model(state: VariantState) -> tuple[str, str, VariantKey]:
    variant = state.variant
    return variant.key.namespace, variant.model_id, variant.key


def _counts(
    load: ModelLoad, states: Sequence[VariantState], policy: Policy, *, step: float | None
) -> Mapping[VariantKey, int]:
    """Return the counts that the load asks for, moving by ``step`` of capacity at most."""
    most = math.inf if step is None else step
    shortage, surplus = min(load.shortage, most), min(load.surplus, most)
    if shortage == surplus == 0:
        return {state.variant.key: state.spec_replicas or 0 for state in states}
    options = []
    have = 0.0
    for state in states:
        variant = state.variant
        current = state.spec_replicas or 0
        have += load.capacity[variant.key] * current
        lowest = highest = current
        if shortage > 0:
            ceiling = current + policy.max_up_step
            if variant.max_replicas is not None:
                ceiling = min(ceiling, variant.max_replicas)
            highest = max(current, ceiling)
        elif surplus > 0:
            lowest = min(current, variant.min_replicas)
        options.append(
            Option(
                variant.key,
                load.capacity[variant.key],
                variant.cost_per_h,
                current,
                lowest,
                highest,
            )
        )
    return allocate(have + shortage - surplus, options, change_penalty=policy.change_penalty)


def _undisputed(state: VariantState) -> Decision:
    variant, current = state.variant, state.spec_replicas or 0
    return Decision(
        key=variant.key,
        model_id=variant.model_id,
        accelerator=variant.accelerator,
        cost_per_h=variant.cost_per_h,
        current=current,
        ready=len(state.ready),
        desired=current,
    )


def _signalled(decision: Decision, state: VariantState) -> Decision:
    reader, spec = state.variant.reader, state.spec_replicas or 0
    if reader is None:
        return replace(decision, value_milli=1000 * decision.desired)
    signal = shape(
        decision.desired,
        spec_replicas=spec,
        status_replicas=spec if state.status_replicas is None else state.status_replicas,
        ready_replicas=len(state.ready),
        reader=reader,
    )
    if signal.why is not None:
        decision = decision.to(decision.desired, rule="signal", why=signal.why)
    return replace(decision, value_milli=signal.value_milli)


def _remember_need(
    state: VariantState, needed: int, at_s: float, policy: Policy, memory: Memory
) -> VariantMemory:
    """Return the variant's past with this cycle's need.

    A variant seen for the first time needs what it has, and so does one that is not wholly seen:
    what is not known never looks like a small need later.
    """
    past = memory.variants.get(state.variant.key)
    if past is None or blind_reasons(state, at_s, policy):
        needed = max(needed, state.spec_replicas or 0)
    past = past or VariantMemory()
    return replace(past, needs=past.needs.add(at_s, needed, span_s=policy.scale_down_window_s))


def _remember_published(
    remembered: Mapping[VariantKey, VariantMemory],
    decisions: Decisions,
    undecided: Mapping[VariantKey, str],
    at_s: float,
    policy: Policy,
    memory: Memory,
) -> Mapping[VariantKey, VariantMemory]:
    after = {
        key: replace(
            past,
            published=past.published.add(at_s, decisions[key].desired, span_s=policy.down_period_s),
        )
        for key, past in remembered.items()
    }
    # A variant whose count could not be read this time keeps its past.
    after |= {key: memory.variants[key] for key in undecided if key in memory.variants}
    return dict(sorted(after.items()))
