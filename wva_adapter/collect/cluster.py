"""What the cluster has deployed: its objects followed, its variants handed over as frozen views."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from wva_adapter.collect.assemble import VariantView
from wva_adapter.collect.manifests import ANYBODY, CONFIG_ENABLED, Described, Objects, describe
from wva_adapter.collect.nodes import NodeReader
from wva_adapter.collect.objects import (
    Autoscaler,
    ConfigMap,
    Namespace,
    Node,
    Pod,
    QuotaObject,
    ScaledObject,
    Workload,
)
from wva_adapter.collect.quotas import read_quotas
from wva_adapter.collect.thresholds import NAMES, Thresholds, read_thresholds
from wva_adapter.core.fleet import NodeState, VariantKey
from wva_adapter.core.inventory import ResourceQuota
from wva_adapter.core.policies import Policies
from wva_adapter.errors import ClusterError
from wva_adapter.kube.api import KubernetesApi
from wva_adapter.kube.meta import ObjectKey
from wva_adapter.kube.watch import KubernetesObject, Watch, with_remedy

log = logging.getLogger(__name__)

_GROUPS = {
    "horizontalpodautoscalers": "/apis/autoscaling/v2",
    "scaledobjects": "/apis/keda.sh/v1alpha1",
    "deployments": "/apis/apps/v1",
    "statefulsets": "/apis/apps/v1",
    "pods": "/api/v1",
    "nodes": "/api/v1",
    "namespaces": "/api/v1",
    "configmaps": "/api/v1",
    "resourcequotas": "/api/v1",
}
_OF_NO_NAMESPACE = ("nodes", "namespaces")

Kind = TypeVar("Kind", bound=KubernetesObject)


class ClusterSource:
    """The variants that the managed HPAs and ScaledObjects of a cluster name.

    Args:
        kubeconfig: The file; ``None`` means the pod's own service account.
        namespaces: Those to look at; empty means all.
        start_tries: How often each first list may fail before ``start`` gives up.
        stale_after_s: How long a watch may be broken before its variants say so. They keep
            their last known state, and what carries a problem is never scaled down.
        watch_turn_s: How long one watch request lasts.
        keda_absent_for_s: How long until a cluster without KEDA is asked again whether it has it.
        quotas_forbidden_for_s: How long until ResourceQuotas that may not be read are asked for
            again.
        instance: Who this adapter is among several.
        system: The namespace whose llm-d ConfigMaps hold for all; ``None`` for none.
    """

    def __init__(
        self,
        kubeconfig: Path | None,
        namespaces: Sequence[str] = (),
        *,
        start_tries: int = 5,
        stale_after_s: float = 30.0,
        watch_turn_s: float = 60.0,
        keda_absent_for_s: float = 30.0,
        quotas_forbidden_for_s: float = 60.0,
        instance: str = ANYBODY,
        system: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = KubernetesApi(kubeconfig)
        self._start_tries = start_tries
        self._stale_after_s = stale_after_s
        self._instance = instance
        self._system = system
        self._described = Described()
        self._everywhere = not namespaces
        self._node_reader = NodeReader()
        self._node_states: tuple[NodeState, ...] | None = None
        self._thresholds = Thresholds()
        self._thresholds_of: object = None
        self._changed = True
        self._tasks: list[asyncio.Task[None]] = []

        def follow(
            resource: str, shape: type[Kind], name: str | None = None, *further: str
        ) -> tuple[Watch[Kind], ...]:
            root = _GROUPS[resource]
            within = dict.fromkeys((*namespaces, *further)) if namespaces else ()
            places = [f"namespaces/{one}/" for one in within if resource not in _OF_NO_NAMESPACE]
            return tuple(
                Watch(
                    self._api,
                    f"{root}/{place}{resource}",
                    shape,
                    on_change=self._note_change,
                    clock=clock,
                    field_selector="" if name is None else f"metadata.name={name}",
                    turn_s=watch_turn_s,
                    absent_for_s=keda_absent_for_s if shape is ScaledObject else None,
                    forbidden_for_s=quotas_forbidden_for_s if shape is QuotaObject else None,
                )
                for place in places or [""]
            )

        self._autoscalers = follow("horizontalpodautoscalers", Autoscaler)
        self._scaled_objects = follow("scaledobjects", ScaledObject)
        self._deployments = follow("deployments", Workload)
        self._stateful_sets = follow("statefulsets", Workload)
        self._pods = follow("pods", Pod)
        self._nodes = follow("nodes", Node)
        self._namespaces = follow("namespaces", Namespace)
        self._quotas = follow("resourcequotas", QuotaObject)
        # By name: a role can allow these two and no other.
        further = () if system is None else (system,)
        self._config_maps = tuple(
            watch for name in NAMES for watch in follow("configmaps", ConfigMap, name, *further)
        )

    @property
    def name(self) -> str:
        """What a person would call it."""
        return "cluster"

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong with the configuration of variants, a sentence each."""
        self._refresh()
        return self._described.problems

    @property
    def refused(self) -> Mapping[VariantKey, tuple[str, ...]]:
        """Of variants that keep an earlier configuration, what is wrong with the present one."""
        self._refresh()
        return self._described.refused

    @property
    def nodes(self) -> tuple[NodeState, ...] | None:
        """The nodes with accelerators; ``None`` where pods of some namespaces are not seen."""
        self._refresh()
        if self._node_states is None and self._everywhere:
            self._node_states = self._node_reader.read(_merged(self._nodes), _merged(self._pods))
        return self._node_states

    @property
    def quotas(self) -> tuple[ResourceQuota, ...] | None:
        """What ResourceQuotas bound where there are variants; ``None`` where none can be read."""
        self._refresh()
        readable = [w for w in self._quotas if w.readable(within_s=self._stale_after_s)]
        if not readable:
            return None
        namespaces = {view.variant.key.namespace for view in self._described.views}
        return read_quotas((q for w in readable for q in w.objects.values()), namespaces)

    def thresholds(self, base: Policies) -> Thresholds:
        """Return what llm-d's ConfigMaps set beside what the settings say.

        Those of a namespace count where its label says so.
        """
        maps = {place: found.data for place, found in _merged(self._config_maps).items()}
        enabled = frozenset(
            place.name
            for place, found in _merged(self._namespaces).items()
            if found.metadata.labels.get(CONFIG_ENABLED) == "true"
        )
        if (maps, enabled, base) == self._thresholds_of:
            return self._thresholds
        before, self._thresholds_of = self._thresholds, (maps, enabled, base)
        self._thresholds = read_thresholds(
            maps, base, system=self._system, local=enabled.__contains__, before=before
        )
        for problem in self._thresholds.problems:
            if problem not in before.problems:
                log.warning(
                    "thresholds refused, the last good ones stay", extra={"problem": problem}
                )
        return self._thresholds

    async def start(self) -> None:
        """Follow the cluster; return once all of it has been listed.

        Raises:
            ConfigError: The credentials cannot be used.
            ClusterError: Something could not be listed; the message names each resource, and
                the permission that is missing where one is.
        """
        await self._api.connect()
        watches = self._watches()
        every = (*watches, *self._quotas)
        self._tasks = [asyncio.create_task(watch.run(), name=watch.path) for watch in every]
        waits = (watch.listed(tries=self._start_tries) for watch in watches)
        failures = [error for error in await asyncio.gather(*waits) if error is not None]
        # Those that cannot be read are done without, but not because of one moment.
        await asyncio.gather(*(watch.listed(tries=1) for watch in self._quotas))
        if failures:
            await self.stop()
            raise ClusterError("\n".join(dict.fromkeys(map(with_remedy, failures))))

    async def stop(self) -> None:
        """Stop following; the last view stays."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with suppress(asyncio.CancelledError):
                await task
        self._tasks = []
        await self._api.close()

    def view(self) -> Sequence[VariantView]:
        """Return the variants as known now; those of a broken watch say since when it is."""
        self._refresh()
        problems = [watch.problem(after_s=self._stale_after_s) for watch in self._watches()]
        stale = "; ".join(problem for problem in problems if problem is not None)
        if not stale:
            return self._described.views
        return tuple(
            replace(view, problem=f"{view.problem}; {stale}" if view.problem else stale)
            for view in self._described.views
        )

    def _watches(self) -> list[Watch[Any]]:
        """Return those without which nothing is decided; quotas are none of them."""
        return [
            *self._autoscalers,
            *self._scaled_objects,
            *self._deployments,
            *self._stateful_sets,
            *self._pods,
            *self._nodes,
            *self._namespaces,
            *self._config_maps,
        ]

    def _note_change(self) -> None:
        self._changed = True

    def _refresh(self) -> None:
        if not self._changed:
            return
        self._changed = False
        self._node_states = None
        before = self._described.problems
        self._described = describe(
            Objects(
                _merged(self._autoscalers),
                _merged(self._scaled_objects),
                _merged(self._deployments),
                _merged(self._stateful_sets),
                _merged(self._pods),
                _merged(self._nodes),
                _merged(self._namespaces),
            ),
            self._described.good,
            instance=self._instance,
        )
        for problem in self._described.problems:
            if problem not in before:
                log.warning("configuration refused", extra={"problem": problem})


def _merged(watches: tuple[Watch[Kind], ...]) -> Mapping[ObjectKey, Kind]:
    if len(watches) == 1:
        return watches[0].objects
    return {place: known for watch in watches for place, known in watch.objects.items()}
