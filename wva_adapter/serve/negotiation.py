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
from starlette.types import Receive, Scope, Send

from wva_adapter.serve.attributes import QUERY_PATH
from wva_adapter.serve.protobuf import PROTOBUF, encode_protobuf
from wva_adapter.serve.wire import Document, Refusal, encode

JSON: Final = "application/json"
YAML: Final = "application/yaml"
_OFFERED: Final = (JSON, YAML, PROTOBUF)
# The streamed forms are named because every API server names them; nothing here streams.
_NAMED: Final = (*_OFFERED, f"{JSON};stream=watch", f"{PROTOBUF};stream=watch")
_GZIP_FROM_BYTES: Final = 128 * 1024
_BROWSERS: Final = ("curl", "Wget", "Mozilla/5.0")
_TRUE: Final = frozenset(("1", "t", "T", "true", "TRUE", "True"))

# Prometheus has no word for the first three; the others are its own.
_QUERY_ERRORS: Final[Mapping[int, str]] = {
    401: "unauthorized",
    403: "forbidden",
    405: "method_not_allowed",
    408: "timeout",
    422: "execution",
    429: "unavailable",
    500: "internal",
    503: "unavailable",
    504: "timeout",
}

NOT_OFFERED: Final = Refusal(
    406,
    f"406: Not Acceptable\n\nAvailable representations: {', '.join(_NAMED)}",
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
        asked = media_range.parameters
        if asked.keys() & {"as", "g", "v"} or asked.get("sv"):
            continue
        for offered in _OFFERED:
            if media_range.covers(offered):
                return offered
    return None


@dataclass(frozen=True, slots=True)
class Caller:
    """What of a request decides on the form of its answer.

    Attributes:
        accept: The ``Accept`` header; empty where there is none, like the others.
        query: The query string as it came.
        is_prometheus: Whether it asks what Prometheus is asked, and expects its answers.
    """

    accept: str = ""
    accept_encoding: str = ""
    user_agent: str = ""
    query: str = ""
    is_prometheus: bool = False

    @classmethod
    def of(cls, scope: Scope) -> Caller:
        """Return what the request in this ASGI scope says; of a repeated header the first value."""
        first: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:
            if name in _READ_HEADERS:
                first.setdefault(name, value)
        accept, encoding, agent = (first.get(name, b"").decode("latin-1") for name in _READ_HEADERS)
        query = scope["query_string"].decode("latin-1")
        return cls(accept, encoding, agent, query, scope["path"] == QUERY_PATH)

    @property
    def wants_pretty(self) -> bool:
        """Whether it reads JSON with its eyes: it says so, or is a browser or curl."""
        if "pretty" in self.query:
            said = parse_qs(self.query, keep_blank_values=True).get("pretty", [""])[0]
            if said:
                return said in _TRUE
        if any(r.parameters.get("pretty") == "1" for r in parse_accept(self.accept)):
            return True
        return self.user_agent.startswith(_BROWSERS)


_READ_HEADERS: Final = (b"accept", b"accept-encoding", b"user-agent")


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer as bytes, whoever sends it.

    Attributes:
        headers: Lower-case names and values as they go over the wire, the length among them.
    """

    code: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes

    @classmethod
    def of(cls, code: int, body: bytes, headers: Mapping[str, str]) -> Reply:
        """Return an answer with these headers and the length of its body."""
        named = [
            (name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()
        ]
        return cls(code, (*named, (b"content-length", str(len(body)).encode())), body)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        await send(
            {"type": "http.response.start", "status": self.code, "headers": list(self.headers)}
        )
        body = b"" if scope["method"] == "HEAD" else self.body
        await send({"type": "http.response.body", "body": body})

    def response(self) -> Response:
        """Return it for a route of FastAPI."""
        response = Response(self.body, self.code)
        response.raw_headers = list(self.headers)
        return response


def reply(caller: Caller, answer: Document | Refusal) -> Reply:
    """Return the answer in the form that the caller accepts, or a 406 that says which there are."""
    media_type = negotiate(caller.accept)
    if isinstance(media_type, Refusal):
        return reply_refusal(caller, media_type)
    if isinstance(answer, Refusal):
        return reply_refusal(caller, answer)
    return _written(caller, answer, media_type, code=200)


def reply_refusal(caller: Caller, refusal: Refusal) -> Reply:
    """Return a Status, in the form asked for if that can be, else in JSON for people.

    Who asks as one asks Prometheus is told as Prometheus tells it.
    """
    if caller.is_prometheus:
        return query_error(
            refusal.code, _QUERY_ERRORS.get(refusal.code, "bad_data"), refusal.message
        )
    form = _second_gate(parse_accept(caller.accept))
    if form is None:
        body = encode(refusal.document(), pretty=True)
        return Reply.of(refusal.code, body, {"content-type": JSON})
    return _written(caller, refusal.document(), form, code=refusal.code)


def query_error(code: int, kind: str, message: str) -> Reply:
    """Return an error as Prometheus writes it."""
    document = {"status": "error", "errorType": kind, "error": message}
    return Reply.of(code, encode(document).rstrip(), {"content-type": JSON})


def respond(request: Request, answer: Document | Refusal) -> Response:
    """Return what ``reply`` does, from a route of FastAPI."""
    return reply(Caller.of(request.scope), answer).response()


def refuse(request: Request, refusal: Refusal) -> Response:
    """Return what ``reply_refusal`` does, from a route of FastAPI."""
    return reply_refusal(Caller.of(request.scope), refusal).response()


def respond_json(request: Request, answer: Document | Refusal) -> Response:
    """Return the answer in JSON, whatever the caller accepts: for readers that are no API clients."""
    document, code = (
        (answer.document(), answer.code) if isinstance(answer, Refusal) else (answer, 200)
    )
    return _written(Caller.of(request.scope), document, JSON, code=code).response()


def _written(caller: Caller, document: Document, media_type: str, *, code: int) -> Reply:
    if media_type == YAML:
        body = yaml.safe_dump(dict(document), allow_unicode=True).encode()
    elif media_type == PROTOBUF:
        body = encode_protobuf(document)
    else:
        body = encode(document, pretty=caller.wants_pretty)
    headers = {"content-type": media_type}
    if len(body) > _GZIP_FROM_BYTES and "gzip" in caller.accept_encoding:
        body = gzip.compress(body, compresslevel=1, mtime=0)
        headers |= {"content-encoding": "gzip", "vary": "Accept-Encoding"}
    return Reply.of(code, body, headers)
