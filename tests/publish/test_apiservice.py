"""While the API group is ours its object says whom to trust, and while it is not we leave it alone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.collect.apiserver import eventually
from tests.pki import Authority
from tests.publish.registry_api import KEDAS, OURS, RegistryApi, bundle, registered
from wva_adapter.kube.api import KubernetesApi
from wva_adapter.publish.apiservice import (
    API_SERVICE,
    API_SERVICES_PATH,
    FORMER,
    ApiService,
    ApiServiceKeeper,
    ServiceAddress,
    parse_address,
)

pytestmark = pytest.mark.anyio

ADAPTER = ServiceAddress("wva-system", "wva-adapter")


def ours(ca: bytes = OURS, *, record: str | None = None) -> dict[str, object]:
    document = registered("wva-adapter", "wva-system", ca)
    document["metadata"]["annotations"] = {} if record is None else {FORMER: record}
    return document


class Kept:
    def __init__(self) -> None:
        self.ca: bytes | None = OURS
        self.formers: list[ApiService | None] = []
        self.now_s = 0.0
        self.is_announced: Callable[[bytes], bool] = lambda _: False


@asynccontextmanager
async def keeping(api: RegistryApi, folder: Path) -> AsyncIterator[Kept]:
    kept = Kept()
    connection = KubernetesApi(api.write_kubeconfig(folder / "kubeconfig"))
    keeper = ApiServiceKeeper(
        connection,
        ADAPTER,
        ca_bundle=lambda: kept.ca,
        on_former=kept.formers.append,
        clock=lambda: kept.now_s,
        look_every_s=0.02,
    )
    kept.is_announced = keeper.is_announced
    task = asyncio.create_task(keeper.run())
    try:
        yield kept
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await connection.close()


def holds(api: RegistryApi, ca: bytes) -> Callable[[], bool]:
    return lambda: api.service is not None and api.service["spec"]["caBundle"] == bundle(ca)


async def test_our_authority_is_written_and_follows_when_it_changes(
    api: RegistryApi, tmp_path: Path
) -> None:
    api.register(ours(b""))
    async with keeping(api, tmp_path) as kept:
        await eventually(holds(api, OURS))
        kept.ca = b"our next authority"
        await eventually(holds(api, b"our next authority"))
        kept.ca = None  # not readable for a while
        await asyncio.sleep(0.1)
    assert holds(api, b"our next authority")()
    assert [method for method, _, _ in api.written] == ["PATCH", "PATCH"]
    for query in (*api.lists(API_SERVICES_PATH), *api.watches(API_SERVICES_PATH)):
        assert query["fieldSelector"] == f"metadata.name={API_SERVICE}"


async def test_who_rewrites_it_is_named_and_the_pauses_grow(
    api: RegistryApi, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    api.register(ours())
    async with keeping(api, tmp_path) as kept:
        await eventually(lambda: api.watching(API_SERVICES_PATH))

        async def rewritten_and_set_again(at_s: float, *, writes: int) -> None:
            kept.now_s = at_s
            api.register(ours(KEDAS), "keda")
            await asyncio.sleep(0.1)
            assert len(api.written) == writes

        # The first is mended at once, then after 1 s, 2 s, 4 s since the one before.
        await rewritten_and_set_again(0.0, writes=1)
        await rewritten_and_set_again(0.9, writes=1)
        await rewritten_and_set_again(1.1, writes=2)
        await rewritten_and_set_again(3.0, writes=2)
        await rewritten_and_set_again(3.2, writes=3)
        await rewritten_and_set_again(7.1, writes=3)
        await rewritten_and_set_again(7.3, writes=4)
        # After a calm time it is mended at once again.
        await rewritten_and_set_again(200.0, writes=5)
        await rewritten_and_set_again(201.1, writes=6)
    told = [r for r in caplog.records if r.message == "caBundle set again"]
    assert len(told) == 5
    assert "keda had rewritten it" in told[0].__dict__["problem"]
    assert "--enable-apiservice-patching=false" in told[0].__dict__["problem"]


async def test_the_authority_of_another_replica_stays_beside_ours_for_ten_minutes(
    api: RegistryApi, tmp_path: Path
) -> None:
    own, others = (Authority(tmp_path, name).file.read_bytes() for name in ("own", "others"))
    api.register(ours(others + own))
    async with keeping(api, tmp_path) as kept:
        kept.ca = own
        await eventually(lambda: api.watching(API_SERVICES_PATH))
        assert kept.is_announced(own)
        assert kept.is_announced(own + b"\n\n" + others)
        assert not kept.is_announced(Authority(tmp_path, "third").file.read_bytes())
        for kept.now_s in (0.0, 599.0):
            await asyncio.sleep(0.1)
            assert api.written == []
        kept.now_s = 600.0
        await eventually(holds(api, own))
        kept.now_s = 602.0
        api.register(ours(others))  # this one nobody could verify us by
        await eventually(holds(api, own))
        api.register(registered())
        await eventually(lambda: kept.is_announced(others))  # not by us that it is trusted


async def test_an_object_of_another_is_not_written_to_and_its_owner_told(
    api: RegistryApi, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    api.register(registered())
    async with keeping(api, tmp_path):
        await eventually(lambda: "belongs to another adapter" in caplog.text)
        await asyncio.sleep(0.1)
        (told,) = [r for r in caplog.records if "belongs to another" in r.message]
        assert told.levelno == logging.ERROR
        problem = told.__dict__["problem"]
        assert "found service keda/keda-metrics-apiserver, want wva-system/wva-adapter" in problem
        assert "`wva-adapter apiservice --take-over` makes it us" in problem
    assert api.written == []


async def test_what_the_operator_left_unverified_stays_so(api: RegistryApi, tmp_path: Path) -> None:
    document = registered("wva-adapter", "wva-system")
    del document["spec"]["caBundle"]
    document["spec"]["insecureSkipTLSVerify"] = True
    api.register(document)
    async with keeping(api, tmp_path):
        await eventually(lambda: api.watching(API_SERVICES_PATH))
        await asyncio.sleep(0.1)
    assert api.written == []


async def test_a_right_that_is_missing_is_told_and_nothing_ends(
    api: RegistryApi, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    api.register(ours(KEDAS))
    api.refused[f"{API_SERVICES_PATH}/{API_SERVICE}"] = 403
    async with keeping(api, tmp_path) as kept:
        await eventually(lambda: "caBundle not written" in caplog.text)
        api.refused.clear()
        kept.now_s = 60.0
        await eventually(holds(api, OURS))
    assert "caBundle set again" not in caplog.text


async def test_the_former_owner_on_record_is_told_while_the_object_is_ours(
    api: RegistryApi, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record = (
        '{"metadata":{},"spec":{"service":{"namespace":"keda","name":"metrics","port":6443},'
        f'"caBundle":"{bundle(KEDAS)}"}}}}'
    )
    api.register(ours(record=record))
    async with keeping(api, tmp_path) as kept:
        await eventually(lambda: len(kept.formers) == 1)
        former = kept.formers[0]
        assert former is not None
        assert former.owner == ServiceAddress("keda", "metrics", 6443)
        assert former.owner.host == "metrics.keda.svc"
        assert former.ca_bundle == KEDAS
        await eventually(lambda: api.watching(API_SERVICES_PATH))
        api.register(registered())
        await eventually(lambda: kept.formers[1:] == [None])
        api.register(ours(record="{broken"))
        await eventually(lambda: "former owner unknown" in caplog.text)
        problem = caplog.records[-1].__dict__["problem"]
        assert "annotation wva-adapter/former-apiservice cannot be read" in problem
        assert len(kept.formers) == 2


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("a/b", ServiceAddress("a", "b", 443)),
        ("a/b:6443", ServiceAddress("a", "b", 6443)),
        ("b", None),
        ("a/b/c", None),
        ("a/b:https", None),
        ("/b", None),
    ],
)
def test_a_service_is_written_as_kubernetes_names_it(
    text: str, address: ServiceAddress | None
) -> None:
    if address is not None:
        assert parse_address(text) == address
        assert str(address) == text
        return
    with pytest.raises(ValueError, match="want NAMESPACE/NAME or NAMESPACE/NAME:PORT"):
        parse_address(text)
