"""The engines whose pages can be read, and which of them wrote a page."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Protocol

from wva_adapter.collect.engines import vllm
from wva_adapter.collect.engines.reading import Reading, inspect_document
from wva_adapter.collect.exposition import Page, Wanted, scan
from wva_adapter.errors import CollectError, ConfigError

__all__ = ["ENGINES", "Engine", "Reading", "detect", "inspect_document", "inspect_page"]

_PREFIXES_SHOWN = 16
_METRIC_PREFIX = re.compile(rb"\n([a-zA-Z][a-zA-Z0-9]{0,31}[:_]?)[a-zA-Z0-9_:]*[ \t{]")


class Engine(Protocol):
    """A module that reads one engine's pages."""

    @property
    def PREFIX(self) -> str:
        """What the names of its metrics start with, and those of no other engine."""
        ...

    @property
    def WANTED(self) -> Wanted:
        """The names of the series that ``read`` looks at."""
        ...

    def read(self, page: Page, *, replica: str, at_s: float) -> Reading:
        """Return what a page of the wanted series says."""
        ...


ENGINES: Mapping[str, Engine] = {"vllm": vllm}


def detect(body: bytes, source: str) -> str:
    """Return the name of the engine that wrote a page, by the prefix of its metrics.

    Raises:
        CollectError: No engine known here writes such metrics; the message says which are there.
    """
    for name, engine in ENGINES.items():
        prefix = engine.PREFIX.encode()
        if body.startswith(prefix) or b"\n" + prefix in body:
            return name
    seen = list(dict.fromkeys(p.decode() for p in _METRIC_PREFIX.findall(b"\n" + body)))
    there = f"it has {', '.join(seen[:_PREFIXES_SHOWN])}" if seen else "it has no metrics"
    expected = ", ".join(f"{engine.PREFIX} ({name})" for name, engine in ENGINES.items())
    raise CollectError(source, f"page of no known engine: {there}; want {expected}")


def inspect_page(body: bytes, engine: str | None, *, at_s: float, source: str) -> Reading:
    """Return what a page says.

    Args:
        body: The page as it came.
        engine: The engine's name; ``None`` to tell it from the page.
        at_s: Unix time at which the page came.
        source: Who wrote it, for errors: a URL or a file's name. It names the replica, too.

    Raises:
        CollectError: The page is of no known engine, cut, or broken in a line that is read.
        ConfigError: There is no engine of this name.
    """
    if engine is not None and engine not in ENGINES:
        raise ConfigError(f"engine {engine!r} is not known; known are {', '.join(ENGINES)}")
    reader = ENGINES[engine or detect(body, source)]
    page = scan(body, reader.WANTED, source)
    try:
        return reader.read(page, replica=source, at_s=at_s)
    except ValueError as error:
        raise CollectError(source, str(error)) from None
