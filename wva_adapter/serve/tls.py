"""Which certificate this server shows, and the TLS that it speaks: given files, or its own."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from wva_adapter.errors import ConfigError
from wva_adapter.serve.authority import CertificateAuthority, is_named, write_file

LOOPBACK_NAMES: Final = ("localhost", "127.0.0.1", "::1")
RENEW_BEFORE: Final = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class ServingPair:
    """The files of a certificate and its key that belong together.

    Attributes:
        ca_file: What a caller must trust; ``None`` where the operator gave the certificate.
    """

    cert_file: Path
    key_file: Path
    ca_file: Path | None = None


def given_pair(cert_file: Path | None, key_file: Path | None) -> ServingPair | None:
    """Return the operator's certificate, checked; ``None`` where neither file is given.

    Raises:
        ConfigError: One is given without the other, cannot be read, is not PEM, or the key is not
            the certificate's.
    """
    if cert_file is None and key_file is None:
        return None
    if key_file is None:
        raise ConfigError(f"certificate {cert_file} is given without its key: give both or neither")
    if cert_file is None:
        raise ConfigError(f"key {key_file} is given without its certificate: give both or neither")
    certificate, key = _read_certificate(cert_file), _read_key(key_file)
    if not _belongs(certificate, key):
        raise ConfigError(f"key {key_file} does not match certificate {cert_file}")
    return ServingPair(cert_file, key_file)


def own_pair(directory: Path, names: Sequence[str], now: datetime) -> ServingPair:
    """Return a serving certificate by an own authority, made on first start and kept.

    The directory holds ``ca.crt``, ``ca.key``, ``tls.crt`` and ``tls.key``. The serving
    certificate is made anew when it expires within 30 days, when its names changed, or when its
    pair is broken; the authority only when it expires so soon itself, because callers trust it.

    Args:
        names: DNS names and addresses to be reached under, besides those of loopback.
        now: With its time zone.

    Raises:
        ConfigError: The directory cannot be written, or the authority in it cannot be used.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        authority = _own_authority(directory, now)
        pair = ServingPair(directory / "tls.crt", directory / "tls.key", directory / "ca.crt")
        wanted = tuple(dict.fromkeys((*LOOPBACK_NAMES, *names)))
        if not _still_good(pair, authority, wanted, now):
            issued = authority.issue(wanted, now)
            write_file(pair.key_file, issued.key_pem, mode=0o600)
            write_file(pair.cert_file, issued.cert_pem, mode=0o644)
    except OSError as error:
        raise ConfigError(
            f"certificate directory {directory}: {error.strerror}; want one that can be written"
        ) from error
    return pair


def serving_context(
    *,
    directory: Path,
    cert_file: Path | None,
    key_file: Path | None,
    names: Sequence[str],
    now: datetime | None = None,
) -> ssl.SSLContext:
    """Return the TLS of the operator's certificate if there is one, else of our own.

    Args:
        directory: Where our own is kept.
        names: What our own is for, besides loopback.
        now: When our own is judged and made; the system's clock if not said.

    Raises:
        ConfigError: As ``given_pair`` and ``own_pair``.
    """
    pair = given_pair(cert_file, key_file)
    return server_context(pair or own_pair(directory, names, now or datetime.now(UTC)))


def server_context(pair: ServingPair) -> ssl.SSLContext:
    """Return TLS 1.2 or newer over HTTP/1.1 with this certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    context.load_cert_chain(pair.cert_file, pair.key_file)
    return context


def trust_clients(context: ssl.SSLContext, pem: bytes) -> None:
    """Ask clients for a certificate, and believe those that these authorities signed."""
    if not pem:
        return
    context.verify_mode = ssl.CERT_OPTIONAL
    # As in Kubernetes, any certificate of a bundle is an anchor.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    # A resumed session carries no verified chain.
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0
    context.load_verify_locations(cadata=pem.decode("ascii"))


def _own_authority(directory: Path, now: datetime) -> CertificateAuthority:
    cert_file, key_file = directory / "ca.crt", directory / "ca.key"
    if cert_file.exists() or key_file.exists():
        certificate, key = _read_certificate(cert_file), _read_key(key_file)
        if not _belongs(certificate, key):
            raise ConfigError(
                f"{key_file} is not the key of {cert_file}: "
                "restore the pair, or remove both to have a new authority made"
            )
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ConfigError(f"{key_file} is a {type(key).__name__}, want an ECDSA key")
        if certificate.not_valid_after_utc - now > RENEW_BEFORE:
            return CertificateAuthority(certificate, key)
    authority = CertificateAuthority.create(now)
    write_file(key_file, authority.pair.key_pem, mode=0o600)
    write_file(cert_file, authority.pair.cert_pem, mode=0o644)
    return authority


def _still_good(
    pair: ServingPair, authority: CertificateAuthority, names: Sequence[str], now: datetime
) -> bool:
    try:
        certificate, key = _read_certificate(pair.cert_file), _read_key(pair.key_file)
    except ConfigError:
        return False
    return (
        _belongs(certificate, key)
        and authority.issued(certificate)
        and is_named(certificate, names)
        and certificate.not_valid_after_utc - now > RENEW_BEFORE
    )


def _read(file: Path, what: str) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{what} {file}: {error.strerror}; want a readable PEM file") from error


def _read_certificate(file: Path) -> x509.Certificate:
    text = _read(file, "certificate")
    try:
        return x509.load_pem_x509_certificate(text)
    except ValueError as error:
        raise ConfigError(
            f"certificate {file} is not PEM: want -----BEGIN CERTIFICATE-----"
        ) from error


def _read_key(file: Path) -> PrivateKeyTypes:
    text = _read(file, "key")
    try:
        return load_pem_private_key(text, password=None)
    except TypeError as error:
        raise ConfigError(f"key {file} is encrypted: want one without a passphrase") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"key {file} is not PEM: want -----BEGIN PRIVATE KEY-----") from error


def _belongs(certificate: x509.Certificate, key: PrivateKeyTypes) -> bool:
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return certificate.public_key().public_bytes(*form) == key.public_key().public_bytes(*form)
