"""Runs all benchmarks, or those named: sealed, pull, start, memory, containerd, kbs; or one, with options (`kbs --help`)."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

from bench import containerd, kbs, memory, pull, sealed, start

BENCHMARKS = {
    "sealed": sealed.main,
    "pull": pull.main,
    "start": start.main,
    "memory": memory.main,
    "containerd": containerd.main,
    "kbs": kbs.main,
}


def main(names: list[str]) -> int:
    if len(names) > 1 and names[0] in BENCHMARKS and names[1].startswith("-"):
        return BENCHMARKS[names[0]](names[1:])
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        print(f"error usage: no such benchmark: {', '.join(unknown)}. There are: {', '.join(BENCHMARKS)}.", file=sys.stderr)
        return 2
    status = 0
    for name in names or BENCHMARKS:
        print(f"\n== {name}", flush=True)
        status |= BENCHMARKS[name]([])
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
