"""Where trust comes from and how it stays current: the cluster's ConfigMap, watched, and files."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

import msgspec

from wva_adapter.errors import ClusterError, ConfigError
from wva_adapter.kube.api import KubernetesApi, Refused
from wva_adapter.kube.meta import Meta, ObjectKey
from wva_adapter.kube.watch import Watch
from wva_adapter.serve.trust import (
    CONFIG_MAP,
    CONFIG_MAP_NAMESPACE,
    CONFIG_MAP_ROLE,
    Trust,
    trust_of_config_map,
)

log = logging.getLogger(__name__)

_PATH: Final = f"/api/v1/namespaces/{CONFIG_MAP_NAMESPACE}/configmaps"
_NAME: Final = f"{CONFIG_MAP_NAMESPACE}/{CONFIG_MAP}"
_FILES_PERIOD_S: Final = 10.0


class _ConfigMap(msgspec.Struct, frozen=True):
    metadata: Meta
    data: dict[str, str] = {}


class TrustLookup:
    """Keeps trust as the operator's files and the cluster's ConfigMap have it.

    What turns bad later is told of and not followed: the last good trust stays.

    Args:
        files: Reads the files; each half that they give wins over the ConfigMap's.
        api: Where the ConfigMap is; ``None`` where only files count.
        on_trust: Called with the first trust and with each other one after it.

    Raises:
        ConfigError: A file cannot be used.
    """

    def __init__(
        self,
        files: Callable[[], Trust],
        *,
        api: KubernetesApi | None,
        on_trust: Callable[[Trust], None],
        clock: Callable[[], float] = time.monotonic,
        files_period_s: float = _FILES_PERIOD_S,
    ) -> None:
        self._read_files = files
        self._files = files()
        self._found: Trust | None = Trust() if api is None else None
        self._on_trust = on_trust
        self._files_period_s = files_period_s
        self._current: Trust | None = None
        self._problem = f"ConfigMap {_NAME} has not been read yet"
        self._watch: Watch[_ConfigMap] | None = None
        if api is not None:
            self._watch = Watch(
                api,
                _PATH,
                _ConfigMap,
                field_selector=f"metadata.name={CONFIG_MAP}",
                on_change=self._read_config_map,
                clock=clock,
            )
        self._settle()

    def problem(self) -> str | None:
        """Return why it is not known yet whose certificates to believe."""
        return None if self._current is not None else self._problem

    async def run(self) -> None:
        """Follow files and ConfigMap until cancelled.

        Raises:
            ConfigError: The first ConfigMap that was found cannot be used.
        """
        work = [self._follow_files()]
        if self._watch is not None:
            work += [self._watch.run(), self._tell_what_is_missing(self._watch)]
        tasks = [asyncio.create_task(part) for part in work]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow_files(self) -> None:
        while True:
            await asyncio.sleep(self._files_period_s)
            try:
                files = await asyncio.to_thread(self._read_files)
                if files != self._files:
                    self._files = files
                    self._settle()
            except ConfigError as error:
                self._keep_the_last(error)

    async def _tell_what_is_missing(self, watch: Watch[_ConfigMap]) -> None:
        while (error := await watch.listed(tries=1)) is not None:
            self._problem = _in_words(error)
            log.warning("authentication waits", extra={"problem": self._problem})

    def _read_config_map(self) -> None:
        assert self._watch is not None
        found = self._watch.objects.get(ObjectKey(CONFIG_MAP_NAMESPACE, CONFIG_MAP))
        if found is None:
            self._problem = (
                f"there is no ConfigMap {_NAME}: want the one that kube-apiserver makes when it "
                "starts with --client-ca-file or --requestheader-client-ca-file"
            )
            log.warning("authentication waits", extra={"problem": self._problem})
            return
        try:
            self._found = trust_of_config_map(found.data)
            self._settle()
        except ConfigError as error:
            self._keep_the_last(error)

    def _settle(self) -> None:
        if self._found is None:
            return
        trust = self._files.over(self._found).checked()
        if trust != self._current:
            self._current = trust
            self._on_trust(trust)

    def _keep_the_last(self, error: ConfigError) -> None:
        if self._current is None:
            raise error
        log.error("trust stays as it was", extra={"problem": str(error)})


def _in_words(error: ClusterError) -> str:
    if isinstance(error, Refused) and error.status in (401, 403):
        return (
            f"ConfigMap {_NAME} cannot be read ({error}): want a RoleBinding in namespace "
            f"{CONFIG_MAP_NAMESPACE} of Role {CONFIG_MAP_ROLE} to the adapter's service account, "
            "as manifests/base/rbac.yaml has it"
        )
    return f"ConfigMap {_NAME} cannot be read: {error}"
