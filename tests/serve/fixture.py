"""A provider, decisions and an application for tests of the HTTP port."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI

from wva_adapter.core.answer import Answer, Item, Items, Matcher, NoPlan, NotFound
from wva_adapter.serve.app import create_app, in_front
from wva_adapter.serve.certificates import own_pair
from wva_adapter.serve.health import Check
from wva_adapter.serve.hot import MetricReads, Told
from wva_adapter.serve.tls import ServingTls
from wva_adapter.serve.wire import internal_error

GROUP = "/apis/external.metrics.k8s.io"
VERSION = f"{GROUP}/v1beta1"
NAMESPACE = f"{VERSION}/namespaces/default"
KUBECTL = {"Accept": "application/json, */*", "User-Agent": "kubectl/v1.35.0"}
AT_S = datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC).timestamp()


def own_tls(folder: Path, *names: str) -> ServingTls:
    """The TLS of an own certificate, whose authority is ``ca.crt`` in the folder."""
    return ServingTls(lambda: own_pair(folder, names, datetime.now(UTC)))


def an_item(
    app: str = "a",
    *,
    metric: str = "m1",
    milli: int = 3000,
    window_s: int | None = None,
    **labels: str,
) -> Item:
    return Item(metric, {"app": app, **labels}, milli, AT_S, window_s)


SERIES = (
    an_item("a", env="prod", window_s=60),
    an_item("b", milli=1500, env="prod", window_s=0),
    an_item("c", milli=12_000_000),
)


async def _never() -> Told:
    await asyncio.sleep(3600)
    raise AssertionError("nobody waits so long")


class Fixture:
    """Any metric has three series; some names stand for a trouble."""

    version = 0

    def answer(self, namespace: str, metric: str, matches: Matcher) -> Told | Awaitable[Told]:
        match metric:
            case "notfound":
                group = "notfound.external.metrics.k8s.io"
                return NotFound(f"the server could not find the metric notfound for {group}")
            case "timeout":
                return NoPlan("backend unavailable")
            case "boom":
                raise RuntimeError("out of luck")
            case "internal":
                return internal_error("unable to fetch metrics")
            case "slow":
                return _never()
            case "ages":
                return Items(SERIES, until_s=AT_S + 60)
            case "empty" | "nilitems":
                return Items(())
            case "big":
                return Items(tuple(an_item(f"pod-{i:04}", metric="big") for i in range(2000)))
            case _:
                return Items(tuple(item for item in SERIES if matches(item.labels)))


@dataclass(frozen=True)
class Explained:
    document: Mapping[str, Any]
    text: str


class FixtureDecisions:
    """One variant, chat/llama, that should have five replicas; one without a plan."""

    def desired(self, namespace: str, name: str) -> Answer:
        if name == "llama":
            return Items((Item("wva_desired_replicas", {}, 5000, AT_S),))
        if name == "idle":
            return Items((Item("wva_desired_replicas", {}, 0, AT_S),))
        if name == "stale":
            return NoPlan("chat/stale: the plan is 61 s old, max_age is 60 s")
        return NotFound(f"no variant {namespace}/{name}; namespace chat has: llama, stale")

    def explain(
        self,
        namespace: str | None = None,
        name: str | None = None,
        *,
        why_not: int | None = None,
    ) -> Explained | NotFound | NoPlan:
        if name is None:
            return Explained({"variants": []}, "no variants\n")
        if name != "llama":
            return NotFound(f"no variant {namespace}/{name}; namespace chat has: llama")
        if why_not is not None:
            return Explained({"why_not": {"count": why_not}}, f"why not {why_not}?\n")
        return Explained({"decision": {"name": name}}, "chat/llama  desired 5 → why\n")


def an_app(ready: Mapping[str, Check] | None = None) -> FastAPI:
    return create_app(
        _reads(), FixtureDecisions(), metrics=lambda: b"wva_up 1\n", ready=ready or {}
    )


def _reads() -> MetricReads:
    return MetricReads(Fixture(), clock=lambda: AT_S)


@cache
def _plain_app() -> FastAPI:
    """One application for all tests that change nothing about it."""
    return an_app()


def a_client(app: FastAPI | None = None) -> httpx.AsyncClient:
    """A client that speaks as kubectl does, to all layers of the port."""
    port = in_front(app or _plain_app(), _reads())
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app=port),
        base_url="https://adapter:6443",
        headers=KUBECTL,
    )


def a_status(
    message: str, reason: str, code: int, details: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    status: dict[str, Any] = {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason,
    }
    if details is not None:
        status["details"] = details
    return {**status, "code": code}


NF404 = a_status("the server could not find the requested resource", "NotFound", 404, {})
MNA405 = a_status(
    "the server does not allow this method on the requested resource", "MethodNotAllowed", 405, {}
)
