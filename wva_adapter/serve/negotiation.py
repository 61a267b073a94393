"""In which form a caller wants its answer, and how it is told that there is no such form.

Two gates, as in every Kubernetes API server: the first compares whole media types, the second
also their parameters. A refusal that cannot be written in the form asked for is written in JSON.
"""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qs

import yaml
from fastapi import Request, Response

from wva_adapter.serve.wire import Document, Refusal, encode

JSON: Final = "application/json"
YAML: Final = "application/yaml"
_OFFERED: Final = (JSON, YAML)
_GZIP_FROM_BYTES: Final = 128 * 1024
_BROWSERS: Final = ("curl", "Wget", "Mozilla/5.0")
_TRUE: Final = frozenset(("1", "t", "T", "true", "TRUE", "True"))

NOT_OFFERED: Final = Refusal(
    406,
    f"406: Not Acceptable\n\nAvailable representations: {', '.join(_OFFERED)}",
    "NotAcceptable",
    {},
)
NOT_ACCEPTED: Final = Refusal(
    406, f"only the following media types are accepted: {', '.join(_OFFERED)}", "NotAcceptable"
)


@dataclass(frozen=True, slots=True)
class MediaRange:
    """One alternative of an ``Accept`` header.

    Attributes:
        media_type: ``type/subtype``, either of which may be ``*``.
        parameters: Without ``q``.
        quality: 0 to 1.
    """

    media_type: str
    parameters: Mapping[str, str]
    quality: float = 1.0

    def covers(self, media_type: str) -> bool:
        """Return whether it names this media type, exactly or by a ``*``."""
        kind, _, _ = media_type.partition("/")
        return self.media_type in (media_type, f"{kind}/*", "*/*")


def parse_accept(header: str) -> tuple[MediaRange, ...]:
    """Return the alternatives of an ``Accept`` header, the most wanted first; none means any."""
    ranges = []
    for part in (header or "*/*").split(","):
        media_type, *pairs = (piece.strip() for piece in part.split(";"))
        parameters = {
            name.strip().lower(): value.strip().strip('"')
            for name, _, value in (pair.partition("=") for pair in pairs)
        }
        try:
            quality = float(parameters.pop("q", "1"))
        except ValueError:
            quality = 1.0
        ranges.append(MediaRange(media_type.lower(), parameters, quality))
    return tuple(sorted(ranges, key=lambda r: -r.quality))


def negotiate(accept: str) -> str | Refusal:
    """Return the media type to answer in, or the refusal where none will do.

    Args:
        accept: The ``Accept`` header; empty where there is none.
    """
    ranges = parse_accept(accept)
    if not any(r.media_type in ("*/*", *_OFFERED) for r in ranges):
        return NOT_OFFERED
    return _second_gate(ranges) or NOT_ACCEPTED


def _second_gate(ranges: tuple[MediaRange, ...]) -> str | None:
    for media_range in ranges:
        # A group, version or kind asks for another document than the one that is here.
        if media_range.parameters.keys() & {"as", "g", "v", "sv"}:
            continue
        for offered in _OFFERED:
            if media_range.covers(offered):
                return offered
    return None


def wants_pretty(request: Request) -> bool:
    """Return whether the caller reads JSON with its eyes: it says so, or is a browser or curl."""
    query = parse_qs(request.url.query, keep_blank_values=True)
    said = query.get("pretty", [""])[0]
    if said:
        return said in _TRUE
    ranges = parse_accept(request.headers.get("accept", ""))
    if any(r.parameters.get("pretty") == "1" for r in ranges):
        return True
    return request.headers.get("user-agent", "").startswith(_BROWSERS)


def respond(request: Request, answer: Document | Refusal) -> Response:
    """Return the answer in the form that the caller accepts, or a 406 that says which there are."""
    accept = request.headers.get("accept", "")
    media_type = negotiate(accept)
    if isinstance(media_type, Refusal):
        return refuse(request, media_type)
    if isinstance(answer, Refusal):
        return refuse(request, answer)
    return _written(request, answer, media_type, code=200)


def refuse(request: Request, refusal: Refusal) -> Response:
    """Return a Status, in the form asked for if that can be, else in JSON for people."""
    form = _second_gate(parse_accept(request.headers.get("accept", "")))
    if form is None:
        body = encode(refusal.document(), pretty=True)
        return Response(body, refusal.code, media_type=JSON)
    return _written(request, refusal.document(), form, code=refusal.code)


def respond_json(request: Request, answer: Document | Refusal) -> Response:
    """Return the answer in JSON, whatever the caller accepts: for readers that are no API clients."""
    document, code = (
        (answer.document(), answer.code) if isinstance(answer, Refusal) else (answer, 200)
    )
    return _written(request, document, JSON, code=code)


def _written(request: Request, document: Document, media_type: str, *, code: int) -> Response:
    if media_type == YAML:
        body = yaml.safe_dump(dict(document), allow_unicode=True).encode()
    else:
        body = encode(document, pretty=wants_pretty(request))
    if len(body) <= _GZIP_FROM_BYTES or "gzip" not in request.headers.get("accept-encoding", ""):
        return Response(body, code, media_type=media_type)
    headers = {"Content-Encoding": "gzip", "Vary": "Accept-Encoding"}
    return Response(gzip.compress(body, compresslevel=1), code, headers, media_type=media_type)
