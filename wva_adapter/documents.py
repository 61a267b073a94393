"""Files that people write: YAML read strictly, checked whole against a shape, refused in words."""

from __future__ import annotations

import difflib
import math
import re
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from wva_adapter.errors import ConfigError

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_MOST_SHOWN = 60


def parse_duration_s(text: object) -> float:
    """Return the seconds that ``60s``, ``4m``, ``1h30m`` or ``500ms`` stand for.

    Raises:
        ValueError: It is not written like a duration. A bare number has no unit and is refused.
    """
    if isinstance(text, str):
        parts = _PART.findall(text)
        if parts and "".join(number + unit for number, unit in parts) == text:
            return math.fsum(float(number) * _UNITS_S[unit] for number, unit in parts)
    raise ValueError("want a duration such as 500ms, 60s, 4m or 1h30m")


def format_duration(seconds: float) -> str:
    """Return the seconds as a file would write them."""
    for unit in ("d", "h", "m"):
        if seconds >= _UNITS_S[unit] and seconds % _UNITS_S[unit] == 0:
            return f"{seconds / _UNITS_S[unit]:g}{unit}"
    return f"{seconds:g}s" if seconds >= 1 or seconds == 0 else f"{seconds * 1000:g}ms"


def _duration_or_default(value: object) -> object:
    return None if value is None else parse_duration_s(value)


Duration = Annotated[float, BeforeValidator(_duration_or_default)]
"""Seconds, written with a unit in the file."""


class Section(BaseModel):
    """A part of a document: frozen, and without room for a key that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


Shape = TypeVar("Shape", bound=BaseModel)


def file_stamp(path: Path) -> tuple[int, int, int] | None:
    """Return what changes whenever the file does; ``None`` while it cannot be looked at."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def read_document(path: Path, shape: type[Shape]) -> Shape:
    """Return the file's one document in its shape.

    Raises:
        ConfigError: The file cannot be read, is not YAML, or a key or value in it is wrong; the
            message names each key, what was found and what was expected.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: cannot be read: not UTF-8 text") from None
    return parse_document(text, shape, str(path))


def parse_document(text: str, shape: type[Shape], name: str) -> Shape:
    """Return the document in ``text`` in its shape; ``name`` is what errors call it.

    Raises:
        ConfigError: As ``read_document``.
    """
    document = _parse_yaml(text, name)
    if document is None:
        document = {}
    if not isinstance(document, dict):
        raise ConfigError(f"{name}: found {_shown(document)}, want keys and values")
    try:
        return shape.model_validate(document)
    except ValidationError as error:
        lines = [_in_words(detail, shape) for detail in error.errors(include_url=False)]
        raise ConfigError("\n".join(f"{name}: {line}" for line in lines)) from None


class _UniqueKeys(yaml.SafeLoader):
    """A loader that refuses a key written twice; PyYAML alone lets the last one win silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode):
                if key_node.value in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"key {key_node.value!r} is written twice",
                        problem_mark=key_node.start_mark,
                    )
                seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def _parse_yaml(text: str, name: str) -> object:
    try:
        return yaml.load(text, Loader=_UniqueKeys)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = "" if mark is None else f" line {mark.line + 1}:"
        raise ConfigError(f"{name}:{line} not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: not valid YAML: {error}") from None


def _in_words(detail: ErrorDetails, shape: type[BaseModel]) -> str:
    path = _path(detail["loc"])
    found, kind = _shown(detail["input"]), detail["type"]
    context = detail.get("ctx", {})
    match kind:
        case "extra_forbidden":
            known = _keys_beside(detail["loc"], shape)
            near = difflib.get_close_matches(str(detail["loc"][-1]), known, n=1, cutoff=0.6)
            hint = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(known)}"
            return f"{path}: unknown key{hint}"
        case "missing":
            return f"{path}: missing"
        case "literal_error":
            near = difflib.get_close_matches(
                str(detail["input"]), re.findall(r"'([^']*)'", context["expected"]), n=1
            )
            hint = f"; did you mean {near[0]}?" if near else ""
            return f"{path}: found {found}, want {context['expected']}{hint}"
        case "value_error":
            return f"{path}: found {found}, {context['error']}"
        case "finite_number":
            return f"{path}: found {found}, want a finite number"
        case _ if kind.endswith(("_type", "_parsing")):
            return f"{path}: found {found}, want {_kind_name(kind)}"
        case _:
            want = detail["msg"].removeprefix("Input should be ").removeprefix("Value should have ")
            return f"{path}: found {found}, want {want}"


def _kind_name(kind: str) -> str:
    names = {
        "int": "a whole number",
        "float": "a number",
        "bool": "true or false",
        "string": "text",
        "tuple": "a list",
        "list": "a list",
        "dict": "keys and values",
        "model": "keys and values",
    }
    return names.get(kind.split("_")[0], f"a {kind.split('_')[0]}")


def _path(location: tuple[int | str, ...]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def _keys_beside(location: tuple[int | str, ...], shape: type[BaseModel]) -> list[str]:
    """Return the keys that the section knows in which the unknown one was found."""
    current: type[BaseModel] | None = shape
    for part in location[:-1]:
        if isinstance(part, int) or current is None:
            continue
        field = current.model_fields.get(part)
        current = None if field is None else _section_of(field.annotation)
    if current is None:
        return []
    return [field.alias or name for name, field in current.model_fields.items()]


def _section_of(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = _section_of(inner)
        if found is not None:
            return found
    return None


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _MOST_SHOWN else text[: _MOST_SHOWN - 1] + "…"
