"""Whether a caller is who it says: a front proxy's word, its own certificate, or a token."""

from __future__ import annotations

import hmac
import logging
import math
import secrets
import time
from collections.abc import Callable
from typing import Final

from wva_adapter.errors import ClusterError
from wva_adapter.serve.identity import (
    ANONYMOUS,
    Headers,
    Peer,
    User,
    bearer_token,
    with_authenticated,
)
from wva_adapter.serve.reviews import Remembered, Reviews
from wva_adapter.serve.trust import FrontProxy, Trust

log = logging.getLogger(__name__)

_MOST_NAMED: Final = 1024
_MOST_NAMED_BYTES: Final = 4_000


class Authenticator:
    """Tells who is asking, in the order of Kubernetes' own servers.

    Args:
        token_cache_s: How long a token's review holds, whichever way it went.
        unix_time: Against which a certificate's expiry is held.
    """

    def __init__(
        self,
        reviews: Reviews,
        trust: Trust,
        *,
        token_cache_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
        unix_time: Callable[[], float] = time.time,
    ) -> None:
        self._reviews = reviews
        self._clock = clock
        self._unix_time = unix_time
        self._tokens: Remembered[bytes, User | None] = Remembered(
            lambda _: token_cache_s, clock=clock
        )
        # Of a token only a hash is kept, whose key nobody outside can know: two tokens never meet
        # on one entry, and nobody can look for two that do.
        self._hash_key = secrets.token_bytes(32)
        self.trust = trust

    @property
    def trust(self) -> Trust:
        """Whose certificates are believed now."""
        return self._trust

    @trust.setter
    def trust(self, trust: Trust) -> None:
        self._trust = trust
        proxy = trust.front_proxy
        self.names = frozenset((b"authorization",)) | (
            proxy.headers.names if proxy else frozenset()
        )
        self.prefixes = proxy.headers.prefixes if proxy else ()
        # Whom a proxy named before is whom it names again: the same words mean the same user.
        self._named: dict[tuple[Peer, Headers], User] = {}

    async def authenticate(self, peer: Peer | None, headers: Headers) -> User | None:
        """Return who is asking, anonymous if it says nothing of itself; ``None`` if it lies.

        Args:
            peer: Of the connection; ``None`` where the client showed no certificate.
            headers: At least all whose name is in ``names`` or begins with one of ``prefixes``.
        """
        failed = False
        if peer is not None:
            said = tuple(headers)
            known = self._named.get((peer, said))
            if known is not None and peer.expires_s > self._unix_time():
                return known
            try:
                user, failed = self._by_certificate(peer, said)
            except UnicodeDecodeError:
                return None
            if user is not None:
                user = with_authenticated(user)
                self._keep(peer, said, user)
                return user
        token = bearer_token(headers)
        if token:
            return await self._by_token(token)
        return None if failed else ANONYMOUS

    def until_s(self, peer: Peer | None, headers: Headers) -> float:
        """Return until when, on the clock's scale, this caller is who it was found to be."""
        until_s = math.inf
        if peer is not None:
            until_s = self._clock() + peer.expires_s - self._unix_time()
            if (peer, tuple(headers)) in self._named:
                return until_s
        token = bearer_token(headers)
        return min(until_s, self._tokens.until_s(self._token_key(token))) if token else until_s

    def _by_certificate(self, peer: Peer, headers: Headers) -> tuple[User | None, bool]:
        """Return the user, and whether something about the certificate was wrong."""
        if peer.expires_s <= self._unix_time():
            return None, True
        failed = False
        proxy, clients = self._trust.front_proxy, self._trust.clients
        if proxy is not None:
            if _may_speak_for_others(peer, proxy):
                user = proxy.headers.user(headers)
                if user is not None:
                    return user, False
            else:
                failed = True
        if clients is not None:
            if peer.root in clients.certificates:
                return peer.user, failed
            failed = True
        return None, failed

    def _keep(self, peer: Peer, said: Headers, user: User) -> None:
        if sum(len(name) + len(value) for name, value in said) > _MOST_NAMED_BYTES:
            return
        if len(self._named) >= _MOST_NAMED:
            self._named.clear()
        self._named[peer, said] = user

    def _token_key(self, token: bytes) -> bytes:
        return hmac.digest(self._hash_key, token, "sha256")

    async def _by_token(self, token: bytes) -> User | None:
        key = self._token_key(token)
        known = self._tokens.get(key)
        if known is not None:
            return known[0]
        try:
            text = token.decode()
        except UnicodeDecodeError:
            return None
        try:
            return await self._tokens.ask(key, lambda: self._review(text))
        except ClusterError as error:
            log.warning("token not reviewed", extra={"problem": str(error)})
            return None

    async def _review(self, token: str) -> User | None:
        user = await self._reviews.review_token(token)
        return None if user is None else with_authenticated(user)


def _may_speak_for_others(peer: Peer, proxy: FrontProxy) -> bool:
    if peer.root not in proxy.authorities.certificates:
        return False
    return not proxy.allowed_names or peer.common_name in proxy.allowed_names
