"""The HPA controller's own form, byte for byte."""

from __future__ import annotations

import pytest

from tests.serve.fixture import NAMESPACE, VERSION, a_client
from wva_adapter.serve.protobuf import PROTOBUF

pytestmark = pytest.mark.anyio

# Recorded from a server built on custom-metrics-apiserver, for the one series with app=a.
RECORDED = bytes.fromhex(
    "6b3873000a3a0a1f65787465726e616c2e6d6574726963732e6b38732e696f2f76316265746131121745787465726e"
    "616c4d657472696356616c75654c69737412360a060a0012001a00122c0a026d3112080a03617070120161120b0a03"
    "656e76120470726f641a0808a584d8bb061000203c2a030a01331a002200"
)
HPA = {"Accept": f"{PROTOBUF}, */*", "User-Agent": "kube-controller-manager/v1.37.2"}


async def test_a_list_is_what_a_go_server_sends() -> None:
    async with a_client() as client:
        answer = await client.get(f"{NAMESPACE}/m1?labelSelector=app%3Da", headers=HPA)
    assert answer.headers["content-type"] == PROTOBUF
    assert answer.content == RECORDED


async def test_a_refusal_is_a_status_in_the_same_form() -> None:
    async with a_client() as client:
        answer = await client.get(f"{NAMESPACE}/notfound", headers=HPA)
    assert (answer.status_code, answer.headers["content-type"]) == (404, PROTOBUF)
    message = b"the server could not find the metric notfound for notfound.external.metrics.k8s.io"
    # Status{metadata, status, message, reason, code}: 404 is 0x94 0x03 as a varint, field 6.
    status = (
        b"\x0a\x06\x0a\x00\x12\x00\x1a\x00"
        + b"\x12\x07Failure"
        + b"\x1a"
        + bytes([len(message)])
        + message
        + b"\x22\x08NotFound"
        + b"\x30\x94\x03"
    )
    envelope = b"k8s\0\x0a\x0c\x0a\x02v1\x12\x06Status\x12" + bytes([len(status)]) + status
    assert answer.content == envelope + b"\x1a\x00\x22\x00"


async def test_the_resources_can_be_read_in_it_too() -> None:
    async with a_client() as client:
        answer = await client.get(VERSION, headers={"Accept": PROTOBUF})
    resource = (
        b"\x0a\x0fexternalmetrics"  # name
        b"\x10\x01"  # namespaced
        b"\x1a\x17ExternalMetricValueList"  # kind
        b"\x22\x05\x0a\x03get"  # verbs
        b"\x32\x00\x42\x00\x4a\x00\x52\x00"  # singular name, group, version, hash: none
    )
    group_version = b"external.metrics.k8s.io/v1beta1"
    listed = b"\x0a\x1f" + group_version + b"\x12" + bytes([len(resource)]) + resource
    assert b"\x12\x0fAPIResourceList\x12" + bytes([len(listed)]) + listed in answer.content


async def test_a_value_without_a_window_leaves_the_field_out() -> None:
    async with a_client() as client:
        without = await client.get(f"{NAMESPACE}/m1?labelSelector=app%3Dc", headers=HPA)
        instant = await client.get(f"{NAMESPACE}/m1?labelSelector=app%3Db", headers=HPA)
    # Field 4 is the window: tag 0x20; after the time's closing 0x10 0x00.
    assert b"\x10\x00\x2a\x05\x0a\x0312k" in without.content
    assert b"\x10\x00\x20\x00\x2a\x07\x0a\x051500m" in instant.content
