"""How to follow all objects of one kind: listed once, then watched from there on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

import aiohttp
import msgspec

from wva_adapter.errors import ClusterError
from wva_adapter.kube.api import KubernetesApi, Refused
from wva_adapter.kube.meta import Meta, ObjectKey

log = logging.getLogger(__name__)

_PAGE_SIZE = 500
_MOST_OF_AN_EVENT = 16 * 2**20
"""etcd holds no object beyond a few MiB; a longer line is no event."""
_LIST_ANEW = (400, 404, 410, 504)
"""What a watch is refused with when its version is too old, unknown, or from another history, or
when the kind itself is gone."""
_FIRST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 15.0


class KubernetesObject(Protocol):
    """Anything with metadata."""

    @property
    def metadata(self) -> Meta:
        """Name, namespace, uid and the like."""
        ...


Kind = TypeVar("Kind", bound=KubernetesObject)


class _ListMeta(msgspec.Struct, rename="camel"):
    resource_version: str
    continue_: str = msgspec.field(name="continue", default="")


class _List(msgspec.Struct):
    metadata: _ListMeta
    items: list[msgspec.Raw] | None = None


class _Event(msgspec.Struct):
    type: str
    object: msgspec.Raw


class _Status(msgspec.Struct):
    code: int = 0
    message: str = ""


class _OnlyMeta(msgspec.Struct):
    metadata: Meta


class _Gone(Exception):
    """The API server no longer remembers the version from which to go on: list anew."""


class Watch(Generic[Kind]):
    """The objects of one kind, kept as they are in the cluster.

    While the API server is away, the last known ones stay and ``problem`` says since when.

    Args:
        path: Of the resource: ``/apis/apps/v1/deployments``.
        shape: What to decode of each object.
        on_change: Called after each change of ``objects``, with what changed.
        field_selector: Which of them; empty means all.
        turn_s: How long one watch request lasts. A connection that died silently is noticed
            when its turn is over.
        absent_for_s: Where the cluster may lack the kind altogether, as without KEDA: how long
            until it is looked for again, with no objects until then. ``None`` where a kind that
            is missing is a failure.
        forbidden_for_s: Where it does without the kind if it may not read it: how long until it
            asks again, with no objects until then. ``None`` where that is a failure.
        clock: Seconds on any scale, such as ``time.monotonic``.
    """

    def __init__(
        self,
        api: KubernetesApi,
        path: str,
        shape: type[Kind],
        *,
        on_change: Callable[[], None],
        clock: Callable[[], float],
        field_selector: str = "",
        turn_s: float = 60.0,
        absent_for_s: float | None = None,
        forbidden_for_s: float | None = None,
    ) -> None:
        self.path = path
        self._selected: dict[str, str] = {"fieldSelector": field_selector} if field_selector else {}
        self.objects: dict[ObjectKey, Kind] = {}
        self._api = api
        self._decode = msgspec.json.Decoder(shape).decode
        self._on_change = on_change
        self._clock = clock
        self._turn_s = turn_s
        self._absent_for_s = absent_for_s
        self._forbidden_for_s = forbidden_for_s
        self._forbidden = False
        self._version: str | None = None
        self._listed = asyncio.Event()
        self._failed_since: float | None = None
        self._failure: ClusterError | None = None
        self._failures = 0
        self._progress = asyncio.Condition()

    async def listed(self, *, tries: int) -> ClusterError | None:
        """Wait for the first full list; return why there is none if so many more tries failed."""
        most = self._failures + tries
        async with self._progress:
            await self._progress.wait_for(lambda: self._listed.is_set() or self._failures >= most)
        return None if self._listed.is_set() else self._failure

    def readable(self, *, within_s: float) -> bool:
        """Return whether the objects are those of the cluster, or were ``within_s`` ago."""
        listed = self._listed.is_set() and not self._forbidden
        return listed and self.problem(after_s=within_s) is None

    def problem(self, *, after_s: float) -> str | None:
        """Return what keeps the objects from being up to date for longer than ``after_s``."""
        if self._failed_since is None:
            return None
        age_s = self._clock() - self._failed_since
        if age_s < after_s:
            return None
        return f"{self.path.rsplit('/', 1)[-1]} not seen for {age_s:.0f} s: {self._failure}"

    async def run(self) -> None:
        """Follow the objects until cancelled."""
        while True:
            began = self._clock()
            try:
                if self._version is None:
                    await self._list()
                await self._watch(self._version or "")
            except _Gone:
                # Listing anew is no failure, unless it happens over and over.
                self._version = None
                pause_s = 0.0 if self._clock() - began > 1 else _FIRST_PAUSE_S
            except ClusterError as error:
                if self._absent_for_s is not None and _is_absence(error):
                    await self._take({}, version=None)
                    pause_s = self._absent_for_s
                elif self._forbidden_for_s is not None and _is_forbidden(error):
                    await self._do_without(error)
                    pause_s = self._forbidden_for_s
                else:
                    pause_s = await self._note_failure(error)
            else:
                # A turn normally lasts as long as asked for; one that ends at once must not spin.
                pause_s = 0.0 if self._clock() - began > 1 else _FIRST_PAUSE_S
            await asyncio.sleep(pause_s)

    async def _do_without(self, error: ClusterError) -> None:
        if not self._forbidden:
            what = {"resource": self.path, "problem": with_remedy(error)}
            log.warning("not readable, decided without it", extra=what)
        await self._take({}, version=None)
        self._forbidden = True

    async def _note_failure(self, error: ClusterError) -> float:
        if self._failed_since is None:
            self._failed_since = self._clock()
            log.warning("watch broken", extra={"resource": self.path, "problem": str(error)})
        self._failure = error
        async with self._progress:
            self._failures += 1
            self._progress.notify_all()
        return min(_FIRST_PAUSE_S * 2.0 ** min(self._failures - 1, 10), _LONGEST_PAUSE_S)

    def _note_success(self) -> None:
        if self._failed_since is not None:
            log.info("watch restored", extra={"resource": self.path})
        self._failed_since, self._failure, self._failures = None, None, 0

    async def _list(self) -> None:
        """Replace all objects, once the last page has come."""
        found: dict[ObjectKey, Kind] = {}
        query: dict[str, str | int] = {"limit": _PAGE_SIZE, **self._selected}
        while True:
            try:
                async with self._api.get(self.path, query, timeout_s=60) as response:
                    page = _decoded(await response.read(), _List, self.path)
            except Refused as error:
                if error.status == 410:  # the first page has aged out while the others came
                    raise _Gone from error
                raise
            for raw in page.items or ():
                known = self._read(raw)
                if known is not None:
                    found[known.metadata.key] = known
            if not page.metadata.continue_:
                break
            query["continue"] = page.metadata.continue_
        await self._take(found, version=page.metadata.resource_version)

    async def _take(self, found: dict[ObjectKey, Kind], *, version: str | None) -> None:
        self.objects, self._version = found, version
        self._forbidden = False
        self._note_success()
        async with self._progress:
            self._listed.set()
            self._progress.notify_all()
        self._on_change()

    async def _watch(self, version: str) -> None:
        """Apply events until the turn is over."""
        query: dict[str, str | int] = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": max(1, round(self._turn_s)),
            **self._selected,
        }
        try:
            async with self._api.get(self.path, query, timeout_s=1.2 * self._turn_s) as response:
                self._note_success()
                await self._apply_lines(response.content)
        except Refused as error:
            if error.status in _LIST_ANEW:
                raise _Gone from error
            raise

    async def _apply_lines(self, stream: aiohttp.StreamReader) -> None:
        rest = bytearray()
        async for chunk in stream.iter_any():
            start = len(rest)
            rest += chunk
            end = rest.rfind(b"\n", start)
            if end < 0:
                if len(rest) > _MOST_OF_AN_EVENT:
                    raise ClusterError(f"GET {self.path}: an event of over {len(rest)} bytes")
                continue
            try:
                changed = [self._apply(line) for line in bytes(rest[:end]).split(b"\n") if line]
            except ClusterError:
                # Going on from the same place would only meet the same event again.
                self._version = None
                raise
            del rest[: end + 1]
            if any(changed):
                self._on_change()

    def _apply(self, line: bytes) -> bool:
        """Apply one event; return whether an object changed."""
        event = _decoded(line, _Event, self.path)
        if event.type == "ERROR":
            status = _decoded(event.object, _Status, self.path)
            if status.code == 410:
                raise _Gone
            raise Refused(f"GET {self.path}: watch", status.code, status.message)
        meta = _decoded(event.object, _OnlyMeta, self.path).metadata
        self._version = meta.resource_version or self._version
        if event.type == "DELETED":
            return self.objects.pop(meta.key, None) is not None
        if event.type not in ("ADDED", "MODIFIED"):
            return False
        known = self._read(event.object)
        if known is None:
            return False
        self.objects[meta.key] = known
        return True

    def _read(self, raw: msgspec.Raw) -> Kind | None:
        """Return the object; one that is not as the API promises is told of and left out."""
        try:
            return self._decode(raw)
        except msgspec.DecodeError as error:
            log.warning("object left out", extra={"resource": self.path, "problem": str(error)})
            return None


def with_remedy(error: ClusterError) -> str:
    """Return what went wrong, with the permission that is missing where one is."""
    if not _is_forbidden(error):
        return str(error)
    return f"{error}; the adapter's role needs the verbs list and watch on it"


def _is_forbidden(error: ClusterError) -> bool:
    return isinstance(error, Refused) and error.status == 403


def _is_absence(error: ClusterError) -> bool:
    return isinstance(error, Refused) and error.status == 404


Decoded = TypeVar("Decoded")


def _decoded(body: bytes | msgspec.Raw, shape: type[Decoded], path: str) -> Decoded:
    try:
        return msgspec.json.decode(body, type=shape)
    except msgspec.DecodeError as error:
        raise ClusterError(f"GET {path}: not what a Kubernetes API answers: {error}") from error
