"""What is served now: the last plan, for as long as it is valid, and why there is nothing else."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import groupby
from typing import Final

from wva_adapter.core.answer import Answer, Item, Items, Matcher, NoPlan, NotFound
from wva_adapter.core.decision import Plan
from wva_adapter.core.fleet import Variant, VariantKey
from wva_adapter.core.load import ModelLoad
from wva_adapter.core.snapshot import Snapshot, VariantState
from wva_adapter.publish.explain import Case, Explanation, Refusals
from wva_adapter.publish.metrics import (
    METRICS,
    PLAIN,
    PLAN_AGE,
    SCRAPE_PROBLEMS,
    SHADOW,
    WITHHELD,
    Published,
    in_shadow,
)

_MOST_NAMED: Final = 20
_NO_PLAN_YET: Final = "no plan yet: the adapter has not finished its first cycle"


class Board:
    """The last plan, as readers may see it.

    Args:
        max_age_s: A plan older than this is served to nobody.
        clock: Unix time.
        controller_instance: Label of the same name on everything.

    Attributes:
        metrics: The names of what is served, in the order of ``/metrics``.
        scraped_only: The names of what is known of variants and is on ``/metrics`` alone.
    """

    metrics: Collection[str] = tuple(PLAIN)
    scraped_only: Collection[str] = (PLAN_AGE, SCRAPE_PROBLEMS, SHADOW)

    def __init__(
        self,
        max_age_s: float,
        clock: Callable[[], float],
        *,
        controller_instance: str = "default",
    ) -> None:
        self._max_age_s = max_age_s
        self._clock = clock
        self._instance = controller_instance
        self._plan: Plan | None = None
        self._states: Mapping[VariantKey, VariantState] = {}
        self._labels: Mapping[VariantKey, Mapping[str, str]] = {}
        self._namespaces: Mapping[str, Sequence[VariantKey]] = {}
        self._loads: Mapping[VariantKey, ModelLoad] = {}
        self._published: Mapping[VariantKey, Published] = {}
        self._refused: Refusals = Refusals()
        self._version = 0

    @property
    def version(self) -> int:
        """Changes whenever an answer may have changed other than by its age."""
        return self._version

    def post(self, plan: Plan, snapshot: Snapshot, refused: Refusals | None = None) -> None:
        """Serve this plan, made from this snapshot, in place of the one before.

        Args:
            refused: What of the configuration was wrong, so that an earlier one held.
        """
        self._refused = refused or Refusals()
        loads = {key: load for load in plan.loads for key in load.capacity}
        states = {state.variant.key: state for state in snapshot.variants}
        labels = {key: self._label(state.variant) for key, state in states.items()}
        published = {}
        for key in sorted(states):
            if key in plan.decisions:
                decision = plan.decisions[key]
                published[key] = Published(decision, plan.at_s, loads.get(key), labels[key])
            elif key in self._published:
                published[key] = self._published[key]
        self._plan, self._states, self._labels = plan, states, labels
        self._loads, self._published = loads, published
        self._version += 1
        self._namespaces = {
            namespace: tuple(keys)
            for namespace, keys in groupby(sorted(states), key=lambda key: key.namespace)
        }

    @property
    def max_age_s(self) -> float:
        """A plan older than this is served to nobody; a change holds from the next plan on."""
        return self._max_age_s

    @max_age_s.setter
    def max_age_s(self, seconds: float) -> None:
        self._max_age_s = seconds

    def now_s(self) -> float:
        """Return the Unix time by which plans age."""
        return self._clock()

    @property
    def published(self) -> Sequence[Published]:
        """The last valid decision of every variant that exists, however old, by their keys."""
        return tuple(self._published.values())

    @property
    def states(self) -> Sequence[VariantState]:
        """Every variant that exists, as it stood when the last plan was made."""
        return tuple(self._states.values())

    def problem(self) -> str | None:
        """Return why this process never had anything to serve; ``None`` once it had."""
        return _NO_PLAN_YET if self._plan is None else None

    def answer(self, namespace: str, metric: str, matches: Matcher) -> Answer:
        """Return the items of one metric that match, or why there are none.

        Several variants of which one has no valid value have none: readers sum the items, and a
        partial sum would scale down.
        """
        if metric not in METRICS:
            return NotFound(
                f"the server could not find the metric {metric} for "
                f"{metric}.external.metrics.k8s.io; there are: {', '.join(METRICS)}"
            )
        return self._read(metric, METRICS[metric], namespace, matches)

    def series(self, metric: str, namespace: str | None, matches: Matcher) -> Answer:
        """Return the plain values of one of ``metrics`` that match, or why there are none.

        They are those of ``/metrics``, but for a variant without a valid one: that has none here,
        and whoever asks for it together with others gets none of them.

        Args:
            namespace: The only one to look into; ``None`` for all.
        """
        return self._read(metric, PLAIN[metric], namespace, matches)

    def _read(
        self,
        metric: str,
        read: Callable[[Published], int | None],
        namespace: str | None,
        matches: Matcher,
    ) -> Answer:
        if self._plan is None:
            return NoPlan(_NO_PLAN_YET)
        there = self._in(namespace)
        found = [key for key in there if matches(self._labels[key])]
        if not found:
            return NotFound(self._nothing_matches(namespace, there, matches))
        items = []
        for key in found:
            if (why := self._invalid(key)) is not None:
                return NoPlan(why)
            published = self._published[key]
            if metric in WITHHELD and (why := self._withheld(key)) is not None:
                return NoPlan(why)
            value = read(published)
            if value is None:
                return NoPlan(f"{key}: {metric} is unknown: no replica of its model was seen")
            items.append(Item(metric, published.labels, value, published.at_s))
        return Items(tuple(items), until_s=self._plan.at_s + self._max_age_s)

    def _in(self, namespace: str | None) -> Sequence[VariantKey]:
        if namespace is None:
            return [key for keys in self._namespaces.values() for key in keys]
        return self._namespaces.get(namespace, ())

    def desired(self, namespace: str, name: str) -> Answer:
        """Return one item, the plain count of a variant, or why there is none."""
        key = VariantKey(namespace, name)
        if self._plan is None:
            return NoPlan(_NO_PLAN_YET)
        if key not in self._states:
            return NotFound(self._no_such_variant(key))
        if (why := self._invalid(key) or self._withheld(key)) is not None:
            return NoPlan(why)
        published = self._published[key]
        count = published.decision.desired
        item = Item("wva_desired_replicas", published.labels, 1000 * count, published.at_s)
        return Items((item,))

    def explain(
        self,
        namespace: str | None = None,
        name: str | None = None,
        *,
        why_not: int | None = None,
    ) -> Explanation | NotFound | NoPlan:
        """Return how the last plan came to its counts: of one variant, or of all.

        A plan that is too old to be served is explained all the same, and the explanation says so.

        Args:
            why_not: A count of the one variant that is to be compared with the decided one.
        """
        if self._plan is None:
            return NoPlan(_NO_PLAN_YET)
        if namespace is None or name is None:
            cases = tuple(self._case(self._plan, key) for key in sorted(self._states))
            return Explanation(cases, refused=self._refused)
        key = VariantKey(namespace, name)
        if key not in self._states:
            return NotFound(self._no_such_variant(key))
        case = self._case(self._plan, key, why_not)
        return Explanation((case,), single=True, refused=self._refused)

    def _case(self, plan: Plan, key: VariantKey, other_count: int | None = None) -> Case:
        return Case(
            state=self._states[key],
            decision=plan.decisions.get(key),
            load=self._loads.get(key),
            at_s=plan.at_s,
            plan_age_s=self._clock() - plan.at_s,
            problem=self._invalid(key) or self._withheld(key),
            plan=plan,
            refused=self._refused.of_variant.get(key, ()),
            other_count=other_count,
        )

    def _invalid(self, key: VariantKey) -> str | None:
        """Return why a variant that exists has no valid count; ``None`` where it has one."""
        if self._plan is None:
            return _NO_PLAN_YET
        age_s = self._clock() - self._plan.at_s
        # A plan from the future means that the clock was set back: how old it is, nobody knows.
        if abs(age_s) > self._max_age_s:
            return f"{key}: the plan is {age_s:.0f} s old, max_age is {self._max_age_s:g} s"
        if key not in self._plan.decisions:
            why = self._plan.undecided.get(key, "the last plan does not decide on it")
            return f"{key} is undecided: {why}"
        return None

    def _withheld(self, key: VariantKey) -> str | None:
        """Return why a variant with a valid count is not served it; ``None`` where it is."""
        if key in self._published and in_shadow(self._published[key]):
            return f"{key} is in shadow: its count is {SHADOW} on /metrics, and not served"
        return None

    def _label(self, variant: Variant) -> Mapping[str, str]:
        labels = {
            "variant_name": variant.key.name,
            "namespace": variant.key.namespace,
            "exported_namespace": variant.key.namespace,
            "model_name": variant.model_id,
            "accelerator_type": variant.accelerator,
            "controller_instance": self._instance,
        }
        return {name: value for name, value in labels.items() if value is not None}

    def _nothing_matches(
        self, namespace: str | None, there: Sequence[VariantKey], matches: Matcher
    ) -> str:
        if namespace is None and not there:
            return "there are no variants"
        if namespace is None:
            place = ""
        elif there:
            place = f" in namespace {namespace}"
        else:
            return _empty_namespace(namespace)
        labels = [self._labels[key] for key in there]
        for requirement in matches.requirements:
            if not any(requirement(one) for one in labels):
                has = sorted({one[requirement.label] for one in labels if requirement.label in one})
                known = (
                    f"{requirement.label} is one of: {_named(has)}"
                    if has
                    else (f"labels are: {', '.join(sorted(set().union(*labels)))}")
                )
                return f"no variant{place} has {requirement}; there {known}"
        variants = _named([key.name for key in there])
        return (
            f"no variant{place} has all of {matches}; each matches one, and there are: {variants}"
        )

    def _no_such_variant(self, key: VariantKey) -> str:
        there = self._namespaces.get(key.namespace, ())
        if not there:
            return f"no variant {key}: {_empty_namespace(key.namespace)}"
        names = _named([other.name for other in there])
        return f"no variant {key}; namespace {key.namespace} has: {names}"


def _empty_namespace(namespace: str) -> str:
    # Whoever may read one namespace need not learn which others there are.
    return (
        f"namespace {namespace} has no variants: none of its HPAs and ScaledObjects is annotated, "
        "and the static file names none there"
    )


def _named(names: Sequence[str]) -> str:
    """Return the names in one line, the first ones of many."""
    if len(names) <= _MOST_NAMED:
        return ", ".join(names)
    return f"{', '.join(names[:_MOST_NAMED])} and {len(names) - _MOST_NAMED} more"
