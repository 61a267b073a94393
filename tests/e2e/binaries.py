"""Where the control plane's binary is: built from Go modules once, kept outside the checkout.

``python -m tests.e2e.binaries`` builds what is missing and prints the paths.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

KUBERNETES = "v1.37.2"
SOURCE = Path(__file__).parent / "controlplane"
# Without a version kubectl refuses to print one, and the API server reports v0.0.0.
VERSION_FLAGS = " ".join(
    f"-X {package}/version.gitVersion={KUBERNETES}"
    for package in ("k8s.io/component-base", "k8s.io/client-go/pkg")
)


def cache_directory() -> Path:
    """Return the folder of built binaries; ``WVA_E2E_CACHE`` moves it."""
    named = os.environ.get("WVA_E2E_CACHE")
    if named:
        return Path(named)
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "wva-adapter-e2e"


def source_key(folder: Path) -> str:
    """Return the hash of the module's locked dependencies and its own source."""
    digest = hashlib.sha256()
    for name in ("go.mod", "go.sum", "main.go"):
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()[:16]


def controlplane() -> Path:
    """Return the control plane's binary, built first where it is absent.

    Raises:
        SystemExit: Go is not installed, or the build failed; the message says which.
    """
    target = cache_directory() / f"controlplane-{KUBERNETES}-{source_key(SOURCE)}"
    if target.exists():
        return target
    go = shutil.which("go")
    if go is None:
        raise SystemExit(
            "make e2e: Go is not installed. The end-to-end tests build a real Kubernetes control "
            "plane from its Go modules and need Go 1.26 or newer in PATH; "
            "make check, make test and make demo do not."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    print(
        f"building Kubernetes {KUBERNETES} into {target} (once; about 10 minutes on 2 cores)",
        file=sys.stderr,
        flush=True,
    )
    partial = target.with_suffix(f".partial-{os.getpid()}")
    command = [go, "build", "-trimpath", "-buildvcs=false", "-o", str(partial)]
    command += ["-ldflags", f"-s -w {VERSION_FLAGS}", "."]
    started = time.monotonic()
    build = subprocess.Popen(command, cwd=SOURCE, env={**os.environ, "CGO_ENABLED": "0"})
    while True:
        try:
            status = build.wait(timeout=30)
            break
        except subprocess.TimeoutExpired:
            print(
                f"  … still building after {time.monotonic() - started:.0f} s",
                file=sys.stderr,
                flush=True,
            )
    if status != 0:
        partial.unlink(missing_ok=True)
        raise SystemExit(f"make e2e: go build of the control plane failed with exit {status}")
    partial.rename(target)  # only a whole binary ever carries the final name
    print(f"built in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    return target


if __name__ == "__main__":
    print(controlplane())
