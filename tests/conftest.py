"""What every test may ask for."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

# What guards main must not fail by chance: there the same examples are tried every time, and
# everywhere else new ones. How long an example takes says more of the machine than of the code.
settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("here", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "here")


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """Async tests run on uvloop, as the adapter and the emulator do."""
    return "asyncio", {"use_uvloop": True}
