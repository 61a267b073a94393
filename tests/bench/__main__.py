"""``make bench``: every figure, side by side in one run, printed and written to build/bench.json.

Each ``bench_*.py`` beside this file has ``rows()``, which measures and returns its rows. An
argument runs only the files whose name contains it.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.bench import Row

FOLDER = Path(__file__).parent
OUT = FOLDER.parent.parent / "build" / "bench.json"


def main(wanted: str) -> int:
    """Return 0 where every figure is within its target, 1 where one is not."""
    rows: list[Row] = []
    for file in sorted(f for f in FOLDER.glob("bench_*.py") if wanted in f.stem):
        print(f"{file.stem} …", file=sys.stderr, flush=True)
        rows += importlib.import_module(f"tests.bench.{file.stem}").rows()
    if not rows:
        print(f"no benchmark is called {wanted!r}", file=sys.stderr)
        return 2
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(rows, indent=2) + "\n")
    table = Table(box=None, header_style="bold")
    for column in ("figure", "value", "against", "ratio", "target", "ok"):
        table.add_column(column, justify="left" if column in ("figure", "ok") else "right")
    for row in rows:
        table.add_row(
            row["name"],
            f"{row['value']:.4g} {row['unit']}",
            "" if row["against"] is None else f"{row['against']:.4g} {row['unit']}",
            "" if row["ratio"] is None else f"{row['ratio']:.3g}x",
            row["target"],
            "yes" if row["ok"] else "NO",
        )
    Console().print(table)
    print(f"written to {OUT.relative_to(FOLDER.parent.parent)}")
    return 0 if all(row["ok"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else ""))
