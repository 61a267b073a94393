"""Who is asking: what a certificate or a proxy's headers say of a user, and what they don't."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final
from urllib.parse import unquote_to_bytes

Headers = Sequence[tuple[bytes, bytes]]
"""Names in lower case, in the order of the wire, repeated ones repeated."""

AUTHENTICATED: Final = "system:authenticated"
UNAUTHENTICATED: Final = "system:unauthenticated"
MASTERS: Final = "system:masters"
_CREDENTIAL_ID: Final = "authentication.kubernetes.io/credential-id"


@dataclass(frozen=True, slots=True)
class User:
    """Whoever asks, as Kubernetes' authorizers know them.

    Attributes:
        groups: In the order in which they were given.
        extra: Further claims, each with its values; sorted by name.
        uid: Empty where nobody said one.
    """

    name: str
    groups: tuple[str, ...] = ()
    extra: tuple[tuple[str, tuple[str, ...]], ...] = ()
    uid: str = ""


ANONYMOUS: Final = User("system:anonymous", (UNAUTHENTICATED,))


@dataclass(frozen=True)
class Peer:
    """The certificate that a client proved to have, verified when it connected.

    Attributes:
        chain: The verified chain in DER: the client's own first, the trusted root last.
        common_name: Empty where the subject has none.
        expires_s: Unix time at which the first of the chain expires.
    """

    chain: tuple[bytes, ...]
    common_name: str
    organizations: tuple[str, ...]
    expires_s: float

    @property
    def root(self) -> bytes:
        """The certificate that the chain was trusted by."""
        return self.chain[-1]

    @cached_property
    def user(self) -> User | None:
        """The user that the subject names; ``None`` where it names nobody."""
        if not self.common_name:
            return None
        fingerprint = hashlib.sha256(self.chain[0]).hexdigest()
        extra = ((_CREDENTIAL_ID, (f"X509SHA256={fingerprint}",)),)
        return User(self.common_name, self.organizations, extra)


@dataclass(frozen=True)
class IdentityHeaders:
    """In which headers a front proxy says who asks it; names in any case.

    Attributes:
        extra_prefixes: What a header's name begins with whose rest is the name of a claim.
        uid: Empty means that none is believed.
    """

    username: tuple[str, ...] = ("X-Remote-User",)
    group: tuple[str, ...] = ("X-Remote-Group",)
    extra_prefixes: tuple[str, ...] = ("X-Remote-Extra-",)
    uid: tuple[str, ...] = ()
    names: frozenset[bytes] = field(init=False, repr=False, compare=False)
    prefixes: tuple[bytes, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        names = frozenset(_wire((*self.username, *self.group, *self.uid)))
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "prefixes", _wire(self.extra_prefixes))

    def user(self, headers: Headers) -> User | None:
        """Return whom the headers name; ``None`` where they name nobody.

        Raises:
            UnicodeDecodeError: A value is not UTF-8, so it is no name that a rule could have.
        """
        name = _first(headers, _wire(self.username))
        if not name:
            return None
        groups = [
            value.decode()
            for wanted in _wire(self.group)
            for header, value in headers
            if header == wanted and value
        ]
        extra: dict[str, list[str]] = {}
        for prefix in self.prefixes:
            for header, value in headers:
                if header.startswith(prefix):
                    claim = unquote_to_bytes(header[len(prefix) :]).decode()
                    extra.setdefault(claim, []).append(value.decode())
        return User(
            name.decode(),
            tuple(groups),
            tuple((claim, tuple(values)) for claim, values in sorted(extra.items())),
            _first(headers, _wire(self.uid)).decode(),
        )


def with_authenticated(user: User) -> User:
    """Return the user as a member of the group of all who are known, as its name permits."""
    if user.name == ANONYMOUS.name or {AUTHENTICATED, UNAUTHENTICATED}.intersection(user.groups):
        return user
    return User(user.name, (*user.groups, AUTHENTICATED), user.extra, user.uid)


def bearer_token(headers: Headers) -> bytes:
    """Return the token of the ``Authorization`` header; empty where there is none."""
    scheme, _, rest = _first(headers, (b"authorization",)).strip().partition(b" ")
    return rest.partition(b" ")[0] if scheme.lower() == b"bearer" else b""


def _first(headers: Headers, names: Iterable[bytes]) -> bytes:
    """Return the first of the names that is not empty; of a repeated header the first counts."""
    for wanted in names:
        value = next((value for header, value in headers if header == wanted), b"")
        if value:
            return value
    return b""


def _wire(names: Iterable[str]) -> tuple[bytes, ...]:
    return tuple(name.lower().encode() for name in names)
