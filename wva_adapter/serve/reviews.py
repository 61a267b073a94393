"""Asking the cluster who has a token and who may do what, and remembering its answers shortly."""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeVar

import aiohttp

from wva_adapter.errors import ClusterError
from wva_adapter.kube.api import KubernetesApi, Refused
from wva_adapter.serve.identity import AUTHENTICATED, User

MOST_REMEMBERED: Final = 8192
_MOST_BYTES: Final = 8 * 2**20
_TIMEOUT_S: Final = 10.0
_TOKEN_REVIEWS: Final = "/apis/authentication.k8s.io/v1/tokenreviews"
_ACCESS_REVIEWS: Final = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
_PAUSES_S: Final = (0.5, 0.75, 1.125, 1.6875)
_RETRIED_STATUS: Final = frozenset((429, 500, 504))


@dataclass(frozen=True, slots=True)
class ResourceAccess:
    """A verb on a resource of an API group, in a namespace; ``""`` there means the whole cluster."""

    verb: str
    group: str
    version: str
    resource: str
    namespace: str = ""
    name: str = ""
    subresource: str = ""


@dataclass(frozen=True, slots=True)
class PathAccess:
    """A method, in lower case, on a path that is no resource."""

    verb: str
    path: str


@dataclass(frozen=True, slots=True)
class AccessSpec:
    """Who wants to do what."""

    user: User
    attributes: ResourceAccess | PathAccess


@dataclass(frozen=True, slots=True)
class Access:
    """Whether it is allowed, and what the authorizer has to say about that, if anything."""

    allowed: bool
    reason: str = ""


class Reviews(Protocol):
    """Who decides on tokens and on access. Both raise ClusterError where it cannot be asked."""

    async def review_token(self, token: str) -> User | None:
        """Return whose token it is; ``None`` if nobody's."""
        ...

    async def review_access(self, spec: AccessSpec) -> Access:
        """Return whether the user may do it."""
        ...


class ClusterReviews:
    """The API server decides."""

    def __init__(self, api: KubernetesApi) -> None:
        self._api = api

    async def review_token(self, token: str) -> User | None:
        """Return whose token it is; ``None`` if nobody's.

        Raises:
            ClusterError: The API server does not say.
        """
        status = await self._review(
            _TOKEN_REVIEWS,
            {
                "kind": "TokenReview",
                "apiVersion": "authentication.k8s.io/v1",
                "spec": {"token": token},
            },
        )
        user = status.get("user") or {}
        if status.get("authenticated") is not True or not user.get("username"):
            return None
        extra = user.get("extra") or {}
        return User(
            user["username"],
            tuple(user.get("groups") or ()),
            tuple((claim, tuple(values or ())) for claim, values in sorted(extra.items())),
            user.get("uid") or "",
        )

    async def review_access(self, spec: AccessSpec) -> Access:
        """Return whether the user may do it.

        Raises:
            ClusterError: The API server does not say.
        """
        status = await self._review(
            _ACCESS_REVIEWS,
            {
                "kind": "SubjectAccessReview",
                "apiVersion": "authorization.k8s.io/v1",
                "spec": _access_spec(spec),
            },
        )
        allowed = status.get("allowed") is True and status.get("denied") is not True
        return Access(allowed, str(status.get("reason") or ""))

    async def _review(self, path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                for pause_s in (*_PAUSES_S, None):
                    try:
                        answer = await self._api.send("POST", path, body, timeout_s=_TIMEOUT_S)
                        break
                    except ClusterError as error:
                        if pause_s is None or not _passes(error):
                            raise
                    await asyncio.sleep(pause_s)
        except TimeoutError:
            raise ClusterError(f"POST {path}: no answer within {_TIMEOUT_S:g} s") from None
        status = answer.get("status")
        if not isinstance(status, dict):
            raise ClusterError(f"POST {path}: found no status in the answer, want a review")
        return status


class MembersOnly:
    """Without a cluster: no token is anybody's, and whoever has a certificate may do everything."""

    async def review_token(self, token: str) -> User | None:
        """Return nobody."""
        return None

    async def review_access(self, spec: AccessSpec) -> Access:
        """Return whether the user is known."""
        return Access(AUTHENTICATED in spec.user.groups)


def _passes(error: ClusterError) -> bool:
    """Return whether a fault is one that is over a moment later."""
    if isinstance(error, Refused):
        return error.status in _RETRIED_STATUS
    return isinstance(error.__cause__, ConnectionResetError | aiohttp.ServerDisconnectedError)


def _access_spec(spec: AccessSpec) -> dict[str, Any]:
    attributes, user = spec.attributes, spec.user
    document: dict[str, Any]
    if isinstance(attributes, PathAccess):
        document = {
            "nonResourceAttributes": {"path": attributes.path, "verb": attributes.verb},
        }
    else:
        document = {
            "resourceAttributes": {
                key: value
                for key, value in (
                    ("namespace", attributes.namespace),
                    ("verb", attributes.verb),
                    ("group", attributes.group),
                    ("version", attributes.version),
                    ("resource", attributes.resource),
                    ("subresource", attributes.subresource),
                    ("name", attributes.name),
                )
                if value
            }
        }
    document |= {"user": user.name, "groups": list(user.groups)}
    if user.extra:
        document["extra"] = {claim: list(values) for claim, values in user.extra}
    if user.uid:
        document["uid"] = user.uid
    return document


Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Remembered(Generic[Key, Value]):
    """Answers that hold for a while: the oldest unused ones go first, an error is never one.

    Args:
        life_s: How long an answer holds; 0 keeps it for nobody.
        size: How much a key takes, in bytes; together no more than ``_MOST_BYTES`` are kept.
        most: Most answers that are kept.
        clock: Seconds on any scale that does not go back.
    """

    def __init__(
        self,
        life_s: Callable[[Value], float],
        *,
        size: Callable[[Key], int] = lambda _: 0,
        most: int = MOST_REMEMBERED,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._life_s = life_s
        self._size = size
        self._bytes = 0
        self._most = most
        self._clock = clock
        self._answers: OrderedDict[Key, tuple[float, Value]] = OrderedDict()
        self._asking: dict[Key, asyncio.Task[Value]] = {}

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: Key) -> tuple[Value] | None:
        """Return the answer, in a tuple since it may be ``None``; or ``None`` if there is none."""
        found = self._answers.get(key)
        if found is None:
            return None
        if found[0] <= self._clock():
            self._forget(key)
            return None
        self._answers.move_to_end(key)
        return (found[1],)

    def until_s(self, key: Key) -> float:
        """Return until when the answer holds, on the clock's scale; minus infinity if there is none."""
        found = self._answers.get(key)
        return -math.inf if found is None else found[0]

    async def ask(self, key: Key, question: Callable[[], Awaitable[Value]]) -> Value:
        """Return the answer to a question; who asks the same meanwhile gets the same answer.

        Raises:
            ClusterError: As the question does.
        """
        asking = self._asking.get(key)
        if asking is None:
            asking = self._asking[key] = asyncio.ensure_future(self._answer(key, question))
            asking.add_done_callback(lambda _: self._asking.pop(key, None))
        # One caller that goes away does not take the answer from the others.
        return await asyncio.shield(asking)

    async def _answer(self, key: Key, question: Callable[[], Awaitable[Value]]) -> Value:
        value = await question()
        life_s = self._life_s(value)
        if life_s > 0:
            self._forget(key)
            self._answers[key] = (self._clock() + life_s, value)
            self._bytes += self._size(key)
            while len(self._answers) > self._most or self._bytes > _MOST_BYTES:
                self._forget(next(iter(self._answers)))
        return value

    def _forget(self, key: Key) -> None:
        if self._answers.pop(key, None) is not None:
            self._bytes -= self._size(key)
