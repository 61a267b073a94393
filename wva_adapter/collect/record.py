"""Recordings: every cycle's snapshot and decisions in a file, a JSON line each, and back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TextIO

from wva_adapter.core import policies as portable_policies
from wva_adapter.core.decision import Plan
from wva_adapter.core.memory import Memory
from wva_adapter.core.policies import Policies
from wva_adapter.core.portable import from_portable, to_portable
from wva_adapter.core.remembered import from_document, to_document
from wva_adapter.core.snapshot import Snapshot
from wva_adapter.errors import CollectError, ConfigError

VERSION: Final = 1
_FORMAT: Final = "wva-adapter recording"


class Recorder:
    """Writes cycles to a file; a file of that name is kept beside it as ``NAME.old``.

    Raises:
        ConfigError: The file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        try:
            if path.exists():
                path.replace(path.with_name(f"{path.name}.old"))
            self._file: TextIO = path.open("w", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"recording {path}: cannot be written: {error.strerror}") from None
        self._policies: Policies | None = None

    def record(self, snapshot: Snapshot, policies: Policies, memory: Memory, plan: Plan) -> None:
        """Append one cycle.

        Args:
            memory: As it was before the cycle; the first one is where a replay starts.

        Raises:
            OSError: The file cannot be written any more.
        """
        if self._policies is None:
            head = {
                "format": _FORMAT,
                "version": VERSION,
                **portable_policies.to_document(policies),
            }
            self._write(head | {"memory": to_document(memory)})
        elif policies != self._policies:
            self._write(portable_policies.to_document(policies))
        self._policies = policies
        self._write({"snapshot": to_portable(snapshot)} | decided(plan))
        self._file.flush()

    def close(self) -> None:
        """End the file."""
        self._file.close()

    def _write(self, document: dict[str, Any]) -> None:
        line = json.dumps(document, allow_nan=False, separators=(",", ":"))
        self._file.write(line + "\n")


@dataclass(frozen=True, slots=True)
class Cycle:
    """One recorded cycle.

    Attributes:
        line: Its line in the file; the first one is 1.
        policies: What it was decided under.
        decided: What was decided, as ``decided`` tells it.
    """

    line: int
    snapshot: Snapshot
    policies: Policies
    decided: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Recording:
    """A recording that was opened.

    Attributes:
        policies: Those at its start.
        memory: The memory at its start.
    """

    path: Path
    policies: Policies
    memory: Memory

    def cycles(self) -> Iterator[Cycle]:
        """Yield the cycles in order.

        Raises:
            CollectError: A line is cut or damaged; what came before it was good.
        """
        policies = self.policies
        with self.path.open(encoding="utf-8", errors="replace") as file:
            next(file)
            for number, line in enumerate(file, start=2):
                document = _parsed(self.path, number, line)
                try:
                    if "snapshot" not in document:
                        policies = portable_policies.from_document(document)
                        continue
                    snapshot = from_portable(Snapshot, document.pop("snapshot"))
                except ValueError as error:
                    raise CollectError(f"{self.path} line {number}", str(error)) from None
                yield Cycle(number, snapshot, policies, document)


def decided(plan: Plan) -> dict[str, Any]:
    """Return what a plan decided, as a recording has it and to compare with it."""
    return {
        "decisions": [to_portable(decision) for decision in plan.decisions.values()],
        "undecided": [[*key, why] for key, why in plan.undecided.items()],
    }


def open_recording(path: Path) -> Recording:
    """Return the recording in a file.

    Raises:
        ConfigError: It cannot be read, or is none of this version.
        CollectError: Its first line is cut.
    """
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            line = file.readline()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    if not line:
        raise ConfigError(f"{path}: empty, want a recording as `serve --record` writes it")
    head = _parsed(path, 1, line)
    if head.get("format") != _FORMAT:
        raise ConfigError(f"{path}: no recording, want a first line of format {_FORMAT!r}")
    if head.get("version") != VERSION:
        found = head.get("version")
        raise ConfigError(f"{path}: recording of version {found!r}, want {VERSION}")
    try:
        policies = portable_policies.from_document(head)
        return Recording(path, policies, from_document(head.get("memory")))
    except ValueError as error:
        raise ConfigError(f"{path} line 1: {error}") from None


def _parsed(path: Path, number: int, line: str) -> dict[str, Any]:
    where = f"{path} line {number}"
    if not line.endswith("\n"):
        raise CollectError(where, "cut: it does not end")
    try:
        document = json.loads(line)
    except ValueError:
        raise CollectError(where, "damaged: not JSON") from None
    if not isinstance(document, dict):
        raise CollectError(where, "damaged: not an object")
    return document
