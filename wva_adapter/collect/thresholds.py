"""llm-d's two ConfigMaps of thresholds: which values they set, for whom, and what is wrong in them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import Field

from wva_adapter.core.policies import Override, Policies
from wva_adapter.documents import Duration, Section, parse_document
from wva_adapter.errors import ConfigError
from wva_adapter.kube.meta import ObjectKey

SATURATION: Final = "wva-saturation-scaling-config"
SCALE_TO_ZERO: Final = "wva-model-scale-to-zero-config"
NAMES: Final = (SATURATION, SCALE_TO_ZERO)

_DEFAULT: Final = "default"


class _Entry(Section):
    """What every entry may say: for whom it is."""

    model_id: str | None = None
    namespace: str | None = None


class _Sleep(Section):
    enabled: bool | None = None
    retentionPeriod: Duration | None = None


class _Saturation(_Entry):
    """An entry of the thresholds; what llm-d alone goes by is known, and not taken over."""

    kvCacheThreshold: float | None = None
    queueLengthThreshold: float | None = None
    kvSpareTrigger: float | None = None
    queueSpareTrigger: float | None = None
    scaleUpThreshold: float | None = None
    scaleDownBoundary: float | None = None
    scaleToZero: _Sleep = Field(default_factory=_Sleep)
    analyzerName: Any = None
    analyzers: Any = None
    priority: Any = None
    enableLimiter: Any = None
    enableRescale: Any = None
    limiters: Any = None

    def changes(self) -> Mapping[str, Any]:
        """Return the fields of the policy that it sets."""
        return {
            "kv_cache_threshold": self.kvCacheThreshold,
            "queue_length_threshold": self.queueLengthThreshold,
            "kv_spare_trigger": self.kvSpareTrigger,
            "queue_spare_trigger": self.queueSpareTrigger,
            "scale_up_threshold": self.scaleUpThreshold,
            "scale_down_boundary": self.scaleDownBoundary,
            "scale_to_zero": self.scaleToZero.enabled,
            "retention_s": self.scaleToZero.retentionPeriod,
        }


class _ScaleToZero(_Entry):
    """An entry of the rest at zero."""

    enable_scale_to_zero: bool | None = None
    retention_period: Duration | None = None

    def changes(self) -> Mapping[str, Any]:
        """Return the fields of the policy that it sets."""
        return {"scale_to_zero": self.enable_scale_to_zero, "retention_s": self.retention_period}


_SHAPES: Final[Mapping[str, type[_Saturation | _ScaleToZero]]] = {
    SCALE_TO_ZERO: _ScaleToZero,
    SATURATION: _Saturation,
}
"""The later one wins where both say something of the same: so does llm-d's."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What the ConfigMaps set.

    Attributes:
        overrides: One per entry that sets anything, by its source.
        problems: A sentence per entry that is refused; the one it had before holds.
    """

    overrides: Mapping[str, Override] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


def read_thresholds(
    maps: Mapping[ObjectKey, Mapping[str, str]],
    base: Policies,
    *,
    system: str | None,
    local: Callable[[str], bool],
    before: Thresholds,
) -> Thresholds:
    """Return what the ConfigMaps of all namespaces set.

    Each entry inherits what it does not set: from its map's ``default``, and that of a namespace
    from those for all. What was deleted is gone, with nothing else; what became wrong is refused
    by name, alone, and stays what it was when it was right.

    Args:
        maps: Data of the ConfigMaps; others than the two are not looked at.
        base: What the settings say.
        system: The namespace whose ConfigMaps hold for all; ``None`` for none.
        local: Whether a namespace may have ConfigMaps of its own.
        before: What this returned the last time.
    """
    accepted: dict[str, Override] = {}
    problems: list[str] = []
    for where, key, text in _entries(maps, system, local):
        source = f"configmap {where.namespace}/{where.name} {key}"
        try:
            candidate = _override(where, key, text, source, is_local=where.namespace != system)
            _check(base, accepted, candidate)
        except ConfigError as error:
            problems.append(str(error))
            kept = before.overrides.get(source)
            if kept is None or not _fits(base, accepted, kept):
                continue
            candidate = kept
        if candidate.changes:
            accepted[source] = candidate
    return Thresholds(accepted, tuple(problems))


def _entries(
    maps: Mapping[ObjectKey, Mapping[str, str]], system: str | None, local: Callable[[str], bool]
) -> Iterable[tuple[ObjectKey, str, str]]:
    """Yield where, key and text of each entry: those for all first, defaults before the others."""
    for where in sorted(maps, key=lambda w: (w.namespace != system, w.namespace, _rank(w.name))):
        if where.name not in _SHAPES or not (where.namespace == system or local(where.namespace)):
            continue
        for key in sorted(maps[where], key=lambda k: (k != _DEFAULT, k)):
            yield where, key, maps[where][key]


def _rank(name: str) -> int:
    return list(_SHAPES).index(name) if name in _SHAPES else len(_SHAPES)


def _override(where: ObjectKey, key: str, text: str, source: str, *, is_local: bool) -> Override:
    entry = parse_document(text, _SHAPES[where.name], source)
    namespace = entry.namespace
    if key == _DEFAULT and (entry.model_id is not None or namespace is not None):
        raise ConfigError(
            f"{source}: model_id or namespace in it, want them in other entries alone"
        )
    if key != _DEFAULT and entry.model_id is None:
        raise ConfigError(f"{source}: model_id: missing; only {_DEFAULT} holds for all models")
    if is_local:
        if namespace not in (None, where.namespace):
            raise ConfigError(
                f"{source}: namespace: found {namespace!r}, want {where.namespace!r}, its own"
            )
        namespace = where.namespace
    changes = {name: value for name, value in entry.changes().items() if value is not None}
    return Override(
        source=source,
        changes=changes,
        namespace=namespace,
        model_id=entry.model_id,
        local=is_local,
    )


def _check(base: Policies, accepted: Mapping[str, Override], candidate: Override) -> None:
    """Refuse an entry with which a policy would contradict itself somewhere."""
    try:
        Policies(base.default, (*base.overrides, *accepted.values(), candidate))
    except ValueError as error:
        raise ConfigError(_named(str(error), candidate.source)) from None


def _fits(base: Policies, accepted: Mapping[str, Override], kept: Override) -> bool:
    try:
        _check(base, accepted, kept)
    except ConfigError:
        return False
    return True


def _named(problem: str, source: str) -> str:
    return problem if problem.startswith(source) else f"{source}: {problem}"
