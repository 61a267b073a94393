"""What tests of the APIService share: a cluster that has one."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.publish.registry_api import RegistryApi


@pytest.fixture
async def api() -> AsyncIterator[RegistryApi]:
    api = RegistryApi()
    await api.start()
    yield api
    await api.stop()
