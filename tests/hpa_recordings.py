"""What a real HPA controller made of a value, look after look, and what ``sync`` makes of the same."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from wva_adapter.core.hpa import External, Scale
from wva_adapter.core.hpa_sync import Behavior, Bounds, HpaState, sync
from wva_adapter.sim.behavior_files import BehaviorFile, to_behavior

FILE = Path(__file__).parent / "data" / "hpa-v1.37.2.jsonl"


@dataclass(frozen=True, slots=True)
class Look:
    """One look of the controller.

    Attributes:
        at_s: When it read the metrics.
        status: ``status.replicas`` of the target then.
        values_milli: What it read, one per metric; ``None`` where it got an error.
        count: ``spec.replicas`` after it.
    """

    at_s: float
    status: int
    values_milli: tuple[int | None, ...]
    count: int


@dataclass(frozen=True, slots=True)
class Recording:
    """One autoscaler's history.

    Attributes:
        start: ``spec.replicas`` before the first look.
        ready: Pods of the target that are ready, all the time.
        behavior: As the manifest has it; ``None`` where it has none.
        down_window_s: The controller's own.
    """

    name: str
    minimum: int
    maximum: int
    start: int
    ready: int
    target_type: Literal["AverageValue", "Value"]
    targets_milli: tuple[int, ...]
    behavior: Mapping[str, Any] | None
    down_window_s: float
    looks: tuple[Look, ...]


def differences(recording: Recording) -> list[str]:
    """Return where ``sync`` comes to another count than the controller did."""
    found: list[str] = []
    behavior = behavior_of(recording)
    state, spec = HpaState(), recording.start
    for number, look in enumerate(recording.looks):
        metrics = [
            External(
                f"m{index}",
                () if value is None else (value,),
                target,
                recording.target_type,
                "no value" if value is None else None,
            )
            for index, (value, target) in enumerate(
                zip(look.values_milli, recording.targets_milli, strict=True)
            )
        ]
        synced = sync(
            look.at_s,
            Scale(spec, look.status, recording.ready),
            metrics,
            Bounds(recording.minimum, recording.maximum),
            behavior,
            state,
            down_window_s=recording.down_window_s,
        )
        if synced.replicas != look.count:
            found.append(
                f"{recording.name}, look {number} at {look.at_s:g} s, {spec} replicas: the "
                f"controller set {look.count}, sync {synced.replicas} ({synced.why})"
            )
            # What follows would differ for this reason alone.
            break
        state, spec = synced.state, look.count
    return found


def behavior_of(recording: Recording) -> Behavior | None:
    """Return the behaviour as ``sync`` takes it."""
    if recording.behavior is None:
        return None
    return to_behavior(BehaviorFile.model_validate(recording.behavior), recording.name)


def write(recordings: Iterable[Recording], file: Path) -> None:
    """Write them, a line each."""
    file.write_text(
        "".join(json.dumps(_entry(one), separators=(",", ":")) + "\n" for one in recordings)
    )


def _entry(recording: Recording) -> dict[str, Any]:
    looks = [[look.at_s, look.status, look.values_milli, look.count] for look in recording.looks]
    return {**asdict(recording), "looks": looks}


def read(file: Path) -> list[Recording]:
    """Return what ``write`` wrote."""
    recordings = []
    for line in file.read_text().splitlines():
        entry = json.loads(line)
        looks = tuple(
            Look(at_s, status, tuple(values), count)
            for at_s, status, values, count in entry.pop("looks")
        )
        entry["targets_milli"] = tuple(entry["targets_milli"])
        recordings.append(Recording(**entry, looks=looks))
    return recordings
