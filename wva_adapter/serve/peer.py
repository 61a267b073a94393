"""What a connection is held to before a request is one, and who is at its other end.

uvicorn tells an application nothing of a client's certificate, bounds neither the size of a head
nor the time that it takes, and adds the trailer fields of a body to the headers of its request.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Any, Final

from cryptography import x509
from cryptography.x509.oid import NameOID
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from wva_adapter.serve.identity import Peer

HEAD_TIMEOUT_S: Final = 32.0
MOST_HEAD_BYTES: Final = 128 * 1024
_DER: Final = 2
_TOO_LARGE: Final = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"content-type: text/plain; charset=utf-8\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
)


class PeerProtocol(HttpToolsProtocol):
    """HTTP/1.1 whose requests carry their peer, in ``scope["extensions"]["tls"]["peer"]``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._extensions: dict[str, Any] = {}
        self._in_head = False
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        tls: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
        try:
            peer = None if tls is None else _read_peer(tls)
        except ValueError as error:
            self.logger.warning("client certificate cannot be read: %s", error)
            transport.close()
            return
        self._extensions = {"tls": {"peer": peer}}
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_arrived()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_head and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > MOST_HEAD_BYTES:
                self.logger.warning("request head of over %d bytes refused", MOST_HEAD_BYTES)
                self._break_off(_TOO_LARGE)
            else:
                self._await_head()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = self._extensions
        self._in_head = True
        self._head_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        # After the head come trailer fields, which no proxy in front has looked through: a group
        # named in one would count as said by the proxy.
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        if self._head_timer is not None:
            self._head_arrived()
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        # A body that nobody read cannot be told from what follows it but by reading all of it.
        if self.cycle.more_body and not self.transport.is_closing():
            self.transport.close()
        super().on_response_complete()

    def _await_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._break_off, b"")

    def _head_arrived(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _break_off(self, answer: bytes) -> None:
        self._head_timer = None
        if not self.transport.is_closing():
            self.transport.write(answer)
            self.transport.close()


def _read_peer(tls: ssl.SSLObject) -> Peer | None:
    """Return the verified peer; ``None`` where the client showed no certificate."""
    if not tls.getpeercert(binary_form=True):
        return None
    # Public only from Python 3.13 on.
    verified = tls._sslobj.get_verified_chain()  # type: ignore[attr-defined]
    chain = tuple(certificate.public_bytes(_DER) for certificate in verified)
    described = [x509.load_der_x509_certificate(der) for der in chain]
    subject = described[0].subject
    names = subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return Peer(
        chain,
        str(names[-1].value) if names else "",
        tuple(
            str(organization.value)
            for organization in subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
        ),
        min(certificate.not_valid_after_utc.timestamp() for certificate in described),
    )
