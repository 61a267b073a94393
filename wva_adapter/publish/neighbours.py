"""Who else in this cluster lives by the API group: KEDA's operator, and the HPAs of others."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import msgspec

from wva_adapter.errors import ClusterError
from wva_adapter.kube.api import KubernetesApi, Refused

_DEPLOYMENTS: Final = "/apis/apps/v1/deployments"
_HPAS: Final = "/apis/autoscaling/v2/horizontalpodautoscalers"
_REVIEWS: Final = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
_GROUP: Final = "external.metrics.k8s.io"
_VALUES: Final = f"/apis/{_GROUP}/v1beta1/namespaces"
_MOST_TRIED: Final = 10
_OWN_PREFIX: Final = "wva_"


@dataclass(frozen=True, slots=True)
class Keda:
    """KEDA's operator.

    Attributes:
        operator: ``NAMESPACE/NAME`` of its Deployment.
        rewrites_ca_bundle: It makes certificates, and writes their CA into the APIService of
            external metrics whoever owns it.
    """

    operator: str
    rewrites_ca_bundle: bool


async def find_keda(api: KubernetesApi) -> Keda | None:
    """Return KEDA's operator; ``None`` where there is none or Deployments may not be read."""
    query = {"labelSelector": "app.kubernetes.io/name=keda-operator"}
    try:
        found = await _items(api, _DEPLOYMENTS, query)
    except Refused as error:
        if error.status == 403:
            return None
        raise
    operators = [
        Keda(f"{d['metadata']['namespace']}/{d['metadata']['name']}", _rewrites(_arguments(d)))
        for d in found
    ]
    return max(operators, key=lambda keda: keda.rewrites_ca_bundle, default=None)


def _arguments(deployment: Mapping[str, Any]) -> list[str]:
    containers = deployment["spec"]["template"]["spec"]["containers"]
    return [
        argument
        for container in containers
        for argument in (*container.get("command", ()), *container.get("args", ()))
    ]


def _rewrites(arguments: Iterable[str]) -> bool:
    flags = {"--enable-cert-rotation": False, "--enable-apiservice-patching": True}
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name in flags:
            flags[name] = not equals or value.lower() in ("1", "t", "true")
    return all(flags.values())


async def may_list(api: KubernetesApi, account: str) -> bool:
    """Return whether a service account may list all external metrics.

    Args:
        account: ``system:serviceaccount:NAMESPACE:NAME``.
    """
    namespace = account.split(":")[2]
    spec = {
        "user": account,
        "groups": [
            "system:serviceaccounts",
            f"system:serviceaccounts:{namespace}",
            "system:authenticated",
        ],
        "resourceAttributes": {"verb": "list", "group": _GROUP, "resource": "*"},
    }
    review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec}
    answer = await api.send("POST", _REVIEWS, review)
    return bool(answer.get("status", {}).get("allowed"))


async def foreign_metrics(api: KubernetesApi) -> list[Callable[[], Awaitable[str | None]]]:
    """Return some metrics that HPAs read of another provider and that have a value now.

    Each one, called, says why it has none any more; ``None`` while it has.
    """
    answering: list[Callable[[], Awaitable[str | None]]] = []
    seen = set()
    for hpa in await _items(api, _HPAS, {"limit": 500}):
        for metric in hpa["spec"].get("metrics", ()):
            asked = metric.get("external", {}).get("metric")
            if asked is None or asked["name"].startswith(_OWN_PREFIX):
                continue
            question = hpa["metadata"]["namespace"], asked["name"], _selector(asked)
            if question in seen or len(answering) == _MOST_TRIED:
                continue
            seen.add(question)
            if await _why_no_value(api, *question) is None:
                answering.append(partial(_why_no_value, api, *question))
    return answering


async def _why_no_value(
    api: KubernetesApi, namespace: str, metric: str, selector: str
) -> str | None:
    query = {"labelSelector": selector} if selector else {}
    try:
        async with api.get(f"{_VALUES}/{namespace}/{metric}", query, timeout_s=5) as response:
            await response.read()
    except ClusterError as error:
        return f"metric {metric} of another provider, which had a value before, has none: {error}"
    return None


def _selector(metric: Mapping[str, Any]) -> str:
    selector = metric.get("selector") or {}
    parts = [f"{label}={value}" for label, value in selector.get("matchLabels", {}).items()]
    for wanted in selector.get("matchExpressions", ()):
        label, values = wanted["key"], f"({','.join(wanted.get('values', ()))})"
        parts.append(
            {
                "In": f"{label} in {values}",
                "NotIn": f"{label} notin {values}",
                "Exists": label,
                "DoesNotExist": f"!{label}",
            }[wanted["operator"]]
        )
    return ",".join(parts)


async def _items(
    api: KubernetesApi, path: str, query: Mapping[str, str | int]
) -> list[dict[str, Any]]:
    async with api.get(path, query, timeout_s=10) as response:
        items: list[dict[str, Any]] = msgspec.json.decode(await response.read()).get("items") or []
    return items
