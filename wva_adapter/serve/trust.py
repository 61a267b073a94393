"""Whose certificates are believed, and for what: the cluster's ConfigMap, and files over it."""

from __future__ import annotations

import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from wva_adapter.errors import ConfigError
from wva_adapter.serve.identity import IdentityHeaders

CONFIG_MAP: Final = "extension-apiserver-authentication"
CONFIG_MAP_NAMESPACE: Final = "kube-system"
CONFIG_MAP_ROLE: Final = "extension-apiserver-authentication-reader"
_CONFIG_MAP: Final = f"ConfigMap {CONFIG_MAP_NAMESPACE}/{CONFIG_MAP}"


@dataclass(frozen=True)
class Bundle:
    """Certificate authorities that are trusted for one purpose."""

    pem: bytes
    certificates: frozenset[bytes] = field(repr=False)

    @classmethod
    def parse(cls, pem: bytes, where: str) -> Bundle:
        """Return the bundle of a PEM text; ``where`` is what errors call it.

        Raises:
            ConfigError: It holds no certificate, or one that cannot be read.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_verify_locations(cadata=pem.decode("ascii"))
        except (ssl.SSLError, UnicodeDecodeError, ValueError) as error:
            raise ConfigError(
                f"{where}: no certificates: want a PEM bundle of -----BEGIN CERTIFICATE-----"
            ) from error
        parts = pem.decode("ascii").split("-----END CERTIFICATE-----")[:-1]
        certificates = frozenset(
            ssl.PEM_cert_to_DER_cert(
                part[part.index("-----BEGIN CERTIFICATE-----") :] + "-----END CERTIFICATE-----\n"
            )
            for part in parts
        )
        return cls(pem if pem.endswith(b"\n") else pem + b"\n", certificates)


@dataclass(frozen=True)
class FrontProxy:
    """The proxy whose word on who is asking is believed, when it shows its own certificate.

    Attributes:
        allowed_names: Common names that it may have; none means any.
    """

    authorities: Bundle
    allowed_names: frozenset[str] = frozenset()
    headers: IdentityHeaders = field(default_factory=IdentityHeaders)


@dataclass(frozen=True)
class Trust:
    """Who is believed: clients by their own certificates, and a front proxy.

    ``None`` means that no certificate is believed for that purpose.
    """

    clients: Bundle | None = None
    front_proxy: FrontProxy | None = None

    @property
    def pem(self) -> bytes:
        """Every authority by which a client's certificate may be signed."""
        bundles = (self.clients, None if self.front_proxy is None else self.front_proxy.authorities)
        return b"".join(bundle.pem for bundle in bundles if bundle is not None)

    def checked(self) -> Trust:
        """Return it, if its halves can be told apart.

        Raises:
            ConfigError: Whoever has a client certificate could speak for anybody.
        """
        proxy = self.front_proxy
        if proxy is None or self.clients is None or proxy.allowed_names:
            return self
        if proxy.authorities.certificates & self.clients.certificates:
            raise ConfigError(
                "the client CA and the requestheader client CA share a certificate and any common "
                "name is allowed, so every client could speak for everybody: want "
                "requestheader-allowed-names, or two authorities"
            )
        return self

    def over(self, below: Trust) -> Trust:
        """Return this, each half that it lacks taken from the one below."""
        return Trust(self.clients or below.clients, self.front_proxy or below.front_proxy)


def trust_of_files(
    *,
    client_ca_file: Path | None,
    requestheader_client_ca_file: Path | None,
    allowed_names: tuple[str, ...],
    headers: IdentityHeaders,
) -> Trust:
    """Return what the operator's files say.

    Raises:
        ConfigError: A file cannot be read or holds no certificates.
    """
    clients = None if client_ca_file is None else _read(client_ca_file, "client CA")
    if requestheader_client_ca_file is None:
        return Trust(clients)
    authorities = _read(requestheader_client_ca_file, "requestheader client CA")
    return Trust(clients, FrontProxy(authorities, frozenset(allowed_names), headers))


def trust_of_config_map(data: Mapping[str, str]) -> Trust:
    """Return what kube-apiserver tells its extension servers.

    Raises:
        ConfigError: A value is not of the form that kube-apiserver writes.
    """
    clients, authorities = (
        Bundle.parse(data[key].encode(), f"{_CONFIG_MAP}: {key}") if data.get(key) else None
        for key in ("client-ca-file", "requestheader-client-ca-file")
    )
    if authorities is None:
        return Trust(clients)
    headers = IdentityHeaders(
        username=_names(data, "requestheader-username-headers"),
        group=_names(data, "requestheader-group-headers"),
        extra_prefixes=_names(data, "requestheader-extra-headers-prefix"),
        uid=_names(data, "requestheader-uid-headers"),
    )
    names = frozenset(_names(data, "requestheader-allowed-names"))
    return Trust(clients, FrontProxy(authorities, names, headers))


def _names(data: Mapping[str, str], key: str) -> tuple[str, ...]:
    try:
        names = json.loads(data.get(key) or "[]")
    except ValueError:
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{_CONFIG_MAP}: {key}: found {data[key]!r}, want a JSON list of names")
    return tuple(name for name in names if name)


def _read(file: Path, what: str) -> Bundle:
    try:
        pem = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{what} {file}: {error.strerror}; want a readable PEM file") from error
    return Bundle.parse(pem, f"{what} {file}")
