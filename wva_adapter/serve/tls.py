"""The TLS that this server speaks: whatever its certificate and its callers' authorities are now."""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from wva_adapter.ciphers import TlsProtocol
from wva_adapter.errors import ConfigError
from wva_adapter.serve.pair import ServingPair

log = logging.getLogger(__name__)

_ANNOUNCED_EVERY_S: Final = 2.0
_LONGEST_OVERLAP_S: Final = 60.0
_SPOKEN: Final = TlsProtocol()


class ServingTls:
    """TLS whose certificate and trusted clients change under a port that stays open.

    A change holds for new connections; those that are open keep what they began with.

    Args:
        find_pair: Returns the certificate to serve with as it is now, or raises ``ConfigError``.
        protocol: Which TLS is spoken.
        check_period_s: How often ``run`` asks for it.
        is_announced: Whether callers were told of these authorities (PEM). A certificate that is
            not accepted by who knows the former authorities waits for that, a minute at most;
            without this nothing waits.
        clock: Seconds on any scale.

    Raises:
        ConfigError: There is no certificate to begin with.
    """

    def __init__(
        self,
        find_pair: Callable[[], ServingPair],
        *,
        protocol: TlsProtocol = _SPOKEN,
        check_period_s: float = 30.0,
        is_announced: Callable[[bytes], bool] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._find_pair = find_pair
        self._protocol = protocol
        self._check_period_s = check_period_s
        self._is_announced = is_announced
        self._clock = clock
        self._next: _Next | None = None
        self._client_cas = b""
        self._pair = find_pair()
        self._current = server_context(self._pair, protocol=protocol)
        self._problem = ""
        self._front = _Front(ssl.PROTOCOL_TLS_SERVER)
        self._front.new_context = self._new_context

    @property
    def context(self) -> ssl.SSLContext:
        """The one to listen with, whatever becomes of the certificate."""
        return self._front

    @property
    def pair(self) -> ServingPair:
        """What new connections are served with."""
        return self._pair

    @property
    def authorities(self) -> bytes | None:
        """What callers must trust (PEM): also those of a certificate that waits to be served.

        ``None`` where the operator's certificate says no CA.
        """
        if self._next is None:
            return self._pair.ca_pem
        both = (self._pair.ca_pem or b"", self._next.pair.ca_pem or b"")
        return b"\n".join(pem.strip() for pem in both) + b"\n"

    def trust_clients(self, pem: bytes) -> None:
        """Verify the certificates of clients against these authorities from now on, and no others.

        Args:
            pem: Empty to ask nobody for a certificate.

        Raises:
            ConfigError: It is no PEM bundle; what was trusted stays trusted.
        """
        # The files of a former pair are those of the next one by now.
        pair = self._pair if self._next is None else self._next.pair
        self._current = server_context(pair, pem, self._protocol)
        self._client_cas, self._pair, self._next = pem, pair, None

    async def run(self) -> None:
        """Look for a new certificate until cancelled."""
        while True:
            waits = self._next is not None
            await asyncio.sleep(
                min(_ANNOUNCED_EVERY_S, self._check_period_s) if waits else self._check_period_s
            )
            await self.look()

    async def look(self) -> None:
        """Take the certificate as it is now; one that cannot be used leaves the last good one."""
        try:
            pair = await asyncio.to_thread(self._find_pair)
            if pair == self._pair:
                self._next = None
            elif not await self._waits(pair):
                self._take(pair)
        except ConfigError as error:
            if str(error) != self._problem:
                log.error("the certificate stays as it was", extra={"problem": str(error)})
            self._problem = str(error)
        else:
            self._problem = ""

    async def _waits(self, pair: ServingPair) -> bool:
        """Return whether the pair is to be served later, once callers know who signed it."""
        known, wanted, now_s = self._pair.ca_pem, pair.ca_pem, self._clock()
        if self._is_announced is None or known is None or wanted is None:
            return False
        if self._next is None or self._next.pair != pair:
            if await asyncio.to_thread(pair.is_trusted_by, known):
                return False
            self._next = _Next(pair, now_s + _LONGEST_OVERLAP_S)
            log.info(
                "certificate waits until callers know its CA", extra={"file": str(pair.cert_file)}
            )
            return True
        # Whoever reads what is announced needs a moment for it: one more look.
        before, self._next.announced = self._next.announced, self._is_announced(wanted)
        if not before and now_s < self._next.until_s:
            return True
        if not before:
            log.warning(
                "certificate taken although its CA was not announced",
                extra={"waited_s": _LONGEST_OVERLAP_S},
            )
        return False

    def _take(self, pair: ServingPair) -> None:
        context = server_context(pair, self._client_cas, self._protocol)
        self._pair, self._current, self._next = pair, context, None
        log.info(
            "certificate taken",
            extra={"file": str(pair.cert_file), "valid_until": pair.valid_until.isoformat()},
        )

    def _new_context(self) -> ssl.SSLContext:
        """Return a context for one connection, which hands over to the current one."""
        context = _empty_context(self._protocol)
        # OpenSSL copies this one when a connection begins; all else is the current context's.
        context.verify_mode = self._current.verify_mode

        def hand_over(tls: ssl.SSLObject, _name: str | None, _context: Any) -> None:
            tls.context = self._current

        context.sni_callback = hand_over
        return context


@dataclass(slots=True)
class _Next:
    """A certificate that waits, and until when at most."""

    pair: ServingPair
    until_s: float
    announced: bool = False


def server_context(
    pair: ServingPair, client_cas: bytes = b"", protocol: TlsProtocol = _SPOKEN
) -> ssl.SSLContext:
    """Return TLS over HTTP/1.1 with this certificate.

    Args:
        client_cas: Who may have signed the certificates of clients, in PEM; empty asks for none.

    Raises:
        ConfigError: The pair's files changed, or the authorities are no PEM bundle.
    """
    context = _empty_context(protocol)
    pair.load_into(context)
    if client_cas:
        context.verify_mode = ssl.CERT_OPTIONAL
        try:
            context.load_verify_locations(cadata=client_cas.decode("ascii"))
        except (ssl.SSLError, ValueError) as error:
            raise ConfigError("authorities of clients: want PEM certificates") from error
    return context


class _Front(ssl.SSLContext):
    """A context that gives every connection one of its own.

    TLS 1.2 remembers its sessions in the context that a connection began with. One that resumes
    such a session brings no verified chain, and would outlive the authority that it came with.
    Python cannot switch that memory off; here nobody finds it again.
    """

    new_context: Callable[[], ssl.SSLContext]

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        return self.new_context().wrap_bio(*args, **kwargs)


def _empty_context(protocol: TlsProtocol) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    protocol.limit(context)
    context.set_alpn_protocols(["http/1.1"])
    # As in Kubernetes, any certificate of a bundle is an anchor.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0
    return context
