"""``make image``: build the container image, or, where no engine runs, lint the Dockerfile and run
its steps in a clean folder.

Without an engine each stage becomes a folder: ``WORKDIR /app`` is the folder itself, ``COPY`` and
``RUN`` act in it, and the command of the last stage is tried as its ``USER`` with the folder
read-only to it. Only what this Dockerfile uses is understood; anything else fails.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
WORKDIR = "/app"


def main() -> int:
    """Return 0 when the image, or its steps, worked."""
    subprocess.run([Path(sys.executable).parent / "hadolint", ROOT / "Dockerfile"], check=True)
    print("hadolint: no findings")
    for engine in ("docker", "podman"):
        if shutil.which(engine) and _runs(engine):
            subprocess.run([engine, "build", "-t", "wva-adapter:dev", ROOT], check=True)
            return 0
    print("no container engine runs here: the Dockerfile's steps, in a clean folder")
    with tempfile.TemporaryDirectory(prefix="wva-image-") as scratch:
        Path(scratch).chmod(0o755)  # the image's user must be able to reach its stage
        run_steps(Path(scratch))
    return 0


def _runs(engine: str) -> bool:
    return subprocess.run([engine, "info"], capture_output=True, check=False).returncode == 0


def instructions(dockerfile: str) -> Iterator[tuple[str, str]]:
    """Yield each instruction of a Dockerfile with its arguments; comments are left out."""
    for line in dockerfile.replace("\\\n", " ").splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            name, _, rest = line.strip().partition(" ")
            yield name.upper(), rest.strip()


def run_steps(scratch: Path) -> None:
    """Run the Dockerfile's steps below ``scratch`` and try the command of its last stage."""
    stages: dict[str, Path] = {}
    stage, user = scratch, "0:0"
    # How this machine reaches its registries (proxies, roots of trust) is in its environment.
    environment = {k: v for k, v in os.environ.items() if k != "VIRTUAL_ENV"}
    environment["HOME"] = str(scratch)
    entrypoint: list[str] = []
    for name, rest in instructions((ROOT / "Dockerfile").read_text()):
        match name:
            case "FROM":
                alias = rest.split(" AS ")[1] if " AS " in rest else "final"
                stage = stages[alias] = scratch / alias
                stage.mkdir()
            case "WORKDIR":
                assert rest == WORKDIR, rest
            case "ENV":
                environment |= dict(pair.split("=", 1) for pair in shlex.split(rest))
            case "COPY":
                _copy(shlex.split(rest), stage, stages)
            case "RUN":
                print(f"RUN {rest}", flush=True)
                subprocess.run(rest, shell=True, cwd=stage, env=environment, check=True)
            case "USER":
                user = rest
            case "ENTRYPOINT":
                entrypoint = shlex.split(rest.strip("[]").replace(",", " "))
            case "EXPOSE" | "CMD":
                pass
            case _:
                raise SystemExit(f"make image: {name} is not understood, want it added here")
    # The interpreter's first line names the stage it was installed in; an image has one /app.
    program = entrypoint[0].replace(WORKDIR, str(stages["build"]))
    interpreter = Path(program).parent.joinpath("python").resolve()
    uid, gid = (int(part) for part in user.split(":"))
    identity = {"user": uid, "group": gid, "extra_groups": ()}
    if os.geteuid() != 0 or not _open_to_all(interpreter):
        print(f"not tried as {user}: that needs root, and a Python outside a private home")
        identity, user = {}, "the present user"
    out = subprocess.run(
        [program, "config", "--print"],
        cwd="/",
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        **identity,  # type: ignore[call-overload]
    )
    if out.returncode != 0 or "scrape_period" not in out.stdout:
        raise SystemExit(f"make image: the program did not run as {user}:\n{out.stderr}")
    print(f"wva-adapter config --print ran as {user}: {len(out.stdout.splitlines())} lines")


def _open_to_all(path: Path) -> bool:
    return all(folder.stat().st_mode & 0o001 for folder in (path, *path.parents))


def _copy(arguments: list[str], stage: Path, stages: dict[str, Path]) -> None:
    source_root = ROOT
    if arguments[0].startswith("--from="):
        source_root = stages[arguments.pop(0).removeprefix("--from=")]
    *sources, target = arguments
    for source in sources:
        origin = source_root / Path(source.replace(WORKDIR, ".", 1))
        destination = stage / target
        if origin.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(origin, destination, symlinks=True, ignore=ignored)
        else:
            shutil.copy(origin, destination / origin.name)


if __name__ == "__main__":
    sys.exit(main())
