"""What a port speaks changes with its files and its callers' authorities, and no caller is lost."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from tests.collect.apiserver import eventually
from tests.pki import Authority
from tests.serve.fixture import NAMESPACE, an_app
from wva_adapter.ciphers import protocol
from wva_adapter.errors import ConfigError
from wva_adapter.serve.certificates import given_pair, own_pair
from wva_adapter.serve.pair import ServingPair
from wva_adapter.serve.server import Server
from wva_adapter.serve.tls import ServingTls

pytestmark = pytest.mark.anyio

HOSTS = ("localhost", "127.0.0.1", "wva.default.svc")
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


class Given:
    """An operator's certificate, by an authority of the operator's, that can be written anew."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority(folder, "operator")
        self.cert_file, self.key_file = folder / "tls.crt", folder / "tls.key"
        self.renew()

    def issue(self) -> tuple[Path, Path]:
        """A certificate that nobody serves yet."""
        return self.authority.issue("server", hosts=HOSTS, for_clients=False, stem="next")

    def renew(self) -> None:
        for new, file in zip(self.issue(), (self.cert_file, self.key_file), strict=True):
            new.replace(file)

    def find(self) -> ServingPair:
        pair = given_pair(self.cert_file, self.key_file, self.authority.file, HOSTS)
        assert pair is not None
        return pair

    @property
    def served(self) -> bytes:
        return ssl.PEM_cert_to_DER_cert(self.cert_file.read_text())


@pytest.fixture
def given(tmp_path: Path) -> Given:
    return Given(tmp_path)


@asynccontextmanager
async def listening(tls: ServingTls) -> AsyncIterator[Server]:
    server = Server(an_app(), host="127.0.0.1", port=0, ssl_context=tls.context)
    await server.start()
    try:
        yield server
    finally:
        await server.stop(1)


def caller(
    ca_file: Path, *, version: ssl.TLSVersion | None = None, pair: tuple[Path, Path] | None = None
) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=ca_file)
    if version is not None:
        context.minimum_version = context.maximum_version = version
    if pair is not None:
        context.load_cert_chain(*pair)
    return context


class Connection:
    """A TLS connection that can be asked more than once."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(
        cls, server: Server, context: ssl.SSLContext, name: str | None = "localhost"
    ) -> Connection:
        if name is None:  # nobody can check a name that is not said
            context.check_hostname = False
        return cls(
            *await asyncio.open_connection(
                "127.0.0.1", server.port, ssl=context, server_hostname=name or ""
            )
        )

    @property
    def certificate(self) -> bytes:
        found = self.tls.getpeercert(binary_form=True)
        assert found is not None
        return found

    @property
    def tls(self) -> ssl.SSLObject:
        found: ssl.SSLObject = self._writer.get_extra_info("ssl_object")
        return found

    async def ask(self) -> str:
        """Return the status line that a request for health gets."""
        self._writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        head = await asyncio.wait_for(self._reader.readuntil(b"\r\n\r\n"), 5)
        await self._reader.readexactly(len(b"ok"))
        return head.partition(b"\r\n")[0].decode()

    async def close(self) -> None:
        self._writer.close()
        await asyncio.gather(self._writer.wait_closed(), return_exceptions=True)


@asynccontextmanager
async def connected(
    server: Server, context: ssl.SSLContext, name: str | None = "localhost"
) -> AsyncIterator[Connection]:
    connection = await Connection.open(server, context, name)
    try:
        yield connection
    finally:
        await connection.close()


async def is_let_in(server: Server, context: ssl.SSLContext) -> bool:
    """Whether a caller gets an answer; with TLS 1.3, an alert comes after the caller's hello."""
    try:
        async with connected(server, context) as connection:
            return await connection.ask() == "HTTP/1.1 200 OK"
    except (ssl.SSLError, OSError, asyncio.IncompleteReadError):
        return False


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["localhost", "wva.default.svc", None])
async def test_a_new_connection_gets_the_new_certificate_and_an_open_one_goes_on(
    given: Given, version: ssl.TLSVersion, name: str | None
) -> None:
    tls, first = ServingTls(given.find), given.served
    context = caller(given.authority.file, version=version)
    async with listening(tls) as server, connected(server, context, name) as before:
        assert before.certificate == first
        given.renew()
        await tls.look()
        async with connected(server, context, name) as after:
            assert after.certificate == given.served != first
            assert await before.ask() == await after.ask() == "HTTP/1.1 200 OK"


async def test_a_secret_that_is_swapped_as_a_whole_is_taken(tmp_path: Path) -> None:
    # As kubelet mounts one: the files are links through ..data, which is replaced in one step.
    for folder in ("..1", "..2"):
        (tmp_path / folder).mkdir()
    given = Given(tmp_path / "..1")
    (tmp_path / "..data").symlink_to("..1")
    for file in ("tls.crt", "tls.key", "operator.crt"):
        (tmp_path / file).symlink_to(f"..data/{file}")

    def find() -> ServingPair:
        pair = given_pair(tmp_path / "tls.crt", tmp_path / "tls.key", tmp_path / "operator.crt")
        assert pair is not None
        return pair

    tls = ServingTls(find)
    second = Given(tmp_path / "..2")  # another authority too
    (tmp_path / "..new").symlink_to("..2")
    (tmp_path / "..new").replace(tmp_path / "..data")
    await tls.look()
    async with listening(tls) as server:
        async with connected(server, caller(second.authority.file)) as connection:
            assert connection.certificate == second.served
        assert not await is_let_in(server, caller(given.authority.file))


def broken_half(given: Given) -> None:
    """The certificate has come, its key has not yet."""
    new, _ = given.issue()
    new.replace(given.cert_file)


def garbage(given: Given) -> None:
    given.cert_file.write_bytes(b"\x00 no certificate")


def no_key(given: Given) -> None:
    given.key_file.unlink()


def of_another_authority(given: Given) -> None:
    (given.folder / "other").mkdir()
    other = Authority(given.folder / "other", "other")
    files = other.issue("server", hosts=HOSTS, for_clients=False)
    for new, file in zip(files, (given.cert_file, given.key_file), strict=True):
        new.replace(file)


def of_another_name(given: Given) -> None:
    files = given.authority.issue("server", hosts=HOSTS[:2], for_clients=False, stem="next")
    for new, file in zip(files, (given.cert_file, given.key_file), strict=True):
        new.replace(file)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (broken_half, "tls.key does not match certificate"),
        (garbage, "tls.crt is not PEM"),
        (no_key, "tls.key: No such file or directory"),
        (of_another_authority, "operator.crt did not sign certificate"),
        (of_another_name, "want it for wva.default.svc too"),
    ],
)
async def test_files_that_cannot_be_served_leave_the_last_good_ones_and_are_told_of_once(
    given: Given,
    spoil: Callable[[Given], None],
    said: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tls, good = ServingTls(given.find), given.served
    context = caller(given.authority.file)
    spoil(given)
    async with listening(tls) as server:
        for _ in range(3):
            await tls.look()
        async with connected(server, context) as connection:
            assert connection.certificate == good
            assert await connection.ask() == "HTTP/1.1 200 OK"
        (told,) = [r for r in caplog.records if r.levelno == logging.ERROR]
        assert told.getMessage() == "the certificate stays as it was"
        assert said in told.__dict__["problem"]

        given.renew()  # whole again
        await tls.look()
        async with connected(server, context) as connection:
            assert connection.certificate == given.served != good


async def test_a_pair_that_changes_while_it_is_read_is_not_taken(given: Given) -> None:
    read = given.find()
    given.renew()
    with pytest.raises(ConfigError, match=r"tls\.crt changed while it was read"):
        ServingTls(lambda: read)


async def test_it_looks_by_itself_at_every_period(given: Given) -> None:
    tls = ServingTls(given.find, check_period_s=0.02)
    looking = asyncio.create_task(tls.run())
    given.renew()
    await eventually(lambda: ssl.PEM_cert_to_DER_cert(tls.pair.cert_pem.decode()) == given.served)
    looking.cancel()
    await asyncio.gather(looking, return_exceptions=True)


@pytest.mark.parametrize("version", VERSIONS)
async def test_authorities_of_clients_replace_each_other(
    given: Given, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    first, second = Authority(tmp_path, "first"), Authority(tmp_path, "second")
    by_first, by_second = (
        caller(given.authority.file, version=version, pair=authority.issue(f"by-{stem}"))
        for stem, authority in (("first", first), ("second", second))
    )
    nobody = caller(given.authority.file, version=version)
    tls = ServingTls(given.find)
    async with listening(tls) as server:

        async def let_in() -> tuple[bool, ...]:
            return tuple([await is_let_in(server, c) for c in (by_first, by_second, nobody)])

        assert await let_in() == (True, True, True)  # nobody is asked for a certificate
        tls.trust_clients(first.file.read_bytes())
        assert await let_in() == (True, False, True)
        tls.trust_clients(first.file.read_bytes() + second.file.read_bytes())
        assert await let_in() == (True, True, True)
        tls.trust_clients(second.file.read_bytes())
        assert await let_in() == (False, True, True)
        with pytest.raises(ConfigError, match="authorities of clients: want PEM certificates"):
            tls.trust_clients(b"no certificate")
        given.renew()
        await tls.look()
        assert await let_in() == (False, True, True)  # a new pair keeps them
        tls.trust_clients(b"")
        assert await let_in() == (True, True, True)


async def test_no_session_is_resumed_because_it_would_outlive_its_authority(
    given: Given, tmp_path: Path
) -> None:
    clients = Authority(tmp_path, "clients")
    tls = ServingTls(given.find)
    tls.trust_clients(clients.file.read_bytes())
    for version in VERSIONS:
        context = caller(given.authority.file, version=version, pair=clients.issue("alice"))
        session: ssl.SSLSession | None = None
        for _ in range(2):
            to_server, to_caller = ssl.MemoryBIO(), ssl.MemoryBIO()
            here = context.wrap_bio(
                to_caller, to_server, server_hostname="localhost", session=session
            )
            there = tls.context.wrap_bio(to_server, to_caller, server_side=True)
            for _ in range(4):
                for end in (here, there):
                    try:
                        end.do_handshake()
                    except ssl.SSLWantReadError:
                        continue
            assert there.getpeercert(binary_form=True) is not None
            assert (here.session_reused, there.session_reused) == (False, False), version
            session = here.session


@pytest.mark.parametrize(
    ("version", "spoken"),
    [
        (ssl.TLSVersion.TLSv1, False),
        (ssl.TLSVersion.TLSv1_1, False),
        (ssl.TLSVersion.TLSv1_2, True),
        (ssl.TLSVersion.TLSv1_3, True),
    ],
)
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
async def test_tls_before_1_2_is_refused(
    given: Given, version: ssl.TLSVersion, spoken: bool
) -> None:
    context = caller(given.authority.file, version=version)
    context.set_ciphers("ALL:@SECLEVEL=0")  # or this side would not even try the old ones
    async with listening(ServingTls(given.find)) as server:
        assert await is_let_in(server, context) is spoken


async def test_an_operator_can_leave_tls_1_3_alone(given: Given) -> None:
    tls = ServingTls(given.find, protocol=protocol("VersionTLS13", ()))
    async with listening(tls) as server:
        for _ in range(2):
            assert not await is_let_in(server, caller(given.authority.file, version=VERSIONS[0]))
            assert await is_let_in(server, caller(given.authority.file, version=VERSIONS[1]))
            given.renew()
            await tls.look()


@pytest.mark.parametrize("name", ["localhost", None])
async def test_only_the_suites_that_an_operator_chose_are_spoken(
    given: Given, name: str | None
) -> None:
    """The pair's key is of an elliptic curve; both sides would prefer the suite left out."""
    chosen = ("TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", "TLS_AES_128_GCM_SHA256")
    tls = ServingTls(given.find, protocol=protocol("VersionTLS12", chosen))
    async with listening(tls) as server:
        for _ in range(2):
            old = caller(given.authority.file, version=VERSIONS[0])
            async with connected(server, old, name) as connection:
                assert connection.tls.cipher() == ("ECDHE-ECDSA-AES128-GCM-SHA256", "TLSv1.2", 128)
            old.set_ciphers("ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-ECDSA-CHACHA20-POLY1305")
            assert not await is_let_in(server, old)
            assert await is_let_in(server, caller(given.authority.file, version=VERSIONS[1]))
            given.renew()
            await tls.look()


async def test_only_http_1_1_is_offered(given: Given) -> None:
    context = caller(given.authority.file)
    context.set_alpn_protocols(["h2", "http/1.1"])
    async with listening(ServingTls(given.find)) as server, connected(server, context) as it:
        assert it.tls.selected_alpn_protocol() == "http/1.1"


async def test_a_certificate_by_an_authority_that_callers_do_not_know_waits_until_they_do(
    given: Given, tmp_path: Path
) -> None:
    told: set[bytes] = set()
    tls = ServingTls(given.find, is_announced=told.__contains__)
    first, former = given.served, given.authority.file.read_bytes()
    given.renew()
    await tls.look()  # by the authority that they know: at once
    second = given.served
    assert first != second
    assert tls.pair.leaf.public_bytes(Encoding.DER) == second

    given.authority = Authority(tmp_path, "next-operator")
    given.renew()
    following = given.authority.file.read_bytes()
    await tls.look()
    assert tls.authorities is not None
    assert former.strip() in tls.authorities  # callers are to know both
    assert following.strip() in tls.authorities
    async with listening(tls) as server:
        for announced in ((), (), (following,)):
            told.update(announced)
            await tls.look()
            async with connected(server, caller(tmp_path / "operator.crt")) as it:
                assert it.certificate == second
        await tls.look()
        async with connected(server, caller(tmp_path / "next-operator.crt")) as it:
            assert it.certificate == given.served
    assert tls.authorities == following


async def test_a_certificate_waits_no_longer_than_a_minute(
    given: Given, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    now_s = [0.0]
    tls = ServingTls(given.find, is_announced=lambda _: False, clock=lambda: now_s[0])
    former = tls.pair
    given.authority = Authority(tmp_path, "next-operator")
    given.renew()
    for now_s[0] in (0.0, 59.9):
        await tls.look()
        assert tls.pair == former
    now_s[0] = 60.0
    await tls.look()
    assert tls.pair == given.find()
    assert "taken although its CA was not announced" in caplog.text


async def test_one_that_waits_is_taken_at_once_where_clients_are_to_be_verified_anew(
    given: Given, tmp_path: Path
) -> None:
    tls = ServingTls(given.find, is_announced=lambda _: False)
    given.authority = Authority(tmp_path, "next-operator")
    given.renew()
    await tls.look()
    tls.trust_clients(given.authority.file.read_bytes())
    assert tls.pair == given.find()
    assert tls.authorities == given.authority.file.read_bytes()


async def test_an_own_certificate_is_renewed_while_it_serves(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    made = [now - timedelta(days=340)]  # 25 of 365 days are left: within the last 30
    tls = ServingTls(lambda: own_pair(tmp_path, (), made[0]))
    authority = (tmp_path / "ca.crt").read_bytes()
    async with listening(tls) as server:
        async with connected(server, caller(tmp_path / "ca.crt")) as connection:
            first = connection.certificate
        made[0] = now
        await tls.look()
        async with connected(server, caller(tmp_path / "ca.crt")) as connection:
            assert connection.certificate != first
    assert tls.pair.valid_until > now + timedelta(days=364)
    assert (tmp_path / "ca.crt").read_bytes() == authority


@pytest.mark.parametrize("strict", [False, True])
async def test_whoever_trusts_the_former_or_the_new_authority_accepts_the_certificate(
    tmp_path: Path, strict: bool
) -> None:
    now = datetime.now(UTC)
    made = [now - timedelta(days=3300)]  # 350 of 3650 days are left: within the last 365
    directory = tmp_path / "tls"
    tls = ServingTls(lambda: own_pair(directory, (), made[0]))
    former = (directory / "ca.crt").read_bytes()
    made[0] = now
    await tls.look()
    both = (directory / "ca.crt").read_bytes()
    assert both.endswith(former)
    assert tls.pair.ca_pem == both
    new = both.removesuffix(former)
    async with listening(tls) as server:
        for trusted in (former, new, both):
            context = ssl.create_default_context(cadata=trusted.decode())
            if strict:
                context.verify_flags |= ssl.VERIFY_X509_STRICT
            assert await is_let_in(server, context)


async def test_a_hundred_changes_under_load_lose_no_request(given: Given, tmp_path: Path) -> None:
    tls = ServingTls(given.find)
    failed, answered = [], 0
    done = asyncio.Event()

    async def ask(server: Server, *, keep_alive: bool) -> None:
        nonlocal answered
        headers = {} if keep_alive else {"connection": "close"}
        context = caller(given.authority.file)
        async with httpx.AsyncClient(verify=context, trust_env=False, headers=headers) as client:
            while not done.is_set():
                try:
                    answer = await client.get(f"{server.url}{NAMESPACE}/m1")
                    answered += answer.status_code == 200
                except httpx.HTTPError as error:
                    failed.append(repr(error))

    clients = [Authority(tmp_path, f"clients-{number}").file.read_bytes() for number in range(2)]
    async with listening(tls) as server:
        asking = [asyncio.create_task(ask(server, keep_alive=number > 1)) for number in range(4)]
        for number in range(100):
            given.renew()
            await tls.look()
            tls.trust_clients(clients[number % 2])
            await asyncio.sleep(0.005)
        done.set()
        await asyncio.gather(*asking)
    assert failed == []
    assert answered > 100
