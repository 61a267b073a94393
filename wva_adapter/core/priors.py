"""What a replica's times might be before one was ever seen; they need not be right.

A step reads the weights and the KV cache from memory, and computes each token. So what a step
costs at all and what a cached token adds go with the memory's bandwidth; what a request in the
batch and a prompt token add go with the arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass

from wva_adapter.core.capacity import Times


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast one device is, by its vendor's data sheet.

    Attributes:
        bandwidth_tb_s: Memory bandwidth, TB/s.
        tflops: Dense 16-bit matrix arithmetic, Tflop/s.
    """

    bandwidth_tb_s: float
    tflops: float


SPEEDS = {
    "A10": Speed(0.600, 125),
    "A10G": Speed(0.600, 70),
    "A100": Speed(2.039, 312),
    "B200": Speed(8.0, 2250),
    "GAUDI2": Speed(2.46, 432),
    "GAUDI3": Speed(3.7, 1835),
    "GH200": Speed(4.0, 989),
    "H100": Speed(3.35, 989),
    "H200": Speed(4.8, 989),
    "L4": Speed(0.300, 121),
    "L40": Speed(0.864, 181),
    "L40S": Speed(0.864, 362),
    "MI210": Speed(1.6, 181),
    "MI250X": Speed(3.28, 383),
    "MI300X": Speed(5.3, 1307),
    "MI325X": Speed(6.0, 1307),
    "MI355X": Speed(8.0, 2500),
    "RTX-4090": Speed(1.008, 165),
    "RTX-5090": Speed(1.792, 210),
    "T4": Speed(0.320, 65),
    "V100": Speed(0.900, 125),
}
"""Data sheets of NVIDIA (the SXM form where there are several), AMD and Intel."""

UNKNOWN = SPEEDS["A100"]
"""What a device of any other name is taken for."""

_REACHED = 0.75
"""The share of a data sheet's bandwidth and arithmetic that engines reach (Vidur's profiles of
an A100: 0.70–0.78)."""

_OVERHEAD_S = 0.003
"""What the engine's own work adds to a step."""

_ONE_DEVICE_BYTES, _MANY_DEVICES_BYTES = 16e9, 33e9
"""Weights per device: 8 billion of two bytes on one; models that are spread fill the devices more
(70 billion on four, 32 billion on two)."""

_KV_BYTES_ONE, _KV_BYTES_MANY = 131_072.0, 82_000.0
"""KV cache of one token per device: of an 8B model on one, of a 70B model on each of four."""


def speed(accelerator: str | None) -> Speed:
    """Return how fast a device is; a slice of one (``A100-MIG-1g.5gb``) is its share of sevenths."""
    if accelerator is None:
        return UNKNOWN
    device, _, part = accelerator.upper().partition("-MIG-")
    whole = SPEEDS.get(device, UNKNOWN)
    sevenths = part.partition("G.")[0]
    if not (sevenths.isdecimal() and 0 < int(sevenths) <= 7):
        return whole
    share = int(sevenths) / 7
    return Speed(whole.bandwidth_tb_s * share, whole.tflops * share)


def generic_prior(accelerator: str | None, devices: int) -> Times:
    """Return times of the kind of model that is commonly served on so many devices.

    Args:
        accelerator: Device type, such as ``H100``; any other name counts as an A100.
        devices: Devices that one replica occupies; below 1 counts as 1.
    """
    each = speed(accelerator)
    many = devices > 1
    weights = _MANY_DEVICES_BYTES if many else _ONE_DEVICE_BYTES
    kv_bytes = _KV_BYTES_MANY if many else _KV_BYTES_ONE
    bytes_per_s = each.bandwidth_tb_s * 1e12 * _REACHED
    # A token takes two operations per weight, and a weight two bytes.
    token_s = weights / (each.tflops * 1e12 * _REACHED)
    return Times(
        a_s=_OVERHEAD_S + weights / bytes_per_s,
        b_s=token_s,
        c_s=kv_bytes / bytes_per_s,
        d_s=token_s,
    )


def scaled_prior(
    times: Times,
    from_accelerator: str | None,
    to_accelerator: str | None,
    *,
    from_devices: int = 1,
    to_devices: int = 1,
) -> Times:
    """Return times learned on one kind of device as they would be on another, for the same model.

    a and c go with the bandwidth of all devices, b and d with their arithmetic.
    """
    before, after = speed(from_accelerator), speed(to_accelerator)
    devices = max(1, from_devices) / max(1, to_devices)
    memory = devices * before.bandwidth_tb_s / after.bandwidth_tb_s
    arithmetic = devices * before.tflops / after.tflops
    return Times(
        a_s=times.a_s * memory,
        b_s=times.b_s * arithmetic,
        c_s=times.c_s * memory,
        d_s=times.d_s * arithmetic,
    )
