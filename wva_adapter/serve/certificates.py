"""Which certificate this server has: the operator's, or one by an own authority."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from wva_adapter.errors import ConfigError
from wva_adapter.serve.authority import CertificateAuthority, is_named, write_file
from wva_adapter.serve.pair import (
    ServingPair,
    belong_together,
    parse_certificates,
    parse_key,
    read_pem,
)

LOOPBACK_NAMES: Final = ("localhost", "127.0.0.1", "::1")
RENEW_BEFORE: Final = timedelta(days=30)
# A serving certificate's whole life: none has to end earlier because its authority does, and
# callers that keep a copy of the authority have a year to take the new one.
RENEW_AUTHORITY_BEFORE: Final = timedelta(days=365)


def serving_pair(
    *,
    directory: Path,
    cert_file: Path | None,
    key_file: Path | None,
    ca_file: Path | None = None,
    names: Sequence[str],
    now: datetime | None = None,
) -> ServingPair:
    """Return the operator's certificate if there is one, else our own.

    Args:
        directory: Where our own is kept.
        ca_file: The authority of the operator's.
        names: What callers call the server; our own is for loopback besides.
        now: When our own is judged and made; the system's clock if not said.

    Raises:
        ConfigError: As ``given_pair`` and ``own_pair``.
    """
    given = given_pair(cert_file, key_file, ca_file, names)
    return given or own_pair(directory, names, now or datetime.now(UTC))


def given_pair(
    cert_file: Path | None,
    key_file: Path | None,
    ca_file: Path | None = None,
    names: Sequence[str] = (),
) -> ServingPair | None:
    """Return the operator's certificate, tried; ``None`` where no file is given.

    Args:
        ca_file: What callers trust; ``None`` leaves untried who signed the certificate.
        names: What callers call the server.

    Raises:
        ConfigError: A file is missing or cannot be used, they do not belong together, or a caller
            that asks for one of the names would refuse the certificate.
    """
    if cert_file is None and key_file is None:
        if ca_file is not None:
            raise ConfigError(f"CA {ca_file} is given without a certificate and its key")
        return None
    if key_file is None:
        raise ConfigError(f"certificate {cert_file} is given without its key: give both or neither")
    if cert_file is None:
        raise ConfigError(f"key {key_file} is given without its certificate: give both or neither")
    pair = ServingPair.read(cert_file, key_file, ca_file)
    pair.rehearse(names)
    return pair


def own_pair(directory: Path, names: Sequence[str], now: datetime) -> ServingPair:
    """Return a serving certificate by an own authority, made on first start and kept.

    The directory holds ``ca.crt``, ``ca.key``, ``tls.crt`` and ``tls.key``. The serving
    certificate is made anew when it expires within 30 days, when its names changed, or when its
    pair is broken; the authority when it expires within a year. From then on until the former one
    has expired, ``ca.crt`` holds both, and ``tls.crt`` is followed by the new one's certificate by
    the former (``ca-bridge.crt``): whoever trusts either of them accepts it.

    Args:
        names: DNS names and addresses to be reached under, besides those of loopback.
        now: With its time zone.

    Raises:
        ConfigError: The directory cannot be written, or the authority in it cannot be used.
    """
    files = _Files(directory)
    wanted = tuple(dict.fromkeys((*LOOPBACK_NAMES, *names)))
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _alone_in(directory):
            authority, bridge_pem = _own_authority(files, now)
            pair = _kept_pair(files, authority, bridge_pem, wanted, now)
            if pair is None:
                issued = authority.issue(wanted, now)
                write_file(files.key, issued.key_pem, mode=0o600)
                write_file(files.certificate, issued.cert_pem + bridge_pem, mode=0o644)
                pair = ServingPair.read(files.certificate, files.key, files.authorities)
    except OSError as error:
        raise ConfigError(
            f"certificate directory {directory}: {error.strerror}; want one that can be written"
        ) from error
    return pair


class _Files:
    """Where the parts of our own stand."""

    def __init__(self, directory: Path) -> None:
        self.authorities = directory / "ca.crt"
        self.authority_key = directory / "ca.key"
        self.bridge = directory / "ca-bridge.crt"
        self.certificate = directory / "tls.crt"
        self.key = directory / "tls.key"


@contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    """Keep other processes from renewing at the same moment: an update overlaps with the old one."""
    folder = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _own_authority(files: _Files, now: datetime) -> tuple[CertificateAuthority, bytes]:
    """Return the authority that signs, and its certificate by the former one if that still counts."""
    former: CertificateAuthority | None = None
    if files.authorities.exists() or files.authority_key.exists():
        former, others = _read_authority(files)
        if former.certificate.not_valid_after_utc - now > RENEW_AUTHORITY_BEFORE:
            valid = [one for one in others if one.not_valid_after_utc > now]
            if len(valid) < len(others):
                _write_authorities(files, [former.certificate, *valid])
            return former, _bridge_to(former, files, now)
        if former.certificate.not_valid_after_utc <= now:
            former = None
    # In this order, so that whatever is cut off leaves a key whose certificate is in ca.crt.
    authority = CertificateAuthority.create(now)
    bridge_pem = b""
    if former is not None:
        bridge_pem = authority.certified_by(former, now)
        write_file(files.bridge, bridge_pem, mode=0o644)
    both = (authority, former)
    _write_authorities(files, [one.certificate for one in both if one is not None])
    write_file(files.authority_key, authority.pair.key_pem, mode=0o600)
    return authority, bridge_pem


def _read_authority(files: _Files) -> tuple[CertificateAuthority, list[x509.Certificate]]:
    """Return the authority whose key there is, and the others that callers are to trust."""
    certificates = parse_certificates(
        read_pem(files.authorities, "certificate"), "certificate", files.authorities
    )
    key = parse_key(read_pem(files.authority_key, "key"), files.authority_key)
    own = [certificate for certificate in certificates if belong_together(certificate, key)]
    if not own:
        raise ConfigError(
            f"{files.authority_key} is not the key of {files.authorities}: "
            "restore the pair, or remove both to have a new authority made"
        )
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{files.authority_key} is a {type(key).__name__}, want an ECDSA key")
    others = [certificate for certificate in certificates if certificate not in own]
    return CertificateAuthority(own[0], key), others


def _write_authorities(files: _Files, certificates: Sequence[x509.Certificate]) -> None:
    text = b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)
    write_file(files.authorities, text, mode=0o644)


def _bridge_to(authority: CertificateAuthority, files: _Files, now: datetime) -> bytes:
    if not files.bridge.exists():
        return b""
    pem = read_pem(files.bridge, "certificate")
    bridge = parse_certificates(pem, "certificate", files.bridge)[0]
    counts = belong_together(bridge, authority.key) and bridge.not_valid_after_utc > now
    return pem if counts else b""


def _kept_pair(
    files: _Files,
    authority: CertificateAuthority,
    bridge_pem: bytes,
    names: Sequence[str],
    now: datetime,
) -> ServingPair | None:
    try:
        pair = ServingPair.read(files.certificate, files.key, files.authorities)
    except ConfigError:
        return None
    leaf, *chain = parse_certificates(pair.cert_pem, "certificate", files.certificate)
    bridge = b"".join(one.public_bytes(Encoding.PEM) for one in chain)
    good = (
        authority.issued(leaf)
        and bridge == bridge_pem
        and is_named(leaf, names)
        and leaf.not_valid_after_utc - now > RENEW_BEFORE
    )
    return pair if good else None
