"""Whether this process is alive and ready, told as Kubernetes' own servers tell it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final
from urllib.parse import parse_qs

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import PlainTextResponse

Check = Callable[[], str | None]
"""Returns what is wrong, or ``None``; called at every probe, so it only looks something up."""

_OTHER_METHODS: Final = ["HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"]


def _ping() -> None:
    return None


def report(
    name: str, checks: Mapping[str, Check], query: Mapping[str, list[str]]
) -> tuple[int, str]:
    """Return the HTTP status and text of all checks together.

    Args:
        name: ``livez``, ``readyz`` or ``healthz``.
        query: ``verbose`` lists the checks; each ``exclude`` names one to leave out.
    """
    excluded = set(query.get("exclude", ()))
    failed, lines = False, []
    for check, find_problem in checks.items():
        if check in excluded:
            lines.append(f"[+]{check} excluded: ok")
        elif find_problem() is None:
            lines.append(f"[+]{check} ok")
        else:
            failed = True
            lines.append(f"[-]{check} failed: reason withheld")
    if unknown := sorted(excluded - checks.keys()):
        names = ", ".join(f'"{check}"' for check in unknown)
        lines.append(f"warn: some health checks cannot be excluded: no matches for {names}")
    if failed:
        return 500, "\n".join([*lines, f"{name} check failed\n"])
    if "verbose" in query:
        return 200, "\n".join([*lines, f"{name} check passed\n"])
    return 200, "ok"


def health_router(ready: Mapping[str, Check]) -> APIRouter:
    """Return the health routes, which answer to any method.

    Args:
        ready: By name, what must hold besides ``ping`` before ``/readyz`` says so. Liveness asks
            for nothing: a restart heals neither the cluster nor the engines.
    """
    router = APIRouter(tags=["health"])
    alive: Mapping[str, Check] = {"ping": _ping}
    for name, checks in (
        ("healthz", alive),
        ("livez", alive),
        ("readyz", {**alive, **ready}),
    ):
        _add(router, name, checks)
    return router


def _add(router: APIRouter, name: str, checks: Mapping[str, Check]) -> None:
    async def all_checks(request: Request) -> Response:
        query = parse_qs(request.url.query, keep_blank_values=True)
        code, text = report(name, checks, query)
        return PlainTextResponse(text, code, {"X-Content-Type-Options": "nosniff"})

    async def one_check(check: str) -> Response:
        if check not in checks:
            raise HTTPException(404)
        problem = checks[check]()
        if problem is None:
            return PlainTextResponse("ok")
        return PlainTextResponse(f"internal server error: {problem}\n", 500)

    for path, endpoint, summary in (
        (f"/{name}", all_checks, f"Every {name} check"),
        (f"/{name}/{{check}}", one_check, f"One {name} check"),
    ):
        router.add_api_route(
            path, endpoint, methods=["GET"], summary=summary, response_class=PlainTextResponse
        )
        router.add_api_route(path, endpoint, methods=_OTHER_METHODS, include_in_schema=False)
