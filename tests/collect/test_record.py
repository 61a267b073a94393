"""Recordings of what the adapter saw and decided."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest

from tests.builders import a_replica, a_state, a_variant, filled
from wva_adapter.collect.record import Recorder, decided, open_recording
from wva_adapter.core.memory import Memory
from wva_adapter.core.planner import plan
from wva_adapter.core.policies import Override, Policies
from wva_adapter.core.policies import from_document as policies_from_document
from wva_adapter.core.policies import to_document as policies_to_document
from wva_adapter.core.policy import Policy
from wva_adapter.core.portable import from_portable, to_portable
from wva_adapter.core.snapshot import GatewayState, Snapshot
from wva_adapter.errors import CollectError, ConfigError

CYCLES = 12


def a_recording(
    path: Path, *, policy: Policy | None = None, overrides: tuple[Override, ...] = ()
) -> Path:
    """Twelve cycles of two variants whose load rises; the policy changes after six."""
    policy, memory, recorder = policy or Policy(), Memory(), Recorder(path)
    for number in range(CYCLES):
        if number == 6:
            policy = replace(policy, max_up_step=1)
        at_s = 1.7e9 + 5.1 * number
        states = (
            a_state(a_variant("a"), at_s=at_s, usage=0.08 * number, queue=number % 5),
            a_state(a_variant("b", cost=3.7), at_s=at_s, usage=0.3),
        )
        snapshot = Snapshot(at_s, states)
        before = memory
        policies = Policies(policy, overrides)
        planned, memory = plan(snapshot, policies, memory)
        recorder.record(snapshot, policies, before, planned)
    recorder.close()
    return path


@pytest.mark.parametrize("analysis", ["saturation", "tokens", "demand"])
def test_a_replay_gives_the_recorded_decisions_bit_for_bit(analysis: str, tmp_path: Path) -> None:
    policy = replace(Policy(), analysis=analysis)  # type: ignore[arg-type]
    recording = open_recording(a_recording(tmp_path / "run.jsonl", policy=policy))
    memory, cycles = recording.memory, list(recording.cycles())

    assert [cycle.policies.default.max_up_step for cycle in cycles] == [8] * 6 + [1] * 6
    for cycle in cycles:
        planned, memory = plan(cycle.snapshot, cycle.policies, memory)
        assert json.loads(json.dumps(decided(planned))) == cycle.decided


OVERRIDES = (
    Override(
        source="overrides[0]",
        changes={"analysis": "saturation", "stale_after_s": 30.0, "utilization": None},
        model_id="llama",
    ),
    Override(
        source="configmap chat/thresholds",
        changes={"kv_spare_trigger": 0.7, "scale_to_zero": True},
        namespace="chat",
        local=True,
    ),
    Override(source="overrides[1]", changes={"shadow": True}, namespace="chat", variant="b"),
)


def test_overrides_are_recorded_and_replayed_bit_for_bit(tmp_path: Path) -> None:
    path = a_recording(tmp_path / "run.jsonl", overrides=OVERRIDES)
    recording = open_recording(path)
    memory, plain = recording.memory, recording.memory
    differs = False

    for cycle in recording.cycles():
        assert cycle.policies.overrides == OVERRIDES
        planned, memory = plan(cycle.snapshot, cycle.policies, memory)
        assert json.loads(json.dumps(decided(planned))) == cycle.decided
        without, plain = plan(cycle.snapshot, cycle.policies.default, plain)
        differs |= decided(without) != decided(planned)
    assert differs  # so that a replay that lost the overrides would have been noticed


def test_every_field_of_a_policy_can_be_overridden_in_a_recording() -> None:
    changes = {f.name: getattr(Policy(), f.name) for f in fields(Policy)}
    whole = Policies(Policy(), (Override(source="all", changes=changes, namespace="chat"),))

    document = json.loads(json.dumps(policies_to_document(whole), allow_nan=False))

    assert policies_from_document(document) == whole


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([{"source": "s"}], r"overrides\[0\]: damaged: 'for'"),
        (
            [{"source": "s", "for": [None], "local": False, "changes": {}}],
            r"overrides\[0\]: found \[None\], want a list of 3",
        ),
        (
            [{"source": "s", "for": ["a", None, None], "local": False, "changes": {"no": 1}}],
            r"overrides\[0\]: damaged: 'no'",
        ),
        (
            [{"source": "s", "for": ["a", None, None], "local": False, "changes": {"shadow": 1}}],
            r"overrides\[0\]: found 1, want true or false",
        ),
        (7, r"overrides\[0\]: damaged"),
    ],
)
def test_damaged_overrides_are_named(overrides: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        policies_from_document({"policy": to_portable(Policy()), "overrides": overrides})


def test_what_was_in_flight_is_replayed_and_unknown_where_a_recording_is_older(
    tmp_path: Path,
) -> None:
    path, memory = tmp_path / "run.jsonl", Memory()
    recorder = Recorder(path)
    for at_s, sent in ((0.0, None), (5.0, 7.0)):
        replica = a_replica(at_s=at_s, problem="HTTP 503")
        told = replace(replica, in_flight_requests=sent, in_flight_tokens=sent and 900.0)
        gateway = GatewayState(namespace="chat", model_id="llama", at_s=at_s, queued_requests=0.0)
        snapshot, before = Snapshot(at_s, (a_state(replicas=[told]),), (gateway,)), memory
        planned, memory = plan(snapshot, Policy(), memory)
        recorder.record(snapshot, Policies(Policy()), before, planned)
    recorder.close()

    assert ["in_flight" in line for line in path.read_text().splitlines()] == [False, False, True]
    cycles = list(open_recording(path).cycles())
    read = [cycle.snapshot.variants[0].replicas[0] for cycle in cycles]
    assert [r.in_flight_requests for r in read] == [None, 7.0]
    assert [r.in_flight_tokens for r in read] == [None, 900.0]
    memory = open_recording(path).memory
    for cycle in cycles:
        planned, memory = plan(cycle.snapshot, cycle.policies, memory)
        assert json.loads(json.dumps(decided(planned))) == cycle.decided
    assert "7 in flight there by the gateway" in json.dumps(cycles[1].decided)


def test_every_field_of_a_snapshot_is_carried() -> None:
    full = filled(Snapshot)

    assert from_portable(Snapshot, json.loads(json.dumps(to_portable(full)))) == full


def test_of_a_recording_that_was_cut_the_good_lines_are_read(tmp_path: Path) -> None:
    path = a_recording(tmp_path / "run.jsonl")
    path.write_bytes(path.read_bytes()[:-20])
    cycles = open_recording(path).cycles()

    # The first line is the head and the eighth the changed policy: 14 lines, the last one cut.
    assert [next(cycles).line for _ in range(CYCLES - 1)] == [2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13]
    with pytest.raises(CollectError, match=r"run\.jsonl line 14: cut: it does not end"):
        next(cycles)


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = a_recording(tmp_path / "run.jsonl")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:2], '{"snapshot": {"at_s": "soon"}}\n']))

    with pytest.raises(CollectError, match="line 3: at_s: found 'soon', want a number"):
        list(open_recording(path).cycles())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty, want a recording"),
        ("{}\n", "no recording, want a first line of format 'wva-adapter recording'"),
        (
            '{"format": "wva-adapter recording", "version": 7}\n',
            "recording of version 7, want 1",
        ),
        (
            '{"format": "wva-adapter recording", "version": 1, "policy": {"x": 1}}\n',
            "line 1: unknown field 'x'",
        ),
    ],
)
def test_what_is_no_recording_of_this_version_is_refused(
    text: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "run.jsonl"
    path.write_text(text)

    with pytest.raises(ConfigError, match=message):
        open_recording(path)


def test_a_recording_that_is_there_already_is_kept_beside_the_new_one(tmp_path: Path) -> None:
    path = a_recording(tmp_path / "run.jsonl")
    former = path.read_bytes()

    Recorder(path).close()

    assert path.with_name("run.jsonl.old").read_bytes() == former


def test_a_file_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written: No such file or directory"):
        Recorder(tmp_path / "nowhere" / "run.jsonl")
