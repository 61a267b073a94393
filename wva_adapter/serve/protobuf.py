"""What the Kubernetes API's objects look like in protobuf, which the HPA controller asks for first.

The same documents as in JSON are written: a table per kind says which field has which number.

References:
    The ``generated.proto`` files of ``k8s.io/apimachinery`` and ``k8s.io/metrics``; the envelope is
    ``runtime.Unknown`` behind four magic bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, Final

PROTOBUF: Final = "application/vnd.kubernetes.protobuf"

_MAGIC: Final = b"k8s\0"
_VARINT, _BYTES = 0, 2

Field = Callable[[Any], Iterable[tuple[int, bytes | int]]]
"""Writes one field's value: pairs of wire type and content; no pair leaves the field out."""


def encode_protobuf(document: Mapping[str, Any]) -> bytes:
    """Return a document of a known kind as a Kubernetes client decodes it.

    Raises:
        KeyError: There is no table for its kind.
    """
    kind = document["kind"]
    described = {"apiVersion": document.get("apiVersion", "v1"), "kind": kind}
    unknown = {
        "typeMeta": described,
        "raw": _message(document, _KINDS[kind]),
        "contentEncoding": "",
        "contentType": "",
    }
    return _MAGIC + _message(unknown, _UNKNOWN)


def _varint(number: int) -> bytes:
    """Return the number in groups of seven bits, a negative one as its 64-bit complement."""
    number &= 2**64 - 1
    groups = bytearray()
    while number > 0x7F:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    groups.append(number)
    return bytes(groups)


def _message(document: Mapping[str, Any], table: Mapping[str, tuple[int, Field]]) -> bytes:
    written = bytearray()
    for name, (number, write) in table.items():
        for wire_type, content in write(document.get(name)):
            written += _varint(number << 3 | wire_type)
            if isinstance(content, int):
                written += _varint(content)
            else:
                written += _varint(len(content))
                written += content
    return bytes(written)


def _text(value: str | None) -> Iterable[tuple[int, bytes | int]]:
    # Go writes an empty text too: a field that is no pointer has no way to be absent.
    return ((_BYTES, (value or "").encode()),)


def _raw(value: bytes) -> Iterable[tuple[int, bytes | int]]:
    return ((_BYTES, value),)


def _number(value: int | None) -> Iterable[tuple[int, bytes | int]]:
    return ((_VARINT, int(value or 0)),)


def _optional_number(value: int | None) -> Iterable[tuple[int, bytes | int]]:
    return () if value is None else ((_VARINT, value),)


def _texts(values: Iterable[str] | None) -> Iterable[tuple[int, bytes | int]]:
    return [(_BYTES, value.encode()) for value in values or ()]


def _nested(table: Mapping[str, tuple[int, Field]]) -> Field:
    return lambda value: ((_BYTES, _message(value or {}, table)),)


def _pointer(table: Mapping[str, tuple[int, Field]]) -> Field:
    return lambda value: () if value is None else ((_BYTES, _message(value, table)),)


def _repeated(table: Mapping[str, tuple[int, Field]]) -> Field:
    return lambda values: [(_BYTES, _message(value, table)) for value in values or ()]


def _string_map(value: Mapping[str, str] | None) -> Iterable[tuple[int, bytes | int]]:
    entry: Mapping[str, tuple[int, Field]] = {"key": (1, _text), "value": (2, _text)}
    return [
        (_BYTES, _message({"key": key, "value": one}, entry))
        for key, one in sorted((value or {}).items())
    ]


def _time(value: str | None) -> Iterable[tuple[int, bytes | int]]:
    if value is None:
        return ((_BYTES, b""),)
    seconds = int(datetime.fromisoformat(value).timestamp())
    return ((_BYTES, _message({"seconds": seconds}, _TIMESTAMP)),)


def _quantity(value: str) -> Iterable[tuple[int, bytes | int]]:
    return ((_BYTES, _message({"string": value}, {"string": (1, _text)})),)


Table = Mapping[str, tuple[int, Field]]

_TIMESTAMP: Final[Table] = {"seconds": (1, _number), "nanos": (2, _number)}
_UNKNOWN: Final[Table] = {
    "typeMeta": (1, _nested({"apiVersion": (1, _text), "kind": (2, _text)})),
    "raw": (2, _raw),
    "contentEncoding": (3, _text),
    "contentType": (4, _text),
}
_LIST_META: Final[Table] = {
    "selfLink": (1, _text),
    "resourceVersion": (2, _text),
    "continue": (3, _text),
    "remainingItemCount": (4, _optional_number),
}
_OBJECT_META: Final[Table] = {
    "name": (1, _text),
    "generateName": (2, _text),
    "namespace": (3, _text),
    "selfLink": (4, _text),
    "uid": (5, _text),
    "resourceVersion": (6, _text),
    "generation": (7, _number),
    "creationTimestamp": (8, _time),
}
_GROUP_VERSION: Final[Table] = {"groupVersion": (1, _text), "version": (2, _text)}
_GROUP: Final[Table] = {
    "name": (1, _text),
    "versions": (2, _repeated(_GROUP_VERSION)),
    "preferredVersion": (3, _nested(_GROUP_VERSION)),
    "serverAddressByClientCIDRs": (
        4,
        _repeated({"clientCIDR": (1, _text), "serverAddress": (2, _text)}),
    ),
}
_DISCOVERED_RESOURCE: Final[Table] = {
    "resource": (1, _text),
    "responseKind": (2, _pointer({"group": (1, _text), "version": (2, _text), "kind": (3, _text)})),
    "scope": (3, _text),
    "singularResource": (4, _text),
    "verbs": (5, _texts),
}
_DISCOVERED_VERSION: Final[Table] = {
    "version": (1, _text),
    "resources": (2, _repeated(_DISCOVERED_RESOURCE)),
    "freshness": (3, _text),
}
_KINDS: Final[Mapping[str, Table]] = {
    "ExternalMetricValueList": {
        "metadata": (1, _nested(_LIST_META)),
        "items": (
            2,
            _repeated(
                {
                    "metricName": (1, _text),
                    "metricLabels": (2, _string_map),
                    "timestamp": (3, _time),
                    "window": (4, _optional_number),
                    "value": (5, _quantity),
                }
            ),
        ),
    },
    "Status": {
        "metadata": (1, _nested(_LIST_META)),
        "status": (2, _text),
        "message": (3, _text),
        "reason": (4, _text),
        "details": (
            5,
            _pointer(
                {
                    "name": (1, _text),
                    "group": (2, _text),
                    "kind": (3, _text),
                    "causes": (
                        4,
                        _repeated(
                            {"reason": (1, _text), "message": (2, _text), "field": (3, _text)}
                        ),
                    ),
                    "retryAfterSeconds": (5, _number),
                    "uid": (6, _text),
                }
            ),
        ),
        "code": (6, _number),
    },
    "APIResourceList": {
        "groupVersion": (1, _text),
        "resources": (
            2,
            _repeated(
                {
                    "name": (1, _text),
                    "namespaced": (2, _number),
                    "kind": (3, _text),
                    "verbs": (
                        4,
                        lambda verbs: ((_BYTES, _message({"v": verbs}, {"v": (1, _texts)})),),
                    ),
                    "singularName": (6, _text),
                    "group": (8, _text),
                    "version": (9, _text),
                    "storageVersionHash": (10, _text),
                }
            ),
        ),
    },
    "APIGroup": _GROUP,
    "APIGroupList": {"groups": (1, _repeated(_GROUP))},
    "APIGroupDiscoveryList": {
        "metadata": (1, _nested(_LIST_META)),
        "items": (
            2,
            _repeated(
                {
                    "metadata": (1, _nested(_OBJECT_META)),
                    "versions": (2, _repeated(_DISCOVERED_VERSION)),
                }
            ),
        ),
    },
}
