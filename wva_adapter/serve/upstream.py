"""One provider behind this one: how to reach it, who we are to it, and what its silence means."""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiohttp
from yarl import URL

from wva_adapter import __version__
from wva_adapter.errors import ConfigError, WvaError
from wva_adapter.serve.negotiation import Caller, Reply

log = logging.getLogger(__name__)

_MOST_BYTES: Final = 16 * 2**20
_MOST_OF_A_REFUSAL: Final = 300
_MOST_CONNECTIONS: Final = 32
# Longer than an HPA's period: each question finds its connection open.
_IDLE_S: Final = 60.0
_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 15.0
_PASSED_ON: Final = ("Content-Type", "Content-Encoding", "Vary", "Cache-Control", "Warning")
"""Not ``Retry-After``, for which a client of Kubernetes waits inside a worker that scales others."""

Token = Callable[[], Awaitable[str | None]]


class UpstreamError(Exception):
    """A provider has no answer to pass on; the message says why."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this adapter is to a provider.

    Attributes:
        token: Returns the bearer token of this moment; ``None`` where there is none.
        certificate: Files of a client certificate and its key.
    """

    token: Token | None = None
    certificate: tuple[Path, Path] | None = None


@dataclass(frozen=True, slots=True)
class Trusted:
    """Whose certificate a provider must have.

    Attributes:
        name: That the certificate is for; the host of the URL if ``None``.
        ca: Returns the authorities (PEM) of this moment; ``None`` trusts the system's.
        anybody: Take any certificate, as kube-apiserver did by ``insecureSkipTLSVerify``.
    """

    name: str | None = None
    ca: Callable[[], bytes | None] = lambda: None
    anybody: bool = False

    def context(self, certificate: tuple[Path, Path] | None) -> ssl.SSLContext:
        """Return TLS that trusts so and shows this certificate.

        Raises:
            ConfigError: A file cannot be used.
        """
        try:
            pem = self.ca()
            context = ssl.create_default_context(cadata=None if pem is None else pem.decode())
            # As in Kubernetes, any certificate of a bundle is an anchor.
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
            if self.anybody:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            if certificate is not None:
                context.load_cert_chain(*certificate)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"its authority or our certificate cannot be used: {error}"
            ) from error
        return context


class Upstream:
    """A provider of external metrics.

    While it gives no answer, one request at a time tries again after a pause and the others are told
    at once: each one that waited would hold one of the few workers that scale all the rest.

    Args:
        name: What it is called in messages.
        url: ``https://HOST:PORT``.
        keda: It is KEDA's metrics server.
        default: It has the metrics that are nobody else's.
    """

    def __init__(
        self,
        name: str,
        url: str,
        *,
        trusted: Trusted = Trusted(),
        identity: Identity = Identity(),
        keda: bool = False,
        default: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.url = url.rstrip("/")
        self.keda = keda
        self.default = default
        self._trusted = trusted
        self._identity = identity
        self._clock = clock
        self._session: aiohttp.ClientSession | None = None
        self._why = ""
        self._again_at_s = 0.0
        self._pause_s = 0.0

    async def close(self) -> None:
        """Close the connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def ask(self, path: str, caller: Caller, *, audit_id: str, timeout_s: float) -> Reply:
        """Return its answer to the same request, byte for byte.

        Args:
            path: As it came, still encoded.

        Raises:
            UpstreamError: It has none in time, or none that can be passed on.
        """
        if self._why and self._clock() < self._again_at_s:
            raise UpstreamError(f"{self._why}; asked again in at most {self._pause_s:g} s")
        if self._why:
            # This one tries; whoever comes meanwhile does not wait with it.
            self._again_at_s = self._clock() + timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                reply = await self._ask(path, caller, audit_id)
        except TimeoutError:
            raise self._silent(f"no answer within {timeout_s:g} s") from None
        except aiohttp.ClientSSLError as error:
            # Files may hold another authority or certificate by now.
            await self.close()
            raise self._silent(_of_tls(error)) from error
        except (aiohttp.ClientError, OSError, WvaError) as error:
            raise self._silent(str(error) or type(error).__name__) from error
        except UpstreamError:
            self._answered()
            raise
        self._answered()
        return reply

    def _answered(self) -> None:
        if self._why:
            log.info("provider answers again", extra={"provider": self.name})
            self._why, self._pause_s = "", 0.0

    def _silent(self, why: str) -> UpstreamError:
        if not self._why:
            log.warning("provider does not answer", extra={"provider": self.name, "problem": why})
        self._why = why
        self._pause_s = min(max(_FIRST_PAUSE_S, 2 * self._pause_s), _LONGEST_PAUSE_S)
        self._again_at_s = self._clock() + self._pause_s
        return UpstreamError(why)

    async def _ask(self, path: str, caller: Caller, audit_id: str) -> Reply:
        if self._session is None:
            self._session = self._open()
        url = URL(f"{self.url}{path}" + (f"?{caller.query}" if caller.query else ""), encoded=True)
        headers = {
            "Accept-Encoding": caller.accept_encoding or "identity",
            "User-Agent": f"wva-adapter/{__version__}",
        }
        if caller.accept:
            headers["Accept"] = caller.accept
        if audit_id:
            headers["Audit-ID"] = audit_id
        token = None if self._identity.token is None else await self._identity.token()
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        async with self._session.get(
            url,
            headers=headers,
            allow_redirects=False,
            server_hostname=self._trusted.name,
        ) as response:
            body = await _body(response)
        if response.status in (401, 403):
            # The caller may read it: that was asked before. It is us who may not.
            said = body[:_MOST_OF_A_REFUSAL].decode(errors="replace").strip()
            raise UpstreamError(
                f"it refuses this adapter (HTTP {response.status}: {said}); want its service "
                "account, token or certificate to be allowed to list external.metrics.k8s.io"
            )
        if 300 <= response.status < 400:
            raise UpstreamError(f"HTTP {response.status}, want an answer and no redirect")
        passed = {name: response.headers[name] for name in _PASSED_ON if name in response.headers}
        return Reply.of(response.status, body, passed)

    def _open(self) -> aiohttp.ClientSession:
        context = self._trusted.context(self._identity.certificate)
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                ssl=context, limit=_MOST_CONNECTIONS, keepalive_timeout=_IDLE_S
            ),
            auto_decompress=False,
            skip_auto_headers=("Accept",),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
        )


async def _body(response: aiohttp.ClientResponse) -> bytes:
    pieces, size = [], 0
    async for piece in response.content.iter_any():
        size += len(piece)
        if size > _MOST_BYTES:
            raise UpstreamError(f"its answer is over {_MOST_BYTES // 2**20} MiB")
        pieces.append(piece)
    return b"".join(pieces)


def _of_tls(error: aiohttp.ClientSSLError) -> str:
    return f"its certificate is not the one that is trusted: {error}; want its authority's file"


class FileToken:
    """A bearer token in a file, read again now and then, since service accounts' are replaced.

    Raises:
        ConfigError: The file cannot be read.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        try:
            self._read()
        except OSError as error:
            raise ConfigError(
                f"token file {file}: {error.strerror}; want a readable file with one token"
            ) from error

    async def __call__(self) -> str:
        """Return the token of this moment."""
        return await asyncio.to_thread(self._read)

    def _read(self) -> str:
        return self._file.read_text(encoding="ascii").strip()
