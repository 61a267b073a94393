"""What the Kubernetes API's objects look like as bytes: values, lists, and refusals (Status).

References:
    ``k8s.io/metrics`` external_metrics/v1beta1 and ``k8s.io/apimachinery`` meta/v1 and
    api/resource for the shapes; Go's encoding/json for the escapes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Literal

from pydantic import BaseModel, Field

from wva_adapter.core.answer import Item

GROUP: Final = "external.metrics.k8s.io"
VERSION: Final = "v1beta1"
GROUP_VERSION: Final = f"{GROUP}/{VERSION}"

Document = Mapping[str, Any]
"""A JSON object; the order of its keys is part of what is served."""

# An HPA computes in int64 thousandths: what lies above turns negative in its arithmetic.
MOST_MILLI: Final = 2**63 - 1
_SUFFIX: Final = {-3: "m", 0: "", 3: "k", 6: "M", 9: "G", 12: "T", 15: "P", 18: "E"}
_LARGEST_EXPONENT: Final = 18
_ESCAPES: Final = str.maketrans(
    {c: f"\\u{ord(c):04x}" for c in ("<", ">", "&", "\u2028", "\u2029")}
)


def quantity(milli: int) -> str:
    """Return a number of thousandths as a canonical Kubernetes quantity: ``1500m``, ``3``, ``1k``."""
    milli = max(-MOST_MILLI, min(milli, MOST_MILLI))
    if milli == 0:
        return "0"
    exponent = -3
    while milli % 1000 == 0 and exponent < _LARGEST_EXPONENT:
        milli //= 1000
        exponent += 3
    return f"{milli}{_SUFFIX[exponent]}"


def timestamp(at_s: float) -> str:
    """Return a Unix time as RFC 3339 in whole seconds, which is what Kubernetes objects carry."""
    return datetime.fromtimestamp(int(at_s), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def encode(document: Document, *, pretty: bool = False) -> bytes:
    """Return a document as Go writes it: compact with a newline, or indented without one."""
    if pretty:
        return json.dumps(document, ensure_ascii=False, indent=2).translate(_ESCAPES).encode()
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    return (text.translate(_ESCAPES) + "\n").encode()


class ExternalMetricValue(BaseModel):
    """One value of one metric."""

    metricName: str
    metricLabels: dict[str, str]
    timestamp: datetime
    window: int | None = Field(None, description="Seconds that the value was taken over.")
    value: str = Field(description="A Kubernetes quantity, such as 3 or 1500m.")


class ExternalMetricValueList(BaseModel):
    """The values of one metric that a selector matches; an HPA sums them."""

    kind: Literal["ExternalMetricValueList"]
    apiVersion: Literal["external.metrics.k8s.io/v1beta1"]
    metadata: dict[str, str]
    items: list[ExternalMetricValue]


def value_list(items: Iterable[Item]) -> Document:
    """Return an ExternalMetricValueList, its labels sorted as Go sorts a map."""
    return {
        "kind": "ExternalMetricValueList",
        "apiVersion": GROUP_VERSION,
        "metadata": {},
        "items": [
            {
                "metricName": item.metric,
                "metricLabels": dict(sorted(item.labels.items())),
                "timestamp": timestamp(item.at_s),
                **({} if item.window_s is None else {"window": item.window_s}),
                "value": quantity(item.value_milli),
            }
            for item in items
        ],
    }


class Status(BaseModel):
    """A refusal; its message is shown to people as it is."""

    kind: Literal["Status"]
    apiVersion: Literal["v1"]
    metadata: dict[str, str]
    status: Literal["Failure"]
    message: str
    reason: str | None = None
    details: dict[str, Any] | None = None
    code: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that gets a Status instead of what it asked for.

    Attributes:
        code: The HTTP status.
        reason: The machine's word for it; ``None`` where Kubernetes has none.
        details: What it is about; ``None`` leaves it out, which is not the same as empty.
    """

    code: int
    message: str
    reason: str | None = None
    details: Document | None = field(default=None)

    def document(self) -> Document:
        """Return the Status object."""
        status: dict[str, Any] = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
        }
        if self.reason is not None:
            status["reason"] = self.reason
        if self.details is not None:
            status["details"] = self.details
        return {**status, "code": self.code}


NO_SUCH_RESOURCE: Final = Refusal(
    404, "the server could not find the requested resource", "NotFound", {}
)
NO_SUCH_METHOD: Final = Refusal(
    405, "the server does not allow this method on the requested resource", "MethodNotAllowed", {}
)
NO_WATCH: Final = Refusal(
    405,
    f'watch is not supported on resources of kind "*.{GROUP}"',
    "MethodNotAllowed",
    {"group": GROUP, "kind": "*"},
)


TIMED_OUT: Final = Refusal(
    504, "Timeout: request did not complete within the allotted timeout", "Timeout", {}
)
TOO_LARGE: Final = Refusal(413, "Request entity too large: limit is 65536", "RequestEntityTooLarge")
MOST_BODY_BYTES: Final = 65536
"""What the body of a read may have: nothing looks at it."""
TOO_MANY_REQUESTS: Final = Refusal(
    429, "Too many requests, please try again later.", "TooManyRequests"
)


def bad_request(message: str) -> Refusal:
    """Return the refusal of a request that cannot be read."""
    return Refusal(400, message, "BadRequest")


def invalid(kind: str, group: str, causes: Iterable[tuple[str, str, str]]) -> Refusal:
    """Return the refusal of an object with bad fields: field, reason and sentence of each."""
    found = [
        {"reason": reason, "message": message, "field": name} for name, reason, message in causes
    ]
    said = [f"{cause['field']}: {cause['message']}" for cause in found]
    problems = said[0] if len(said) == 1 else f"[{', '.join(said)}]"
    return Refusal(
        422,
        f'{kind}.{group} "" is invalid: {problems}',
        "Invalid",
        {"group": group, "kind": kind, "causes": found},
    )


def not_found(message: str) -> Refusal:
    """Return the refusal of a name that nothing has."""
    return Refusal(404, message, "NotFound")


def unavailable(message: str) -> Refusal:
    """Return the refusal of a value that nobody knows now.

    It carries no ``Retry-After``: a client of Kubernetes would wait for it ten times, inside one of
    the few workers that scale the whole cluster.
    """
    return Refusal(503, message, "ServiceUnavailable")


def internal_error(message: str) -> Refusal:
    """Return the refusal after a fault of ours."""
    return Refusal(
        500,
        f"Internal error occurred: {message}",
        "InternalError",
        {"causes": [{"message": message}]},
    )
