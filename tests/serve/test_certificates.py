"""The certificate is the operator's or our own, and never a half of either."""

from __future__ import annotations

import ipaddress
import re
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from tests.pki import Authority
from wva_adapter.errors import ConfigError
from wva_adapter.serve import certificates
from wva_adapter.serve.authority import CertificateAuthority, write_file
from wva_adapter.serve.certificates import given_pair, own_pair, serving_pair
from wva_adapter.serve.tls import server_context

NOW = datetime(2026, 1, 1, tzinfo=UTC)
NAMES = ("wva.default.svc", "10.0.0.7")


def certificate(file: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(file.read_bytes())


def given_files(directory: Path, name: str = "given") -> tuple[Path, Path]:
    """A certificate and its key as an operator would give them."""
    # Those that are given are tried by OpenSSL, which goes by the clock of this machine.
    now = datetime.now(UTC)
    issued = CertificateAuthority.create(now).issue(["example.com", "*.wva.svc", "10.0.0.7"], now)
    cert_file, key_file = directory / f"{name}.crt", directory / f"{name}.key"
    cert_file.write_bytes(issued.cert_pem)
    key_file.write_bytes(issued.key_pem)
    return cert_file, key_file


def test_the_first_start_makes_an_authority_and_a_certificate_for_all_names(
    tmp_path: Path,
) -> None:
    pair = own_pair(tmp_path / "made" / "here", NAMES, NOW)
    assert pair.ca_file is not None
    leaf, authority = certificate(pair.cert_file), certificate(pair.ca_file)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost", "wva.default.svc"]
    assert names.get_values_for_type(x509.IPAddress) == [
        ipaddress.ip_address(address) for address in ("127.0.0.1", "::1", "10.0.0.7")
    ]
    leaf.verify_directly_issued_by(authority)
    assert leaf.not_valid_before_utc < NOW < leaf.not_valid_after_utc


def test_only_the_owner_may_read_the_keys(tmp_path: Path) -> None:
    own_pair(tmp_path / "tls", NAMES, NOW)
    modes = {file.name: file.stat().st_mode & 0o777 for file in (tmp_path / "tls").iterdir()}
    assert modes == {"ca.crt": 0o644, "ca.key": 0o600, "tls.crt": 0o644, "tls.key": 0o600}
    assert (tmp_path / "tls").stat().st_mode & 0o777 == 0o700


def test_a_later_start_uses_the_same_certificate(tmp_path: Path) -> None:
    first = own_pair(tmp_path, NAMES, NOW).cert_file.read_bytes()
    # The same names in other words and another order.
    again = own_pair(tmp_path, ("10.0.0.7", "wva.default.svc", "0:0:0:0::1"), NOW)
    assert again.cert_file.read_bytes() == first


@pytest.mark.parametrize(
    ("later", "names", "why"),
    [
        # It is valid for 365 days and renewed within the last 30.
        (timedelta(days=336), NAMES, "near its end"),
        (timedelta(0), (*NAMES, "wva.other.svc"), "one name more"),
        (timedelta(0), (), "names fewer"),
    ],
)
def test_the_certificate_is_renewed_and_the_authority_kept(
    tmp_path: Path, later: timedelta, names: tuple[str, ...], why: str
) -> None:
    pair = own_pair(tmp_path, NAMES, NOW)
    assert pair.ca_file is not None
    first, authority = pair.cert_file.read_bytes(), pair.ca_file.read_bytes()
    renewed = own_pair(tmp_path, names, NOW + later)
    assert renewed.cert_file.read_bytes() != first, why
    assert pair.ca_file.read_bytes() == authority
    certificate(renewed.cert_file).verify_directly_issued_by(certificate(pair.ca_file))


def test_a_certificate_outlives_a_first_renewal_window_by_not_one_start(tmp_path: Path) -> None:
    first = own_pair(tmp_path, NAMES, NOW).cert_file.read_bytes()
    later = own_pair(tmp_path, NAMES, NOW + timedelta(days=334))  # 31 of 365 days are left
    assert later.cert_file.read_bytes() == first


def test_a_torn_serving_pair_is_made_anew(tmp_path: Path) -> None:
    pair = own_pair(tmp_path, NAMES, NOW)
    pair.key_file.write_text("half a ke")
    server_context(own_pair(tmp_path, NAMES, NOW))


@pytest.mark.parametrize(("days", "kept"), [(3284, True), (3286, False)])
def test_an_authority_is_kept_until_its_last_year(tmp_path: Path, days: int, kept: bool) -> None:
    own_pair(tmp_path, NAMES, NOW)
    first = (tmp_path / "ca.crt").read_bytes()
    own_pair(tmp_path, NAMES, NOW + timedelta(days=days))  # of 3650
    assert ((tmp_path / "ca.crt").read_bytes() == first) is kept


def test_a_former_authority_is_trusted_until_it_has_expired(tmp_path: Path) -> None:
    former = own_pair(tmp_path, NAMES, NOW).ca_pem
    for days, both in ((3300, True), (3649, True), (3651, False)):
        pair = own_pair(tmp_path, NAMES, NOW + timedelta(days=days))
        assert pair.ca_pem is not None
        assert former is not None
        assert pair.ca_pem.endswith(former) is both
        # The leaf, and the new authority by the former one as long as that helps.
        assert pair.cert_pem.count(b"BEGIN CERTIFICATE") == (2 if both else 1)


def test_an_authority_that_expired_while_nothing_ran_leaves_no_trace(tmp_path: Path) -> None:
    former = own_pair(tmp_path, NAMES, NOW).ca_pem
    pair = own_pair(tmp_path, NAMES, NOW + timedelta(days=4000))
    assert pair.ca_pem is not None
    assert former is not None
    assert former not in pair.ca_pem
    assert not (tmp_path / "ca-bridge.crt").exists()


@pytest.mark.parametrize("written", [1, 2, 3, 4])
def test_a_renewal_that_is_cut_off_anywhere_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    former = own_pair(tmp_path, NAMES, NOW).ca_pem
    left = [written]

    def write_some(file: Path, content: bytes, *, mode: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        write_file(file, content, mode=mode)

    later = NOW + timedelta(days=3300)
    monkeypatch.setattr(certificates, "write_file", write_some)
    with pytest.raises(KeyboardInterrupt):
        own_pair(tmp_path, NAMES, later)
    monkeypatch.undo()
    pair = own_pair(tmp_path, NAMES, later)
    assert pair.ca_pem is not None
    assert former is not None
    assert pair.ca_pem.endswith(former)
    assert pair.ca_pem.count(b"BEGIN CERTIFICATE") == 2
    leaf, bridge = x509.load_pem_x509_certificates(pair.cert_pem)
    new, old = x509.load_pem_x509_certificates(pair.ca_pem)
    for issued, by in ((leaf, bridge), (leaf, new), (bridge, old)):
        issued.verify_directly_issued_by(by)


def test_two_that_renew_at_once_agree(tmp_path: Path) -> None:
    own_pair(tmp_path, NAMES, NOW)
    later = NOW + timedelta(days=3300)
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: own_pair(tmp_path, NAMES, later).cert_pem, range(16)))
    assert len(found) == 1


def test_an_authority_near_its_end_is_replaced_with_what_it_signed(tmp_path: Path) -> None:
    pair = own_pair(tmp_path, NAMES, NOW)
    assert pair.ca_file is not None
    first = pair.ca_file.read_bytes()
    later = own_pair(tmp_path, NAMES, NOW + timedelta(days=3630))  # 20 of 3650 days are left
    assert pair.ca_file.read_bytes() != first
    certificate(later.cert_file).verify_directly_issued_by(certificate(pair.ca_file))


def test_a_broken_authority_is_refused_because_callers_trust_it(tmp_path: Path) -> None:
    own_pair(tmp_path, NAMES, NOW)
    _, other = given_files(tmp_path)
    (tmp_path / "ca.key").write_bytes(other.read_bytes())
    with pytest.raises(ConfigError, match=r"ca\.key is not the key of .*ca\.crt: restore the pair"):
        own_pair(tmp_path, NAMES, NOW)
    (tmp_path / "ca.key").unlink()
    with pytest.raises(ConfigError, match=r"key .*ca\.key: No such file or directory"):
        own_pair(tmp_path, NAMES, NOW)


def test_an_authority_with_a_key_of_another_kind_is_refused(tmp_path: Path) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "mine")])
    theirs = x509.CertificateBuilder(
        name, name, key.public_key(), 1, NOW, NOW + timedelta(days=3650)
    ).sign(key, None)
    (tmp_path / "ca.crt").write_bytes(theirs.public_bytes(Encoding.PEM))
    (tmp_path / "ca.key").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    with pytest.raises(ConfigError, match=r"ca\.key is a Ed25519PrivateKey, want an ECDSA key"):
        own_pair(tmp_path, NAMES, NOW)


def test_a_directory_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"certificate directory .*file/tls: Not a directory"):
        own_pair(tmp_path / "file" / "tls", NAMES, NOW)


def test_a_name_that_no_certificate_can_carry_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'bücher' is no name for a certificate: want ASCII"):
        own_pair(tmp_path, ["bücher"], NOW)


def test_given_files_are_used_as_they_are(tmp_path: Path) -> None:
    cert_file, key_file = given_files(tmp_path)
    pair = given_pair(cert_file, key_file)
    assert pair is not None
    assert (pair.cert_file, pair.key_file, pair.ca_file) == (cert_file, key_file, None)
    again = serving_pair(
        directory=tmp_path / "own", cert_file=cert_file, key_file=key_file, names=()
    )
    assert again == pair
    assert not (tmp_path / "own").exists()


def test_without_given_files_our_own_are_made(tmp_path: Path) -> None:
    assert given_pair(None, None) is None
    serving_pair(directory=tmp_path / "own", cert_file=None, key_file=None, names=())
    assert (tmp_path / "own" / "ca.crt").exists()


def test_a_certificate_without_its_key_is_refused_and_the_other_way_round(tmp_path: Path) -> None:
    cert_file, key_file = given_files(tmp_path)
    with pytest.raises(ConfigError, match=r"certificate .*given\.crt is given without its key"):
        given_pair(cert_file, None)
    with pytest.raises(ConfigError, match=r"key .*given\.key is given without its certificate"):
        given_pair(None, key_file)


def test_a_certificate_must_be_for_every_name_that_callers_use(tmp_path: Path) -> None:
    cert_file, key_file = given_files(tmp_path)
    given_pair(cert_file, key_file, names=["example.com", "adapter.wva.svc", "10.0.0.7"])
    for name in ("adapter.other.svc", "two.labels.wva.svc", "10.0.0.8"):
        with pytest.raises(
            ConfigError,
            match=r"certificate .*given\.crt is for example\.com, \*\.wva\.svc, 10\.0\.0\.7; want it "
            rf"for {re.escape(name)} too \(tls\.names\): kube-apiserver asks for that name",
        ):
            given_pair(cert_file, key_file, names=["example.com", name])


def test_a_certificate_without_any_name_is_refused_where_one_is_asked_for(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "operator")
    # The common name does not count, for Go no more than here.
    pair = authority.issue("adapter.wva.svc", for_clients=False)
    with pytest.raises(ConfigError, match=r"is for no name; want it for adapter\.wva\.svc too"):
        given_pair(*pair, authority.file, ["adapter.wva.svc"])


def test_an_authority_that_did_not_sign_the_certificate_is_refused(tmp_path: Path) -> None:
    # Of the same name, which alone would deceive whoever compares names only.
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    right, wrong = Authority(tmp_path / "a", "operator"), Authority(tmp_path / "b", "operator")
    other = Authority(tmp_path, "other")
    pair = right.issue("server", hosts=["localhost"], for_clients=False)
    assert given_pair(*pair, right.file) is not None
    for authority in (wrong, other):
        with pytest.raises(
            ConfigError,
            match=r"CA .*\.crt did not sign certificate .*server\.crt \(.+\); "
            "want the one of CN=operator",
        ):
            given_pair(*pair, authority.file)


def test_an_authority_without_a_certificate_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"CA .*ca\.crt is given without a certificate"):
        given_pair(None, None, tmp_path / "ca.crt")


def test_an_authority_that_is_no_certificate_is_refused(tmp_path: Path) -> None:
    cert_file, key_file = given_files(tmp_path)
    with pytest.raises(ConfigError, match=r"CA .*given\.key is not PEM"):
        given_pair(cert_file, key_file, key_file)


def test_a_certificate_that_has_expired_is_refused(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "operator")
    pair = authority.issue("server", for_clients=False, expires_in=timedelta(minutes=-1))
    for ca_file in (None, authority.file):
        with pytest.raises(
            ConfigError, match=r"server\.crt: certificate has expired; callers will refuse it"
        ):
            given_pair(*pair, ca_file)


def test_a_certificate_for_clients_is_refused(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "operator")
    pair = authority.issue("alice")
    with pytest.raises(ConfigError, match=r"alice\.crt: unsuitable certificate purpose; callers"):
        given_pair(*pair, authority.file)


def test_a_key_of_another_certificate_is_refused(tmp_path: Path) -> None:
    cert_file, _ = given_files(tmp_path)
    _, other = given_files(tmp_path, "other")
    with pytest.raises(ConfigError, match=r"key .*other\.key does not match certificate .*given"):
        given_pair(cert_file, other)


def test_files_that_cannot_be_read_are_refused_by_name(tmp_path: Path) -> None:
    cert_file, key_file = given_files(tmp_path)
    with pytest.raises(ConfigError, match=r"certificate .*no\.crt: No such file or directory"):
        given_pair(tmp_path / "no.crt", key_file)
    with pytest.raises(ConfigError, match=r"key .*: Is a directory; want a readable PEM file"):
        given_pair(cert_file, tmp_path)


def test_files_that_are_not_pem_are_refused_with_what_was_expected(tmp_path: Path) -> None:
    cert_file, key_file = given_files(tmp_path)
    with pytest.raises(ConfigError, match=r"given\.key is not PEM: want -----BEGIN CERTIFICATE"):
        given_pair(key_file, cert_file)
    with pytest.raises(ConfigError, match=r"given\.crt is not PEM: want -----BEGIN PRIVATE KEY"):
        given_pair(cert_file, cert_file)


def test_a_key_with_a_passphrase_is_refused_instead_of_asked_for(tmp_path: Path) -> None:
    cert_file, key_file = given_files(tmp_path)
    key = load_pem_private_key(key_file.read_bytes(), password=None)
    locked = key.private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
    )
    key_file.write_bytes(locked)
    with pytest.raises(ConfigError, match="is encrypted: want one without a passphrase"):
        given_pair(cert_file, key_file)
