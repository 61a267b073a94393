"""Whom to believe comes from the cluster, and stays good when that turns bad."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.collect.apiserver import eventually
from tests.serve.cluster import CONFIG_MAPS, HEADERS, Certificates, ReviewingApi, an_api
from wva_adapter.errors import ConfigError
from wva_adapter.kube.api import KubernetesApi
from wva_adapter.serve.identity import IdentityHeaders
from wva_adapter.serve.lookup import TrustLookup
from wva_adapter.serve.trust import Trust, trust_of_config_map, trust_of_files

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("pki"))


@pytest.fixture
async def api() -> AsyncIterator[ReviewingApi]:
    async with an_api() as api:
        yield api


class Followed:
    def __init__(self, lookup: TrustLookup, seen: list[Trust]) -> None:
        self.lookup, self.seen = lookup, seen
        self.task = asyncio.create_task(lookup.run())


@asynccontextmanager
async def following(
    api: ReviewingApi | None, folder: Path, files: Callable[[], Trust] = Trust
) -> AsyncIterator[Followed]:
    seen: list[Trust] = []
    connection = None if api is None else KubernetesApi(api.write_kubeconfig(folder / "kubeconfig"))
    lookup = TrustLookup(files, api=connection, on_trust=seen.append, files_period_s=0.02)
    followed = Followed(lookup, seen)
    try:
        yield followed
    finally:
        followed.task.cancel()
        await asyncio.gather(followed.task, return_exceptions=True)
        if connection is not None:
            await connection.close()


async def test_the_config_map_is_asked_for_by_its_name_and_followed(
    api: ReviewingApi, tmp_path: Path, certificates: Certificates
) -> None:
    api.put_config_map(**certificates.config_map)
    async with following(api, tmp_path) as followed:
        await eventually(lambda: len(followed.seen) == 1)
        assert followed.lookup.problem() is None
        await eventually(lambda: api.watching(CONFIG_MAPS))
        for query in (*api.lists(CONFIG_MAPS), *api.watches(CONFIG_MAPS)):
            assert query["fieldSelector"] == "metadata.name=extension-apiserver-authentication"
        trust = followed.seen[0]
        assert trust.front_proxy is not None
        assert trust.front_proxy.allowed_names == {"front-proxy-client"}
        assert trust.front_proxy.headers == IdentityHeaders(uid=("X-Remote-Uid",))
        assert trust.pem.count(b"BEGIN CERTIFICATE") == 2

        api.put_config_map(**{"client-ca-file": certificates.client_ca.file.read_text()})
        await eventually(lambda: len(followed.seen) == 2)
        assert followed.seen[1].front_proxy is None


async def test_what_rbac_is_missing_is_said_while_it_waits(
    api: ReviewingApi,
    tmp_path: Path,
    certificates: Certificates,
    caplog: pytest.LogCaptureFixture,
) -> None:
    api.refused[CONFIG_MAPS] = 403
    api.put_config_map(**certificates.config_map)
    async with following(api, tmp_path) as followed:
        await eventually(lambda: "RoleBinding" in (followed.lookup.problem() or ""))
        assert followed.lookup.problem() == (
            "ConfigMap kube-system/extension-apiserver-authentication cannot be read "
            f"(GET {CONFIG_MAPS}: HTTP 403: configmaps is forbidden: cannot list): want a "
            "RoleBinding in namespace kube-system of Role "
            "extension-apiserver-authentication-reader to the adapter's service account, "
            "as manifests/base/rbac.yaml has it"
        )
        assert any("RoleBinding" in str(vars(record)) for record in caplog.records)
        del api.refused[CONFIG_MAPS]
        await eventually(lambda: len(followed.seen) == 1)
        assert followed.lookup.problem() is None


async def test_a_config_map_that_is_not_there_is_waited_for(
    api: ReviewingApi, tmp_path: Path, certificates: Certificates
) -> None:
    async with following(api, tmp_path) as followed:
        await eventually(lambda: "there is no ConfigMap" in (followed.lookup.problem() or ""))
        api.put_config_map(**certificates.config_map)
        await eventually(lambda: len(followed.seen) == 1)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"client-ca-file": "no PEM"}, "client-ca-file: no certificates: want a PEM bundle"),
        (
            {"requestheader-allowed-names": "front-proxy-client"},
            "requestheader-allowed-names: found 'front-proxy-client', want a JSON list of names",
        ),
        (
            {"requestheader-allowed-names": "[]", "client-ca-file": "SHARED"},
            "share a certificate and any common name is allowed",
        ),
    ],
)
async def test_a_bad_config_map_ends_the_start_and_later_changes_nothing(
    api: ReviewingApi,
    tmp_path: Path,
    certificates: Certificates,
    caplog: pytest.LogCaptureFixture,
    changed: dict[str, str],
    message: str,
) -> None:
    good = certificates.config_map
    bad = {**good, **changed}
    if bad["client-ca-file"] == "SHARED":
        bad["client-ca-file"] = good["client-ca-file"] + good["requestheader-client-ca-file"]
    api.put_config_map(**bad)
    async with following(api, tmp_path) as followed:
        with pytest.raises(ConfigError, match=message):
            await followed.task
        assert followed.seen == []

    api.put_config_map(**good)
    async with following(api, tmp_path) as followed:
        await eventually(lambda: api.watching(CONFIG_MAPS))
        api.put_config_map(**bad)
        await eventually(lambda: any(record.levelno == logging.ERROR for record in caplog.records))
        assert len(followed.seen) == 1
        assert not followed.task.done()


async def test_a_deleted_config_map_changes_nothing(
    api: ReviewingApi, tmp_path: Path, certificates: Certificates
) -> None:
    api.put_config_map(**certificates.config_map)
    async with following(api, tmp_path) as followed:
        await eventually(lambda: api.watching(CONFIG_MAPS))
        api.remove(CONFIG_MAPS, "extension-apiserver-authentication")
        await asyncio.sleep(0.05)
        assert len(followed.seen) == 1
        assert followed.lookup.problem() is None


def files_of(
    client_ca_file: Path | None = None, proxy_ca_file: Path | None = None, *names: str
) -> Callable[[], Trust]:
    return lambda: trust_of_files(
        client_ca_file=client_ca_file,
        requestheader_client_ca_file=proxy_ca_file,
        allowed_names=names,
        headers=IdentityHeaders(),
    )


async def test_a_file_wins_over_its_half_of_the_config_map_and_not_the_other(
    api: ReviewingApi, tmp_path: Path, certificates: Certificates
) -> None:
    api.put_config_map(**certificates.config_map)
    whole = trust_of_config_map(certificates.config_map)
    other = Certificates(tmp_path)
    for files, clients_are_given in (
        (files_of(other.client_ca.file), True),
        (files_of(None, other.proxy_ca.file, "p"), False),
    ):
        async with following(api, tmp_path, files) as followed:
            await eventually(lambda: len(followed.seen) == 1)
            (trust,) = followed.seen
            assert (trust.clients == whole.clients) != clients_are_given
            assert (trust.front_proxy == whole.front_proxy) == clients_are_given


async def test_without_the_lookup_only_files_count_and_are_read_again(
    tmp_path: Path, certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "ca.crt"
    first, second = (ca.file.read_bytes() for ca in (certificates.client_ca, certificates.proxy_ca))
    file.write_bytes(first)
    async with following(None, tmp_path, files_of(file)) as followed:
        assert [trust.pem for trust in followed.seen] == [first]
        file.write_bytes(second)
        await eventually(lambda: len(followed.seen) == 2)
        assert followed.seen[1].pem == second
        file.write_text("no PEM")
        await eventually(lambda: bool(caplog.records))
        assert "no certificates: want a PEM bundle" in str(vars(caplog.records[-1]))
        assert len(followed.seen) == 2


def test_files_that_cannot_be_used_are_refused(tmp_path: Path, certificates: Certificates) -> None:
    with pytest.raises(ConfigError, match=r"client CA .*no-such: No such file .*; want a readable"):
        TrustLookup(files_of(tmp_path / "no-such"), api=None, on_trust=lambda _: None)
    shared = certificates.client_ca.file
    with pytest.raises(ConfigError, match="want requestheader-allowed-names, or two authorities"):
        TrustLookup(files_of(shared, shared), api=None, on_trust=lambda _: None)
    TrustLookup(files_of(shared, shared, "proxy"), api=None, on_trust=lambda _: None)


def test_a_config_map_without_uid_headers_believes_none(certificates: Certificates) -> None:
    data = {**certificates.config_map, **HEADERS}
    del data["requestheader-uid-headers"]
    trust = trust_of_config_map(data)
    assert trust.front_proxy is not None
    assert trust.front_proxy.headers.uid == ()
