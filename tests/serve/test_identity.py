"""What certificates and headers say of a user."""

from __future__ import annotations

import hashlib

import pytest

from wva_adapter.serve.identity import (
    ANONYMOUS,
    IdentityHeaders,
    Peer,
    User,
    bearer_token,
    with_authenticated,
)

HEADERS = IdentityHeaders()


def test_the_first_username_header_counts() -> None:
    said = [(b"x-remote-user", b"alice"), (b"x-remote-user", b"bob")]
    assert HEADERS.user(said) == User("alice")


def test_an_empty_first_username_header_names_nobody() -> None:
    # As in Go, only the first of a repeated header is looked at.
    said = [(b"x-remote-user", b""), (b"x-remote-user", b"bob")]
    assert HEADERS.user(said) is None


def test_of_several_names_the_first_header_that_is_not_empty_counts() -> None:
    headers = IdentityHeaders(username=("X-Remote-User", "X-User"))
    assert headers.user([(b"x-user", b"bob"), (b"x-remote-user", b"")]) == User("bob")


def test_every_group_header_counts_and_empty_ones_do_not() -> None:
    said = [
        (b"x-remote-user", b"alice"),
        (b"x-remote-group", b"a"),
        (b"x-remote-group", b""),
        (b"x-remote-group", b"b,c"),
    ]
    assert HEADERS.user(said) == User("alice", ("a", "b,c"))


def test_names_of_claims_are_percent_decoded() -> None:
    said = [
        (b"x-remote-user", b"alice"),
        (b"x-remote-extra-acme.com%2fproject", b"one"),
        (b"x-remote-extra-acme.com%2fproject", b"two"),
        (b"x-remote-extra-scopes", b"openid"),
    ]
    assert HEADERS.user(said) == User(
        "alice", extra=(("acme.com/project", ("one", "two")), ("scopes", ("openid",)))
    )


def test_a_uid_is_believed_only_where_its_header_is_configured() -> None:
    said = [(b"x-remote-user", b"alice"), (b"x-remote-uid", b"u-1")]
    assert HEADERS.user(said) == User("alice")
    assert IdentityHeaders(uid=("X-Remote-Uid",)).user(said) == User("alice", uid="u-1")


def test_a_header_with_underscores_is_another_header() -> None:
    assert HEADERS.user([(b"x_remote_user", b"alice")]) is None


def test_names_beyond_ascii_are_utf_8() -> None:
    assert HEADERS.user([(b"x-remote-user", "jürgen".encode())]) == User("jürgen")
    with pytest.raises(UnicodeDecodeError):
        HEADERS.user([(b"x-remote-user", b"j\xfcrgen")])


def test_a_certificate_names_its_subject_and_can_be_told_from_any_other() -> None:
    peer = Peer((b"leaf", b"root"), "alice", ("staff", "admins"), expires_s=1)
    fingerprint = f"X509SHA256={hashlib.sha256(b'leaf').hexdigest()}"
    assert peer.user == User(
        "alice",
        ("staff", "admins"),
        (("authentication.kubernetes.io/credential-id", (fingerprint,)),),
    )
    assert Peer((b"leaf", b"root"), "", ("staff",), expires_s=1).user is None


@pytest.mark.parametrize(
    ("user", "groups"),
    [
        (User("alice", ("staff",)), ("staff", "system:authenticated")),
        (User("alice", ("system:authenticated",)), ("system:authenticated",)),
        (User("alice", ("system:unauthenticated",)), ("system:unauthenticated",)),
        (User("system:anonymous", ()), ()),
        (ANONYMOUS, ("system:unauthenticated",)),
    ],
)
def test_whoever_is_known_is_a_member_of_those_who_are(user: User, groups: tuple[str, ...]) -> None:
    assert with_authenticated(user).groups == groups


@pytest.mark.parametrize(
    ("header", "token"),
    [
        (b"Bearer abc", b"abc"),
        (b"bearer abc", b"abc"),
        (b"  Bearer abc def ", b"abc"),
        (b"Bearer", b""),
        (b"Bearer  abc", b""),
        (b"Basic Zm9vOmJhcg==", b""),
        (b"", b""),
    ],
)
def test_a_token_is_what_follows_the_word_bearer(header: bytes, token: bytes) -> None:
    assert bearer_token([(b"authorization", header)]) == token
