"""Memory as a document that outlives the process: versioned, exact or of bounded size."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from wva_adapter.core.arrivals import ArrivalHistory
from wva_adapter.core.memory import Memory, ModelMemory
from wva_adapter.core.portable import from_portable, to_portable

VERSION: Final = 2
_FORMAT: Final = "wva-adapter memory"

SHORT_GAP_S: Final = 60.0
"""After a pause of at most so long decisions go on as if there had been none."""

# Bits of the significand that stay: arrivals of 5 s are kept within 3 %, those of a minute, which
# are eight times as many, within an eighth, so that each is one byte. Chance moves them by more.
_FINE_BITS = 4
_COARSE_BITS = 2


def to_document(memory: Memory) -> dict[str, Any]:
    """Return the memory as a JSON-able document, which ``from_document`` reads as an equal one."""
    return {"format": _FORMAT, "version": VERSION, "memory": to_portable(memory)}


def from_document(document: object) -> Memory:
    """Return the memory that a document holds.

    Raises:
        ValueError: It is none, of another version, or damaged; the message says which and where.
            Who asked for it sets it aside and starts with a fresh memory.
    """
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        raise ValueError(f"no memory, or a damaged one: want a document of format {_FORMAT!r}")
    if document.get("version") != VERSION:
        raise ValueError(f"memory of version {document.get('version')!r}, want {VERSION}")
    try:
        memory = from_portable(Memory, document.get("memory"))
    except ValueError as error:
        raise ValueError(f"memory: {error}") from None
    assert isinstance(memory, Memory)
    return memory


def resumed(memory: Memory, gap_s: float) -> Memory:
    """Return the memory as decisions go on with it after ``gap_s`` seconds without any.

    What replicas had to carry in a long gap nobody saw, so that a small need right after it proves
    nothing: each model keeps what it has until a full window was seen again. What was learned of
    capacity, lead times and arrivals stays.
    """
    if gap_s <= SHORT_GAP_S:
        return memory
    # The window of an analysis that did not run before begins with what there is.
    return replace(
        memory, models={key: replace(model, analysis="") for key, model in memory.models.items()}
    )


def bounded(memory: Memory) -> Memory:
    """Return what is worth keeping over a restart, at most 1 MiB per 100 variants as a document.

    Arrivals are rounded, and what single replicas showed last is left out: it is read again
    within one scrape. Bounding twice changes nothing more.
    """
    models = {key: _bounded(model) for key, model in memory.models.items()}
    return replace(memory, models=models, replicas={})


def _bounded(model: ModelMemory) -> ModelMemory:
    return replace(
        model,
        arrivals=_rounded(model.arrivals),
        tokens=replace(model.tokens, read_at_s={}),
    )


def _rounded(history: ArrivalHistory) -> ArrivalHistory:
    if not history.rates:
        return history
    return replace(
        history,
        rates=_round(history.rates, 8, 52, _FINE_BITS),
        presents=_round(history.presents, 8, 52, _FINE_BITS),
        minutes=_round(history.minutes, 2, 10, _COARSE_BITS),
    )


def _round(packed: bytes, item_bytes: int, significand: int, keep: int) -> bytes:
    """Return packed floats rounded to ``keep`` bits of their significand; NaN stays NaN."""
    import numpy as np

    bits = np.frombuffer(packed, f"<u{item_bytes}")
    drop = significand - keep
    dropped = bits.dtype.type((1 << drop) - 1)
    # The largest numbers would round up to infinity, so they are cut.
    highest = np.finfo(f"f{item_bytes}").max.view(bits.dtype) & ~dropped
    rounded = (bits + bits.dtype.type(1 << (drop - 1))) & ~dropped
    numbers = bits <= np.finfo(f"f{item_bytes}").max.view(bits.dtype)
    return np.where(numbers, np.minimum(rounded, highest), bits).tobytes()
