"""Figures in columns, with the ratio to the peer of the same run."""

from __future__ import annotations

from collections.abc import Sequence


def print_table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    cells = [[f"{c:.2f}" if isinstance(c, float) else str(c) for c in row] for row in rows]
    widths = [max(len(line[i]) for line in [list(headings), *cells]) for i in range(len(headings))]
    for line in [list(headings), *cells]:
        first, *rest = (text.ljust(w) if i == 0 else text.rjust(w) for i, (text, w) in enumerate(zip(line, widths, strict=True)))
        print("  ".join([first, *rest]), flush=True)


def verdict(name: str, reached: float, aim: float) -> None:
    """One line: the aim, what was reached, and by how much it falls short if it does."""
    if reached >= aim:
        print(f"{name}: {reached:.1f}x, aim {aim:g}x: reached", flush=True)
    else:
        print(f"{name}: {reached:.1f}x, aim {aim:g}x: short by a factor of {aim / reached:.2f}", flush=True)
