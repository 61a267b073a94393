"""How the API group changes hands: who has it, taken over without cutting the other off, put back."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from wva_adapter.errors import ClusterError
from wva_adapter.kube.api import KubernetesApi, Refused
from wva_adapter.publish.apiservice import (
    API_SERVICE,
    API_SERVICE_PATH,
    API_SERVICES_PATH,
    FORMER,
    ApiService,
    ServiceAddress,
    is_same_service,
)
from wva_adapter.publish.neighbours import Keda, find_keda, foreign_metrics, may_list

_MOST_ON_RECORD: Final = 200 * 1024
"""All annotations of an object together may have 256 KiB."""
# Until then, the condition may still be the one before: kube-apiserver tries again on a change.
_SETTLED_S: Final = 1.5
_LOOK_EVERY_S: Final = 0.5
_KEPT: Final = ("labels", "annotations", "ownerReferences", "finalizers")

Object = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Chained:
    """Whether the adapter's settings make it pass on what the former owner serves.

    Attributes:
        why_not: In words; ``None`` if they do.
        as_account: It does so as its service account, which the former owner must let in.
    """

    why_not: str | None = None
    as_account: bool = True


ReadSettings = Callable[[str | None, ServiceAddress], Chained]
"""Of the settings' text, ``None`` where there is none, and the owner who would be cut off."""


@dataclass(frozen=True, slots=True)
class Registration:
    """Who answers the API group now.

    Attributes:
        owner: The Service; ``None`` where nobody does or kube-apiserver itself.
        available: Whether kube-apiserver reaches it; ``None`` where it is not known.
        problem: Why not, in kube-apiserver's words; empty where there is none.
        former: Who did before, and is on record.
        bundle_writer: Who wrote caBundle last; empty where that is not known.
        keda: KEDA's operator; ``None`` where there is none or it may not be looked for.
    """

    exists: bool
    owner: ServiceAddress | None
    ours: bool
    available: bool | None
    problem: str
    former: ServiceAddress | None
    bundle_writer: str
    keda: Keda | None

    def document(self) -> dict[str, Any]:
        """Return it for programs."""
        return {
            "apiservice": API_SERVICE,
            "owner": None if self.owner is None else str(self.owner),
            "ours": self.ours,
            "available": self.available,
            "problem": self.problem or None,
            "former": None if self.former is None else str(self.former),
            "ca_bundle_written_by": self.bundle_writer or None,
            "keda": None
            if self.keda is None
            else {
                "operator": self.keda.operator,
                "rewrites_ca_bundle": self.keda.rewrites_ca_bundle,
            },
        }

    def lines(self) -> list[str]:
        """Return it for people."""
        if not self.exists:
            owner = "nobody: there is no such APIService"
        else:
            owner = str(self.owner or "kube-apiserver itself") + (" (us)" if self.ours else "")
        known = {None: "not known yet", True: "yes", False: f"no, {self.problem}"}
        lines = [f"{API_SERVICE}", f"  owner      {owner}"]
        if self.exists:
            lines.append(f"  available  {known[self.available]}")
        if self.former is not None:
            lines.append(f"  on record  {self.former}, put back by --restore")
        if self.bundle_writer:
            lines.append(f"  caBundle   written by {self.bundle_writer}")
        if self.keda is not None:
            says = "rewrites caBundle" if self.keda.rewrites_ca_bundle else "leaves caBundle alone"
            lines.append(f"  KEDA       {self.keda.operator}, which {says}")
        return lines


class Registry:
    """The APIService in an administrator's hands.

    Args:
        ours: The Service that leads to the adapter.
        within_s: How long kube-apiserver may take to reach a new owner.
    """

    def __init__(
        self,
        api: KubernetesApi,
        ours: ServiceAddress,
        *,
        within_s: float = 30.0,
        settled_s: float = _SETTLED_S,
    ) -> None:
        self._api = api
        self._ours = ours
        self._within_s = within_s
        self._settled_s = settled_s

    async def status(self) -> Registration:
        """Return who answers now.

        Raises:
            ClusterError: The object cannot be read.
        """
        found = await self._read()
        return await self._registration(None if found is None else _shaped(found))

    async def _registration(self, found: ApiService | None) -> Registration:
        keda = await find_keda(self._api)
        if found is None:
            return Registration(False, None, False, None, "", None, "", keda)
        former = found.former
        return Registration(
            True,
            found.owner,
            is_same_service(found.owner, self._ours),
            found.available,
            found.problem,
            None if former is None else former.owner,
            found.bundle_writer,
            keda,
        )

    async def take_over(
        self, *, ca: bytes | None, read_settings: ReadSettings, force: bool = False
    ) -> Registration:
        """Make us the owner; the one before is on record, and had back if it were cut off.

        Args:
            ca: Our authorities (PEM); ``None`` leaves caBundle to the running adapter.
            force: Take it although the one before is cut off.

        Raises:
            ClusterError: It was not taken over, or was put back; the message says why.
        """
        found = await self._read()
        before = None if found is None else _shaped(found)
        if before is not None and is_same_service(before.owner, self._ours):
            return await self._registration(before)
        reasons = await self._reasons_against(before, read_settings)
        if reasons and not force:
            raise ClusterError(
                f"{API_SERVICE} {_belongs(before)} and was not taken over: {'; '.join(reasons)}"
                " (--force takes it all the same)"
            )
        metrics = [] if before is None else await foreign_metrics(self._api)
        await self._put(self._our_object(found, ca), found)
        why = await self._why_not_good(metrics)
        if why is None or (force and found is not None):
            return await self.status()
        await self._undo(found)
        raise ClusterError(
            f"{API_SERVICE} was taken over and given back at once: {why}; "
            + ("there is none now, as before" if found is None else f"it {_belongs(before)} again")
        )

    async def _reasons_against(
        self, before: ApiService | None, read_settings: ReadSettings
    ) -> list[str]:
        reasons = []
        keda = await find_keda(self._api)
        if keda is not None and keda.rewrites_ca_bundle:
            reasons.append(
                f"KEDA's operator {keda.operator} would write its own CA into caBundle again, "
                "whatever we write, and kube-apiserver would reach nobody: want it to run with "
                "--enable-apiservice-patching=false"
            )
        if before is None:
            return reasons
        if before.owner is None:
            return [*reasons, "kube-apiserver itself would be cut off: it cannot be chained"]
        chained = read_settings(await self._settings_text(), before.owner)
        account = f"system:serviceaccount:{self._ours.namespace}:{self._ours.name}"
        if chained.why_not is not None:
            reasons.append(f"{before.owner} would be cut off: {chained.why_not}")
        elif chained.as_account and not await may_list(self._api, account):
            reasons.append(
                f"{before.owner} would refuse us: {account} may not list "
                "external.metrics.k8s.io; want apiservice/rbac.yaml applied"
            )
        return reasons

    async def _settings_text(self) -> str | None:
        path = f"/api/v1/namespaces/{self._ours.namespace}/configmaps/{self._ours.name}"
        found = await _get(self._api, path)
        data = None if found is None else found.get("data")
        text = None if data is None else data.get("config.yaml")
        return text if isinstance(text, str) else None

    async def restore(self, *, force: bool = False) -> Registration:
        """Put the former owner's object back as it was.

        Args:
            force: Although somebody else has taken it since.

        Raises:
            ClusterError: Nothing is on record, or it is not ours; or it is back and not reached.
        """
        found = await self._read()
        if found is None:
            raise ClusterError(f"there is no {API_SERVICE}: nothing to restore")
        now = _shaped(found)
        if now.former is None:
            raise ClusterError(
                f"{API_SERVICE} {_belongs(now)} and has no former owner on record (annotation "
                f"{FORMER}): want one that --take-over put there; to leave the group to nobody, "
                f"kubectl delete apiservice {API_SERVICE}"
            )
        if not is_same_service(now.owner, self._ours) and not force:
            raise ClusterError(
                f"{API_SERVICE} {_belongs(now)}, want {self._ours}: somebody else took it since "
                "(--force puts the one on record back all the same)"
            )
        recorded = msgspec.json.decode(found["metadata"]["annotations"][FORMER])
        await self._put(recorded, found)
        why = await self._why_not_good([])
        if why is not None:
            raise ClusterError(f"{API_SERVICE} is back with {now.former.owner}, and {why}")
        return await self.status()

    def _our_object(self, found: Object | None, ca: bytes | None) -> Object:
        annotations = {}
        if found is not None:
            record = msgspec.json.encode(_bare(found)).decode()
            if len(record) > _MOST_ON_RECORD:
                raise ClusterError(
                    f"{API_SERVICE} has {len(record)} bytes, want at most {_MOST_ON_RECORD} to "
                    "put it on record in an annotation"
                )
            annotations = {FORMER: record}
        service = self._ours._asdict()
        bundle = {} if ca is None else {"caBundle": base64.b64encode(ca).decode()}
        return {
            "metadata": {
                "labels": {"app.kubernetes.io/name": self._ours.name},
                "annotations": annotations,
            },
            "spec": {
                "group": "external.metrics.k8s.io",
                "version": "v1beta1",
                "groupPriorityMinimum": 100,
                "versionPriority": 100,
                "service": service,
                **bundle,
            },
        }

    async def _put(self, wanted: Object, now: Object | None) -> None:
        """Write the object whole, unless somebody else has written it since it was read."""
        metadata = {**wanted["metadata"], "name": API_SERVICE}
        body = {
            "apiVersion": "apiregistration.k8s.io/v1",
            "kind": "APIService",
            "metadata": metadata,
            "spec": wanted["spec"],
        }
        if now is None:
            await self._api.send("POST", API_SERVICES_PATH, body)
            return
        metadata["resourceVersion"] = now["metadata"]["resourceVersion"]
        await self._api.send("PUT", API_SERVICE_PATH, body)

    async def _undo(self, before: Object | None) -> None:
        if before is None:
            await self._api.send("DELETE", API_SERVICE_PATH)
        else:
            await self._put(_bare(before), await self._read())

    async def _why_not_good(self, metrics: list[Callable[[], Awaitable[str | None]]]) -> str | None:
        """Return why the new owner is not reached, or what answered before and no longer does."""
        deadline = time.monotonic() + self._within_s
        await asyncio.sleep(self._settled_s)
        why: str | None = "kube-apiserver has not tried yet"
        while time.monotonic() < deadline:
            found = await self._read()
            now = None if found is None else _shaped(found)
            if now is not None and now.available:
                why = None
                for ask in metrics:
                    why = why or await ask()
                if why is None:
                    return None
            elif now is not None and now.problem:
                why = f"kube-apiserver does not reach it ({now.problem})"
            await asyncio.sleep(_LOOK_EVERY_S)
        return f"within {self._within_s:g} s {why}"

    async def _read(self) -> dict[str, Any] | None:
        return await _get(self._api, API_SERVICE_PATH)


async def _get(api: KubernetesApi, path: str) -> dict[str, Any] | None:
    try:
        async with api.get(path, {}, timeout_s=10) as response:
            document: dict[str, Any] = msgspec.json.decode(await response.read())
    except Refused as error:
        if error.status == 404:
            return None
        raise
    return document


def _shaped(found: Object) -> ApiService:
    try:
        return msgspec.convert(found, ApiService)
    except msgspec.ValidationError as error:
        raise ClusterError(f"{API_SERVICE}: not what a Kubernetes API answers: {error}") from error


def _bare(found: Object) -> Object:
    """Return what somebody wrote of an object, without what the API server adds."""
    metadata = {key: found["metadata"][key] for key in _KEPT if key in found["metadata"]}
    return {"metadata": metadata, "spec": found["spec"]}


def _belongs(found: ApiService | None) -> str:
    if found is None:
        return "is nobody's"
    return f"belongs to {found.owner or 'kube-apiserver itself'}"
