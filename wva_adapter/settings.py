"""The one configuration file: every key with its unit, default and meaning."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, get_args

from pydantic import AfterValidator, BaseModel, Field
from pydantic.fields import FieldInfo

from wva_adapter.calendar import GuardsSection
from wva_adapter.ciphers import MinVersion, TlsProtocol, check_suite, protocol
from wva_adapter.core.policies import PER_VARIANT, Override, Policies
from wva_adapter.core.policy import Analysis, Policy, RequestClass, ServiceLevel
from wva_adapter.core.power import Objective
from wva_adapter.documents import (
    Duration,
    Section,
    file_stamp,
    format_duration,
    parse_document,
    read_document,
)
from wva_adapter.errors import ConfigError
from wva_adapter.stock import InventorySection

PositiveDuration = Annotated[Duration, Field(gt=0, allow_inf_nan=False)]
Names = Annotated[tuple[str, ...], Field(strict=False)]
_NAME = r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?"
_OBJECT = re.compile(rf"{_NAME}/{_NAME}(?:\.{_NAME})*")
_SERVICE = re.compile(rf"{_NAME}/{_NAME}(?::[0-9]{{1,5}})?")
_PAGE = re.compile(r"https?://[^/?#@\s]+/[^\s#@]*")
_HTTPS = re.compile(r"https://[^/?#@\s]+/?")
# How long kube-apiserver and its clients wait before they call a backend dead.
_AGGREGATOR_WAITS_S = 5.0


class Listen(Section):
    """Where the adapter answers"""

    address: str = Field("127.0.0.1", description="Address to listen on")
    port: int = Field(6443, ge=0, le=65535, description="Port to listen on; 0 takes a free one")
    reuse_port: bool = Field(
        False,
        description="Share the port with another adapter that does so too, once ready: for updates",
    )


class Shutdown(Section):
    """How the adapter ends when it is told to (SIGTERM)"""

    lame_duck: Annotated[Duration, Field(ge=0, allow_inf_nan=False)] = Field(
        10.0, description="How long it serves on while it is not ready: until nobody sends requests"
    )


class Tls(Section):
    """The serving certificate: given files, or an own CA made on first start"""

    directory: str = Field(
        "wva-adapter.certificates",
        description="Folder of the own CA and certificate, relative to this file's folder",
    )
    cert_file: str | None = Field(None, description="Certificate (PEM) to serve with instead")
    key_file: str | None = Field(None, description="Private key (PEM) of cert_file")
    ca_file: str | None = Field(
        None, description="CA (PEM) of cert_file, which must have signed it; null does not ask"
    )
    names: Names = Field(
        (), description="What callers call the adapter besides loopback: SERVICE.NAMESPACE.svc"
    )
    check_period: Annotated[PositiveDuration, Field(le=60)] = Field(
        30.0, description="How often the certificate's files are looked at; at most 60s"
    )
    min_version: MinVersion = Field(
        "VersionTLS12", description="Oldest TLS that is spoken: VersionTLS12 or VersionTLS13"
    )
    cipher_suites: Annotated[
        tuple[Annotated[str, AfterValidator(check_suite)], ...], Field(strict=False)
    ] = Field((), description="Suites of TLS 1.2 that are spoken; empty means OpenSSL's choice")

    def to_protocol(self) -> TlsProtocol:
        """Return which TLS is spoken.

        Raises:
            ConfigError: No suite is left for its oldest version.
        """
        try:
            return protocol(self.min_version, self.cipher_suites)
        except ValueError as error:
            raise ConfigError(str(error)) from None


class Cluster(Section):
    """The Kubernetes cluster whose HPAs name the variants; leave it out to run without one"""

    kubeconfig: str | None = Field(
        None, description="Kubeconfig file; without one, the pod's own service account"
    )
    namespaces: Names = Field((), description="Namespaces to look at; empty means all")
    thresholds_namespace: str | None = Field(
        None, description="Namespace whose llm-d ConfigMaps of thresholds hold for all; null: none"
    )


class GatewaySection(Section):
    """A gateway whose endpoint picker tells what waits before any replica, and what came"""

    namespace: str = Field(description="Namespace of the models behind it")
    urls: Names = Field(
        description="Its metrics pages, one per process: http://ADDRESS:9090/metrics"
    )
    model: str | None = Field(
        None, description="Model id of all behind it; default: by the names on its pages"
    )
    token_file: str | None = Field(None, description="File of our bearer token for its pages")


class MemorySection(Section):
    """What was learned of capacity, starts and arrivals, kept over restarts; by default it is not"""

    file: str | None = Field(None, description="File to keep it in, relative to this file's folder")
    config_map: str | None = Field(
        None, description="ConfigMap (NAMESPACE/NAME, it must be there) to keep it in instead"
    )
    period: PositiveDuration = Field(
        60.0, description="How often it is written; when the adapter ends, it is in any case"
    )


class Authentication(Section):
    """Who may ask: what kube-apiserver tells its extension servers, unless said otherwise here"""

    skip_lookup: bool = Field(
        False,
        description="Do not read ConfigMap kube-system/extension-apiserver-authentication",
    )
    client_ca_file: str | None = Field(
        None, description="CA (PEM) of clients' own certificates, instead of the ConfigMap's"
    )
    requestheader_client_ca_file: str | None = Field(
        None, description="CA (PEM) of the front proxy, instead of all the ConfigMap says of it"
    )
    requestheader_allowed_names: Names = Field(
        (), description="Common names that the front proxy may have; empty means any"
    )
    requestheader_username_headers: Names = Field(
        ("x-remote-user",), description="Headers in which it says the user's name"
    )
    requestheader_group_headers: Names = Field(
        ("x-remote-group",), description="Headers in which it says the user's groups"
    )
    requestheader_extra_headers_prefix: Names = Field(
        ("x-remote-extra-",), description="Beginnings of headers in which it says further claims"
    )
    requestheader_uid_headers: Names = Field(
        (), description="Headers in which it says the user's uid; empty means none"
    )
    token_webhook_cache_ttl: Duration = Field(
        10.0, description="How long a token's review holds, good or bad; 0s asks every time"
    )
    authorized_cache_ttl: Duration = Field(
        10.0, description="How long a granted access holds; 0s asks every time"
    )
    unauthorized_cache_ttl: Duration = Field(
        10.0, description="How long a denied access holds; 0s asks every time"
    )
    always_allow_paths: Names = Field(
        ("/healthz", "/readyz", "/livez"),
        description="Paths that need no permission; one that ends in * is a beginning",
    )


class Reader(Section):
    """A second port that only reads, for KEDA and Prometheus: counts, queries, metrics, health"""

    address: str = Field("127.0.0.1", description="Address to listen on")
    port: int = Field(6444, ge=0, le=65535, description="Port to listen on; 0 takes a free one")
    token_file: str | None = Field(
        None, description="File of the bearer token that a reader must have"
    )
    open: bool = Field(False, description="Let everybody read who reaches the port")


class ApiServiceSection(Section):
    """The APIService v1beta1.external.metrics.k8s.io in the cluster; null leaves it alone"""

    service: str = Field(
        "wva-system/wva-adapter", description="Service (NAMESPACE/NAME) that leads to this adapter"
    )
    keep_ca_bundle: bool = Field(
        True,
        description="Keep our CA (the own one, or tls.ca_file) in its caBundle while it names us",
    )


class ProviderSection(Section):
    """Another provider of external metrics; want service, url or both"""

    name: str = Field(description="What messages call it")
    service: str | None = Field(None, description="Its Service, NAMESPACE/NAME or with :PORT")
    url: str | None = Field(
        None, description="Where it answers; default: its Service: https://HOST:PORT"
    )
    server_name: str | None = Field(
        None, description="Name in its certificate; default: the host that is asked"
    )
    ca_file: str | None = Field(
        None, description="CA (PEM) of its certificate; default: that on record, or the system's"
    )
    token_file: str | None = Field(
        None, description="Our bearer token there; default: that of the cluster's connection"
    )
    client_cert_file: str | None = Field(None, description="Our certificate (PEM) there")
    client_key_file: str | None = Field(None, description="Private key (PEM) of client_cert_file")
    keda: bool = Field(False, description="It is KEDA's metrics server")
    default: bool = Field(False, description="It has all metrics that are nobody else's")


class ChainSection(Section):
    """Other providers' external metrics through us"""

    former_owner: bool = Field(
        True, description="Chain who was put on record by `wva-adapter apiservice --take-over`"
    )
    timeout: PositiveDuration = Field(4.0, description="How long a provider may take; below 5s")
    providers: Annotated[tuple[ProviderSection, ...], Field(strict=False)] = Field(
        (), description="Further ones; they win over the former owner"
    )


def _key(policy_field: str) -> str:
    """Return the file's name of a policy field: durations carry their unit in the value."""
    return policy_field.removesuffix("_s")


def _in_file(policy_fields: Iterable[str]) -> str:
    return ", ".join(sorted(map(_key, policy_fields)))


class PolicySection(Section):
    """How to decide"""

    analysis: Analysis = Field(
        "demand", description="Which analysis turns pages into load: demand, tokens or saturation"
    )
    slo_ttft: PositiveDuration = Field(2.0, description="Time to first token to stay below")
    slo_itl: PositiveDuration = Field(0.060, description="Inter-token latency to stay below")
    service_level: ServiceLevel = Field(
        "balanced", description="Goodput against cost in one word: frugal, balanced or premium"
    )
    utilization: float | None = Field(
        None,
        description="Share of a replica's capacity to load; default: by service_level and count",
    )
    attainment: float | None = Field(
        None,
        description="Share of the demand until help is there to cover; default: by service_level",
    )
    assumed_start: Duration = Field(
        120.0, description="From a pod's creation until it is ready, before one was seen to start"
    )
    hpa_sync: Duration = Field(15.0, description="How often autoscalers look")
    kv_cache_threshold: float = Field(
        0.80, description="KV-cache usage (share) from which a replica counts as saturated"
    )
    queue_length_threshold: float = Field(
        5.0, description="Queued requests from which a replica counts as saturated"
    )
    kv_spare_trigger: float = Field(
        0.10, description="Mean spare KV-cache usage (share) below which one replica is added"
    )
    queue_spare_trigger: float = Field(
        3.0, description="Mean spare queue length (requests) below which one replica is added"
    )
    scale_up_threshold: float = Field(
        0.85, description="Share of the token capacity in use above which tokens adds replicas"
    )
    scale_down_boundary: float = Field(
        0.70, description="Share of the token capacity that stays which tokens may fill going down"
    )
    peak_window: Duration = Field(
        60.0, description="A replica's usage and queue are the peaks of this long"
    )
    stale_after: Duration | None = Field(
        None, description="A page older than this says nothing about now; default: three scrapes"
    )
    scale_down_window: Duration | None = Field(
        None,
        description="Down only to the largest need of this long; default: 5m, less as forecasts prove good",
    )
    max_down_share: float = Field(
        0.25, description="Largest share of a variant removed per down_period; one always may go"
    )
    down_period: Duration = Field(15.0, description="The period of max_down_share")
    max_up_step: int = Field(8, description="Most replicas added to one variant per decision")
    change_penalty: float = Field(
        0.05, description="Share of a replica's cost that a change of its variant must save"
    )
    scale_to_zero: bool = Field(
        False, description="Let a model that nobody asks for lose its last replica (min 0)"
    )
    retention: Duration = Field(
        600.0, description="For how long nobody must have asked before it does"
    )
    shadow: bool = Field(False, description="Decide counts and serve none of them")
    request_class: RequestClass = Field(
        "online",
        alias="class",
        description="What requests are owed: latency (online), or to be done in time (offline)",
    )
    deadline: PositiveDuration = Field(
        86400.0, description="Within so long offline requests are to be done"
    )
    priority: int = Field(
        0, description="Where accelerators are scarce, models of a larger one are served first"
    )
    objective: Objective = Field(
        "cost", description="What to spend least of: cost, power, or weighted, a sum of both"
    )
    power_price_per_kwh: float = Field(
        0.15, description="Price of a kWh in $, where objective is weighted"
    )


class OverrideSection(PolicySection):
    """Values for some variants in place of those above, which hold where nothing is said"""

    namespace: str | None = Field(None, description="Only in this namespace")
    model: str | None = Field(None, description="Only for variants of this model id")
    variant: str | None = Field(
        None,
        description=f"Only for the variant of this name; of it alone: {_in_file(PER_VARIANT)}",
    )

    def to_override(self, source: str) -> Override:
        """Return it as the core takes it: only what is set changes anything.

        Raises:
            ConfigError: It names nobody, or sets of a variant what holds for models.
        """
        if self.namespace is None and self.model is None and self.variant is None:
            raise ConfigError(f"{source}: for whom: want namespace, model or variant")
        changes = {
            field.name: getattr(self, _key(field.name))
            for field in fields(Policy)
            if _key(field.name) in self.model_fields_set
        }
        # The three scrapes that null stands for are those of the default.
        if changes.get("stale_after_s", 0) is None:
            del changes["stale_after_s"]
        try:
            return Override(
                source=source,
                changes=changes,
                namespace=self.namespace,
                model_id=self.model,
                variant=self.variant,
            )
        except ValueError as error:
            raise ConfigError(as_in_file(str(error))) from None


class Settings(Section):
    """All of the file"""

    listen: Listen = Listen()
    shutdown: Shutdown = Shutdown()
    tls: Tls = Tls()
    cluster: Cluster | None = None
    authentication: Authentication = Authentication()
    reader: Reader | None = None
    api_service: ApiServiceSection | None = ApiServiceSection()
    chain: ChainSection = ChainSection()
    static_file: str | None = Field(
        None, description="File of variants and replica URLs, relative to this file's folder"
    )
    scrape_period: PositiveDuration = Field(5.0, description="How often each replica is asked")
    scrape_timeout: PositiveDuration = Field(5.0, description="How long a replica may take")
    cycle: PositiveDuration = Field(5.0, description="How often the fleet is decided on")
    max_age: PositiveDuration = Field(60.0, description="A plan older than this is not served")
    controller_instance: str = Field(
        "default",
        description="Label controller_instance on all that is served; what is labelled "
        "wva.llmd.ai/controller-instance for another is left to it",
    )
    memory: MemorySection = MemorySection()
    gateways: Annotated[tuple[GatewaySection, ...], Field(strict=False)] = Field(
        (), description="Gateways: with them a model at zero is woken, and one unasked may sleep"
    )
    audit_log: bool = Field(
        False, description="Write a line for each request: who asked what, and what it got"
    )
    policy: PolicySection = PolicySection()
    guards: GuardsSection = GuardsSection()
    inventory: InventorySection = InventorySection()
    overrides: Annotated[tuple[OverrideSection, ...], Field(strict=False)] = Field(
        (),
        description="Keys of policy for some variants; what an entry does not set, it inherits",
    )

    def to_policies(self, further: Sequence[Override] = ()) -> Policies:
        """Return the policies that the core decides by.

        Args:
            further: Overrides from elsewhere; they win over equally narrow ones of the file.

        Raises:
            ConfigError: Values contradict each other somewhere, or one is out of its range.
        """
        default = self.to_policy()
        own = [one.to_override(f"overrides[{n}]") for n, one in enumerate(self.overrides)]
        try:
            return Policies(default, (*own, *further))
        except ValueError as error:
            raise ConfigError(as_in_file(str(error))) from None

    def to_policy(self) -> Policy:
        """Return the policy that the core decides by.

        Raises:
            ConfigError: Two of its values contradict each other, or one is out of its range.
        """
        values = {field.name: getattr(self.policy, _key(field.name)) for field in fields(Policy)}
        if values["stale_after_s"] is None:
            values["stale_after_s"] = 3 * self.scrape_period
        try:
            return Policy(**values)
        except ValueError as error:
            raise ConfigError(f"policy: {as_in_file(str(error))}") from None


def as_in_file(message: str) -> str:
    """Return a message of the core with the file's names of the policy's fields."""
    for field in fields(Policy):
        key = _key(field.name)
        message = message.replace(field.name, PolicySection.model_fields[key].alias or key)
    return message


def load_settings(
    path: Path, overrides: Mapping[str, Mapping[str, object]] | None = None
) -> Settings:
    """Return the settings of a file, whole and consistent.

    Args:
        overrides: Values that win over the file's, by section and key, of the types of its fields.

    Raises:
        ConfigError: The file cannot be read, is not YAML, or a key or value in it is wrong; the
            message names each key, what was found and what was expected.
    """
    settings = read_document(path, Settings)
    changed = {
        section: getattr(settings, section).model_copy(update=dict(values))
        for section, values in (overrides or {}).items()
    }
    return _checked(settings.model_copy(update=changed), str(path))


def parse_settings(text: str, name: str) -> Settings:
    """Return the settings that ``text`` describes; ``name`` is what errors call it.

    Raises:
        ConfigError: As ``load_settings``.
    """
    return _checked(parse_document(text, Settings, name), name)


def _checked(settings: Settings, name: str) -> Settings:
    try:
        settings.to_policies()
        settings.tls.to_protocol()
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None
    if settings.cycle >= settings.max_age:
        raise ConfigError(
            f"{name}: want cycle < max_age, got cycle={format_duration(settings.cycle)}, "
            f"max_age={format_duration(settings.max_age)}"
        )
    if settings.cluster is None and settings.static_file is None:
        raise ConfigError(
            f"{name}: no variants to look at: want cluster (an empty one, {{}}, means the pod's own) "
            "or static_file"
        )
    if settings.tls.cert_file is None and settings.tls.key_file is not None:
        raise ConfigError(f"{name}: tls.key_file without tls.cert_file: want both or neither")
    if settings.tls.cert_file is not None and settings.tls.key_file is None:
        raise ConfigError(f"{name}: tls.cert_file without tls.key_file: want both or neither")
    reader = settings.reader
    if reader is not None and (reader.token_file is None) != reader.open:
        found = "neither" if reader.token_file is None else "both"
        raise ConfigError(f"{name}: reader: want token_file or open: true, found {found}")
    for problem in (
        *_memory_problems(settings),
        *_gateway_problems(settings),
        *_chain_problems(settings),
        *settings.guards.problems(),
        *settings.inventory.problems(),
        *_node_problems(settings),
    ):
        raise ConfigError(f"{name}: {problem}")
    authentication = settings.authentication
    if settings.cluster is None and authentication.requestheader_client_ca_file is not None:
        raise ConfigError(
            f"{name}: authentication.requestheader_client_ca_file without cluster: nobody could "
            "say what the proxy's users may do; want cluster, or client_ca_file alone"
        )
    return settings


class SettingsFile:
    """The settings of a file that may change while they hold.

    A change takes effect whole or not at all: one that is wrong, or that needs a restart, leaves
    the last good settings as they are, and ``problem`` says why.

    Args:
        path: The file.
        overrides: As ``load_settings`` takes them.

    Raises:
        ConfigError: The file is wrong at the start, when there is nothing good to keep.
    """

    def __init__(
        self, path: Path, overrides: Mapping[str, Mapping[str, object]] | None = None
    ) -> None:
        self._path = path
        self._overrides = overrides
        self._stamp = file_stamp(path)
        self.settings = load_settings(path, overrides)
        self.problem: str | None = None

    @property
    def name(self) -> str:
        """The file's name."""
        return str(self._path)

    def look(self, problems: Callable[[Settings], Iterable[str]] = lambda _: ()) -> bool:
        """Read the file again if it changed; return whether settings or problem are others now.

        Args:
            problems: Yields what speaks against settings beside what is wrong in them alone.
        """
        stamp = file_stamp(self._path)
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        before = self.settings, self.problem
        try:
            found = load_settings(self._path, self._overrides)
            needing = [
                key
                for key in Settings.model_fields
                if key not in _CHANGEABLE and getattr(found, key) != getattr(self.settings, key)
            ]
            if needing:
                raise ConfigError(
                    f"{self._path}: a change of {', '.join(needing)} needs a restart; without "
                    f"one, there can change: {', '.join(sorted(_CHANGEABLE))}"
                )
            for problem in problems(found):
                raise ConfigError(f"{self._path}: {problem}")
            self.settings, self.problem = found, None
        except ConfigError as error:
            self.problem = str(error)
        return before != (self.settings, self.problem)


_CHANGEABLE = frozenset({"policy", "overrides", "guards", "inventory", "cycle", "max_age"})
"""What a running adapter takes over; all else is settled when its parts are made."""


def _node_problems(settings: Settings) -> Iterator[str]:
    cluster = settings.cluster
    if not settings.inventory.fixed_nodes:
        return
    if cluster is None:
        yield "inventory.fixed_nodes without cluster: nobody tells of nodes; want cluster"
    elif cluster.namespaces:
        yield (
            "inventory.fixed_nodes with cluster.namespaces: devices of other namespaces' pods "
            "would look free; want one of them"
        )


def why_not_chained(settings: Settings, owner: str) -> str | None:
    """Return why an adapter with these settings would not pass on what a Service serves.

    Args:
        owner: ``NAMESPACE/NAME`` of the Service, or with ``:PORT``.
    """
    chain = settings.chain
    if any(owner == p.service or (p.service is None and p.default) for p in chain.providers):
        return None
    if settings.cluster is None or settings.api_service is None:
        missing = "cluster" if settings.cluster is None else "api_service"
        return (
            f"the adapter has no {missing} and would not see it on record; want {missing} or it "
            "in chain.providers"
        )
    if not chain.former_owner:
        return f"chain.former_owner is false and chain.providers does not have {owner}"
    return None


def _memory_problems(settings: Settings) -> Iterator[str]:
    memory = settings.memory
    if memory.config_map is None:
        return
    if memory.file is not None:
        yield "memory: want file or config_map, found both"
    if not _OBJECT.fullmatch(memory.config_map):
        yield f"memory.config_map: found {memory.config_map!r}, want NAMESPACE/NAME"
    if settings.cluster is None:
        yield "memory.config_map without cluster: want cluster, or file"


def _gateway_problems(settings: Settings) -> Iterator[str]:
    for index, gateway in enumerate(settings.gateways):
        if not gateway.urls:
            yield f"gateways[{index}].urls: found none, want at least one"
        for url in gateway.urls:
            if not _PAGE.fullmatch(url):
                yield f"gateways[{index}].urls: found {url!r}, want http://HOST:PORT/PATH or https"


def _chain_problems(settings: Settings) -> Iterator[str]:
    own = settings.api_service
    if own is not None and not _SERVICE.fullmatch(own.service):
        yield f"api_service.service: found {own.service!r}, want NAMESPACE/NAME"
    if settings.chain.timeout >= _AGGREGATOR_WAITS_S:
        found = format_duration(settings.chain.timeout)
        yield f"chain.timeout: found {found}, want below {format_duration(_AGGREGATOR_WAITS_S)}"
    for index, provider in enumerate(settings.chain.providers):
        where = f"chain.providers[{index}]"
        if provider.url is None and provider.service is None:
            yield f"{where}: want service or url, found neither"
        if provider.service is not None and not _SERVICE.fullmatch(provider.service):
            yield f"{where}.service: found {provider.service!r}, want NAMESPACE/NAME or with :PORT"
        if provider.url is not None and not _HTTPS.fullmatch(provider.url):
            yield f"{where}.url: found {provider.url!r}, want https://HOST:PORT"
        if (provider.client_cert_file is None) != (provider.client_key_file is None):
            yield f"{where}: want client_cert_file and client_key_file, found one of them"
        if not (provider.keda or provider.default):
            yield f"{where}: want keda: true or default: true, or it would never be asked"
    for role in ("keda", "default"):
        named = [p.name for p in settings.chain.providers if getattr(p, role)]
        if len(named) > 1:
            yield f"chain.providers: want one with {role}: true, found {', '.join(named)}"


def describe_settings() -> Iterator[str]:
    """Yield the lines of a file that sets every key to its default and says what it means."""
    yield from _describe(Settings, indent="")


def _describe(section: type[BaseModel], indent: str) -> Iterator[str]:
    # What an override may set is said once, where its default is.
    told = PolicySection.model_fields if issubclass(section, OverrideSection) else {}
    for name, field in section.model_fields.items():
        if name in told:
            continue
        name = field.alias or name
        inner = _inner_section(field)
        if field.default == () and inner is not None:
            yield f"{indent}{name}: []  # {field.description}; of each:"
            lines = list(_describe(inner, "  "))
            yield from (f"{indent}#{' -' if n == 0 else '  '}{t[1:]}" for n, t in enumerate(lines))
        elif inner is None:
            yield f"{indent}{name}: {_written(field)}  # {field.description}"
        elif field.default is None:
            yield f"{indent}# {inner.__doc__}"
            yield f"{indent}# {name}:"
            yield from (f"{indent}# {line}" for line in _describe(inner, "  "))
        else:
            yield f"{indent}# {inner.__doc__}"
            yield f"{indent}{name}:"
            yield from _describe(inner, indent + "  ")


def _inner_section(field: FieldInfo) -> type[BaseModel] | None:
    for candidate in (field.annotation, *get_args(field.annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _written(field: FieldInfo) -> str:
    default = field.default
    # A default that is looked at like a value is none: it only gives its refusal better words.
    if field.is_required() or field.validate_default:
        return "..."
    if default is None:
        return "null"
    if isinstance(default, tuple):
        return f"[{', '.join(default)}]"
    if _is_duration(field):
        return format_duration(default)
    return str(default)


def _is_duration(field: FieldInfo) -> bool:
    return isinstance(field.default, float) and any(
        type(entry).__name__ == "BeforeValidator" for entry in field.metadata
    )
