"""Certificates of a control plane and of those who call it: who they are to each other."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


class Authority:
    """A certificate authority whose files stand in one folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _subject(name)
        certificate = (
            _draft(self._name, self._name, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False
            )
            .add_extension(_usage(signs=True), critical=True)
            .sign(self._key, SHA256())
        )
        self.file = folder / f"{name}.crt"
        self.file.write_bytes(certificate.public_bytes(Encoding.PEM))

    @classmethod
    def of(cls, pair: tuple[Path, Path], folder: Path) -> Authority:
        """Return whoever has this certificate and key as an authority, which it need not be."""
        authority = cls.__new__(cls)
        authority._folder = folder
        certificate = x509.load_pem_x509_certificate(pair[0].read_bytes())
        key = load_pem_private_key(pair[1].read_bytes(), password=None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        authority._key, authority._name, authority.file = key, certificate.subject, pair[0]
        return authority

    def issue(
        self,
        name: str,
        *,
        organization: str | None = None,
        hosts: Sequence[str] = (),
        for_clients: bool = True,
        expires_in: timedelta = timedelta(days=1),
        stem: str | None = None,
    ) -> tuple[Path, Path]:
        """Return the files of a new certificate and its key, for a client and for these hosts.

        Args:
            expires_in: Below 0, it has expired.
            stem: Of the files' names, where another one's could be the same.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        uses = [ExtendedKeyUsageOID.CLIENT_AUTH] if for_clients else []
        draft = _draft(_subject(name, organization), self._name, key.public_key(), expires_in)
        if hosts or not for_clients:
            uses.append(ExtendedKeyUsageOID.SERVER_AUTH)
        if hosts:
            draft = draft.add_extension(
                x509.SubjectAlternativeName([_host(host) for host in hosts]), critical=False
            )
        certificate = (
            draft.add_extension(x509.ExtendedKeyUsage(uses), critical=False)
            .add_extension(_usage(signs=False), critical=True)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
            .sign(self._key, SHA256())
        )
        stem = stem or name.replace(":", "-")
        cert_file, key_file = self._folder / f"{stem}.crt", self._folder / f"{stem}.key"
        cert_file.write_bytes(certificate.public_bytes(Encoding.PEM))
        _write_private(key_file, key)
        return cert_file, key_file


def service_account_keys(folder: Path) -> tuple[Path, Path]:
    """Return the files of the public and the private key that sign service account tokens."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    public, private = folder / "service-accounts.pub", folder / "service-accounts.key"
    public.write_bytes(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    _write_private(private, key)
    return public, private


def _write_private(file: Path, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> None:
    file.touch(mode=0o600)
    file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def _draft(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    expires_in: timedelta = timedelta(days=1),
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return x509.CertificateBuilder(
        issuer_name=issuer,
        subject_name=subject,
        public_key=key,
        serial_number=x509.random_serial_number(),
        not_valid_before=now - timedelta(days=1),
        not_valid_after=now + expires_in,
    )


def _subject(name: str, organization: str | None = None) -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else []
    if organization is not None:
        attributes.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization))
    return x509.Name(attributes)


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )
