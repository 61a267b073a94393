"""The external metrics API: one metric of one namespace, read by the HPA of every workload."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, Protocol
from urllib.parse import parse_qs

from fastapi import APIRouter, Request, Response

from wva_adapter.core.answer import Answer, Items, Matcher, NoPlan, NotFound
from wva_adapter.serve.discovery import VERSION_PATH
from wva_adapter.serve.negotiation import respond
from wva_adapter.serve.selector import Selector, SelectorError, parse_selector
from wva_adapter.serve.wire import (
    NO_WATCH,
    Document,
    ExternalMetricValueList,
    Refusal,
    Status,
    bad_request,
    not_found,
    unavailable,
    value_list,
)

_INTEGER: Final = re.compile(r"[+-]?[0-9]+")
_DURATION: Final = re.compile(r"[+-]?(0|(([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h))+)")
_SELECTOR_PARAMETER: Final[dict[str, Any]] = {
    "name": "labelSelector",
    "in": "query",
    "description": "Kubernetes label selector; without one, every item of the namespace answers.",
    "schema": {"type": "string"},
    "example": "variant_name=llama-a100",
}


class Provider(Protocol):
    """Who knows the values of external metrics."""

    def answer(self, namespace: str, metric: str, matches: Matcher) -> Answer:
        """Return the items that match, or why there are none; without waiting."""
        ...


def refusal_of(answer: NotFound | NoPlan) -> Refusal:
    """Return why there is no value, as a Status: 404 for a wrong name, 503 for an unknown value."""
    if isinstance(answer, NotFound):
        return not_found(answer.message)
    return unavailable(answer.message)


def list_values(
    provider: Provider, namespace: str, metric: str, query: Mapping[str, list[str]]
) -> Document | Refusal:
    """Return the list of a metric's values, or the refusal that says why there is none."""
    asked = _read_query(query)
    if isinstance(asked, Refusal):
        return asked
    answer = provider.answer(namespace, metric, asked)
    return value_list(answer.items) if isinstance(answer, Items) else refusal_of(answer)


def external_metrics_router(provider: Provider) -> APIRouter:
    """Return the route of the external metrics API."""
    router = APIRouter(tags=["external metrics"])
    path = f"{VERSION_PATH}/namespaces/{{namespace}}/{{metric}}"

    async def read(request: Request, namespace: str, metric: str) -> Response:
        query = parse_qs(request.url.query, keep_blank_values=True)
        return respond(request, list_values(provider, namespace, metric, query))

    router.add_api_route(
        path,
        read,
        summary="Values of one metric",
        response_model=ExternalMetricValueList,
        responses={code: {"model": Status} for code in (400, 404, 406, 503)},
        openapi_extra={"parameters": [_SELECTOR_PARAMETER]},
    )
    router.add_api_route(f"{path}/", read, include_in_schema=False)
    return router


def _read_query(query: Mapping[str, list[str]]) -> Selector | Refusal:
    """Return the selector asked for; of a repeated parameter the first value counts."""
    first = {name: values[0] for name, values in query.items()}
    if first.get("watch", "false") not in ("false", "0"):
        return NO_WATCH
    for name in ("limit", "timeoutSeconds"):
        number = first.get(name, "0")
        if not _INTEGER.fullmatch(number):
            return bad_request(f'strconv.ParseInt: parsing "{number}": invalid syntax')
    timeout = first.get("timeout", "")
    if timeout and not _DURATION.fullmatch(timeout):
        return bad_request(
            f'invalid timeout specified in the request URL - time: invalid duration "{timeout}"'
        )
    try:
        return parse_selector(first.get("labelSelector", ""))
    except SelectorError as error:
        return bad_request(str(error))
