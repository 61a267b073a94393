"""What gateways hold back, have let through and sent where, read off their pickers' metrics pages."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

import aiohttp

from wva_adapter.collect.assemble import InFlight, VariantView
from wva_adapter.collect.exposition import Page, Series, Wanted, scan
from wva_adapter.core.snapshot import LARGEST, GatewayState, VariantState
from wva_adapter.errors import CollectError

log = logging.getLogger(__name__)

YOUNG_S: Final = 60.0
"""For so long after its start a zero means that a gateway does not know yet."""

_MOST_BYTES: Final = 4 * 2**20

# Pickers show one quantity under its old and its new name at once: the first that is there counts.
_QUEUE: Final = (
    "llm_d_epp_flow_control_queue_size",
    "inference_extension_flow_control_queue_size",
)
_BYTES: Final = (
    "llm_d_epp_flow_control_queue_bytes",
    "inference_extension_flow_control_queue_bytes",
)
_SATURATION: Final = (
    "llm_d_epp_flow_control_pool_saturation",
    "inference_extension_flow_control_pool_saturation",
)
_REQUESTS: Final = (
    "llm_d_epp_request_total",
    "inference_objective_request_total",
    "inference_model_request_total",
)
_IN_FLIGHT: Final = "llm_d_epp_inflight_requests"
_IN_FLIGHT_TOKENS: Final = "llm_d_epp_inflight_tokens"
_STARTED: Final = "process_start_time_seconds"
_WANTED: Final = Wanted(
    (*_QUEUE, *_BYTES, *_SATURATION, *_REQUESTS, _IN_FLIGHT, _IN_FLIGHT_TOKENS, _STARTED)
)

_RANK: Final = re.compile(r"-rank-[0-9]+$")
"""What pickers put behind a pod's name: each port of its pool's is an endpoint of its own."""


@dataclass(frozen=True, slots=True)
class Gateway:
    """Where a gateway tells of itself.

    Attributes:
        namespace: Of the models behind it: its pages name one of endpoints alone.
        urls: Its metrics pages, one per process of it.
        model_id: The model of all that it serves; ``None`` where its pages name models.
        token_file: The bearer token for its pages, read anew for each; ``None`` sends none.
    """

    namespace: str
    urls: tuple[str, ...]
    model_id: str | None = None
    token_file: Path | None = None


@dataclass(frozen=True, slots=True)
class GatewayPage:
    """What one page told.

    Attributes:
        at_s: Unix time of the page.
        queued: Requests held back, by the name of the model; ``None`` where flow control is off.
        queued_bytes: Their size, by the name of the model.
        let_through: Requests that a replica was picked for, by the name of the model, a counter;
            ``None`` where it has none.
        offline_queued: Those of ``queued`` that nobody waits for, of a negative priority.
        offline_let_through: Those of ``let_through``.
        in_flight: What it sent where, by ``NAMESPACE/NAME`` of the endpoint.
        started_at_s: Unix time at which its process started; ``None`` where it does not say.
    """

    at_s: float
    queued: Mapping[str, float] | None = None
    queued_bytes: Mapping[str, float] = field(default_factory=dict)
    let_through: Mapping[str, float] | None = None
    offline_queued: Mapping[str, float] = field(default_factory=dict)
    offline_let_through: Mapping[str, float] = field(default_factory=dict)
    in_flight: Mapping[str, InFlight] = field(default_factory=dict)
    started_at_s: float | None = None


def is_gateway(body: bytes) -> bool:
    """Return whether a page has series that only endpoint pickers write."""
    return any(name.encode() in body for name in _WANTED.names - {_STARTED})


def gateway_document(page: GatewayPage) -> dict[str, object]:
    """Return the page in the shape that ``inspect --json`` prints; unknown is ``None``."""
    started = page.started_at_s
    return {
        "gateway": True,
        "queued_requests": None if page.queued is None else dict(page.queued),
        "queued_bytes": dict(page.queued_bytes),
        "offline_queued_requests": dict(page.offline_queued),
        "offline_requests_total": dict(page.offline_let_through),
        "requests_total": None if page.let_through is None else dict(page.let_through),
        "in_flight": {endpoint: asdict(sent) for endpoint, sent in page.in_flight.items()},
        "age_s": None if started is None else page.at_s - started,
        "zeros_known": started is not None and page.at_s - started >= YOUNG_S,
    }


def read_gateway(body: bytes, *, at_s: float, source: str) -> GatewayPage:
    """Return what an endpoint picker's page tells.

    Series of a flow that is over vanish, so a model without one holds nothing, if anything else on
    the page proves that flow control is on.

    Raises:
        CollectError: It is no page, or none of an endpoint picker.
    """
    page = scan(body, _WANTED, source)
    queue, requests = _first(page, _QUEUE), _first(page, _REQUESTS)
    controls = bool(queue or _first(page, _SATURATION))
    in_flight = _in_flight(page)
    if not (controls or requests or in_flight or page.of(_STARTED)):
        raise CollectError(source, "no page of an endpoint picker: it has none of its series")
    started = [series.value for series in page.of(_STARTED)]
    return GatewayPage(
        at_s,
        queued=_by_model(queue) if controls else None,
        queued_bytes=_by_model(_first(page, _BYTES)),
        let_through=_by_model(requests) if requests else None,
        offline_queued=_by_model(filter(_is_offline, queue)),
        offline_let_through=_by_model(filter(_is_offline, requests)),
        in_flight=in_flight,
        started_at_s=started[0] if started and 0 <= started[0] <= LARGEST else None,
    )


def _first(page: Page, names: Iterable[str]) -> tuple[Series, ...]:
    return next((found for name in names if (found := page.of(name))), ())


def _is_offline(series: Series) -> bool:
    """Return whether a series is of a negative priority: sheddable, so nobody waits for it."""
    try:
        return int(series.labels.get("priority", "0")) < 0
    except ValueError:
        return False


def _by_model(series: Iterable[Series]) -> dict[str, float]:
    """Return sums by model: over priorities, fairness ids and pools."""
    found: dict[str, float] = {}
    for one in series:
        # Behind a name that is split between models stands the one that is asked for.
        name = one.labels.get("target_model_name") or one.labels.get("model_name", "")
        if 0 <= one.value <= LARGEST:
            found[name] = found.get(name, 0.0) + one.value
    return found


def _in_flight(page: Page) -> dict[str, InFlight]:
    requests, tokens = _by_endpoint(page.of(_IN_FLIGHT)), _by_endpoint(page.of(_IN_FLIGHT_TOKENS))
    return {
        endpoint: InFlight(requests.get(endpoint), tokens.get(endpoint))
        for endpoint in sorted(requests.keys() | tokens.keys())
    }


def _by_endpoint(series: Iterable[Series]) -> dict[str, float | None]:
    """Return sums over fairness ids and priorities, by ``NAMESPACE/NAME`` of the endpoint.

    Each producer that is configured counts every request that the picker sends, so their sums are
    of the same requests: the largest counts, since one that began later has missed some.
    """
    found: dict[str, dict[str, list[float | None]]] = {}
    for one in series:
        labels = one.labels
        endpoint = f"{labels.get('namespace', '')}/{labels.get('endpoint_name', '')}"
        value = one.value if 0 <= one.value <= LARGEST else None
        producers = found.setdefault(endpoint, {})
        producers.setdefault(labels.get("producer_name", ""), []).append(value)
    return {
        endpoint: _most(_at_least(values) for values in producers.values())
        for endpoint, producers in found.items()
    }


@dataclass(slots=True)
class _Watched:
    gateway: Gateway
    url: str
    page: GatewayPage | None = None
    young_since_s: float | None = None
    problem: str | None = None

    @property
    def young(self) -> bool:
        """Whether zeros of its page mean that it does not know yet."""
        since_s = self.young_since_s
        return self.page is not None and since_s is not None and self.page.at_s - since_s < YOUNG_S

    def take(self, page: GatewayPage) -> bool:
        """Take a page in; return whether requests wait that did not before."""
        before = self.page
        if page.started_at_s is not None:
            self.young_since_s = page.started_at_s
        elif before is None or _total(page.let_through) < _total(before.let_through):
            self.young_since_s = page.at_s
        self.page, self.problem = page, None
        waited = before is not None and _total(before.queued) > 0
        return _total(page.queued) > 0 and not waited


class GatewayReader:
    """Asks each gateway for its pages once per period, each on its own: none waits for another.

    Args:
        period_s: Seconds of the event loop between two reads of a page.
        timeout_s: Longest time for one.
        stale_after_s: A page older than this, by the clock, tells nothing.
        clock: Unix time.
        on_queue: Called when a gateway begins to hold requests back.
    """

    def __init__(
        self,
        gateways: Sequence[Gateway],
        *,
        period_s: float,
        timeout_s: float,
        stale_after_s: float,
        clock: Callable[[], float] = time.time,
        on_queue: Callable[[], None],
    ) -> None:
        self._watched = [_Watched(one, url) for one in gateways for url in one.urls]
        self._period_s = period_s
        self._timeout_s = timeout_s
        self._stale_after_s = stale_after_s
        self._clock = clock
        self._on_queue = on_queue
        self._names: dict[tuple[str, str], str] = {}

    @property
    def problems(self) -> tuple[str, ...]:
        """Why pages say nothing now, a sentence each."""
        return tuple(f"gateway {w.url}: {w.problem}" for w in self._watched if w.problem)

    async def run(self) -> None:
        """Read until cancelled."""
        async with (
            aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=self._timeout_s),
                headers={"Accept": "text/plain"},
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
            ) as session,
            asyncio.TaskGroup() as group,
        ):
            for watched in self._watched:
                group.create_task(self._repeat(session, watched))

    def states(self, variants: Sequence[VariantState]) -> tuple[GatewayState, ...]:
        """Return what is known of the gateways in front of these variants' models.

        Nothing is returned of a model whose gateway says nothing that is fresh: an unknown queue is
        not an empty one.
        """
        self._learn_names(variants)
        now_s = self._clock()
        models = sorted({(s.variant.key.namespace, s.variant.model_id) for s in variants})
        states = (self._state(namespace, model_id, now_s) for namespace, model_id in models)
        return tuple(state for state in states if state is not None)

    def in_flight(self, views: Sequence[VariantView]) -> Mapping[str, InFlight]:
        """Return what gateways sent to replicas and is not answered yet, by replica uid.

        Nothing is returned of endpoints that are no replica any more: pickers go on telling of them.
        """
        if not any(watched.page and watched.page.in_flight for watched in self._watched):
            return {}
        now_s = self._clock()
        processes: dict[Gateway, list[_Watched]] = {}
        for watched in self._watched:
            processes.setdefault(watched.gateway, []).append(watched)
        here: dict[str, list[VariantView]] = {}
        for view in views:
            here.setdefault(view.variant.key.namespace, []).append(view)
        told: dict[str, list[InFlight]] = {}
        for gateway, group in processes.items():
            pages = [(self._fresh(watched, now_s), watched.young) for watched in group]
            endpoints = {name for page, _ in pages if page is not None for name in page.in_flight}
            for uid, names in _owned(endpoints, gateway, here.get(gateway.namespace, ())).items():
                told.setdefault(uid, []).extend(
                    _sent(page, name, young) for page, young in pages for name in names
                )
        # Each process counts what it sent itself, so they add up; one that waits to lead sends
        # nothing.
        return {
            uid: InFlight(
                _at_least([one.requests for one in sent]), _at_least([one.tokens for one in sent])
            )
            for uid, sent in told.items()
        }

    def _fresh(self, watched: _Watched, now_s: float) -> GatewayPage | None:
        """Return a process's page; ``None`` if there is none, or of too long ago."""
        page = watched.page
        if page is None or abs(now_s - page.at_s) > self._stale_after_s:
            return None
        return page

    def _learn_names(self, variants: Sequence[VariantState]) -> None:
        """Note under which names models are served; those of a model at zero are remembered."""
        for state in variants:
            namespace, model_id = state.variant.key.namespace, state.variant.model_id
            self._names[namespace, model_id] = model_id
            for replica in state.replicas:
                for name in () if replica.sample is None else replica.sample.model_names:
                    self._names.setdefault((namespace, name), model_id)

    def _state(self, namespace: str, model_id: str, now_s: float) -> GatewayState | None:
        asked = [
            watched
            for watched in self._watched
            if watched.gateway.namespace == namespace
            and watched.gateway.model_id in (None, model_id)
        ]
        told = [self._told(watched, model_id, now_s) for watched in asked]
        queues = [None if one is None else one.queued_requests for one in told]
        totals = [None if one is None else one.arrivals_total for one in told]
        # Of several processes one leads and holds the queue; the others show none.
        queued = max((queue for queue in queues if queue is not None), default=None)
        if not queued and None in queues:
            queued = None
        arrivals = None if None in totals else sum(total or 0.0 for total in totals)
        known = [one for one in told if one is not None]
        if not known or (queued is None and arrivals is None):
            return None
        return GatewayState(
            namespace=namespace,
            model_id=model_id,
            at_s=min(one.at_s for one in known),
            queued_requests=queued,
            queued_bytes=max((one.queued_bytes or 0.0 for one in known), default=0.0),
            arrivals_total=arrivals,
            offline_queued_requests=_most(one.offline_queued_requests for one in known),
            offline_arrivals_total=_sum(one.offline_arrivals_total for one in known),
        )

    def _told(self, watched: _Watched, model_id: str, now_s: float) -> GatewayState | None:
        """Return what one process told of a model; ``None`` if nothing, or too long ago."""
        page = self._fresh(watched, now_s)
        if page is None:
            return None

        def of_model(values: Mapping[str, float]) -> float:
            if watched.gateway.model_id is not None:
                return sum(values.values())
            namespace = watched.gateway.namespace
            return sum(
                value
                for name, value in values.items()
                if self._names.get((namespace, name)) == model_id
            )

        queued = None if page.queued is None else of_model(page.queued)
        through = None if page.let_through is None else of_model(page.let_through)
        if watched.young:
            through = None
            queued = queued or None
        return GatewayState(
            namespace=watched.gateway.namespace,
            model_id=model_id,
            at_s=page.at_s,
            queued_requests=queued,
            queued_bytes=of_model(page.queued_bytes),
            # Requests count as let through once a replica is picked: what waits has come as well.
            arrivals_total=None if through is None else through + (queued or 0.0),
            **_offline(page, of_model, queued, through),
        )

    async def _repeat(self, session: aiohttp.ClientSession, watched: _Watched) -> None:
        while True:
            try:
                body = await self._fetch(session, watched)
                page = read_gateway(body, at_s=self._clock(), source=watched.url)
            except CollectError as error:
                if watched.problem is None:
                    log.warning("gateway not read", extra={"problem": str(error)})
                watched.problem = error.problem
            else:
                if watched.take(page):
                    self._on_queue()
            await asyncio.sleep(self._period_s)

    async def _fetch(self, session: aiohttp.ClientSession, watched: _Watched) -> bytes:
        """Return the page.

        Raises:
            CollectError: It did not come, or is too large.
        """
        url, token_file = watched.url, watched.gateway.token_file
        headers = {}
        try:
            if token_file is not None:
                token = await asyncio.to_thread(token_file.read_text)
                headers["Authorization"] = f"Bearer {token.strip()}"
            async with session.get(url, allow_redirects=False, headers=headers) as response:
                if response.status != 200:
                    raise CollectError(url, f"HTTP {response.status}")
                body = bytearray()
                async for part in response.content.iter_any():
                    body += part
                    if len(body) > _MOST_BYTES:
                        raise CollectError(url, f"page of more than {_MOST_BYTES / 2**20:g} MiB")
                return bytes(body)
        except TimeoutError:
            raise CollectError(url, f"timed out after {self._timeout_s:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise CollectError(url, str(error)) from None


def _owned(
    endpoints: Iterable[str], gateway: Gateway, views: Sequence[VariantView]
) -> Mapping[str, Sequence[str]]:
    """Return which of a gateway's endpoints are of which replica in its namespace, by replica uid.

    An endpoint has the name of its pod, with a rank behind it or without, or of a replica in a
    static file, or that one's host and port.
    """
    by_address = any(":" in endpoint for endpoint in endpoints)
    owners: dict[str, str | None] = {}
    for view in views:
        if gateway.model_id not in (None, view.variant.model_id):
            continue
        for replica in view.replicas:
            names = {replica.name}
            if by_address and replica.url is not None:
                names.add(replica.url.partition("://")[2].partition("/")[0])
            for name in names:
                # Names in a static file may be those of several replicas: then nobody knows whose.
                known = owners.setdefault(name, replica.uid)
                owners[name] = replica.uid if known == replica.uid else None
    owned: dict[str, list[str]] = {}
    for endpoint in sorted(endpoints):
        namespace, _, name = endpoint.partition("/")
        if namespace not in ("", gateway.namespace):
            continue
        uid = owners.get(name) or owners.get(_RANK.sub("", name))
        if uid is not None:
            owned.setdefault(uid, []).append(endpoint)
    return owned


def _sent(page: GatewayPage | None, endpoint: str, young: bool) -> InFlight:
    """Return what a process says that it sent somewhere; 0 where it knows of nothing."""
    if page is None:
        return InFlight()
    sent = page.in_flight.get(endpoint, InFlight(0.0, 0.0))
    return InFlight(sent.requests or None, sent.tokens or None) if young else sent


def _at_least(values: Sequence[float | None]) -> float | None:
    """Return a sum of which a part may be unknown: the rest is real, but nothing is no zero then."""
    known = min(LARGEST, sum(value for value in values if value is not None))
    return None if not known and None in values else known


def _offline(
    page: GatewayPage,
    of_model: Callable[[Mapping[str, float]], float],
    queued: float | None,
    through: float | None,
) -> dict[str, float]:
    """Return what of a model's requests is offline; nothing where none ever were."""
    held, passed = of_model(page.offline_queued), of_model(page.offline_let_through)
    if not (held or passed):
        return {}
    found = {} if queued is None else {"offline_queued_requests": held}
    return found if through is None else {**found, "offline_arrivals_total": passed + held}


def _most(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _sum(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _total(values: Mapping[str, float] | None) -> float:
    return sum((values or {}).values())
