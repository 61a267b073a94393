"""What the simulator reads of laws: the rivals that come with the product, and users' own files."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from wva_adapter.documents import Duration, Section, parse_document
from wva_adapter.errors import ConfigError
from wva_adapter.sim.behavior_files import BehaviorFile, to_behavior
from wva_adapter.sim.evaluate import Scope
from wva_adapter.sim.expression import Expression, Known, parse
from wva_adapter.sim.laws import (
    CONSTANTS,
    FLEET,
    HpaLaw,
    Law,
    Remembered,
    StepLaw,
    Target,
    Trigger,
)
from wva_adapter.sim.manifest_laws import manifest_law
from wva_adapter.sim.series import SERIES

Positive = Annotated[float, Field(gt=0)]

_NAME = re.compile(r"[a-z_][a-z0-9_]*")
_KEDA_COOLDOWN_S = 300.0


class _Trigger(Section):
    name: str
    query: str
    target: Positive


class _KedaTrigger(_Trigger):
    type: Literal["AverageValue", "Value"] = "AverageValue"


class _HpaMetric(_Trigger):
    type: Literal["AverageValue", "Value", "Pods", "Utilization"]


class _Keda(Section):
    triggers: Annotated[list[_KedaTrigger], Field(min_length=1)]
    behavior: BehaviorFile | None = None
    cooldown: Duration = _KEDA_COOLDOWN_S


class _Hpa(Section):
    metrics: Annotated[list[_HpaMetric], Field(min_length=1)]
    behavior: BehaviorFile | None = None


class _Remembered(Section):
    start: float
    next: str


class _Controller(Section):
    every: Duration
    replicas: str
    remember: dict[str, _Remembered] = Field(default_factory=dict)
    down_window: Duration = 0.0


class _LawFile(Section):
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")]
    source: Annotated[str, Field(min_length=1)]
    delay: Duration = 10.0
    flow_control: bool = False
    scope: Literal["model", "variant"] = "model"
    let: dict[str, str] = Field(default_factory=dict)
    keda: _Keda | None = None
    hpa: _Hpa | None = None
    controller: _Controller | None = None


def law(name: str) -> Law:
    """Return the rival of this name, such as ``inflight-16``, or the law in the file of this path.

    A file is one of this simulator's own, or a ScaledObject's or HorizontalPodAutoscaler's manifest.

    Raises:
        ConfigError: There is none of this name, or the file is wrong; the message says what there
            is, or which key, what was found and what was expected.
    """
    known = _shipped()
    if name in known:
        return known[name]
    if Path(name).suffix in (".yaml", ".yml"):
        try:
            return parse_law(Path(name).read_text(encoding="utf-8"), name)
        except OSError as error:
            raise ConfigError(f"{name}: cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise ConfigError(f"{name}: cannot be read: not UTF-8 text") from None
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
    raise ConfigError(f"policy {name!r}: unknown; {hint}")


def law_names() -> tuple[str, ...]:
    """Return the names of the rivals that come with the product."""
    return tuple(_shipped())


@cache
def _shipped() -> Mapping[str, Law]:
    folder = resources.files("wva_adapter.sim").joinpath("policies")
    laws = [parse_law(file.read_text(encoding="utf-8"), file.name) for file in folder.iterdir()]
    return {law.name: law for law in sorted(laws, key=lambda law: law.name)}


def parse_law(text: str, file: str) -> Law:
    """Return the law in a YAML text; ``file`` is what errors call it.

    Raises:
        ConfigError: As ``law``.
    """
    found = manifest_law(text, file)
    if found is not None:
        return found
    return _law(parse_document(text, _LawFile, file), file)


def _law(document: _LawFile, file: str) -> Law:
    kinds = [kind for kind in ("keda", "hpa", "controller") if getattr(document, kind) is not None]
    if len(kinds) != 1:
        found = " and ".join(kinds) or "none"
        raise ConfigError(f"{file}: found {found}, want one of keda, hpa and controller")
    names = _Names(file, document.scope)
    remembered = document.controller.remember if document.controller is not None else {}
    for name in remembered:
        names.take(f"controller.remember.{name}", name)
    terms = []
    for name, text in document.let.items():
        terms.append((name, names.parse(f"let.{name}", text)))
        names.take(f"let.{name}", name)
    return Law(
        name=document.name,
        source=document.source,
        acts=_acts(document, names, tuple(terms)),
        delay_s=document.delay,
        flow_control=document.flow_control,
    )


def _acts(
    document: _LawFile, names: _Names, terms: tuple[tuple[str, Expression], ...]
) -> HpaLaw | StepLaw:
    file = names.file
    if document.keda is not None:
        triggers = _triggers(document.keda.triggers, names, "keda.triggers", "zero")
        behavior = to_behavior(document.keda.behavior, f"{file}: keda.behavior")
        return HpaLaw(triggers, behavior, terms, document.keda.cooldown)
    if document.hpa is not None:
        triggers = _triggers(document.hpa.metrics, names, "hpa.metrics", "fails")
        behavior = to_behavior(document.hpa.behavior, f"{file}: hpa.behavior")
        return HpaLaw(triggers, behavior, terms)
    controller = document.controller
    assert controller is not None
    if controller.every <= 0:
        raise ConfigError(f"{file}: controller.every: found 0, want more than 0s")
    return StepLaw(
        names.parse("controller.replicas", controller.replicas),
        controller.every,
        terms,
        tuple(
            Remembered(name, entry.start, names.parse(f"controller.remember.{name}", entry.next))
            for name, entry in controller.remember.items()
        ),
        controller.down_window,
    )


def _triggers(
    found: Sequence[_KedaTrigger | _HpaMetric],
    names: _Names,
    path: str,
    empty: Literal["zero", "fails"],
) -> tuple[Trigger, ...]:
    triggers = []
    for index, trigger in enumerate(found):
        kind: Target = trigger.type
        # A metric of pods is read of the variant's own pods, whatever the others read.
        scope: Scope | None = "variant" if kind in ("Pods", "Utilization") else None
        query = names.parse(f"{path}[{index}].query", trigger.query, scope)
        triggers.append(Trigger(trigger.name, query, trigger.target, kind, empty))
    return tuple(triggers)


class _Names:
    """The names that are known so far in a file."""

    def __init__(self, file: str, scope: Scope) -> None:
        self.file = file
        self._scope = scope
        self._own: list[str] = []

    def take(self, path: str, name: str) -> None:
        """Let what follows use a name.

        Raises:
            ConfigError: It is no name, or it has a meaning already.
        """
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{self.file}: {path}: want a name of a-z, 0-9 and _")
        if name in (*SERIES, *FLEET, *CONSTANTS, *self._own, "model", "variant"):
            raise ConfigError(f"{self.file}: {path}: {name} has a meaning already")
        self._own.append(name)

    def parse(self, path: str, text: str, scope: Scope | None = None) -> Expression:
        """Return the expression.

        Raises:
            ConfigError: It is none; the message names the key and the position.
        """
        known = Known(tuple(SERIES), (*FLEET, *self._own), tuple(CONSTANTS), scope or self._scope)
        try:
            return parse(text, known)
        except ValueError as error:
            raise ConfigError(f"{self.file}: {path}: {error}") from None
