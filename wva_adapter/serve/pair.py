"""A certificate and its key as their files hold them, and whether callers would take them."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from wva_adapter.errors import ConfigError

# Of X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH, in OpenSSL's x509_vfy.h.
_OTHER_NAME: Final = (62, 64)
# Of X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT, …_GET_ISSUER_CERT_LOCALLY, the self-signed ones and
# …_VERIFY_LEAF_SIGNATURE; CERT_SIGNATURE_FAILURE where an authority has the name but not the key.
_OTHER_AUTHORITY: Final = (2, 7, 18, 19, 20, 21)


@dataclass(frozen=True, slots=True)
class ServingPair:
    """A certificate and its key that belong together.

    Attributes:
        ca_file: What a caller must trust; ``None`` where the operator gave the certificate alone.
        cert_pem: The certificate, and those between it and its authority.
        ca_pem: One or more authorities.
    """

    cert_file: Path
    key_file: Path
    ca_file: Path | None
    cert_pem: bytes = field(repr=False)
    key_pem: bytes = field(repr=False)
    ca_pem: bytes | None = field(repr=False)

    @classmethod
    def read(cls, cert_file: Path, key_file: Path, ca_file: Path | None = None) -> ServingPair:
        """Return the pair in these files.

        Raises:
            ConfigError: A file cannot be read or is not PEM, or the key is not the certificate's.
        """
        cert_pem, key_pem = read_pem(cert_file, "certificate"), read_pem(key_file, "key")
        certificate = parse_certificates(cert_pem, "certificate", cert_file)[0]
        if not belong_together(certificate, parse_key(key_pem, key_file)):
            raise ConfigError(f"key {key_file} does not match certificate {cert_file}")
        ca_pem = None
        if ca_file is not None:
            ca_pem = read_pem(ca_file, "CA")
            parse_certificates(ca_pem, "CA", ca_file)
        return cls(cert_file, key_file, ca_file, cert_pem, key_pem, ca_pem)

    @property
    def valid_until(self) -> datetime:
        """When the certificate expires."""
        return self.leaf.not_valid_after_utc

    @property
    def leaf(self) -> x509.Certificate:
        """The certificate itself."""
        return parse_certificates(self.cert_pem, "certificate", self.cert_file)[0]

    def load_into(self, context: ssl.SSLContext) -> None:
        """Let a context serve with it.

        Raises:
            ConfigError: The files changed since they were read.
        """
        # OpenSSL takes files only; what was checked must be what it took.
        try:
            context.load_cert_chain(self.cert_file, self.key_file)
            there = self.cert_file.read_bytes(), self.key_file.read_bytes()
        except (OSError, ssl.SSLError):
            there = (b"", b"")
        if there != (self.cert_pem, self.key_pem):
            raise ConfigError(f"certificate {self.cert_file} changed while it was read")

    def rehearse(self, names: Sequence[str]) -> None:
        """Shake hands with a caller in this process, as kube-apiserver will, under each name.

        Where there is no ``ca_file``, the caller trusts the certificate itself.

        Raises:
            ConfigError: The caller refuses.
        """
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.load_into(server)
        caller = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        caller.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        caller.hostname_checks_common_name = False  # Go looks at the alternative names only
        if self.ca_pem is None:
            caller.load_verify_locations(cadata=self.leaf.public_bytes(Encoding.DER))
        else:
            caller.load_verify_locations(cadata=self.ca_pem.decode("ascii"))
        for name in (None, *names):
            caller.check_hostname = name is not None
            try:
                _shake_hands(server, caller, name)
            except ssl.SSLCertVerificationError as error:
                raise ConfigError(self._in_words(error, name)) from None
            except ssl.SSLError as error:
                raise ConfigError(
                    f"certificate {self.cert_file} cannot be served with: {error.reason}"
                ) from error

    def is_trusted_by(self, ca_pem: bytes) -> bool:
        """Return whether a caller that knows these authorities alone accepts the certificate."""
        try:
            replace(self, ca_pem=ca_pem).rehearse(())
        except ConfigError:
            return False
        return True

    def _in_words(self, error: ssl.SSLCertVerificationError, name: str | None) -> str:
        if error.verify_code in _OTHER_NAME:
            return (
                f"certificate {self.cert_file} is for {', '.join(_names_of(self.leaf)) or 'no name'}; "
                f"want it for {name} too (tls.names): kube-apiserver asks for that name"
            )
        if error.verify_code in _OTHER_AUTHORITY:
            return (
                f"CA {self.ca_file} did not sign certificate {self.cert_file} "
                f"({error.verify_message}); want the one of {self.leaf.issuer.rfc4514_string()}"
            )
        return f"certificate {self.cert_file}: {error.verify_message}; callers will refuse it"


def read_pem(file: Path, what: str) -> bytes:
    """Return a file's content; ``what`` is what errors call it.

    Raises:
        ConfigError: It cannot be read.
    """
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{what} {file}: {error.strerror}; want a readable PEM file") from error


def parse_certificates(pem: bytes, what: str, file: Path) -> list[x509.Certificate]:
    """Return the certificates of a PEM text, one or more.

    Raises:
        ConfigError: There is none, or one cannot be read.
    """
    try:
        found = x509.load_pem_x509_certificates(pem)
        for certificate in found:
            certificate.public_key()
    except ValueError as error:
        raise ConfigError(f"{what} {file} is not PEM: want -----BEGIN CERTIFICATE-----") from error
    except UnsupportedAlgorithm as error:
        raise ConfigError(f"{what} {file}: {error}") from error
    return found


def parse_key(pem: bytes, file: Path) -> PrivateKeyTypes:
    """Return the private key of a PEM text.

    Raises:
        ConfigError: There is none, or it cannot be read without a passphrase.
    """
    try:
        return load_pem_private_key(pem, password=None)
    except TypeError as error:
        raise ConfigError(f"key {file} is encrypted: want one without a passphrase") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"key {file} is not PEM: want -----BEGIN PRIVATE KEY-----") from error


def belong_together(certificate: x509.Certificate, key: PrivateKeyTypes) -> bool:
    """Return whether the key is the certificate's."""
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return certificate.public_key().public_bytes(*form) == key.public_key().public_bytes(*form)


def _shake_hands(server: ssl.SSLContext, caller: ssl.SSLContext, name: str | None) -> None:
    to_server, to_caller = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        caller.wrap_bio(to_caller, to_server, server_hostname=name),
        server.wrap_bio(to_server, to_caller, server_side=True),
    )
    # Each flight of TLS 1.2 and 1.3 is at most one turn of one end.
    for _ in range(4):
        for end in ends:
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()


def _names_of(certificate: x509.Certificate) -> list[str]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [str(name.value) for name in found]
