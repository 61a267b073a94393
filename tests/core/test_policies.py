"""An override changes what it sets, for whom it names, and nothing else."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import a_state, a_variant
from wva_adapter.core.memory import Memory
from wva_adapter.core.planner import plan
from wva_adapter.core.policies import Override, Policies
from wva_adapter.core.policy import Policy
from wva_adapter.core.snapshot import Snapshot


def override(
    source: str = "it",
    *,
    namespace: str | None = None,
    model: str | None = None,
    variant: str | None = None,
    local: bool = False,
    **changes: Any,
) -> Override:
    return Override(
        source=source,
        changes=changes,
        namespace=namespace,
        model_id=model,
        variant=variant,
        local=local,
    )


def test_an_override_inherits_every_field_that_it_does_not_set() -> None:
    # Defect 1 of llm-d's WVA: one field set made the others zero.
    default = Policy(kv_cache_threshold=0.75, queue_length_threshold=7)
    policies = Policies(default, (override(model="llama", kv_cache_threshold=0.9),))
    assert policies.of("chat", "llama") == replace(default, kv_cache_threshold=0.9)
    assert policies.of("chat", "granite") == default


def test_an_override_of_one_model_decides_its_count() -> None:
    # Defect 1 of llm-d's WVA: overrides were read and never applied. At 0.75 of the KV cache one
    # replica's spare is 0.05 below the threshold 0.8, less than the trigger 0.1; at 0.95 it is 0.2.
    default = Policy(analysis="saturation")
    states = (
        a_state(a_variant("a", model_id="llama"), usage=[0.75]),
        a_state(a_variant("b", model_id="granite"), usage=[0.75]),
    )
    policies = Policies(default, (override(model="llama", kv_cache_threshold=0.95),))
    decided, _ = plan(Snapshot(0.0, states), policies, Memory())
    assert {key.name: one.desired for key, one in decided.decisions.items()} == {"a": 1, "b": 2}


def test_an_override_of_one_variant_bounds_its_steps_alone() -> None:
    # 8 replicas of 100,000 tokens at 0.95: 760,000 / 0.85 exceed 8 x 80,000 by 254,118, which is
    # 4 replicas of 80,000.
    states = tuple(
        a_state(a_variant(name, model_id=name, maximum=None), usage=[0.95] * 8) for name in "ab"
    )
    policies = Policies(Policy(analysis="tokens"), (override(variant="a", max_up_step=1),))
    decided, _ = plan(Snapshot(0.0, states), policies, Memory())
    assert {key.name: one.desired for key, one in decided.decisions.items()} == {"a": 9, "b": 12}


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("namespace", "model"), 2),
        (("model", "namespace"), 1),
        (("namespace", "namespace"), 2),
    ],
)
def test_the_narrower_override_wins_then_the_later_one(
    overrides: tuple[str, ...], expected: int
) -> None:
    names = {"namespace": "chat", "model": "llama"}
    policies = Policies(
        Policy(),
        tuple(
            override(max_up_step=n, **{kind: names[kind]})  # type: ignore[arg-type]
            for n, kind in enumerate(overrides, start=1)
        ),
    )
    assert policies.of("chat", "llama").max_up_step == expected


def test_what_a_namespace_says_of_itself_wins_over_what_others_say_of_its_models() -> None:
    policies = Policies(
        Policy(),
        (
            override(namespace="chat", local=True, max_up_step=3),
            override(namespace="chat", model="llama", max_up_step=5, slo_ttft_s=1.0),
        ),
    )
    assert policies.of("chat", "llama").max_up_step == 3
    assert policies.of("chat", "llama").slo_ttft_s == 1.0


def test_a_contradiction_is_named_with_the_overrides_that_meet() -> None:
    with pytest.raises(ValueError, match=r"^overrides\[0\]: want kv_spare_trigger < kv_cache_thr"):
        Policies(Policy(), (override("overrides[0]", model="m", kv_spare_trigger=0.9),))
    # Each alone is well: 0.75 < 0.8, and 0.1 < 0.7; together they are not.
    pair = (
        override("overrides[0]", namespace="chat", kv_spare_trigger=0.75),
        override("overrides[1]", model="llama", kv_cache_threshold=0.7),
    )
    with pytest.raises(ValueError, match=r"overrides\[0\], with overrides\[1\]: want kv_spare"):
        Policies(Policy(), pair)
    Policies(Policy(), (pair[0], replace(pair[1], namespace="code")))


def test_a_number_out_of_range_is_named_with_its_override() -> None:
    with pytest.raises(ValueError, match=r"^it: slo_ttft_s nan, want a finite number"):
        Policies(Policy(), (override(model="m", slo_ttft_s=float("nan")),))


def test_what_holds_for_a_model_is_refused_of_a_variant() -> None:
    with pytest.raises(ValueError, match=r"it: analysis holds for whole models, want it in an"):
        override(variant="a", analysis="tokens")
    with pytest.raises(ValueError, match="it: colour is no field of a policy"):
        override(model="m", colour=1)


NAMES = st.none() | st.sampled_from("ab")
OVERRIDES = st.builds(
    Override,
    source=st.just("it"),
    changes=st.fixed_dictionaries({}, optional={"max_up_step": st.integers(1, 9)}),
    namespace=NAMES,
    model_id=NAMES,
    variant=NAMES,
    local=st.booleans(),
)


@given(st.lists(OVERRIDES, max_size=5), st.sampled_from("abc"), st.sampled_from("abc"))
def test_a_policy_differs_from_the_default_only_where_an_override_that_holds_says_so(
    overrides: list[Override], namespace: str, model: str
) -> None:
    found = Policies(Policy(), tuple(overrides)).of(namespace, model, "a")
    for field in fields(Policy):
        said = {
            one.changes[field.name]
            for one in overrides
            if field.name in one.changes
            and one.namespace in (None, namespace)
            and one.model_id in (None, model)
            and one.variant in (None, "a")
        }
        value = getattr(found, field.name)
        assert value in said if said else value == getattr(Policy(), field.name)


@given(
    st.lists(
        st.builds(
            Override,
            source=st.just("it"),
            changes=st.fixed_dictionaries(
                {},
                optional={
                    "kv_spare_trigger": st.sampled_from([0.1, 0.6, 0.9]),
                    "kv_cache_threshold": st.sampled_from([0.5, 0.8, 1.0]),
                },
            ),
            namespace=NAMES,
            model_id=NAMES,
        ),
        max_size=4,
    )
)
def test_policies_that_were_made_never_contradict_themselves_for_anybody(
    overrides: list[Override],
) -> None:
    try:
        policies = Policies(Policy(), tuple(overrides))
    except ValueError:
        return
    for namespace in "abc":
        for model in "abc":
            policies.of(namespace, model)
