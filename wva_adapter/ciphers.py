"""TLS versions and cipher suites as operators of Kubernetes write them.

References:
    https://kubernetes.io/docs/reference/command-line-tools-reference/kube-apiserver/
    (``--tls-min-version``, ``--tls-cipher-suites``); RFC 5289 and RFC 7905 for the suites.
"""

from __future__ import annotations

import difflib
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

MinVersion = Literal["VersionTLS12", "VersionTLS13"]

# Those with forward secrecy and authenticated encryption, and what OpenSSL calls them.
_OF_TLS_12: Final[Mapping[str, str]] = {
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256": "ECDHE-ECDSA-AES128-GCM-SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384": "ECDHE-ECDSA-AES256-GCM-SHA384",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-ECDSA-CHACHA20-POLY1305",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256": "ECDHE-RSA-AES128-GCM-SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384": "ECDHE-RSA-AES256-GCM-SHA384",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-RSA-CHACHA20-POLY1305",
    # As Go called the two of RFC 7905 at first; lists of operators still have these names.
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305": "ECDHE-ECDSA-CHACHA20-POLY1305",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305": "ECDHE-RSA-CHACHA20-POLY1305",
}
# As in Go, there is no choice among these.
_OF_TLS_13: Final = (
    "TLS_AES_128_GCM_SHA256",
    "TLS_AES_256_GCM_SHA384",
    "TLS_CHACHA20_POLY1305_SHA256",
)
_VERSIONS: Final[Mapping[MinVersion, ssl.TLSVersion]] = {
    "VersionTLS12": ssl.TLSVersion.TLSv1_2,
    "VersionTLS13": ssl.TLSVersion.TLSv1_3,
}


@dataclass(frozen=True, slots=True)
class TlsProtocol:
    """Which TLS is spoken.

    Attributes:
        min_version: The oldest version.
        suites: Those of TLS 1.2 in OpenSSL's names, the preferred one first; empty leaves the
            choice to OpenSSL.
    """

    min_version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2
    suites: tuple[str, ...] = ()

    def limit(self, context: ssl.SSLContext) -> None:
        """Let the context speak nothing else."""
        context.minimum_version = self.min_version
        if self.suites:
            context.set_ciphers(":".join(self.suites))


def check_suite(name: str) -> str:
    """Return the name of a suite that can be chosen.

    Raises:
        ValueError: It is none, or none that is spoken here.
    """
    known = (*_OF_TLS_12, *_OF_TLS_13)
    if name in known:
        return name
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.9)
    raise ValueError(
        f"did you mean {near[0]}?"
        if near
        else f"want suites with ECDHE and GCM or CHACHA20: {', '.join(known)}"
    )


def protocol(min_version: MinVersion, suites: Sequence[str]) -> TlsProtocol:
    """Return what is spoken with these settings.

    Args:
        suites: Names that ``check_suite`` knows; those of TLS 1.3 change nothing.

    Raises:
        ValueError: TLS 1.2 is to be spoken and no suite of it is left.
    """
    chosen = tuple(dict.fromkeys(_OF_TLS_12[name] for name in suites if name in _OF_TLS_12))
    if suites and not chosen and min_version == "VersionTLS12":
        raise ValueError(
            "no suite of TLS 1.2 in tls.cipher_suites: want one, such as "
            f"{next(iter(_OF_TLS_12))}, or tls.min_version: VersionTLS13"
        )
    return TlsProtocol(_VERSIONS[min_version], chosen)
