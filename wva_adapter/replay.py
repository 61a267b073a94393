"""What a recording decides when it is played again, and where that differs from what it holds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from wva_adapter.collect.record import Recording, decided
from wva_adapter.core.decision import Plan
from wva_adapter.core.planner import plan
from wva_adapter.core.policies import Policies
from wva_adapter.errors import CollectError, ConfigError
from wva_adapter.publish.explain import decision_document, load_document


@dataclass(frozen=True, slots=True)
class Replay:
    """A recording, played again.

    Attributes:
        last: The plan of the last cycle that was played.
        line: Its line in the recording.
        cycles: How many cycles were played.
        different: Lines whose decisions are not the recorded ones.
        problem: Why the rest could not be played; ``None`` if it was.
    """

    last: Plan
    line: int
    cycles: int
    different: tuple[int, ...]
    problem: str | None

    def document(self, *, whole: bool) -> dict[str, Any]:
        """Return the last cycle's decisions; how all compare beside them if ``whole``."""
        found: dict[str, Any] = {
            "decisions": [decision_document(d) for d in self.last.decisions.values()],
            "models": [load_document(load) for load in self.last.loads],
        }
        if whole:
            found["cycles"] = self.cycles
            found["different_lines"] = list(self.different)
        return found

    def lines(self, *, whole: bool) -> Iterator[str]:
        """Yield the same for people."""
        if whole:
            same = self.cycles - len(self.different)
            yield f"{same} of {self.cycles} cycles decided as recorded"
            if self.different:
                yield f"others at lines {', '.join(map(str, self.different[:20]))}"
            return
        yield f"line {self.line}:"
        for decision in self.last.decisions.values():
            yield f"{decision.key}: {decision.current} -> {decision.desired}"
            for step in decision.trail:
                yield f"  {step.rule}: {step.before} -> {step.after}, {step.why}"
        for key, why in self.last.undecided.items():
            yield f"{key}: undecided, {why}"


def replay(recording: Recording, *, policies: Policies | None, line: int | None) -> Replay:
    """Play a recording again, up to a line or to its end.

    Args:
        policies: Decide under them; ``None`` for the recorded ones.

    Raises:
        ConfigError: ``line`` holds no cycle.
        CollectError: No cycle could be played at all.
    """
    memory, last, at, count = recording.memory, None, 1, 0
    different: list[int] = []
    problem = None
    try:
        for cycle in recording.cycles():
            if line is not None and cycle.line > line:
                break
            last, memory = plan(cycle.snapshot, policies or cycle.policies, memory)
            at, count = cycle.line, count + 1
            # What the file holds went through JSON, so what it is compared with does too.
            if json.loads(json.dumps(decided(last))) != cycle.decided:
                different.append(cycle.line)
    except CollectError as error:
        problem = f"{error}; the {count} cycles before it were used"
    if line is not None and at != line and problem is None:
        raise ConfigError(f"{recording.path}: line {line} holds no cycle, the last before is {at}")
    if last is None:
        raise CollectError(str(recording.path), problem or "it holds no cycle")
    return Replay(last, at, count, tuple(different), problem)
