"""The second port: what KEDA and Prometheus read, for one shared token or for everybody."""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from wva_adapter.errors import ConfigError
from wva_adapter.serve.attributes import QUERY_PATH
from wva_adapter.serve.guard import UNAUTHORIZED
from wva_adapter.serve.identity import bearer_token
from wva_adapter.serve.negotiation import refuse
from wva_adapter.serve.wire import NO_SUCH_METHOD, NO_SUCH_RESOURCE, Refusal

log = logging.getLogger(__name__)

_HEALTH: Final = ("/healthz", "/livez", "/readyz")
_READ: Final = ("/metrics", QUERY_PATH)
_READ_BELOW: Final = "/v1/desired/"
_LOOK_EVERY_S: Final = 1.0


class TokenFile:
    """A token in a file, which is read again when it changes.

    Raises:
        ConfigError: The file cannot be read or is empty.
    """

    def __init__(self, file: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._file = file
        self._clock = clock
        self._looked_at = clock()
        try:
            self._changed_ns = file.stat().st_mtime_ns
            self._token = self._read()
        except OSError as error:
            raise ConfigError(
                f"token file {file}: {error.strerror}; want a readable file with one token"
            ) from error

    def matches(self, token: bytes) -> bool:
        """Return whether it is the token, in a time that does not tell how much of it is right."""
        self._look()
        return hmac.compare_digest(token, self._token)

    def _look(self) -> None:
        now = self._clock()
        if now - self._looked_at < _LOOK_EVERY_S:
            return
        self._looked_at = now
        try:
            changed_ns = self._file.stat().st_mtime_ns
            if changed_ns != self._changed_ns:
                self._token, self._changed_ns = self._read(), changed_ns
        except (OSError, ConfigError) as error:
            log.error("the reader's token stays as it was", extra={"problem": str(error)})

    def _read(self) -> bytes:
        token = self._file.read_bytes().strip()
        if not token or b" " in token:
            raise ConfigError(
                f"token file {self._file}: found {len(token.split())} words, want one token"
            )
        return token


class ReaderDoor:
    """Lets through GET of what is only read, and queries by POST, and nothing else.

    Args:
        token: What a reader must have; ``None`` opens it to everybody.
    """

    def __init__(self, app: ASGIApp, token: TokenFile | None) -> None:
        self._app = app
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            refusal = self._refusal(scope)
            if refusal is not None:
                await refuse(Request(scope), refusal)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> Refusal | None:
        path = scope["path"]
        if path not in _HEALTH and self._token is not None:
            token = bearer_token(scope["headers"])
            if not token or not self._token.matches(token):
                return UNAUTHORIZED
        if path not in _HEALTH and path not in _READ and not path.startswith(_READ_BELOW):
            return NO_SUCH_RESOURCE
        # A form is how Grafana asks: it changes nothing either.
        reads = scope["method"] == "GET" or (scope["method"] == "POST" and path == QUERY_PATH)
        return None if reads else NO_SUCH_METHOD
