"""The manifests that the README shows, as they stand there."""

from __future__ import annotations

import re
from typing import Any, Final

import yaml

from tests.e2e.adapter import ROOT

_BLOCK: Final = re.compile(r"^```yaml\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def shown(kind: str) -> list[dict[str, Any]]:
    """Return the objects of this kind in the order in which they are shown, at least one."""
    text = (ROOT / "README.md").read_text()
    documents = [yaml.safe_load(block) for block in _BLOCK.findall(text)]
    found = [document for document in documents if document.get("kind") == kind]
    assert found, f"the README shows no {kind}"
    return found
