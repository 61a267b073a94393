"""Who answers ``external.metrics.k8s.io`` in this cluster, and what the object must say if we do."""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import re
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgspec

from wva_adapter.errors import ClusterError
from wva_adapter.kube.api import KubernetesApi
from wva_adapter.kube.meta import Meta, ObjectKey
from wva_adapter.kube.watch import Watch

log = logging.getLogger(__name__)

API_SERVICE: Final = "v1beta1.external.metrics.k8s.io"
API_SERVICES_PATH: Final = "/apis/apiregistration.k8s.io/v1/apiservices"
API_SERVICE_PATH: Final = f"{API_SERVICES_PATH}/{API_SERVICE}"
FORMER: Final = "wva-adapter/former-apiservice"
"""The annotation that holds the former object whole, so that it can be put back."""

_LOOK_EVERY_S: Final = 5.0
_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 60.0
_CALM_S: Final = 120.0
# Longer than all replicas take until they have read the same new files.
_OVERLAP_S: Final = 600.0
_CERTIFICATE: Final = re.compile(
    rb"-----BEGIN CERTIFICATE-----(.+?)-----END CERTIFICATE-----", re.DOTALL
)


class ServiceAddress(NamedTuple):
    """A Service and its port."""

    namespace: str
    name: str
    port: int = 443

    @property
    def host(self) -> str:
        """The name that its certificate must have."""
        return f"{self.name}.{self.namespace}.svc"

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" + ("" if self.port == 443 else f":{self.port}")


def parse_address(text: str) -> ServiceAddress:
    """Return the Service that ``NAMESPACE/NAME`` or ``NAMESPACE/NAME:PORT`` names.

    Raises:
        ValueError: It is not written so.
    """
    namespace, slash, rest = text.partition("/")
    name, colon, port = rest.partition(":")
    if not (namespace and slash and name) or "/" in name or (colon and not port.isdecimal()):
        raise ValueError(f"found {text!r}, want NAMESPACE/NAME or NAMESPACE/NAME:PORT")
    return ServiceAddress(namespace, name, int(port) if colon else 443)


class _ServiceReference(msgspec.Struct, frozen=True):
    namespace: str = ""
    name: str = ""
    port: int | None = None


class _Spec(msgspec.Struct, rename="camel", frozen=True):
    service: _ServiceReference | None = None
    ca_bundle: str | None = None
    insecure: bool = msgspec.field(name="insecureSkipTLSVerify", default=False)


class _Condition(msgspec.Struct, frozen=True):
    type: str = ""
    status: str = ""
    reason: str = ""
    message: str = ""


class _State(msgspec.Struct, frozen=True):
    conditions: tuple[_Condition, ...] = ()


class _Manager(msgspec.Struct, rename="camel", frozen=True):
    manager: str = ""
    fields: dict[str, Any] = msgspec.field(name="fieldsV1", default={})


class _ManagedMeta(Meta, rename="camel", frozen=True):
    managed_fields: tuple[_Manager, ...] = ()


class ApiService(msgspec.Struct, frozen=True):
    """The one object that names who answers the API group."""

    metadata: _ManagedMeta = _ManagedMeta()
    spec: _Spec = _Spec()
    status: _State = _State()

    @property
    def owner(self) -> ServiceAddress | None:
        """Who answers; ``None`` where kube-apiserver itself does."""
        service = self.spec.service
        if service is None:
            return None
        return ServiceAddress(service.namespace, service.name, service.port or 443)

    @property
    def ca_bundle(self) -> bytes:
        """The authorities (PEM) that must have signed the owner's certificate; empty if none."""
        try:
            return base64.b64decode(self.spec.ca_bundle or "")
        except binascii.Error:
            return b""

    @property
    def available(self) -> bool | None:
        """Whether kube-apiserver reaches the owner; ``None`` where it has not tried yet."""
        status = next((c.status for c in self.status.conditions if c.type == "Available"), None)
        return None if status not in ("True", "False") else status == "True"

    @property
    def problem(self) -> str:
        """Why it is not available, in kube-apiserver's words."""
        return next(
            (
                f"{c.reason}: {c.message}"
                for c in self.status.conditions
                if c.type == "Available" and c.status != "True"
            ),
            "",
        )

    @property
    def former(self) -> ApiService | None:
        """Who answered before us, as it was put on record; ``None`` where nothing is."""
        text = self.metadata.annotations.get(FORMER)
        if text is None:
            return None
        try:
            return msgspec.json.decode(text, type=ApiService)
        except msgspec.DecodeError as error:
            raise ClusterError(
                f"{API_SERVICE}: annotation {FORMER} cannot be read: {error}; want the object that "
                "was put on record"
            ) from error

    @property
    def bundle_writer(self) -> str:
        """Who wrote caBundle last, as the API server notes it; empty where it does not."""
        for entry in reversed(self.metadata.managed_fields):
            if "f:caBundle" in entry.fields.get("f:spec", {}):
                return entry.manager
        return ""


class ApiServiceKeeper:
    """Follows the object, keeps our authorities in it while it is ours, and tells who was before.

    More authorities than ours may stand there for ten minutes: where replicas change their
    authority one after the other, each would take the other's away.

    Another writer of caBundle cannot be outrun: each write of ours is an event that it answers. So
    writes that follow each other become rare, and the log says who the other one is.

    Args:
        ours: The Service that leads to this adapter.
        ca_bundle: Returns our authorities (PEM); ``None`` where they are not known, and then
            nothing is written.
        on_former: Called with the former owner's object whenever it changes; ``None`` where there
            is none or the object is not ours.
        clock: Seconds on any scale.
    """

    def __init__(
        self,
        api: KubernetesApi,
        ours: ServiceAddress,
        *,
        ca_bundle: Callable[[], bytes | None],
        on_former: Callable[[ApiService | None], None],
        clock: Callable[[], float] = time.monotonic,
        look_every_s: float = _LOOK_EVERY_S,
    ) -> None:
        self._api = api
        self._ours = ours
        self._ca_bundle = ca_bundle
        self._on_former = on_former
        self._clock = clock
        self._look_every_s = look_every_s
        self._changed = asyncio.Event()
        self._watch = Watch(
            api,
            API_SERVICES_PATH,
            ApiService,
            field_selector=f"metadata.name={API_SERVICE}",
            on_change=self._changed.set,
            clock=clock,
        )
        self._told = ""
        self._former: ApiService | None = None
        self._tried: bytes | None = None
        self._tried_at_s = 0.0
        self._written: bytes | None = None
        self._pause_s = 0.0
        self._more: bytes | None = None
        self._more_since_s = 0.0

    def is_announced(self, ca_pem: bytes) -> bool:
        """Return whether kube-apiserver trusts these authorities, or has no reason to."""
        found = self._watch.objects.get(ObjectKey("", API_SERVICE))
        if found is None or found.spec.insecure or not is_same_service(found.owner, self._ours):
            return True
        return certificates_in(ca_pem) <= certificates_in(found.ca_bundle)

    async def run(self) -> None:
        """Follow the object until cancelled."""
        following = asyncio.create_task(self._watch.run())
        try:
            await self._changed.wait()
            while True:
                self._changed.clear()
                await self._look(self._watch.objects.get(ObjectKey("", API_SERVICE)))
                try:
                    # Our own authorities may change without any event of the cluster's.
                    await asyncio.wait_for(self._changed.wait(), self._look_every_s)
                except TimeoutError:
                    continue
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    async def _look(self, found: ApiService | None) -> None:
        is_ours = found is not None and is_same_service(found.owner, self._ours)
        self._tell(found, is_ours=is_ours)
        former: ApiService | None = None
        if found is not None and is_ours:
            try:
                former = found.former
            except ClusterError as error:
                log.error("former owner unknown", extra={"problem": str(error)})
            await self._keep(found)
        if former != self._former:
            self._former = former
            self._on_former(former)

    def _tell(self, found: ApiService | None, *, is_ours: bool) -> None:
        if found is None:
            owner = "nobody"
        elif is_ours:
            owner = "us"
        else:
            owner = str(found.owner or "kube-apiserver itself")
        if owner == self._told:
            return
        self._told = owner
        if owner in ("nobody", "us"):
            log.info("owner of the API group", extra={"apiservice": API_SERVICE, "owner": owner})
        else:
            log.error(
                "the API group belongs to another adapter",
                extra={
                    "apiservice": API_SERVICE,
                    "problem": f"found service {owner}, want {self._ours}: HPAs that read our "
                    "metrics get its answers; `wva-adapter apiservice --take-over` makes it us and "
                    "chains the other one",
                },
            )

    async def _keep(self, found: ApiService) -> None:
        wanted = self._ca_bundle()
        if wanted is None or found.spec.insecure or found.ca_bundle == wanted:
            self._more = None
            return
        now = self._clock()
        if certificates_in(wanted) and certificates_in(wanted) <= certificates_in(found.ca_bundle):
            if self._more != found.ca_bundle:
                self._more, self._more_since_s = found.ca_bundle, now
            if now - self._more_since_s < _OVERLAP_S:
                return
        again, since_s = wanted == self._tried, now - self._tried_at_s
        if again and since_s < self._pause_s:
            return
        if again and since_s < _CALM_S:
            self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        else:
            self._pause_s = _FIRST_PAUSE_S
        self._tried, self._tried_at_s = wanted, now
        try:
            await self._write(found, wanted)
        except ClusterError as error:
            log.warning("caBundle not written", extra={"problem": str(error)})
            return
        rewritten, self._written = wanted == self._written, wanted
        if rewritten:
            log.warning(
                "caBundle set again",
                extra={
                    "apiservice": API_SERVICE,
                    "problem": f"{found.bundle_writer or 'somebody'} had rewritten it, and "
                    "kube-apiserver could not reach us meanwhile; KEDA's operator does that unless "
                    "it runs with --enable-apiservice-patching=false",
                    "again_s": self._pause_s,
                },
            )
        else:
            log.info("caBundle set", extra={"apiservice": API_SERVICE})

    async def _write(self, found: ApiService, wanted: bytes) -> None:
        patch = {
            # Whoever changed the object since then may have made it theirs: not written then.
            "metadata": {"resourceVersion": found.metadata.resource_version},
            "spec": {"caBundle": base64.b64encode(wanted).decode()},
        }
        await self._api.send(
            "PATCH", API_SERVICE_PATH, patch, content_type="application/merge-patch+json"
        )


def certificates_in(pem: bytes) -> frozenset[bytes]:
    """Return the certificates of a PEM text, whatever stands between them."""
    return frozenset(b"".join(body.split()) for body in _CERTIFICATE.findall(pem))


def is_same_service(owner: ServiceAddress | None, ours: ServiceAddress) -> bool:
    """Return whether the owner is this Service."""
    # The port is the operator's own affair: it does not make the Service another's.
    return owner is not None and (owner.namespace, owner.name) == (ours.namespace, ours.name)
