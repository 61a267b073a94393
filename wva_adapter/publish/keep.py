"""What was learned, kept over restarts: where it is written, and what is done with a damaged one."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import json
import logging
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from wva_adapter.core.memory import Memory
from wva_adapter.core.remembered import bounded, from_document, resumed, to_document
from wva_adapter.errors import ClusterError, ConfigError
from wva_adapter.kube.api import KubernetesApi, Refused

log = logging.getLogger(__name__)

_ASIDE: Final = "aside"
_KEY: Final = "memory.json.gz"
_MOST_BYTES: Final = 2**28
_MOST_IN_CONFIG_MAP: Final = 2**20 - 2**12
"""The API server takes 1 MiB of contents; the rest is for whatever else stands in it."""
_CLOCKS_DIFFER_S: Final = 60.0
_LONGEST_WAIT_S: Final = 30.0


class KeepError(Exception):
    """What was kept cannot be read or written; the message says why."""


class Store(Protocol):
    """Where one document outlives the process."""

    @property
    def name(self) -> str:
        """What a person would call it."""
        ...

    async def read(self) -> bytes | None:
        """Return the document; ``None`` where there is none yet.

        Raises:
            KeepError: It cannot be read, now or ever.
            ClusterError: The API server did not answer: it may the next time.
        """
        ...

    async def write(self, document: bytes) -> None:
        """Put this document in place of the one before, whole or not at all.

        Raises:
            KeepError: It cannot be written.
        """
        ...

    async def set_aside(self) -> str:
        """Keep the present document elsewhere, for people to look at; return where.

        Raises:
            KeepError: That is not possible.
        """
        ...


class FileStore:
    """A file, replaced as a whole: a reader, or a start after a crash, finds the old or the new one.

    Raises:
        ConfigError: Its folder is none.
    """

    def __init__(self, path: Path) -> None:
        if not path.parent.is_dir():
            raise ConfigError(f"memory.file: {path.parent} is no folder; want one that is there")
        self._path = path

    @property
    def name(self) -> str:
        """The file's name."""
        return str(self._path)

    async def read(self) -> bytes | None:
        """Return the document; ``None`` where there is no file yet."""
        try:
            return await asyncio.to_thread(self._path.read_bytes)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise KeepError(f"cannot be read: {error.strerror}") from None

    async def write(self, document: bytes) -> None:
        """Put this document in place of the one before, on the disk before its name is."""
        try:
            await asyncio.to_thread(self._replace, document)
        except OSError as error:
            raise KeepError(f"cannot be written: {error.strerror}") from None

    async def set_aside(self) -> str:
        """Rename the file to ``NAME.aside``, in place of an earlier one of that name."""
        aside = self._path.with_name(f"{self._path.name}.{_ASIDE}")
        try:
            await asyncio.to_thread(self._path.replace, aside)
        except OSError as error:
            raise KeepError(f"cannot be renamed to {aside}: {error.strerror}") from None
        return str(aside)

    def _replace(self, document: bytes) -> None:
        beside = self._path.with_name(f"{self._path.name}.new")
        with beside.open("wb") as file:
            file.write(document)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self._path)
        # The rename itself is on the disk once the folder is.
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


class _ConfigMap(msgspec.Struct, rename="camel"):
    binary_data: dict[str, str] = {}


class ConfigMapStore:
    """A ConfigMap that is there: the adapter may change it, and make none.

    Args:
        address: ``NAMESPACE/NAME``; what is set aside goes to ``NAME-aside`` beside it.
    """

    def __init__(self, api: KubernetesApi, address: str) -> None:
        self._api = api
        self._namespace, self._name = address.split("/")

    @property
    def name(self) -> str:
        """What kubectl calls it."""
        return f"configmap {self._namespace}/{self._name}"

    async def read(self) -> bytes | None:
        """Return the document; ``None`` where the ConfigMap is empty.

        Raises:
            KeepError: There is no such ConfigMap, or it may not be read.
            ClusterError: There was no answer.
        """
        packed = await self._packed()
        if not packed:
            return None
        try:
            unpacker = zlib.decompressobj(zlib.MAX_WBITS | 16)
            document = unpacker.decompress(packed, _MOST_BYTES)
        except zlib.error:
            return packed
        # What does not end is handed on as it is: it is no document, and is set aside as such.
        return document if unpacker.eof else packed

    async def write(self, document: bytes) -> None:
        """Put this document in place of the one before."""
        packed = await asyncio.to_thread(gzip.compress, document, mtime=0)
        if len(packed) > _MOST_IN_CONFIG_MAP:
            raise KeepError(
                f"{len(packed) / 2**20:.2f} MiB do not fit a ConfigMap (1 MiB); want memory.file on "
                "a volume instead"
            )
        try:
            await self._patch(self._name, packed)
        except ClusterError as error:
            raise KeepError(f"cannot be written: {error}") from None

    async def set_aside(self) -> str:
        """Copy the contents to ``NAME-aside``."""
        aside = f"{self._name}-{_ASIDE}"
        try:
            await self._patch(aside, await self._packed())
        except ClusterError as error:
            raise KeepError(f"cannot be copied to {aside}: {error}") from None
        return f"configmap {self._namespace}/{aside}"

    async def _packed(self) -> bytes:
        try:
            async with self._api.get(self._path(self._name), {}, timeout_s=10) as response:
                found = msgspec.json.decode(await response.read(), type=_ConfigMap)
        except Refused as error:
            if error.status in (403, 404):
                raise KeepError(f"cannot be read: {error}") from None
            raise
        except msgspec.DecodeError as error:
            raise KeepError(f"cannot be read: {error}") from None
        try:
            return base64.b64decode(found.binary_data.get(_KEY, ""))
        except ValueError as error:
            raise KeepError(f"cannot be read: {error}") from None

    async def _patch(self, name: str, packed: bytes) -> None:
        patch = {"binaryData": {_KEY: base64.b64encode(packed).decode()}}
        await self._api.send(
            "PATCH", self._path(name), patch, content_type="application/merge-patch+json"
        )

    def _path(self, name: str) -> str:
        return f"/api/v1/namespaces/{self._namespace}/configmaps/{name}"


class MemoryKeeper:
    """Restores the memory at the start, and writes it from time to time.

    Args:
        period_s: Seconds of the event loop between two writes.
        clock: Unix time.
    """

    def __init__(self, store: Store, *, period_s: float, clock: Callable[[], float]) -> None:
        self._store = store
        self._period_s = period_s
        self._clock = clock
        self._lost: str | None = None
        self._unwritten: str | None = None

    @property
    def problems(self) -> tuple[str, ...]:
        """Why the past is not known, or not kept, a sentence each."""
        return tuple(f"memory: {one}" for one in (self._lost, self._unwritten) if one is not None)

    async def restore(self) -> Memory:
        """Return what was kept, or a fresh memory: with that, no count falls for a full window.

        Waits while the API server does not answer: it is needed for all else as well.
        """
        wait_s = 1.0
        while True:
            try:
                return await self._restored()
            except ClusterError as error:
                log.warning("memory not read", extra={"problem": str(error), "again_s": wait_s})
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, _LONGEST_WAIT_S)

    async def run(self, memory: Callable[[], Memory | None]) -> None:
        """Write what ``memory`` returns, every period until cancelled; ``None`` is not written."""
        while True:
            await asyncio.sleep(self._period_s)
            await self.save(memory())

    async def save(self, memory: Memory | None) -> None:
        """Write it; what is wrong with that is logged, and told by ``problems``."""
        if memory is None:
            return
        at_s = self._clock()
        try:
            document = await asyncio.to_thread(_written, memory, at_s)
            await self._store.write(document)
        except KeepError as error:
            problem = f"{self._store.name}: {error}; a restart would not know what is learned now"
            if self._unwritten is None:
                log.warning("memory not written", extra={"problem": problem})
            self._unwritten = problem
            return
        if self._unwritten is not None:
            log.info("memory written again", extra={"store": self._store.name})
        self._unwritten = None

    async def _restored(self) -> Memory:
        try:
            found = await self._store.read()
        except KeepError as error:
            return self._careful(f"{self._store.name}: {error}")
        if found is None:
            log.info("no memory kept yet", extra={"store": self._store.name})
            return Memory()
        try:
            memory, gap_s = await asyncio.to_thread(_read, found, self._clock())
        except ValueError as error:
            problem = f"{self._store.name}: {error}"
            try:
                problem += f"; set aside as {await self._store.set_aside()}"
            except KeepError as unmoved:
                problem += f"; {unmoved}"
            return self._careful(problem)
        log.info(
            "memory restored",
            extra={
                "store": self._store.name,
                "age_s": round(gap_s, 1),
                "variants": len(memory.variants),
                "models": len(memory.models),
            },
        )
        return resumed(memory, gap_s)

    def _careful(self, problem: str) -> Memory:
        self._lost = f"{problem}; no count falls before a full window was seen since the start"
        log.error("memory lost", extra={"problem": self._lost})
        return Memory()


def _written(memory: Memory, at_s: float) -> bytes:
    document = {"at_s": at_s, **to_document(bounded(memory))}
    return json.dumps(document, allow_nan=False, separators=(",", ":")).encode()


def _read(text: bytes, now_s: float) -> tuple[Memory, float]:
    """Return the memory and its age in seconds.

    Raises:
        ValueError: It is none of this version, damaged, or of a time that is still to come.
    """
    document: Any = f"{len(text)} bytes"
    with contextlib.suppress(ValueError, RecursionError):
        document = json.loads(text)
    memory = from_document(document)
    at_s = document.get("at_s")
    if type(at_s) not in (int, float):
        raise ValueError(f"at_s: found {at_s!r}, want a number")
    gap_s = now_s - at_s
    if gap_s < -_CLOCKS_DIFFER_S:
        raise ValueError(f"written {-gap_s:.0f} s after now: the clock was set back")
    return memory, gap_s
