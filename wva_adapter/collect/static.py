"""Variants from a file: their models, prices and bounds, and where each replica answers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field

from wva_adapter.collect.assemble import ReplicaView, VariantView
from wva_adapter.core.fleet import Role, Variant, VariantKey
from wva_adapter.core.snapshot import Phase
from wva_adapter.documents import Section, file_stamp, read_document
from wva_adapter.errors import ConfigError

log = logging.getLogger(__name__)


class StaticReplica(Section):
    """One replica: where it answers, and whether it serves yet."""

    url: str
    name: str | None = None
    ready: bool = True


def _with_url(entry: object) -> object:
    return {"url": entry} if isinstance(entry, str) else entry


class StaticVariant(Section):
    """One variant with its replicas, each an URL or an object with one."""

    namespace: str = Field("default", min_length=1)
    name: str = Field(min_length=1)
    model_id: str = Field(min_length=1)
    accelerator: str | None = None
    accelerators_per_replica: int = Field(1, ge=0)
    cost_per_h: float = Field(10.0, ge=0, allow_inf_nan=False)
    min_replicas: int = Field(1, ge=0)
    max_replicas: int | None = Field(None, ge=0)
    current_replicas: int | None = Field(None, ge=0)
    role: Role = "both"
    replicas: Annotated[
        tuple[Annotated[StaticReplica, BeforeValidator(_with_url)], ...], Field(strict=False)
    ] = ()


class StaticFile(Section):
    """The whole file."""

    variants: Annotated[tuple[StaticVariant, ...], Field(strict=False)]


class StaticSource:
    """A file of variants, read again when it changes; a bad change keeps the last good content.

    Args:
        path: The file.

    Raises:
        ConfigError: The file is wrong at the start, when there is nothing good to keep.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp = file_stamp(path)
        self._views = read_static(path)

    @property
    def name(self) -> str:
        """The file's name."""
        return str(self._path)

    def view(self) -> Sequence[VariantView]:
        """Return the variants as the file has them now, or as it last had them well."""
        stamp = file_stamp(self._path)
        if stamp != self._stamp:
            self._stamp = stamp
            try:
                self._views = read_static(self._path)
            except ConfigError as error:
                log.warning(
                    "static file refused, the last good one stays", extra={"problem": str(error)}
                )
        return self._views


def read_static(path: Path) -> tuple[VariantView, ...]:
    """Return the variants of a file.

    A replica whose URL is malformed is still there, with the problem named and nothing to ask.

    Raises:
        ConfigError: The file cannot be read, or something else in it is wrong.
    """
    document = read_document(path, StaticFile)
    views: dict[VariantKey, VariantView] = {}
    for index, entry in enumerate(document.variants):
        key = VariantKey(entry.namespace, entry.name)
        where = f"{path}: variants[{index}]"
        if key in views:
            raise ConfigError(f"{where}: {key} is named twice, want each variant once")
        try:
            variant = Variant(
                key=key,
                model_id=entry.model_id,
                target=f"{path.name}: {key}",
                accelerator=entry.accelerator,
                accelerators_per_replica=entry.accelerators_per_replica,
                cost_per_h=entry.cost_per_h,
                min_replicas=entry.min_replicas,
                max_replicas=entry.max_replicas,
                role=entry.role,
            )
        except ValueError as error:
            raise ConfigError(f"{where}: {error}") from None
        replicas = tuple(_replica_view(key, replica) for replica in entry.replicas)
        names = [replica.name for replica in replicas]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"{where}: replica {name} is named twice, want each once")
        current = entry.current_replicas
        views[key] = VariantView(
            variant=variant,
            spec_replicas=len(replicas) if current is None else current,
            status_replicas=len(replicas),
            replicas=replicas,
        )
    return tuple(views.values())


def _replica_view(key: VariantKey, entry: StaticReplica) -> ReplicaView:
    url, problem = _page_url(entry.url)
    name = entry.name or entry.url.partition("://")[2] or entry.url
    return ReplicaView(
        uid=f"{key}/{name}@{entry.url}",
        name=name,
        url=url,
        phase=Phase.READY if entry.ready else Phase.STARTING,
        problem=problem,
    )


def _page_url(base: str) -> tuple[str | None, str | None]:
    """Return where the page of a replica with this base URL is, or what is wrong with the URL."""
    try:
        parts = urlsplit(base)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        return None, f"malformed URL {base!r}: {error}"
    if parts.scheme not in ("http", "https") or not host or port == 0:
        return None, f"malformed URL {base!r}: want http://HOST:PORT or https://HOST:PORT"
    if parts.username is not None or parts.query or parts.fragment:
        return None, f"malformed URL {base!r}: want no credentials, query or fragment"
    path = parts.path.rstrip("/")
    return f"{parts.scheme}://{parts.netloc}{path or '/metrics'}", None
