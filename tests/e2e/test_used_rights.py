"""The rights that the adapter is installed with are those it uses: none is missing, none is left."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from tests.e2e.adapter import NAMESPACE, AdapterProcess, spoil_ca
from tests.e2e.binaries import keda
from tests.e2e.cluster import AUDITED, ControlPlane, tell
from tests.e2e.conftest import MakeStage
from tests.e2e.stage import CHEAP, DEAR

pytestmark = pytest.mark.anyio

Right = tuple[str, str, str]
"""API group, resource, verb."""

ROLES = (
    ("clusterrole", "wva-adapter"),
    ("clusterrole", "wva-adapter-apiservice"),
    ("role", "wva-adapter-memory"),
)


async def granted(plane: ControlPlane) -> set[Right]:
    """Return what the roles of the manifests allow."""
    rights = set()
    for kind, name in ROLES:
        for rule in (await plane.get(kind, name, "-n", NAMESPACE))["rules"]:
            for group in rule["apiGroups"]:
                for resource in rule["resources"]:
                    rights |= {(group, resource, verb) for verb in rule["verbs"]}
    return rights


def asked(plane: ControlPlane, *, since: int = 0) -> dict[Right, set[int]]:
    """Return what the adapter asked of the API server, and with which HTTP statuses.

    Args:
        since: Lines of the record to leave out at its beginning.
    """
    found: dict[Right, set[int]] = {}
    for line in (plane.logs / "audit.log").read_text().splitlines()[since:]:
        event = json.loads(line)
        if event["user"]["username"] == AUDITED and "objectRef" in event:
            thing = event["objectRef"]
            right = (thing.get("apiGroup", ""), thing["resource"], event["verb"])
            found.setdefault(right, set()).add(event["responseStatus"]["code"])
    return found


async def test_every_right_is_used_and_none_is_missing(
    control_plane: ControlPlane, adapter: AdapterProcess, make_stage: MakeStage
) -> None:
    # A cluster in which all there may be is there: KEDA's kinds, and a CA that needs mending.
    await control_plane.kubectl(
        "apply", "--server-side", "-f", str(keda().definitions / "keda.sh_scaledobjects.yaml")
    )
    stage = await make_stage("rights", maxima={CHEAP: 1, DEAR: 1})
    adapter.kill()
    await spoil_ca(control_plane)
    # Before it was registered some roles were not there yet, and it had to do without.
    since = len((control_plane.logs / "audit.log").read_text().splitlines())
    await adapter.start()
    await adapter.until_served(stage.namespace, CHEAP)

    rights = await granted(control_plane)
    began = time.monotonic()
    while unused := rights - asked(control_plane).keys():
        if time.monotonic() - began > 30:
            break
        await asyncio.sleep(1)
    assert not unused, f"no request needed: {sorted(unused)}"

    found = asked(control_plane)
    refused = {r for r, codes in asked(control_plane, since=since).items() if 403 in codes}
    assert not refused, f"missing in the roles: {sorted(refused)}"
    # Beyond these it uses what two roles of Kubernetes itself allow.
    beyond = {right for right in found if right not in rights}
    assert beyond <= {
        ("authentication.k8s.io", "tokenreviews", "create"),
        ("authorization.k8s.io", "subjectaccessreviews", "create"),
        ("", "configmaps", "list"),
        ("", "configmaps", "watch"),
    }
    tell(f"{NAMESPACE}: {len(rights)} rights of its own, all used; {len(beyond)} of Kubernetes'")
