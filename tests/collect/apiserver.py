"""A small API server on loopback: lists in pages, watches with bookmarks, forgets, breaks off.

It takes writes too, and applies those to pods.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from aiohttp import web

Document = dict[str, Any]

HPAS = "/apis/autoscaling/v2/horizontalpodautoscalers"
SCALED_OBJECTS = "/apis/keda.sh/v1alpha1/scaledobjects"
DEPLOYMENTS = "/apis/apps/v1/deployments"
STATEFUL_SETS = "/apis/apps/v1/statefulsets"
PODS = "/api/v1/pods"
NODES = "/api/v1/nodes"
QUOTAS = "/api/v1/resourcequotas"


class ApiServer:
    """What is asked of it is in ``asked``; how it misbehaves is set from outside.

    Attributes:
        asked: Path and query of each request that reads, in order.
        written: Method, path and body of each request that writes, in order.
        refused: Status with which requests for a path are refused.
        token: The bearer token that it wants; none if ``None``.
        gone_as: How it says that a version is too old: an HTTP ``status`` or an ``event``.
        page_size: Most items per page, whatever is asked for.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.written: list[tuple[str, str, Document]] = []
        self.refused: dict[str, int] = {}
        self.token: str | None = None
        self.gone_as = "status"
        self.page_size = 500
        self.expired_continues = 0
        self._objects: dict[str, dict[str, Document]] = {}
        self._events: dict[str, list[tuple[int, bytes]]] = {}
        self._version = 100
        self._oldest = 0
        self._streams: dict[str, list[asyncio.Queue[bytes | None]]] = {}
        self._runner: web.AppRunner | None = None
        self._port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    async def start(self) -> None:
        app = web.Application()
        app.router.add_get("/{path:.*}", self._answer)
        app.router.add_route("*", "/{path:.*}", self._write)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port)
        await site.start()
        self._port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]

    async def stop(self) -> None:
        """Go away; ``start`` comes back on the same port."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def put(self, path: str, document: Document) -> None:
        """Create or change an object, and tell those who watch."""
        objects = self._objects.setdefault(path, {})
        name = document["metadata"]["name"]
        kind = "MODIFIED" if name in objects else "ADDED"
        self._version += 1
        objects[name] = self._versioned(document)
        self._tell(path, kind, objects[name])

    def remove(self, path: str, name: str) -> None:
        """Delete an object, and tell those who watch."""
        self._version += 1
        self._tell(path, "DELETED", self._versioned(self._objects[path].pop(name)))

    def bookmark(self, path: str) -> str:
        """Tell those who watch how far they are; return that version."""
        self._version += 1
        self._tell(path, "BOOKMARK", self._versioned({"metadata": {}}))
        return str(self._version)

    def forget(self) -> None:
        """Compact: no watch can go on from before now."""
        self._version += 1
        self._oldest = self._version

    def say(self, path: str, line: bytes) -> None:
        """Write to those who watch, whatever it is."""
        for queue in self._streams.get(path, ()):
            queue.put_nowait(line)

    def end_turn(self, path: str) -> None:
        """End the watches of a path as a timeout does."""
        for queue in self._streams.get(path, ()):
            queue.put_nowait(None)

    def watching(self, path: str) -> bool:
        return bool(self._streams.get(path))

    def lists(self, path: str) -> list[dict[str, str]]:
        return [query for asked, query in self.asked if asked == path and "watch" not in query]

    def watches(self, path: str) -> list[dict[str, str]]:
        return [query for asked, query in self.asked if asked == path and "watch" in query]

    def write_kubeconfig(self, file: Path, token: str | None = None) -> Path:
        user = {} if token is None else {"token": token}
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": {"server": self.url}}],
            "users": [{"name": "u", "user": user}],
        }
        file.write_text(yaml.safe_dump(document))
        return file

    def _versioned(self, document: Document) -> Document:
        meta = {**document["metadata"], "resourceVersion": str(self._version)}
        return {**document, "metadata": meta}

    def _tell(self, path: str, kind: str, document: Document) -> None:
        line = json.dumps({"type": kind, "object": document}).encode() + b"\n"
        self._events.setdefault(path, []).append((self._version, line))
        self.say(path, line)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        path, query = request.path, dict(request.query)
        self.asked.append((path, query))
        if self.token is not None and request.headers.get("Authorization") != (
            f"Bearer {self.token}"
        ):
            return _refusal(401, "Unauthorized")
        if path in self.refused:
            resource = path.rsplit("/", 1)[-1]
            return _refusal(self.refused[path], f"{resource} is forbidden: cannot list")
        return await (self._watch if "watch" in query else self._list)(request, path, query)

    async def _write(self, request: web.Request) -> web.StreamResponse:
        path, body = request.path, json.loads(await request.read() or b"{}")
        self.written.append((request.method, path, body))
        if path in self.refused:
            return _refusal(self.refused[path], "refused")
        pod = re.fullmatch(r"/api/v1/namespaces/[^/]+/pods/([^/]+)(/status)?", path)
        if pod is not None:
            found = self._objects[PODS].get(pod[1])
            if found is None:
                return _refusal(404, f'pods "{pod[1]}" not found')
            if request.method == "DELETE":
                self.remove(PODS, pod[1])
            else:
                self.put(PODS, {**found, "status": {**found.get("status", {}), **body["status"]}})
        return web.json_response(body)

    async def _list(self, _: web.Request, path: str, query: dict[str, str]) -> web.StreamResponse:
        if "continue" in query and self.expired_continues > 0:
            self.expired_continues -= 1
            return _refusal(410, "The provided continue parameter is too old")
        start = int(query.get("continue", "0"))
        items = list(self._objects.get(path, {}).values())
        size = min(int(query["limit"]), self.page_size)
        meta: Document = {"resourceVersion": str(self._version)}
        if start + size < len(items):
            meta["continue"] = str(start + size)
        return web.json_response({"metadata": meta, "items": items[start : start + size] or None})

    async def _watch(
        self, request: web.Request, path: str, query: dict[str, str]
    ) -> web.StreamResponse:
        since = int(query["resourceVersion"])
        if since < self._oldest and self.gone_as == "status":
            return _refusal(410, "too old resource version")
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        if since < self._oldest:
            status = {"kind": "Status", "code": 410, "message": "too old resource version"}
            await response.write(json.dumps({"type": "ERROR", "object": status}).encode() + b"\n")
            return response
        queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        for version, line in self._events.get(path, ()):
            if version > since:
                queue.put_nowait(line)
        self._streams.setdefault(path, []).append(queue)
        try:
            while (chunk := await queue.get()) is not None:
                await response.write(chunk)
                if not chunk.endswith(b"\n"):
                    assert request.transport is not None
                    request.transport.abort()
        finally:
            self._streams[path].remove(queue)
        return response


def _refusal(status: int, message: str) -> web.Response:
    document = {"kind": "Status", "code": status, "message": message}
    return web.json_response(document, status=status)


async def eventually(holds: Callable[[], bool], *, within_s: float = 5.0) -> None:
    """Wait until it holds; fail if it does not in time."""
    deadline = asyncio.get_running_loop().time() + within_s
    while not holds():
        assert asyncio.get_running_loop().time() < deadline, "never came true"
        await asyncio.sleep(0.01)
