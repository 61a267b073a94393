"""Where the Go programs of the end-to-end tests are: built from their modules once, kept outside the checkout.

``python -m tests.e2e.binaries`` builds what is missing and prints the paths.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class Module:
    """A Go module of this folder and the programs that are built from it.

    Attributes:
        folder: Its name below this folder.
        what: What a person would call the programs.
        version: Of the software that they are.
        packages: By the name of each program, the package that it is built from.
        variables: String variables of packages that the linker sets.
        minutes: How long the first build takes on 2 cores.
    """

    folder: str
    what: str
    version: str
    packages: Mapping[str, str]
    variables: Mapping[str, str]
    minutes: int

    @property
    def source(self) -> Path:
        """Where its go.mod is."""
        return Path(__file__).parent / self.folder

    @property
    def tag(self) -> str:
        """Version, and the hash of the locked dependencies and of the source beside them."""
        digest = hashlib.sha256()
        for name in ("go.mod", "go.sum", "main.go"):
            if (self.source / name).exists():
                digest.update((self.source / name).read_bytes())
        return f"{self.version}-{digest.hexdigest()[:16]}"


CONTROL_PLANE = Module(
    "controlplane",
    "Kubernetes",
    "v1.37.2",
    {"controlplane": "."},
    # Without a version kubectl refuses to print one, and the API server reports v0.0.0.
    {
        f"{package}/version.gitVersion": "v1.37.2"
        for package in ("k8s.io/component-base", "k8s.io/client-go/pkg")
    },
    minutes=10,
)
_KEDA = "github.com/kedacore/keda/v2"
KEDA = Module(
    "keda",
    "KEDA",
    "v2.21.0",
    {"keda-operator": f"{_KEDA}/cmd/operator", "keda-adapter": f"{_KEDA}/cmd/adapter"},
    {f"{_KEDA}/version.Version": "2.21.0"},
    minutes=10,
)


REFERENCE = Module(
    "reference",
    "the test adapter of custom-metrics-apiserver",
    "v1.37.0",
    {"test-adapter": "sigs.k8s.io/custom-metrics-apiserver/test-adapter"},
    {},
    minutes=4,
)


class Keda(NamedTuple):
    """KEDA's programs, and the folder with the definitions of its kinds."""

    operator: Path
    metrics_server: Path
    definitions: Path


def controlplane() -> Path:
    """Return the control plane's binary, built first where it is absent.

    Raises:
        SystemExit: Go is not installed, or the build failed; the message says which.
    """
    return _built(CONTROL_PLANE)["controlplane"]


def reference() -> Path:
    """Return the binary of the adapter that others are measured against, built where it is absent.

    Raises:
        SystemExit: As for ``controlplane``.
    """
    return _built(REFERENCE)["test-adapter"]


def keda() -> Keda:
    """Return KEDA's binaries and definitions, built first where they are absent.

    Raises:
        SystemExit: As for ``controlplane``.
    """
    programs = _built(KEDA)
    definitions = cache_directory() / f"keda-crds-{KEDA.tag}"
    if not definitions.exists():
        command = [_go(), "list", "-m", "-f", "{{.Dir}}", _KEDA]
        listed = subprocess.run(
            command, cwd=KEDA.source, stdout=subprocess.PIPE, text=True, check=False
        )
        if listed.returncode != 0:
            raise SystemExit(f"make e2e: go list of KEDA failed with exit {listed.returncode}")
        with tempfile.TemporaryDirectory(dir=cache_directory()) as partial:
            copied = Path(partial) / "bases"
            copied.mkdir()
            for file in Path(listed.stdout.strip(), "config", "crd", "bases").glob("*.yaml"):
                (copied / file.name).write_bytes(file.read_bytes())
            copied.rename(definitions)
    return Keda(programs["keda-operator"], programs["keda-adapter"], definitions)


def cache_directory() -> Path:
    """Return the folder of built binaries; ``WVA_E2E_CACHE`` moves it."""
    named = os.environ.get("WVA_E2E_CACHE")
    if named:
        return Path(named)
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "wva-adapter-e2e"


def _built(module: Module) -> Mapping[str, Path]:
    """Return where each program of the module is, built first where one is absent."""
    cache = cache_directory()
    targets = {name: cache / f"{name}-{module.tag}" for name in module.packages}
    if not all(target.exists() for target in targets.values()):
        cache.mkdir(parents=True, exist_ok=True)
        print(
            f"building {module.what} {module.version} into {cache} "
            f"(once; about {module.minutes} minutes on 2 cores)",
            file=sys.stderr,
            flush=True,
        )
        with tempfile.TemporaryDirectory(dir=cache) as partial:
            _build(module, Path(partial))
            for name, package in module.packages.items():
                program = package.rpartition("/")[2] if package != "." else module.folder
                # Only a whole binary ever carries the final name.
                (Path(partial) / program).rename(targets[name])
    return targets


def _build(module: Module, folder: Path) -> None:
    command = [_go(), "build", "-trimpath", "-buildvcs=false", "-o", f"{folder}/"]
    variables = " ".join(f"-X {name}={value}" for name, value in module.variables.items())
    command += ["-ldflags", f"-s -w {variables}", *module.packages.values()]
    started = time.monotonic()
    build = subprocess.Popen(command, cwd=module.source, env={**os.environ, "CGO_ENABLED": "0"})
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
        raise SystemExit(f"make e2e: go build of {module.what} failed with exit {status}")
    print(f"built in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)


def _go() -> str:
    go = shutil.which("go")
    if go is None:
        raise SystemExit(
            "make e2e: Go is not installed. The end-to-end tests build a real Kubernetes control "
            "plane and KEDA from their Go modules and need Go 1.26 or newer in PATH; "
            "make check, make test and make demo do not."
        )
    return go


if __name__ == "__main__":
    for built in (controlplane(), *keda()):
        print(built)
