"""Which replica a pod is, and where its metrics page is."""

from __future__ import annotations

import ipaddress
import re
from datetime import datetime

from wva_adapter.collect.assemble import ReplicaView
from wva_adapter.collect.objects import Pod
from wva_adapter.core.snapshot import Phase

METRICS_PORT = "llm-d.ai/metrics-port"

DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"

_DEFAULT_PORT = 8000
"""Where vLLM answers unless told otherwise."""
_NAMED_PORTS = ("metrics", "http", "api")


def read_replica(pod: Pod) -> ReplicaView:
    """Return the replica that a pod is; an address that cannot be used is named and not asked."""
    meta = pod.metadata
    try:
        url, problem = _page_url(pod), None
    except ValueError as error:
        url, problem = None, str(error)
    ready = [c for c in pod.status.conditions if c.type == "Ready" and c.status == "True"]
    since = ready[0].last_transition_time if ready else None
    if meta.deletion_timestamp is not None:
        phase = Phase.TERMINATING
    else:
        phase = Phase.READY if ready else Phase.STARTING
    created = meta.creation_timestamp
    unscheduled, unscheduled_since = _why_unscheduled(pod)
    pulling_since, began_at = _pulled(pod)
    return ReplicaView(
        uid=meta.uid,
        name=meta.name,
        url=url,
        phase=phase,
        created_at_s=None if created is None else created.timestamp(),
        ready_at_s=None if since is None else since.timestamp(),
        problem=problem,
        node=pod.spec.node_name or None,
        unscheduled=unscheduled,
        unscheduled_since_s=None if unscheduled_since is None else unscheduled_since.timestamp(),
        deletion_cost=_deletion_cost(pod),
        ordinal=_ordinal(pod),
        pulling_since_s=None if pulling_since is None else pulling_since.timestamp(),
        began_at_s=None if began_at is None else began_at.timestamp(),
    )


def _deletion_cost(pod: Pod) -> int | None:
    """Return what the annotation says, as the controller reads it: what is no number is nothing."""
    text = pod.metadata.annotations.get(DELETION_COST, "")
    return int(text) if re.fullmatch(r"0|-?[1-9][0-9]{0,9}", text) else None


def _ordinal(pod: Pod) -> int | None:
    """Return the pod's place in its StatefulSet; ``None`` where it belongs to none."""
    name = re.fullmatch(r".+-([0-9]{1,9})", pod.metadata.name)
    owned = any(owner.kind == "StatefulSet" for owner in pod.metadata.owner_references)
    return int(name[1]) if owned and name else None


def _why_unscheduled(pod: Pod) -> tuple[str | None, datetime | None]:
    """Return why the pod has no node, as the scheduler puts it, and since when."""
    if pod.spec.node_name:
        return None, None
    created = pod.metadata.creation_timestamp
    for condition in pod.status.conditions:
        if condition.type == "PodScheduled" and condition.status == "False":
            since = condition.last_transition_time or created
            return ("SchedulingGated" if pod.spec.scheduling_gates else condition.reason), since
    # The gates are there before the scheduler has said anything of them.
    return ("SchedulingGated", created) if pod.spec.scheduling_gates else (None, None)


def _pulled(pod: Pod) -> tuple[datetime | None, datetime | None]:
    """Return from when on the engine's image was pulled, if it was, and when its container began.

    Both are ``None`` where containers were restarted: then nothing tells of the first time.
    """
    engine, before = pod.status.container_statuses, pod.status.init_container_statuses
    began = [one.state.running.started_at for one in engine if one.state.running is not None]
    ended = [one.state.terminated.finished_at for one in before if one.state.terminated is not None]
    scheduled = [
        condition.last_transition_time
        for condition in pod.status.conditions
        if condition.type == "PodScheduled" and condition.status == "True"
    ]
    if not scheduled or any(one.restart_count for one in engine):
        return None, None
    # What runs first, such as a download of the weights, is no pull of the engine's image. One that
    # stays beside the engine (a sidecar) never ends.
    if not began and len(ended) < len(before):
        return None, None
    since = max((time for time in (*scheduled, *ended) if time is not None), default=None)
    # Another container beside the engine may run while the engine's image is still pulled.
    if len(began) < len(engine):
        return since, None
    return since, max((time for time in began if time is not None), default=None)


def _page_url(pod: Pod) -> str:
    """Return where the pod's page is: always on the pod's own address, whatever it says."""
    annotations = pod.metadata.annotations
    if not pod.status.pod_ip:
        raise ValueError("no address yet")
    address = ipaddress.ip_address(pod.status.pod_ip)
    host = f"[{address}]" if address.version == 6 else str(address)
    scheme = annotations.get("prometheus.io/scheme", "http")
    if scheme not in ("http", "https"):
        raise ValueError(f"annotation prometheus.io/scheme: found {scheme!r}, want http or https")
    path = annotations.get("prometheus.io/path", "/metrics")
    if not re.fullmatch(r"/[!-~]*", path):
        raise ValueError(f"annotation prometheus.io/path: found {path!r}, want /PATH")
    return f"{scheme}://{host}:{_page_port(pod)}{path}"


def _page_port(pod: Pod) -> int:
    for name in (METRICS_PORT, "prometheus.io/port"):
        text = pod.metadata.annotations.get(name)
        if text is None:
            continue
        if not re.fullmatch(r"[0-9]{1,5}", text) or not 1 <= int(text) <= 65535:
            raise ValueError(f"annotation {name}: found {text!r}, want a port from 1 to 65535")
        return int(text)
    ports = {
        port.name: port.container_port
        for container in reversed(pod.spec.containers)
        for port in container.ports
    }
    return next((ports[name] for name in _NAMED_PORTS if name in ports), _DEFAULT_PORT)
