"""How to make a certificate authority and what it signs."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from wva_adapter.errors import ConfigError

_AUTHORITY_LIFE: Final = timedelta(days=3650)
_SERVING_LIFE: Final = timedelta(days=365)
# Clocks of a cluster differ by a little: a certificate is valid from before it was made.
_BACKDATED: Final = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A certificate and its private key, in PEM."""

    cert_pem: bytes
    key_pem: bytes


@dataclass(frozen=True, slots=True)
class CertificateAuthority:
    """An own certificate authority (ECDSA P-256)."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def create(cls, now: datetime) -> CertificateAuthority:
        """Return a new authority, valid for ten years."""
        key = ec.generate_private_key(ec.SECP256R1())
        # The date in the name tells a renewed authority from the one before it.
        name = _name(f"wva-adapter-ca@{int(now.timestamp())}")
        draft = _draft(name, name, key.public_key(), now, now + _AUTHORITY_LIFE)
        # One authority may stand between it and what it vouches for: the one that follows it.
        return cls(
            _authority(draft, key.public_key(), authorities_below=1).sign(key, SHA256()), key
        )

    @property
    def pair(self) -> KeyPair:
        """Its own certificate and key."""
        return _pem(self.certificate, self.key)

    def issue(self, names: Sequence[str], now: datetime) -> KeyPair:
        """Return a new serving certificate for these DNS names and addresses, valid for a year."""
        key = ec.generate_private_key(ec.SECP256R1())
        until = min(now + _SERVING_LIFE, self.certificate.not_valid_after_utc)
        alternatives = x509.SubjectAlternativeName([_general_name(name) for name in names])
        certificate = (
            _draft(_name("wva-adapter"), self.certificate.subject, key.public_key(), now, until)
            .add_extension(alternatives, critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()),
                critical=False,
            )
            .sign(self.key, SHA256())
        )
        return _pem(certificate, key)

    def certified_by(self, former: CertificateAuthority, now: datetime) -> bytes:
        """Return a certificate of this authority by the one before it, in PEM.

        Whoever trusts only the former one accepts with it what this one signs, until the former
        one expires.
        """
        subject, key = self.certificate.subject, self.key.public_key()
        until = former.certificate.not_valid_after_utc
        draft = _draft(subject, former.certificate.subject, key, now, until)
        certificate = (
            _authority(draft, key, authorities_below=0)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(former.key.public_key()),
                critical=False,
            )
            .sign(former.key, SHA256())
        )
        return certificate.public_bytes(Encoding.PEM)

    def issued(self, certificate: x509.Certificate) -> bool:
        """Return whether this authority signed the certificate."""
        try:
            certificate.verify_directly_issued_by(self.certificate)
        except (ValueError, TypeError, InvalidSignature):
            return False
        return True


def is_named(certificate: x509.Certificate, names: Sequence[str]) -> bool:
    """Return whether a certificate is for exactly these DNS names and addresses."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return False
    return set(found) == {_general_name(name) for name in names}


def write_file(file: Path, content: bytes, *, mode: int) -> None:
    """Write a file in one step, so that no reader ever sees half of it, with these permissions."""
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as stream:
        stream.write(content)
    draft.replace(file)


def _authority(
    draft: x509.CertificateBuilder, key: ec.EllipticCurvePublicKey, *, authorities_below: int
) -> x509.CertificateBuilder:
    return (
        draft.add_extension(
            x509.BasicConstraints(ca=True, path_length=authorities_below), critical=True
        )
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _draft(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    now: datetime,
    until: datetime,
) -> x509.CertificateBuilder:
    return x509.CertificateBuilder(
        subject_name=subject,
        issuer_name=issuer,
        public_key=public_key,
        serial_number=x509.random_serial_number(),
        not_valid_before=now - _BACKDATED,
        not_valid_after=until,
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    try:
        return x509.DNSName(name)
    except ValueError as error:
        raise ConfigError(f"{name!r} is no name for a certificate: want ASCII") from error


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> KeyPair:
    return KeyPair(
        certificate.public_bytes(Encoding.PEM),
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    )
