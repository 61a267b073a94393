"""Whether a known caller may do what it asks: by the cluster's own rules, asked once in a while."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Collection
from typing import Any, Final

from wva_adapter.errors import ClusterError
from wva_adapter.serve.identity import MASTERS, User
from wva_adapter.serve.reviews import (
    Access,
    AccessSpec,
    PathAccess,
    Remembered,
    ResourceAccess,
    Reviews,
)
from wva_adapter.serve.wire import Refusal, internal_error

log = logging.getLogger(__name__)

ALWAYS_ALLOWED: Final = ("/healthz", "/livez", "/readyz")
_MOST_REMEMBERED_BYTES: Final = 10_000
_SANITIZED: Final = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})


class Authorizer:
    """Tells whether a user may do something.

    Args:
        allowed_cache_s: How long a yes holds.
        denied_cache_s: How long a no holds.
        always_allowed: Paths that everybody may ask for; one that ends in ``*`` is a beginning.
    """

    def __init__(
        self,
        reviews: Reviews,
        *,
        allowed_cache_s: float = 10.0,
        denied_cache_s: float = 10.0,
        always_allowed: Collection[str] = ALWAYS_ALLOWED,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._reviews = reviews
        self._answers: Remembered[AccessSpec, Access] = Remembered(
            lambda access: allowed_cache_s if access.allowed else denied_cache_s,
            size=_size,
            clock=clock,
        )
        self._open = frozenset(path for path in always_allowed if not path.endswith("*"))
        self._open_below = tuple(path[:-1] for path in always_allowed if path.endswith("*"))

    async def refusal(self, user: User, attributes: ResourceAccess | PathAccess) -> Refusal | None:
        """Return why the user may not do it; ``None`` if it may."""
        if MASTERS in user.groups:
            return None
        if isinstance(attributes, PathAccess):
            path = attributes.path
            if path in self._open or (self._open_below and path.startswith(self._open_below)):
                return None
        spec = AccessSpec(user, attributes)
        known = self._answers.get(spec)
        try:
            access = known[0] if known is not None else await self._review(spec)
        except ClusterError as error:
            log.warning("access not reviewed", extra={"user": user.name, "problem": str(error)})
            return internal_error("the access review failed: the log of the adapter says why")
        return None if access.allowed else _forbidden(user, attributes, access.reason)

    def until_s(self, user: User, attributes: ResourceAccess | PathAccess) -> float:
        """Return until when, on the clock's scale, what was found of this access holds."""
        if MASTERS in user.groups:
            return math.inf
        return self._answers.until_s(AccessSpec(user, attributes))

    async def _review(self, spec: AccessSpec) -> Access:
        if _size(spec) >= _MOST_REMEMBERED_BYTES:
            return await self._reviews.review_access(spec)
        return await self._answers.ask(spec, lambda: self._reviews.review_access(spec))


def impersonation_refused(header: bytes) -> Refusal:
    """Return the refusal of a caller that wants to act as somebody else."""
    return Refusal(
        403,
        f"forbidden: found header {header.decode('latin-1')}, want none: nobody acts as somebody "
        "else here but through kube-apiserver",
        "Forbidden",
        {},
    )


def _size(spec: AccessSpec) -> int:
    user, attributes = spec.user, spec.attributes
    texts = [user.name, user.uid, *user.groups]
    for claim, values in user.extra:
        texts += [claim, *values]
    if isinstance(attributes, PathAccess):
        texts += [attributes.verb, attributes.path]
    else:
        texts += [attributes.verb, attributes.group, attributes.version, attributes.resource]
        texts += [attributes.namespace, attributes.name, attributes.subresource]
    return sum(len(text.encode()) for text in texts)


def _forbidden(user: User, wanted: ResourceAccess | PathAccess, reason: str) -> Refusal:
    """Return the refusal in the words of Kubernetes, which tools and people look for."""
    because = f": {reason}" if reason else ""
    who = f"User {_quoted(user.name)} cannot {wanted.verb}"
    if isinstance(wanted, PathAccess):
        what = f"{who} path {_quoted(wanted.path)}".translate(_SANITIZED)
        return Refusal(403, f"forbidden: {what}{because}", "Forbidden", {})
    resource = f"{wanted.resource}/{wanted.subresource}" if wanted.subresource else wanted.resource
    where = (
        f"in the namespace {_quoted(wanted.namespace)}"
        if wanted.namespace
        else "at the cluster scope"
    )
    what = f"{who} resource {_quoted(resource)} in API group {_quoted(wanted.group)} {where}"
    thing = f"{wanted.resource}.{wanted.group}" if wanted.group else wanted.resource
    details: dict[str, Any] = {"group": wanted.group, "kind": wanted.resource}
    if wanted.name:
        thing += f" {_quoted(wanted.name)}"
        details = {"name": wanted.name, **details}
    message = f"{thing} is forbidden: {what.translate(_SANITIZED)}{because}"
    return Refusal(403, message, "Forbidden", details)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
