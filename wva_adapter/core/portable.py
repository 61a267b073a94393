"""Values of the core as JSON documents and back, exactly and by their declared types."""

from __future__ import annotations

import base64
import math
import types
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

ITEM_BYTES = "item_bytes"
"""Metadata of a field of packed numbers: how many bytes one has. Alike bytes compress together."""

_MOST_BYTES = 2**24
_NAMED = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def to_portable(value: object, kind: Any = None) -> Any:
    """Return what ``json.dumps`` can write and ``from_portable`` reads as an equal value.

    Frozen dataclasses become objects without the fields that are unknown or empty by default;
    numbers that JSON cannot write become their names, packed numbers are compressed.

    Args:
        kind: The type that it is read back as; that of the value where nothing is said.

    Raises:
        TypeError: A type in it has no form.
    """
    return _codec(type(value) if kind is None else kind, 1).encode(value)


def from_portable(kind: Any, document: object) -> Any:
    """Return the value of this type that a document holds.

    Raises:
        ValueError: It holds none; the message names the place, what was found and what was
            expected there.
        TypeError: A type in it has no form.
    """
    try:
        return _codec(kind, 1).decode(document)
    except _Wrong as wrong:
        raise ValueError(str(wrong)) from None


class _Wrong(Exception):
    """Something in a document is not what its type wants; the place grows on the way up."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.place = ""

    def under(self, step: str) -> _Wrong:
        joint = "." if self.place and not self.place.startswith("[") else ""
        self.place = f"{step}{joint}{self.place}"
        return self

    def __str__(self) -> str:
        return f"{self.place}: {self.problem}" if self.place else self.problem


@dataclass(frozen=True, slots=True)
class _Codec:
    encode: Callable[[Any], Any]
    decode: Callable[[Any], Any]


def _same(value: Any) -> Any:
    return value


def _found(document: object, want: str) -> _Wrong:
    shown = repr(document)
    return _Wrong(f"found {shown if len(shown) <= 40 else shown[:37] + '...'}, want {want}")


def _codec(kind: Any, item_bytes: int) -> _Codec:
    return _codecs(kind, item_bytes)


@cache
def _codecs(kind: Any, item_bytes: int) -> _Codec:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind in _PLAIN:
        return _PLAIN[kind]
    if kind is bytes:
        return _packed(item_bytes)
    if origin in (Union, types.UnionType):
        return _optional(kind, arguments, item_bytes)
    if origin is Literal:
        return _one_of({choice: choice for choice in arguments})
    if isinstance(kind, type) and issubclass(kind, Enum):
        by_name = _one_of({member.value: member for member in kind})
        return _Codec(lambda member: member.value, by_name.decode)
    if isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_fields"):
        hints = get_type_hints(kind)
        members = [_codec(hints[name], 1) for name in kind._fields]
        # Documents of before a field was added end before it.
        fewest = len(members) - len(getattr(kind, "_field_defaults", ()))
        return _fixed(members, lambda values: kind(*values), fewest)
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return _many(_codec(arguments[0], 1), tuple)
    if origin is tuple:
        return _fixed([_codec(argument, 1) for argument in arguments], tuple)
    if origin is frozenset:
        each = _many(_codec(arguments[0], 1), frozenset)
        return _Codec(lambda values: each.encode(sorted(values)), each.decode)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _mapping(*arguments)
    if isinstance(kind, type) and is_dataclass(kind):
        return _record(kind)
    raise TypeError(f"{kind}: a value of this type has no form in a document")


def _typed(kind: type, want: str) -> _Codec:
    def decode(document: object) -> object:
        if type(document) is not kind:
            raise _found(document, want)
        return document

    return _Codec(kind, decode)


def _encode_float(value: float) -> float | str:
    if type(value) is int:
        return value
    value = float(value)
    return value if math.isfinite(value) else str(value)


def _decode_float(document: object) -> float:
    if type(document) is float or type(document) is int:
        return document
    if isinstance(document, str) and document in _NAMED:
        return _NAMED[document]
    raise _found(document, "a number")


_PLAIN: Mapping[Any, _Codec] = {
    float: _Codec(_encode_float, _decode_float),
    int: _typed(int, "a whole number"),
    str: _typed(str, "text"),
    bool: _typed(bool, "true or false"),
}


def _optional(kind: Any, arguments: tuple[Any, ...], item_bytes: int) -> _Codec:
    present = [argument for argument in arguments if argument is not types.NoneType]
    if len(present) > 1 and all(is_dataclass(one) for one in present):
        return _one_record_of(present)
    if len(present) != 1:
        raise TypeError(f"{kind}: which of the types a document holds cannot be told")
    inner = _codec(present[0], item_bytes)
    return _Codec(
        lambda value: None if value is None else inner.encode(value),
        lambda document: None if document is None else inner.decode(document),
    )


def _one_record_of(kinds: Sequence[Any]) -> _Codec:
    """A pair of the type's name and the record."""
    codecs = {kind.__name__: _codec(kind, 1) for kind in kinds}

    def encode(value: Any) -> list[Any]:
        name = type(value).__name__
        return [name, codecs[name].encode(value)]

    def decode(document: object) -> object:
        name, record = _listed(document, 2)
        if name not in codecs:
            raise _found(name, f"one of: {', '.join(codecs)}")
        return codecs[name].decode(record)

    return _Codec(encode, decode)


def _one_of(choices: Mapping[Any, Any]) -> _Codec:
    def decode(document: object) -> object:
        if not isinstance(document, str | int) or document not in choices:
            raise _found(document, f"one of: {', '.join(map(str, choices))}")
        return choices[document]

    return _Codec(_same, decode)


def _listed(document: object, length: int | None) -> list[Any]:
    if not isinstance(document, list) or (length is not None and len(document) != length):
        raise _found(document, "a list" if length is None else f"a list of {length}")
    return document


def _many(each: _Codec, collect: Callable[[list[Any]], Any]) -> _Codec:
    def decode(document: object) -> Any:
        values = []
        for number, item in enumerate(_listed(document, None)):
            try:
                values.append(each.decode(item))
            except _Wrong as wrong:
                raise wrong.under(f"[{number}]") from None
        return collect(values)

    return _Codec(lambda values: [each.encode(value) for value in values], decode)


def _fixed(
    members: list[_Codec], collect: Callable[[list[Any]], Any], fewest: int | None = None
) -> _Codec:
    def encode(values: tuple[Any, ...]) -> list[Any]:
        return [member.encode(value) for member, value in zip(members, values, strict=True)]

    def decode(document: object) -> Any:
        values = []
        items = _listed(document, None)
        if not (len(members) if fewest is None else fewest) <= len(items) <= len(members):
            raise _found(document, f"a list of {len(members)}")
        for number, item in enumerate(items):
            try:
                values.append(members[number].decode(item))
            except _Wrong as wrong:
                raise wrong.under(f"[{number}]") from None
        return collect(values)

    return _Codec(encode, decode)


def _mapping(key_kind: Any, value_kind: Any) -> _Codec:
    """Pairs, since few keys are text; their order is kept."""
    pairs = _many(_fixed([_codec(key_kind, 1), _codec(value_kind, 1)], tuple), dict)
    return _Codec(lambda mapping: pairs.encode(mapping.items()), pairs.decode)


def _packed(item_bytes: int) -> _Codec:
    """Bytes, those of equal significance beside each other, compressed, in base 85."""

    def encode(value: bytes) -> str:
        planes = b"".join(value[plane::item_bytes] for plane in range(item_bytes))
        # Noise is written shortest without looking for repetitions, a regular series with.
        found = (_compressed(planes, how) for how in (zlib.Z_RLE, zlib.Z_DEFAULT_STRATEGY))
        return base64.b85encode(min(found, key=len)).decode()

    def decode(document: object) -> bytes:
        if not isinstance(document, str):
            raise _found(document, "packed numbers")
        try:
            unpacker = zlib.decompressobj()
            planes = unpacker.decompress(base64.b85decode(document), _MOST_BYTES)
        except (ValueError, zlib.error) as error:
            raise _Wrong(f"packed numbers cannot be unpacked: {error}") from None
        count, odd = divmod(len(planes), item_bytes)
        if odd or not unpacker.eof:
            raise _Wrong(f"packed numbers of {item_bytes} bytes each are cut or too many")
        value = bytearray(len(planes))
        for plane in range(item_bytes):
            value[plane::item_bytes] = planes[plane * count : (plane + 1) * count]
        return bytes(value)

    return _Codec(encode, decode)


def _compressed(planes: bytes, strategy: int) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS, 9, strategy)
    return packer.compress(planes) + packer.flush()


def _record(kind: type[Any]) -> _Codec:
    hints = get_type_hints(kind)
    members = [
        (field.name, _codec(hints[field.name], field.metadata.get(ITEM_BYTES, 1)), _omitted(field))
        for field in fields(kind)
        if field.init
    ]
    names = {name for name, _, _ in members}

    def encode(value: Any) -> dict[str, Any]:
        document = {}
        for name, codec, omitted in members:
            held = getattr(value, name)
            if omitted is MISSING or (held is not None if omitted is None else held != omitted):
                document[name] = codec.encode(held)
        return document

    def decode(document: object) -> Any:
        if not isinstance(document, dict):
            raise _found(document, f"an object of {kind.__name__}")
        if unknown := document.keys() - names:
            raise _Wrong(f"unknown field {min(unknown)!r}, want of: {', '.join(sorted(names))}")
        values = {}
        for name, codec, omitted in members:
            if name in document:
                try:
                    values[name] = codec.decode(document[name])
                except _Wrong as wrong:
                    raise wrong.under(name) from None
            elif omitted is MISSING:
                raise _Wrong(f"field {name!r} is missing")
        try:
            return kind(**values)
        except ValueError as error:
            raise _Wrong(str(error)) from None

    return _Codec(encode, decode)


def _omitted(field: Field[Any]) -> Any:
    """Return the default that a document leaves out: nothing known, or nothing there.

    Any other default may change from version to version and is written.
    """
    default = field.default
    if default is MISSING and field.default_factory is not MISSING:
        default = field.default_factory()
    if default is None or (
        isinstance(default, str | bytes | tuple | frozenset | Mapping) and not default
    ):
        return default
    return MISSING
