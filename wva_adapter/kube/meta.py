"""What every Kubernetes object carries, and where it is."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from msgspec import Struct


class ObjectKey(NamedTuple):
    """Where an object is, among those of its kind; a node is in namespace ``""``."""

    namespace: str
    name: str


class OwnerReference(Struct, rename="camel", frozen=True):
    kind: str = ""
    name: str = ""


class Meta(Struct, rename="camel", frozen=True):
    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    creation_timestamp: datetime | None = None
    deletion_timestamp: datetime | None = None
    deletion_grace_period_seconds: int | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    owner_references: tuple[OwnerReference, ...] = ()

    @property
    def key(self) -> ObjectKey:
        """Where the object is."""
        return ObjectKey(self.namespace, self.name)
