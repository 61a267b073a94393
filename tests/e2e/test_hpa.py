"""The real HPA controller and ours, on the same values at the same times."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from tests.e2e.binaries import controlplane
from tests.e2e.cluster import ControlPlane, tell
from tests.e2e.rehearsal import CASES, LOOKS, MANAGER_FLAGS, SYNC_S, Rehearsal, cases
from tests.hpa_recordings import differences

pytestmark = pytest.mark.anyio


async def test_sync_sets_what_the_controller_sets_for_hundreds_of_autoscalers() -> None:
    with tempfile.TemporaryDirectory(prefix="wva-e2e-hpa-") as folder:
        plane = ControlPlane(
            controlplane(), Path(folder), hpa_sync_s=SYNC_S, manager_flags=MANAGER_FLAGS
        )
        try:
            plane.start()
            recordings = await Rehearsal(plane, cases(CASES, seed=2)).record()
        finally:
            plane.stop()
    # What a busy machine made uncertain is left out; the more it is, the less this proves.
    long = [recording for recording in recordings if len(recording.looks) >= LOOKS // 2]
    looks = sum(len(recording.looks) for recording in recordings)
    tell(f"{looks} looks of {len(recordings)} autoscalers, {len(long)} of them long")
    assert len(long) >= 200
    assert [line for recording in recordings for line in differences(recording)] == []
