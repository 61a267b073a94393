"""What every test may ask for."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

# What guards main must not fail by chance: there the same examples are tried every time, and
# everywhere else new ones.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """Async tests run on uvloop, as the adapter and the emulator do."""
    return "asyncio", {"use_uvloop": True}
