"""How the adapter runs: its parts put together, and the loop that decides once per cycle."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from wva_adapter import garbage
from wva_adapter.collect.assemble import ReplicaView, Source, VariantView, assemble
from wva_adapter.collect.cluster import ClusterSource
from wva_adapter.collect.gateway import Gateway, GatewayReader
from wva_adapter.collect.record import Recorder
from wva_adapter.collect.scrape import Scraper
from wva_adapter.collect.static import StaticSource
from wva_adapter.core.decision import Decision, Plan
from wva_adapter.core.guards import budget_problems
from wva_adapter.core.memory import Memory
from wva_adapter.core.planner import plan
from wva_adapter.core.policies import Policies
from wva_adapter.core.policy import Policy
from wva_adapter.core.saturation import crosses
from wva_adapter.core.snapshot import ReplicaSample, Snapshot
from wva_adapter.errors import ClusterError, ConfigError
from wva_adapter.kube.api import KubernetesApi
from wva_adapter.publish.apiservice import ApiService, ApiServiceKeeper, parse_address
from wva_adapter.publish.board import Board
from wva_adapter.publish.explain import Refusals
from wva_adapter.publish.keep import ConfigMapStore, FileStore, MemoryKeeper
from wva_adapter.publish.telemetry import Telemetry
from wva_adapter.serve.app import create_app, in_front
from wva_adapter.serve.certificates import serving_pair
from wva_adapter.serve.chain import Chain
from wva_adapter.serve.delegation import Delegation
from wva_adapter.serve.delegation import Memory as ReviewMemory
from wva_adapter.serve.envelope import Envelope
from wva_adapter.serve.hot import MetricReads
from wva_adapter.serve.identity import IdentityHeaders
from wva_adapter.serve.promql import query_reads
from wva_adapter.serve.reader import ReaderDoor, TokenFile
from wva_adapter.serve.request_metrics import RequestMetrics
from wva_adapter.serve.server import Server
from wva_adapter.serve.tls import ServingTls
from wva_adapter.serve.trust import trust_of_files
from wva_adapter.serve.upstream import FileToken, Identity, Token, Trusted, Upstream
from wva_adapter.settings import ProviderSection, Settings, SettingsFile
from wva_adapter.solver import Solver

log = logging.getLogger(__name__)

# A burst of replicas that become saturated together is decided on once, this long after the first.
_GATHER_S = 0.05
_LONGEST_WAIT_S = 30.0


class Adapter:
    """The whole adapter in one event loop.

    Args:
        settings: What the operator wrote.
        folder: Relative paths in the settings start here.
        record: Where every cycle is recorded; ``None`` for nowhere.
        file: Where the settings come from, so that its changes are taken over; ``None`` where
            they stay as they are.
        clock: Unix time; a faster one makes windows and ages pass faster.
        speed: Seconds of ``clock`` per second of the event loop; periods shrink by it.

    Raises:
        ConfigError: A file, an address or a port cannot be used; nothing was started.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        folder: Path,
        file: SettingsFile | None = None,
        record: Path | None = None,
        clock: Callable[[], float] = time.time,
        speed: float = 1.0,
    ) -> None:
        self._settings = settings
        self._file = file
        self._speed = speed
        self._policies = self._base = settings.to_policies()
        self._recorder = None if record is None else Recorder(record)
        self._clock = clock
        self._cycle_s = settings.cycle / speed
        self._solver = Solver(settings.max_age / speed)
        self._policy_of: Mapping[str, Policy] = {}
        self._thresholds: tuple[str, ...] = ()
        self._memory = Memory()
        self._last: Plan | None = None
        self._snapshot: Snapshot | None = None
        self._conflicts: tuple[str, ...] = ()
        self._news = asyncio.Event()
        self._lame_duck_s = settings.shutdown.lame_duck
        self._shares_port = settings.listen.reuse_port
        self._ready = asyncio.Event()
        self._ends = False
        self._sources: list[Source] = []
        self._cluster: ClusterSource | None = None
        if settings.cluster is not None:
            self._cluster = ClusterSource(
                kubeconfig=_below(folder, settings.cluster.kubeconfig),
                namespaces=settings.cluster.namespaces,
                instance=settings.controller_instance,
                system=settings.cluster.thresholds_namespace,
            )
            self._sources.append(self._cluster)
        if settings.static_file is not None:
            static = StaticSource(folder / settings.static_file)
            self._sources.append(static)
            described = [view.variant for view in static.view()]
            for problem in budget_problems(settings.guards.at(clock()), described):
                raise ConfigError(problem)
        self._scraper = Scraper(
            period_s=settings.scrape_period / speed,
            timeout_s=settings.scrape_timeout / speed,
            clock=clock,
            on_page=self._on_page,
        )
        self._gateways = GatewayReader(
            [
                Gateway(one.namespace, one.urls, one.model, _below(folder, one.token_file))
                for one in settings.gateways
            ],
            period_s=settings.scrape_period / speed,
            timeout_s=settings.scrape_timeout / speed,
            stale_after_s=3 * settings.scrape_period,
            clock=clock,
            on_queue=self._news.set,
        )
        self.board = Board(
            settings.max_age,
            clock,
            controller_instance=settings.controller_instance,
        )
        self._telemetry = Telemetry(self.board, clock=clock)
        self._in_step = self._cluster is None
        self._tls = ServingTls(
            partial(
                serving_pair,
                directory=folder / settings.tls.directory,
                cert_file=_below(folder, settings.tls.cert_file),
                key_file=_below(folder, settings.tls.key_file),
                ca_file=_below(folder, settings.tls.ca_file),
                names=settings.tls.names,
            ),
            protocol=settings.tls.to_protocol(),
            check_period_s=settings.tls.check_period,
            is_announced=self._is_announced,
        )
        own = settings.api_service
        self._chained = {provider.service for provider in settings.chain.providers}
        self._recorded: ApiService | None = None
        self._api: KubernetesApi | None = None
        if settings.cluster is not None:
            self._api = KubernetesApi(_below(folder, settings.cluster.kubeconfig))
        self._memory_keeper = _memory_keeper(settings, folder, self._api, clock=clock, speed=speed)
        self._chain = Chain(
            [
                _upstream(provider, folder, self._api, recorded_ca=self._recorded_ca)
                for provider in settings.chain.providers
            ],
            timeout_s=settings.chain.timeout,
        )
        self._keeper: ApiServiceKeeper | None = None
        if self._api is not None and own is not None:
            self._keeper = ApiServiceKeeper(
                self._api,
                parse_address(own.service),
                ca_bundle=self._ca_bundle if own.keep_ca_bundle else lambda: None,
                on_former=partial(self._on_former, chained=settings.chain.former_owner),
            )
        reads = MetricReads(self.board, clock=clock, elsewhere=self._chain)
        self._requests = RequestMetrics()
        self._telemetry.registry.register(self._requests)
        self._checks = {
            "informer-sync": self._cluster_problem,
            "engine": self.board.problem,
            "shutdown": self._shutdown_problem,
        }
        app = create_app(
            reads,
            self.board,
            metrics=self._telemetry.page,
            ready=self._checks,
            series=self.board,
        )
        self._delegation = _delegation(
            settings, folder, self._api, on_client_cas=self._tls.trust_clients
        )
        guard = (
            None
            if self._delegation is None
            else partial(self._delegation.guard, query_reads=query_reads)
        )
        self.server = Server(
            in_front(
                app,
                reads,
                guard=guard,
                metrics=self._requests,
                audit=settings.audit_log,
            ),
            host=settings.listen.address,
            port=settings.listen.port,
            ssl_context=self._tls.context,
            listen_anywhere=self._delegation is not None,
            reuse_port=settings.listen.reuse_port,
        )
        self.reader: Server | None = None
        if settings.reader is not None:
            token_file = _below(folder, settings.reader.token_file)
            token = None if token_file is None else TokenFile(token_file)
            self.reader = Server(
                Envelope(ReaderDoor(app, token), metrics=self._requests, audit=settings.audit_log),
                host=settings.reader.address,
                port=settings.reader.port,
                ssl_context=self._tls.context,
                listen_anywhere=True,
                reuse_port=settings.listen.reuse_port,
            )

    @property
    def plan(self) -> Plan | None:
        """The last plan; ``None`` before the first one."""
        return self._last

    @property
    def snapshot(self) -> Snapshot | None:
        """What the last plan was made from."""
        return self._snapshot

    async def run(self, stop: asyncio.Event, *, hurry: asyncio.Event | None = None) -> None:
        """Serve and decide until ``stop`` is set, then end in order.

        Args:
            hurry: Ends the lame duck's time early, in which callers still find the adapter.

        Raises:
            ConfigError: The cluster's credentials cannot be used.
        """
        work = self._begin_work()
        try:
            if self._shares_port:
                # Who shares the port is found by callers at once; the other one serves until then.
                await _first_of((stop, self._ready), work)
            if not stop.is_set():
                await self._listen()
                await _first_of((stop,), work)
                await self._lame_duck(hurry or asyncio.Event(), work)
        finally:
            log.info("ending")
            # Requests in flight still need all that works for them.
            await asyncio.gather(*(server.stop() for server in self._servers))
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)
            await self._solver.stop()
            if self._memory_keeper is not None:
                await self._memory_keeper.save(self._known())
            if self._cluster is not None:
                await self._cluster.stop()
            await self._chain.close()
            if self._api is not None:
                await self._api.close()

    def _ca_bundle(self) -> bytes | None:
        """Return what callers must trust; ``None`` where the operator's certificate says no CA."""
        return self._tls.authorities

    def _is_announced(self, ca_pem: bytes) -> bool:
        return self._keeper is None or self._keeper.is_announced(ca_pem)

    def _begin_work(self) -> list[asyncio.Task[None]]:
        work = {
            "scrape": self._scraper.run(),
            "decide": self._decide_forever(),
            "certificate": self._tls.run(),
        }
        if self._delegation is not None:
            work["delegation"] = self._delegation.run()
        if self._keeper is not None:
            work["apiservice"] = self._keeper.run()
        if self._settings.gateways:
            work["gateways"] = self._gateways.run()
        if self._memory_keeper is not None:
            work["memory"] = self._memory_keeper.run(self._known)
        return [asyncio.create_task(doing, name=name) for name, doing in work.items()]

    async def _listen(self) -> None:
        await self.server.start()
        log.info("serving", extra={"url": self.server.url})
        if self.reader is not None:
            await self.reader.start()
            log.info("serving readers", extra={"url": self.reader.url})

    async def _lame_duck(self, hurry: asyncio.Event, work: Sequence[asyncio.Task[None]]) -> None:
        """Serve on until those who send requests here have noticed that this one ends."""
        self._ends = True
        for server in self._servers:
            server.enter_lame_duck()
        log.info("not ready any more", extra={"serves_on_s": self._lame_duck_s})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._lame_duck_s):
                await _first_of((hurry,), work)

    async def _decide_forever(self) -> None:
        await self._follow_cluster()
        if self._memory_keeper is not None:
            self._memory = await self._memory_keeper.restore()
        while True:
            try:
                self._decide()
            except Exception:  # one bad cycle must not end the loop: the last plan ages visibly
                log.exception("cycle failed, the last plan stays until it is too old")
            if all(problem() is None for problem in self._checks.values()):
                self._ready.set()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), self._cycle_s)
                await asyncio.sleep(_GATHER_S)
            self._news.clear()

    async def _follow_cluster(self) -> None:
        """Return once the whole cluster is known; half a picture is not decided on."""
        if self._cluster is None:
            return
        wait_s = 1.0
        while not self._in_step:
            try:
                await self._cluster.start()
                self._in_step = True
            except ClusterError as error:
                log.warning(
                    "cluster not readable", extra={"problem": str(error), "again_s": wait_s}
                )
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, _LONGEST_WAIT_S)

    def _known(self) -> Memory | None:
        """Return what is worth keeping; before the first decision nothing is."""
        return None if self._last is None else self._memory

    @property
    def _servers(self) -> tuple[Server, ...]:
        return (self.server,) if self.reader is None else (self.server, self.reader)

    def _shutdown_problem(self) -> str | None:
        return "the process is ending" if self._ends else None

    def _cluster_problem(self) -> str | None:
        if self._delegation is not None and (problem := self._delegation.problem()):
            return problem
        return None if self._in_step else "the cluster has not been listed yet"

    def _decide(self) -> None:
        started_s = time.perf_counter()
        self._take_settings()
        self._take_thresholds()
        views: list[VariantView] = [view for source in self._sources for view in source.view()]
        self._scraper.follow([replica for view in views for replica in view.replicas])
        if self._policies.overrides:
            self._policy_of = {
                replica.uid: policy
                for view in views
                for policy in [self._policies.of(view.variant.key.namespace, view.variant.model_id)]
                for replica in view.replicas
            }
        garbage.pace(sum(len(view.replicas) for view in views))
        now_s = self._clock()
        guards = self._settings.guards.at(now_s)
        sent = self._gateways.in_flight(views)
        snapshot, conflicts = assemble(views, self._scraper.scraped, now_s, guards, sent)
        for conflict in sorted(set(conflicts) - set(self._conflicts)):
            log.warning("settings in conflict", extra={"problem": conflict})
        self._conflicts = conflicts
        snapshot = replace(
            snapshot,
            gateways=self._gateways.states(snapshot.variants),
            inventory=self._settings.inventory.to_inventory(),
            proposal=self._solver.proposal,
            nodes=None if self._cluster is None else self._cluster.nodes,
            quotas=None if self._cluster is None else self._cluster.quotas,
        )
        before = self._memory
        decided, self._memory = plan(snapshot, self._policies, before)
        self.board.post(decided, snapshot, self._refusals())
        self._solver.follow(decided)
        self._record(snapshot, before, decided)
        self._snapshot = snapshot
        _log_changes(self._last, decided)
        self._telemetry.count_escapes(self._last, decided)
        self._last = decided
        self._telemetry.observe_cycle(time.perf_counter() - started_s)

    def _record(self, snapshot: Snapshot, before: Memory, decided: Plan) -> None:
        if self._recorder is None:
            return
        try:
            self._recorder.record(snapshot, self._policies, before, decided)
        except OSError as error:
            # A full disk must not end the decisions; what follows a gap could not be replayed.
            log.error("recording ended", extra={"problem": error.strerror})
            self._recorder = None

    def _take_settings(self) -> None:
        """Decide by the settings as their file has them now, or as it last had them well."""
        if self._file is None or not self._file.look(self._unaffordable):
            return
        if self._file.problem is not None:
            log.warning(
                "settings refused, the last good ones stay", extra={"problem": self._file.problem}
            )
            return
        self._settings = self._file.settings
        self._policies = self._base = self._settings.to_policies()
        self._policy_of = {}
        self._cycle_s = self._settings.cycle / self._speed
        self.board.max_age_s = self._settings.max_age
        log.info("settings changed", extra={"file": self._file.name})

    def _unaffordable(self, settings: Settings) -> Sequence[str]:
        """Return which budgets do not pay the fewest replicas of the variants that there are."""
        if self._snapshot is None:
            return ()
        variants = [state.variant for state in self._snapshot.variants]
        return budget_problems(settings.guards.at(self._clock()), variants)

    def _take_thresholds(self) -> None:
        """Decide by what llm-d's ConfigMaps set as well."""
        if self._cluster is None:
            return
        base = self._base
        found = self._cluster.thresholds(base)
        policies = Policies(base.default, (*base.overrides, *found.overrides.values()))
        self._thresholds = found.problems
        if policies != self._policies:
            self._policies, self._policy_of = policies, {}
            log.info("thresholds changed", extra={"overrides": sorted(found.overrides)})

    def _refusals(self) -> Refusals:
        """Return what of the configuration is wrong, so that an earlier one holds."""
        file = [] if self._file is None or self._file.problem is None else [self._file.problem]
        of_variant = {} if self._cluster is None else self._cluster.refused
        keeper = self._memory_keeper
        lost = () if keeper is None else keeper.problems
        whole = (*file, *self._thresholds)
        return Refusals(whole, (*lost, *self._gateways.problems), of_variant=of_variant)

    def _on_former(self, former: ApiService | None, *, chained: bool) -> None:
        self._recorded = former
        address = None if former is None else former.owner
        if former is None or address is None or not chained or str(address) in self._chained:
            self._chain.follow(None)
            return
        log.info("former owner chained", extra={"provider": str(address)})
        self._chain.follow(
            Upstream(
                str(address),
                f"https://{address.host}:{address.port}",
                trusted=Trusted(
                    ca=partial(self._recorded_ca, str(address)), anybody=former.spec.insecure
                ),
                identity=Identity(None if self._api is None else self._api.bearer_token),
                keda="keda" in address.name,
                default=True,
            )
        )

    def _recorded_ca(self, service: str) -> bytes | None:
        former = self._recorded
        return None if former is None or str(former.owner) != service else former.ca_bundle or None

    def _on_page(self, view: ReplicaView, before: ReplicaSample | None, now: ReplicaSample) -> None:
        # A replica read for the first time is news as well: until then it was held blindly.
        policy = self._policy_of.get(view.uid, self._policies.default)
        if before is None or crosses(before, now, policy):
            self._news.set()


def _memory_keeper(
    settings: Settings,
    folder: Path,
    api: KubernetesApi | None,
    *,
    clock: Callable[[], float],
    speed: float,
) -> MemoryKeeper | None:
    """Return who keeps the memory over restarts; ``None`` where nowhere is said."""
    wanted = settings.memory
    period_s = wanted.period / speed
    if wanted.file is not None:
        return MemoryKeeper(FileStore(folder / wanted.file), period_s=period_s, clock=clock)
    if wanted.config_map is not None and api is not None:
        return MemoryKeeper(ConfigMapStore(api, wanted.config_map), period_s=period_s, clock=clock)
    return None


def _below(folder: Path, name: str | None) -> Path | None:
    return None if name is None else folder / name


async def _first_of(events: Sequence[asyncio.Event], work: Sequence[asyncio.Task[None]]) -> None:
    """Return when an event is set; work does not end by itself, so its end raises what went wrong."""
    waiting = [asyncio.create_task(event.wait()) for event in events]
    try:
        done, _ = await asyncio.wait([*work, *waiting], return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()
    for ended in done.intersection(work):
        ended.result()


def _upstream(
    provider: ProviderSection,
    folder: Path,
    api: KubernetesApi | None,
    *,
    recorded_ca: Callable[[str], bytes | None],
) -> Upstream:
    url, service, ca = provider.url, provider.service, Trusted().ca
    if service is not None:
        address = parse_address(service)
        url, ca = url or f"https://{address.host}:{address.port}", partial(recorded_ca, service)
    if provider.ca_file is not None:
        ca = (folder / provider.ca_file).read_bytes
    assert url is not None
    token: Token | None = None
    certificate: tuple[Path, Path] | None = None
    if provider.token_file is not None:
        token = FileToken(folder / provider.token_file)
    elif provider.client_cert_file is not None and provider.client_key_file is not None:
        certificate = folder / provider.client_cert_file, folder / provider.client_key_file
    elif api is not None:
        token = api.bearer_token
    return Upstream(
        provider.name,
        url,
        trusted=Trusted(provider.server_name, ca),
        identity=Identity(token, certificate),
        keda=provider.keda,
        default=provider.default,
    )


def _delegation(
    settings: Settings,
    folder: Path,
    api: KubernetesApi | None,
    *,
    on_client_cas: Callable[[bytes], None],
) -> Delegation | None:
    """Return who decides on callers; ``None`` where nobody can, so that the port stays loopback's."""
    wanted = settings.authentication
    if api is None and wanted.client_ca_file is None:
        return None
    headers = IdentityHeaders(
        wanted.requestheader_username_headers,
        wanted.requestheader_group_headers,
        wanted.requestheader_extra_headers_prefix,
        wanted.requestheader_uid_headers,
    )
    return Delegation(
        api,
        files=partial(
            trust_of_files,
            client_ca_file=_below(folder, wanted.client_ca_file),
            requestheader_client_ca_file=_below(folder, wanted.requestheader_client_ca_file),
            allowed_names=wanted.requestheader_allowed_names,
            headers=headers,
        ),
        lookup=not wanted.skip_lookup,
        on_client_cas=on_client_cas,
        memory=ReviewMemory(
            wanted.token_webhook_cache_ttl,
            wanted.authorized_cache_ttl,
            wanted.unauthorized_cache_ttl,
        ),
        always_allowed=wanted.always_allow_paths,
    )


def _log_changes(before: Plan | None, after: Plan) -> None:
    for key, decision in after.decisions.items():
        earlier: Decision | None = None if before is None else before.decisions.get(key)
        if earlier is None or earlier.desired != decision.desired:
            log.info(
                "variant decided",
                extra={
                    "variant": str(key),
                    "current": decision.current,
                    "desired": decision.desired,
                    "trail": [
                        {"rule": s.rule, "from": s.before, "to": s.after, "why": s.why}
                        for s in decision.trail
                    ],
                },
            )
    for key, why in after.undecided.items():
        if before is None or before.undecided.get(key) != why:
            log.warning("variant undecided", extra={"variant": str(key), "problem": why})
