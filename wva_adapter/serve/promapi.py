"""``/api/v1/query`` as Prometheus answers it, for KEDA's prometheus trigger and for Grafana.

References:
    https://prometheus.io/docs/prometheus/latest/querying/api/.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, Literal
from urllib.parse import parse_qs

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field
from starlette.requests import ClientDisconnect

from wva_adapter.serve.attributes import QUERY_PATH
from wva_adapter.serve.negotiation import JSON, query_error
from wva_adapter.serve.promeval import (
    SeriesSource,
    Unanswerable,
    Unanswered,
    Vector,
    evaluate,
)
from wva_adapter.serve.promql import parse, selector_of
from wva_adapter.serve.promql_tokens import PromqlError
from wva_adapter.serve.regex import RegexError
from wva_adapter.serve.wire import encode

FORM: Final = "application/x-www-form-urlencoded"
_MOST_FORM_BYTES: Final = 64 * 1024
_FORM_TIMEOUT_S: Final = 10.0
_RFC_3339: Final = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?([Zz]|[+-]\d\d:\d\d)"
)
_DURATION: Final = re.compile(
    r"(?=.)(?:(\d+)y)?(?:(\d+)w)?(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?(?:(\d+)ms)?"
)
_NUMBER: Final = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_LAST_TIME_S: Final = 1e12
_CODES: Final = {"bad_data": 400, "execution": 422, "unavailable": 503}

Said = tuple[float, str]


class Sample(BaseModel):
    """One series and its value."""

    metric: dict[str, str] = Field(description="Its labels, with __name__ where it has a name.")
    value: Said = Field(description="Unix time and the value as text, such as [1700000000, '3'].")


class VectorData(BaseModel):
    """What a query of series comes to; never empty, because KEDA reads an empty one as 0."""

    resultType: Literal["vector"]
    result: list[Sample]


class ScalarData(BaseModel):
    """What a query of numbers only comes to."""

    resultType: Literal["scalar"]
    result: Said


class QueryAnswer(BaseModel):
    """A query that has an answer."""

    status: Literal["success"]
    data: VectorData | ScalarData


class QueryError(BaseModel):
    """A query that has none, and why."""

    status: Literal["error"]
    errorType: Literal[
        "bad_data",
        "execution",
        "unavailable",
        "timeout",
        "internal",
        "unauthorized",
        "forbidden",
        "method_not_allowed",
    ] = Field(
        description="bad_data: cannot be read or is not supported; unavailable: no valid value now."
    )
    error: str


class _Refused(Exception):
    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


_PARAMETERS: Final[list[dict[str, Any]]] = [
    {
        "name": "query",
        "in": "query",
        "required": True,
        "description": "An instant selector, sum or max of one, with numbers: arithmetic and "
        "comparisons.",
        "schema": {"type": "string"},
        "example": 'wva_desired_replicas{variant_name="llama-a100",exported_namespace="chat"}',
    },
    {
        "name": "time",
        "in": "query",
        "description": "RFC 3339 or Unix seconds; only the present is known.",
        "schema": {"type": "string"},
    },
    {
        "name": "timeout",
        "in": "query",
        "description": "A duration; answers take no time, so it changes nothing.",
        "schema": {"type": "string"},
        "example": "5s",
    },
]


def query_router(source: SeriesSource) -> APIRouter:
    """Return the route that is asked queries.

    Args:
        source: Has the series.
    """
    router = APIRouter(tags=["decisions"])
    described: dict[str, Any] = {
        "summary": "Instant query, as Prometheus answers it",
        "response_model": QueryAnswer,
        "responses": {code: {"model": QueryError} for code in (*_CODES.values(), 401, 403)},
    }
    form = {
        "type": "object",
        "required": ["query"],
        "properties": {one["name"]: one["schema"] for one in _PARAMETERS},
    }

    @router.get(QUERY_PATH, openapi_extra={"parameters": _PARAMETERS}, **described)
    async def query(request: Request) -> Response:
        return _answer(source, _read(request.scope["query_string"]))

    @router.post(
        QUERY_PATH,
        openapi_extra={"requestBody": {"content": {FORM: {"schema": form}}}},
        **described,
    )
    async def query_by_form(request: Request) -> Response:
        try:
            body = await _form(request)
        except _Refused as refusal:
            return _refusal(refusal.kind, str(refusal))
        # As Go reads a form: what the body says comes before what the address says.
        return _answer(source, {**_read(request.scope["query_string"]), **_read(body)})

    return router


async def _form(request: Request) -> bytes:
    body = bytearray()
    try:
        async with asyncio.timeout(_FORM_TIMEOUT_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > _MOST_FORM_BYTES:
                    raise _Refused("bad_data", f"the form is larger than {_MOST_FORM_BYTES} bytes")
    except (TimeoutError, ClientDisconnect):
        raise _Refused(
            "bad_data", f"the form did not arrive whole within {_FORM_TIMEOUT_S:g} s"
        ) from None
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if body and kind != FORM:
        raise _Refused("bad_data", f"content-type is {kind or 'missing'}, want {FORM}")
    return bytes(body)


def _read(form: bytes) -> Mapping[str, str]:
    """Return the first value of each parameter."""
    asked = parse_qs(form.decode("latin-1"), keep_blank_values=True)
    return {name: values[0] for name, values in asked.items()}


def _answer(source: SeriesSource, asked: Mapping[str, str]) -> Response:
    try:
        body = _answered(source, asked)
    except _Refused as refusal:
        return _refusal(refusal.kind, str(refusal))
    except (PromqlError, RegexError) as error:
        return _refusal("bad_data", f'invalid parameter "query": {error}')
    except Unanswerable as error:
        return _refusal("execution", str(error))
    except Unanswered as error:
        return _refusal("unavailable", str(error))
    return Response(body, media_type=JSON)


def _refusal(kind: str, message: str) -> Response:
    return query_error(_CODES[kind], kind, message).response()


def _answered(source: SeriesSource, asked: Mapping[str, str]) -> bytes:
    now_s = source.now_s()
    at_s = _time(asked["time"]) if asked.get("time") else now_s
    if asked.get("timeout"):
        _check_timeout(asked["timeout"])
    expression = parse(asked.get("query", ""))
    # Numbers are the same at any time: Grafana tries a data source out with 1+1 long ago.
    if selector_of(expression) is not None and abs(at_s - now_s) > source.max_age_s:
        raise _Refused(
            "bad_data",
            f'invalid parameter "time": it is {abs(at_s - now_s):.0f} s '
            f"{'before' if at_s < now_s else 'after'} the present, which is all that is known "
            f"here; want within {source.max_age_s:g} s of it, or none",
        )
    return _document(evaluate(expression, source), at_s)


def _document(result: Vector | float, at_s: float) -> bytes:
    """Return the bytes of a success, its numbers written as Go writes them."""
    if isinstance(result, float):
        data = f'"scalar","result":[{_fixed(round(at_s, 3))},"{_fixed(result)}"]'
    else:
        at = _timestamp(at_s)
        samples = ",".join(
            f'{{"metric":{_labels(sample.labels)},"value":[{at},"{_number(sample.value)}"]}}'
            for sample in result
        )
        data = f'"vector","result":[{samples}]'
    return f'{{"status":"success","data":{{"resultType":{data}}}}}'.encode()


def _labels(labels: Mapping[str, str]) -> str:
    return encode(dict(sorted(labels.items()))).decode().rstrip()


def _timestamp(at_s: float) -> str:
    """Return a time as Prometheus writes it beside a series: with no or three decimals."""
    seconds, milli = divmod(round(abs(at_s) * 1000), 1000)
    return f"{'-' if at_s < 0 else ''}{seconds}{f'.{milli:03}' if milli else ''}"


def _number(value: float) -> str:
    """Return the shortest digits that give the value, with an exponent if it is far from 1."""
    if value != 0 and not 1e-6 <= abs(value) < 1e21:
        return repr(value).replace(".0e", "e")
    return _fixed(value)


def _fixed(value: float) -> str:
    """Return the shortest digits that give the value, without an exponent."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    digits, _, exponent = repr(value).partition("e")
    if exponent:
        digits = _shifted(digits, int(exponent))
    return digits.removesuffix(".0")


def _shifted(digits: str, exponent: int) -> str:
    sign = "-" if digits.startswith("-") else ""
    whole, _, fraction = digits.removeprefix("-").partition(".")
    fraction = fraction.rstrip("0")
    if exponent < 0:
        return f"{sign}0.{'0' * (-exponent - 1)}{whole}{fraction}"
    return f"{sign}{whole}{fraction.ljust(exponent, '0')}"


def _time(text: str) -> float:
    if _NUMBER.fullmatch(text) and abs(float(text)) < _LAST_TIME_S:
        # Prometheus knows times to the millisecond.
        return round(float(text), 3)
    match = _RFC_3339.fullmatch(text)
    if match is not None:
        day, time, fraction, zone = match.groups()
        try:
            whole = datetime.fromisoformat(f"{day}T{time}{zone.upper()}")
        except ValueError:
            pass
        else:
            return whole.timestamp() + int((fraction or "0").ljust(3, "0")[:3]) / 1000
    raise _Refused(
        "bad_data",
        f'invalid parameter "time": cannot parse {json.dumps(text)} to a valid timestamp',
    )


def _check_timeout(text: str) -> None:
    if not _NUMBER.fullmatch(text) and not _DURATION.fullmatch(text):
        raise _Refused(
            "bad_data",
            f'invalid parameter "timeout": cannot parse {json.dumps(text)} to a valid duration',
        )
