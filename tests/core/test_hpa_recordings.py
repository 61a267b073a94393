"""``sync`` against what a real HPA controller did, as ``make e2e`` recorded it."""

from __future__ import annotations

import pytest

from tests.hpa_recordings import FILE, Recording, differences, read

RECORDINGS = read(FILE)


def test_the_recordings_are_many_and_of_many_kinds() -> None:
    assert len(RECORDINGS) >= 200
    assert sum(len(recording.looks) for recording in RECORDINGS) > 4000
    assert {recording.target_type for recording in RECORDINGS} == {"AverageValue", "Value"}
    assert {len(recording.targets_milli) for recording in RECORDINGS} == {1, 2}
    assert sum(recording.behavior is None for recording in RECORDINGS) > 20
    woken = [
        recording
        for recording in RECORDINGS
        for before, after in zip(recording.looks, recording.looks[1:], strict=False)
        if before.count == 0 < after.count
    ]
    assert len(woken) > 5


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda recording: recording.name)
def test_sync_sets_what_the_controller_set(recording: Recording) -> None:
    assert differences(recording) == []
